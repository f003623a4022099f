//! Named scenarios, and a random walk that checks what must hold after every operation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::job::Class;

fn config() -> Config {
    Config { slots: 3, values: 6, values_per_step: 1, score_share: 0.25, score_images: 2, absorb_ranks: 2 }
}

const SAMPLE: Work = Work::Sample { prefix: 0, replay: false };

/// Carries a plan out without a fault: each kind of work takes one millisecond, a scoring slice moves two ranks.
fn done(plan: &Plan) -> Outcome {
    let spent = |busy: bool| Duration::from_millis(u64::from(busy));
    Outcome {
        failed: Vec::new(),
        scored_to: plan.score.as_ref().map_or(0, |slice| slice.from + 2),
        sampling: spent(!plan.advance.is_empty() || plan.absorb.is_some()),
        scoring: spent(plan.score.is_some()),
    }
}

fn tick(scheduler: &mut Scheduler) -> (Plan, Vec<Transition>) {
    let plan = scheduler.plan();
    let transitions = scheduler.commit(&plan, &done(&plan));
    (plan, transitions)
}

fn run_until_idle(scheduler: &mut Scheduler) -> Vec<Transition> {
    let mut all = Vec::new();
    while !scheduler.is_idle() {
        all.extend(tick(scheduler).1);
    }
    all
}

fn image(job: u64, index: u32) -> ImageKey {
    ImageKey { job: JobId(job), index }
}

#[test]
fn images_join_and_leave_at_any_step() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(JobId(1), 0..1, SAMPLE, Class::Interactive);
    assert_eq!(tick(&mut scheduler).0.advance, [Advance { slot: Slot(0), image: image(1, 0), rank: 0 }]);
    scheduler.submit(JobId(2), 0..1, SAMPLE, Class::Interactive);
    let (plan, _) = tick(&mut scheduler);
    assert_eq!(plan.admit, [Admission { slot: Slot(1), image: image(2, 0) }]);
    let ranks: Vec<_> = plan.advance.iter().map(|advance| advance.rank).collect();
    assert_eq!(ranks, [1, 0], "unequal ranks in one step");
    let ended = run_until_idle(&mut scheduler);
    assert_eq!(ended, [Transition::Finished(image(1, 0)), Transition::Finished(image(2, 0))]);
}

#[test]
fn a_prefix_is_taken_in_piece_by_piece_and_then_sampling_goes_on() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(JobId(1), 0..1, Work::Sample { prefix: 3, replay: false }, Class::Interactive);
    let pieces: Vec<_> = (0..2).map(|_| tick(&mut scheduler).0.absorb.unwrap().ranks).collect();
    assert_eq!(pieces, [0..2, 2..3]);
    assert_eq!(tick(&mut scheduler).0.advance[0].rank, 3);
}

#[test]
fn a_replayed_prefix_goes_through_the_step() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(JobId(1), 0..1, Work::Sample { prefix: 3, replay: true }, Class::Interactive);
    let (plan, _) = tick(&mut scheduler);
    assert!(plan.absorb.is_none());
    assert_eq!(plan.advance[0].rank, 0);
}

#[test]
fn images_keep_the_indices_they_have_in_their_job() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(JobId(1), 4..6, SAMPLE, Class::Interactive);
    scheduler.submit(JobId(2), 3..3, SAMPLE, Class::Interactive);
    let admitted: Vec<_> = scheduler.plan().admit.iter().map(|admission| admission.image).collect();
    assert_eq!(admitted, [image(1, 4), image(1, 5)]);
}

#[test]
fn a_cancelled_image_leaves_no_transition_and_gives_its_slot_back_with_the_next_plan() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(JobId(1), 0..5, SAMPLE, Class::Interactive);
    let plan = scheduler.plan();
    assert_eq!(scheduler.snapshot(), Snapshot { queued: 2, running: 3, ..Snapshot::default() });
    scheduler.cancel(JobId(1));
    scheduler.cancel(JobId(1));
    assert_eq!(scheduler.commit(&plan, &done(&plan)), []);
    assert!(!scheduler.is_idle(), "three slots have to be closed");
    assert_eq!(scheduler.plan().release, [Slot(0), Slot(1), Slot(2)]);
    assert!(scheduler.is_idle());
}

#[test]
fn a_failed_image_ends_alone() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(JobId(1), 0..2, SAMPLE, Class::Interactive);
    let plan = scheduler.plan();
    let outcome = Outcome { failed: vec![image(1, 0)], ..done(&plan) };
    assert_eq!(scheduler.commit(&plan, &outcome), [Transition::Failed(image(1, 0))]);
    assert_eq!(run_until_idle(&mut scheduler), [Transition::Finished(image(1, 1))]);
}

#[test]
fn batch_work_waits_but_does_not_starve() {
    let mut scheduler = Scheduler::new(Config { slots: 1, ..config() });
    scheduler.submit(JobId(1), 0..2, SAMPLE, Class::Batch);
    scheduler.submit(JobId(2), 0..20, SAMPLE, Class::Interactive);
    let order: Vec<_> = run_until_idle(&mut scheduler)
        .into_iter()
        .map(|transition| match transition {
            Transition::Finished(image) => image.job.0,
            Transition::Failed(image) => panic!("{image:?} failed"),
        })
        .collect();
    let places: Vec<_> = order.iter().enumerate().filter(|(_, job)| **job == 1).map(|(place, _)| place).collect();
    assert_eq!(places, [8, 17]);
}

#[test]
fn a_scoring_pass_keeps_its_images_from_its_first_slice_to_its_last() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(JobId(1), 0..3, Work::Score, Class::Interactive);
    for from in [0, 2, 4] {
        let slice = tick(&mut scheduler).0.score.unwrap();
        assert_eq!(slice, ScoreSlice { images: vec![image(1, 0), image(1, 1)], from });
    }
    assert_eq!(tick(&mut scheduler).0.score.unwrap().images, [image(1, 2)]);
}

#[test]
fn a_scoring_pass_that_does_not_move_fails_instead_of_going_on_for_ever() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(JobId(1), 0..1, Work::Score, Class::Interactive);
    let plan = scheduler.plan();
    let stuck = Outcome { scored_to: 0, ..done(&plan) };
    assert_eq!(scheduler.commit(&plan, &stuck), [Transition::Failed(image(1, 0))]);
    assert!(scheduler.is_idle());
}

/// Ticks of a thousand in which sampling and scoring both wait, a slice taking `slice` steps' time; the share scoring got.
fn scoring_share(slice: u32) -> f64 {
    let mut scheduler = Scheduler::new(Config { values: 1_000_000, ..config() });
    scheduler.submit(JobId(1), 0..1, SAMPLE, Class::Interactive);
    scheduler.submit(JobId(2), 0..1, Work::Score, Class::Interactive);
    let (mut sampling, mut scoring) = (0.0, 0.0);
    for _ in 0..1000 {
        let plan = scheduler.plan();
        let mut outcome = done(&plan);
        outcome.scoring *= slice;
        sampling += outcome.sampling.as_secs_f64();
        scoring += outcome.scoring.as_secs_f64();
        scheduler.commit(&plan, &outcome);
    }
    scoring / (sampling + scoring)
}

#[test]
fn scoring_and_sampling_both_get_their_share_whatever_a_slice_costs() {
    for slice in [1, 7, 50] {
        let share = scoring_share(slice);
        assert!((share - 0.25).abs() < 0.06, "a slice of {slice} steps: {share}");
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Submit {
        images: u32,
        work: Work,
        class: Class,
    },
    Cancel(u64),
    /// Plan, cancel a job between execution and commit, fail the n-th image of the plan, commit.
    Tick {
        cancel: u64,
        fail: Option<usize>,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let work = prop_oneof![
        Just(Work::Score),
        (0u32..6, any::<bool>()).prop_map(|(prefix, replay)| Work::Sample { prefix, replay })
    ];
    let class = prop_oneof![Just(Class::Interactive), Just(Class::Batch)];
    prop_oneof![
        (0u32..5, work, class).prop_map(|(images, work, class)| Operation::Submit { images, work, class }),
        (0u64..20).prop_map(Operation::Cancel),
        (0u64..40, prop::option::of(0usize..8)).prop_map(|(cancel, fail)| Operation::Tick { cancel, fail }),
        (0u64..40, prop::option::of(0usize..8)).prop_map(|(cancel, fail)| Operation::Tick { cancel, fail }),
    ]
}

/// What the walk knows from outside about every image.
#[derive(Default)]
struct Ledger {
    alive: BTreeSet<ImageKey>,
    works: BTreeMap<JobId, (Work, Class)>,
    ranks: BTreeMap<ImageKey, Rank>,
    open: BTreeMap<Slot, ImageKey>,
    /// Highest image admitted so far, for each class; ids grow with time, so FIFO means it only grows.
    last_admitted: [Option<ImageKey>; 2],
}

impl Ledger {
    fn drop_job(&mut self, job: u64) {
        self.alive.retain(|image| image.job != JobId(job));
    }

    fn check(&mut self, plan: &Plan) {
        for slot in &plan.release {
            assert!(self.open.remove(slot).is_some(), "{slot:?} was not open");
        }
        for Admission { slot, image } in &plan.admit {
            assert!(self.alive.contains(image));
            assert!(self.open.insert(*slot, *image).is_none(), "{slot:?} holds two images");
            let last = &mut self.last_admitted[usize::from(self.works[&image.job].1 == Class::Batch)];
            assert!(*last < Some(*image), "{image:?} overtook {last:?}");
            *last = Some(*image);
        }
        let absorbed =
            plan.absorb.iter().map(|absorb| (absorb.slot, absorb.image, absorb.ranks.start, absorb.ranks.end));
        let advanced = plan.advance.iter().map(|advance| (advance.slot, advance.image, advance.rank, advance.rank + 1));
        let mut seen = BTreeSet::new();
        for (slot, image, from, to) in absorbed.chain(advanced) {
            assert!(seen.insert(slot), "{slot:?} twice in a plan");
            assert_eq!(self.open.get(&slot), Some(&image));
            let rank = self.ranks.entry(image).or_default();
            assert_eq!(*rank, from, "ranks are taken one after the other");
            assert!(from < to && to <= config().values);
            *rank = to;
        }
    }

    fn end(&mut self, transitions: Vec<Transition>) {
        for transition in transitions {
            let (Transition::Finished(image) | Transition::Failed(image)) = transition;
            assert!(self.alive.remove(&image), "{image:?} ended twice, or after it was cancelled");
        }
    }
}

proptest! {
    #[test]
    fn what_must_always_hold(operations in prop::collection::vec(operation(), 1..200)) {
        let mut scheduler = Scheduler::new(config());
        let mut ledger = Ledger::default();
        let mut next_job = 0;
        let finish = (0..400).map(|_| Operation::Tick { cancel: u64::MAX, fail: None });
        for operation in operations.into_iter().chain(finish) {
            match operation {
                Operation::Submit { images, work, class } => {
                    let images = next_job as u32..next_job as u32 + images;
                    scheduler.submit(JobId(next_job), images.clone(), work, class);
                    ledger.works.insert(JobId(next_job), (work, class));
                    ledger.alive.extend(images.map(|index| image(next_job, index)));
                    next_job += 1;
                }
                Operation::Cancel(job) => {
                    scheduler.cancel(JobId(job));
                    ledger.drop_job(job);
                }
                Operation::Tick { cancel, fail } => {
                    let had_work = !ledger.alive.is_empty();
                    let plan = scheduler.plan();
                    prop_assert!(!had_work || plan != Plan::default(), "a plan is empty though there is work");
                    ledger.check(&plan);
                    let mut outcome = done(&plan);
                    let in_plan = plan.advance.iter().map(|advance| advance.image);
                    let in_plan: Vec<_> = in_plan.chain(plan.score.iter().flat_map(|slice| slice.images.clone())).collect();
                    outcome.failed.extend(fail.and_then(|index| in_plan.get(index)));
                    scheduler.cancel(JobId(cancel));
                    ledger.drop_job(cancel);
                    let transitions = scheduler.commit(&plan, &outcome);
                    for failed in &outcome.failed {
                        prop_assert!(!ledger.alive.contains(failed) || transitions.contains(&Transition::Failed(*failed)));
                    }
                    ledger.end(transitions);
                }
            }
            let snapshot = scheduler.snapshot();
            let alive = ledger.alive.len() as u32;
            prop_assert_eq!(snapshot.queued + snapshot.running + snapshot.scoring, alive);
        }
        prop_assert!(ledger.alive.is_empty(), "every image ends");
        prop_assert!(scheduler.is_idle());
        prop_assert!(ledger.open.is_empty(), "every slot is closed");
    }
}
