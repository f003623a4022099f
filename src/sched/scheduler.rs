//! The scheduler: `submit`, `cancel`, `plan`, `commit`.

use std::ops::Range;
use std::time::Duration;

use super::queue::Queue;
use super::{
    Absorb, Admission, Advance, Config, ImageKey, JobId, Outcome, Plan, ScoreSlice, Snapshot, Transition, Work,
};
use crate::image::Rank;
use crate::job::Class;
use crate::model::Slot;

/// What a sampling image brings along.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    values: Rank,
    replay: bool,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Free,
    /// Holds an image that stands at `rank`.
    Held {
        image: ImageKey,
        prefix: Prefix,
        rank: Rank,
    },
    /// The image is gone; the model still has to close the slot.
    Leaving,
}

/// A teacher-forced pass under way; `None` stands for an image that was cancelled in its course.
#[derive(Clone, Debug)]
struct Pass {
    images: Vec<ImageKey>,
    live: Vec<Option<ImageKey>>,
    at: Rank,
}

/// Time each kind of work took since both last waited.
#[derive(Clone, Copy, Debug, Default)]
struct Balance {
    sampling: f64,
    scoring: f64,
}

/// Decides, for one model on one device, which image does what next. See the module.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: Config,
    places: Vec<Place>,
    samples: Queue<Prefix>,
    scores: Queue<()>,
    pass: Option<Pass>,
    balance: Balance,
}

impl Scheduler {
    /// A scheduler without work.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            places: vec![Place::Free; config.slots as usize],
            samples: Queue::new(),
            scores: Queue::new(),
            pass: None,
            balance: Balance::default(),
        }
    }

    /// Queues the images `images` of `job`, whose id must be new here.
    pub fn submit(&mut self, job: JobId, images: Range<u32>, work: Work, class: Class) {
        if images.is_empty() {
            return;
        }
        match work {
            Work::Sample { prefix, replay } => self.samples.push(job, images, Prefix { values: prefix, replay }, class),
            Work::Score => self.scores.push(job, images, (), class),
        }
    }

    /// Takes every image of `job` out: waiting ones vanish, those in a slot give it back with the next plan. No
    /// transition comes of them any more. An unknown job is no error.
    pub fn cancel(&mut self, job: JobId) {
        self.samples.remove(job);
        self.scores.remove(job);
        for place in &mut self.places {
            if matches!(place, Place::Held { image, .. } if image.job == job) {
                *place = Place::Leaving;
            }
        }
        if let Some(pass) = &mut self.pass {
            for image in &mut pass.live {
                image.take_if(|image| image.job == job);
            }
            if pass.live.iter().all(Option::is_none) {
                self.pass = None;
            }
        }
    }

    /// Whether there is nothing to do: no image waits or runs and no slot has to be closed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.has_sampling() && !self.has_scoring() && !self.places.iter().any(|place| matches!(place, Place::Leaving))
    }

    /// Counts, for people and tests.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let in_pass = self.pass.iter().flat_map(|pass| &pass.live).flatten().count();
        Snapshot {
            queued: self.samples.images(),
            queued_batch: self.samples.batch_images(),
            running: self.places.iter().filter(|place| matches!(place, Place::Held { .. })).count() as u32,
            scoring: self.scores.images() + in_pass as u32,
        }
    }

    /// What to do next. Every plan must be committed before the next is made.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        self.release(&mut plan);
        self.admit(&mut plan);
        if self.is_scorings_turn() {
            self.score(&mut plan);
        } else {
            self.sample(&mut plan);
        }
        plan
    }

    /// Takes in what came of `plan` and says which images ended.
    pub fn commit(&mut self, plan: &Plan, outcome: &Outcome) -> Vec<Transition> {
        let mut transitions = Vec::new();
        let failed = |image: &ImageKey| outcome.failed.contains(image);
        let admitted = plan.admit.iter().map(|admission| (admission.slot, admission.image, None));
        let absorbed = plan.absorb.iter().map(|absorb| (absorb.slot, absorb.image, Some(absorb.ranks.end)));
        let step = self.config.values_per_step;
        let advanced = plan.advance.iter().map(|advance| (advance.slot, advance.image, Some(advance.rank + step)));
        for (slot, image, reached) in admitted.chain(absorbed).chain(advanced) {
            let end = self.move_to(slot, image, reached, failed(&image));
            transitions.extend(end);
        }
        if let Some(slice) = &plan.score {
            self.commit_score(slice, outcome, &mut transitions);
        }
        self.weigh(outcome.sampling, outcome.scoring);
        transitions
    }

    /// Moves `image` to rank `reached` if it still holds `slot`, and ends it if it failed or is complete.
    fn move_to(&mut self, slot: Slot, image: ImageKey, reached: Option<Rank>, failed: bool) -> Option<Transition> {
        let place = self.places.get_mut(slot.0 as usize)?;
        let Place::Held { image: held, rank, .. } = place else { return None };
        if *held != image {
            return None;
        }
        *rank = reached.unwrap_or(*rank);
        let end = match (failed, *rank >= self.config.values) {
            (true, _) => Transition::Failed(image),
            (false, true) => Transition::Finished(image),
            (false, false) => return None,
        };
        *place = Place::Leaving;
        Some(end)
    }

    fn commit_score(&mut self, slice: &ScoreSlice, outcome: &Outcome, transitions: &mut Vec<Transition>) {
        // Cancelled as a whole since the plan was made.
        let Some(pass) = &mut self.pass else { return };
        // A pass that does not move would be planned for ever.
        let stuck = outcome.scored_to <= slice.from;
        for image in &mut pass.live {
            let ended = image.take_if(|image| stuck || outcome.failed.contains(image));
            transitions.extend(ended.map(Transition::Failed));
        }
        pass.at = outcome.scored_to;
        if pass.at >= self.config.values {
            transitions.extend(pass.live.iter_mut().filter_map(Option::take).map(Transition::Finished));
        }
        if pass.live.iter().all(Option::is_none) {
            self.pass = None;
        }
    }

    fn release(&mut self, plan: &mut Plan) {
        for (slot, place) in self.places.iter_mut().enumerate() {
            if matches!(place, Place::Leaving) {
                *place = Place::Free;
                plan.release.push(Slot(slot as u32));
            }
        }
    }

    /// Gives the lowest free slots away, so that the batch stays compact.
    fn admit(&mut self, plan: &mut Plan) {
        for (slot, place) in self.places.iter_mut().enumerate() {
            if matches!(place, Place::Free) {
                let Some((image, prefix)) = self.samples.pop() else { return };
                *place = Place::Held { image, prefix, rank: 0 };
                plan.admit.push(Admission { slot: Slot(slot as u32), image });
            }
        }
    }

    fn sample(&self, plan: &mut Plan) {
        for (slot, place) in self.places.iter().enumerate() {
            let Place::Held { image, prefix, rank } = *place else { continue };
            let slot = Slot(slot as u32);
            if rank < prefix.values && !prefix.replay {
                let end = prefix.values.min(rank + self.config.absorb_ranks);
                plan.absorb.get_or_insert(Absorb { slot, image, ranks: rank..end });
            } else {
                plan.advance.push(Advance { slot, image, rank });
            }
        }
    }

    fn score(&mut self, plan: &mut Plan) {
        let pass = match self.pass.take() {
            Some(pass) => pass,
            None => {
                let next = || self.scores.pop().map(|(image, ())| image);
                let images: Vec<_> = std::iter::from_fn(next).take(self.config.score_images as usize).collect();
                Pass { live: images.iter().copied().map(Some).collect(), images, at: 0 }
            }
        };
        plan.score = Some(ScoreSlice { images: pass.images.clone(), from: pass.at });
        self.pass = Some(pass);
    }

    fn has_sampling(&self) -> bool {
        !self.samples.is_empty() || self.places.iter().any(|place| matches!(place, Place::Held { .. }))
    }

    fn has_scoring(&self) -> bool {
        self.pass.is_some() || !self.scores.is_empty()
    }

    /// Whichever kind of work is behind its share goes next; on a tie, sampling.
    fn is_scorings_turn(&self) -> bool {
        let share = self.config.score_share;
        let behind = self.balance.scoring * (1.0 - share) < self.balance.sampling * share;
        self.has_scoring() && (behind || !self.has_sampling())
    }

    /// Remembers who used the time. Old use counts half with every second that passes, and not at all once only one kind
    /// of work is there: nobody saves up a share while idle.
    fn weigh(&mut self, sampling: Duration, scoring: Duration) {
        if !(self.has_sampling() && self.has_scoring()) {
            self.balance = Balance::default();
            return;
        }
        self.balance.sampling += sampling.as_secs_f64();
        self.balance.scoring += scoring.as_secs_f64();
        if self.balance.sampling + self.balance.scoring > 1.0 {
            self.balance.sampling /= 2.0;
            self.balance.scoring /= 2.0;
        }
    }
}
