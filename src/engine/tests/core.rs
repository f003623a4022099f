//! What the core promises while nothing goes wrong.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

use super::*;

#[test]
fn the_same_seed_gives_the_same_image_in_any_company() {
    let expected = alone(&job(7, 3));
    assert_ne!(expected[0], expected[1], "images of a job differ");
    assert_ne!(expected, alone(&job(8, 3)), "and seeds do");
    for slots in [1, 2, 5] {
        let mut rig = Rig::new(slots);
        let (other, _other) = rig.sample(job(1, 2));
        rig.ticks(3);
        let (_, buffer) = rig.sample(job(7, 3));
        let (_, late) = rig.sample(job(2, 4));
        rig.ticks(4);
        rig.core.cancel(other);
        rig.run();
        assert_eq!(outcome(&buffer), expected, "{slots} slots");
        assert!(is_complete(&late));
    }
}

#[test]
fn a_later_image_of_a_job_is_the_first_of_one_that_starts_there() {
    let whole = alone(&job(7, 3));
    assert_eq!(alone(&SampleJob { first_image: 2, ..job(7, 1) }), whole[2..]);
}

#[test]
fn a_known_prefix_leaves_what_sampling_it_would_have() {
    let expected = alone(&job(7, 1));
    for reproducibility in [Reproducibility::BatchInvariant, Reproducibility::BestEffort] {
        for known in [1, 5, 11] {
            let resumed = with_prefix(&expected[0].0[..known], reproducibility, job(7, 1));
            let mut rig = Rig::new(2);
            let (_, buffer) = rig.sample(resumed);
            let (_, _beside) = rig.sample(job(1, 2));
            rig.run();
            assert_eq!(values(&buffer, 0), expected[0].0[known..], "{reproducibility:?} {known}");
            assert_eq!(buffer.images[0].log_likelihood(), Some(expected[0].1), "of the whole image, to the bit");
            assert_eq!(buffer.sampled(), u64::from(N) - known as u64);
            let absorbed = rig.script.calls(crate::model::scripted::Call::Absorb) > 0;
            assert_eq!(absorbed, reproducibility == Reproducibility::BestEffort);
        }
    }
}

#[test]
fn a_score_is_what_sampling_said() {
    let sampled = alone(&job(7, 5));
    let mut rig = Rig::new(1);
    let (_, mut answer) = rig.score(score_job(sampled.iter().map(|(values, _)| values.clone())));
    rig.run();
    let (scores, _) = answer.try_recv().unwrap().unwrap();
    for (score, (_, log_likelihood)) in scores.iter().zip(&sampled) {
        assert_eq!(score.log_likelihood, *log_likelihood);
        let log_probs = score.log_probs.as_ref().unwrap();
        assert_eq!(log_probs.len(), N as usize);
        assert!((log_probs.iter().map(|&log| f64::from(log)).sum::<f64>() - log_likelihood).abs() < 1e-5);
    }
    assert_eq!(scores.len(), 5);
    let (_, mut answer) = rig.score(ScoreJob { per_value: false, ..score_job([sampled[0].0.clone()]) });
    rig.run();
    assert_eq!(answer.try_recv().unwrap().unwrap().0[0].log_probs, None);
}

/// Ticks after which the reader of a job of this granularity was woken, with as many values known then.
fn wakes(granularity: Granularity, known: usize) -> Vec<u32> {
    let mut rig = Rig::new(2);
    let all = alone(&job(7, 1));
    let mut resumed = with_prefix(&all[0].0[..known], Reproducibility::BestEffort, job(7, 1));
    resumed.granularity = granularity;
    let (_, buffer) = rig.sample(resumed);
    let mut wakes = Vec::new();
    while rig.tick() == Tick::Worked {
        let woken = pin!(buffer.wake.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        let at = known as u32 + buffer.images[0].stored();
        if woken && wakes.last() != Some(&at) {
            wakes.push(at);
        }
    }
    wakes
}

#[test]
fn the_reader_is_woken_when_a_unit_of_its_granularity_is_there() {
    assert_eq!(wakes(Granularity::Value, 0), (1..=12).collect::<Vec<_>>());
    assert_eq!(wakes(Granularity::Pixel, 0), [2, 4, 6, 8, 10, 12]);
    assert_eq!(wakes(Granularity::Row, 0), [4, 8, 12]);
    assert_eq!(wakes(Granularity::Pixel, 3), [4, 6, 8, 10, 12], "units count from the start of the image");
    assert_eq!(wakes(Granularity::Row, 5), [8, 12]);
}

#[test]
fn readers_are_woken_together_once_in_a_while_but_for_the_first_value_and_the_last() {
    PACE.set(Duration::ZERO);
    let mut rig = Rig::new(2);
    let (_, first) = rig.sample(job(7, 1));
    let (mut second, mut woken) = (None, [Vec::new(), Vec::new()]);
    for tick in 1..=15 {
        if tick == 4 {
            second = Some(rig.sample(job(8, 1)).1);
        }
        NOW.set(NOW.get() + Duration::from_micros(250));
        rig.tick();
        for (buffer, woken) in [Some(&first), second.as_ref()].into_iter().zip(&mut woken) {
            let Some(buffer) = buffer else { continue };
            if pin!(buffer.wake.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                woken.push(tick);
            }
        }
    }
    // A millisecond for each image: at the fifth tick there are two, at the thirteenth one.
    assert_eq!(woken, [vec![1, 9, 12], vec![4, 9, 13, 15]]);
    rig.run();
}

#[test]
fn milestones_and_counts_are_entered_as_things_happen() {
    let mut rig = Rig::new(2);
    let (_, first) = rig.sample(job(1, 2));
    let all = alone(&job(7, 1));
    let (_, waiting) = rig.sample(with_prefix(&all[0].0[..3], Reproducibility::BestEffort, job(7, 1)));
    rig.ticks(1);
    assert!(first.milestones.admitted.get().is_some() && first.milestones.first_value.get().is_some());
    assert_eq!(first.milestones.prefilled.get(), first.milestones.admitted.get());
    assert_eq!(first.sampled(), 2);
    assert_eq!(waiting.milestones.admitted.get(), None);
    let load = rig.shard.gauges.load(clock());
    assert_eq!((load.running, load.queued, load.slots), (2, 1, 2));
    assert!(load.step > Duration::ZERO && load.since_progress.is_some());
    rig.run();
    let milestones = &waiting.milestones;
    let times = [&milestones.admitted, &milestones.prefilled, &milestones.first_value, &milestones.finished];
    let times = times.map(|time| *time.get().unwrap());
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    assert_eq!(first.peak_batch.load(Ordering::Relaxed), 2);
    assert_eq!(waiting.peak_batch.load(Ordering::Relaxed), 1);
}

#[test]
fn a_cancelled_job_leaves_at_the_next_step_and_is_told() {
    let mut rig = Rig::new(2);
    let (id, buffer) = rig.sample(job(1, 3));
    rig.ticks(2);
    assert_eq!(rig.core.tick(|core| core.cancel(id)), Tick::Worked);
    assert_eq!(buffer.failure.get(), Some(&Error::Cancelled));
    assert_eq!(Arc::strong_count(&buffer), 1, "the engine keeps nothing of it");
    rig.core.cancel(id);
    rig.core.cancel(JobId(99));
    rig.run();
    assert_eq!(rig.script.batches(), [2, 2, 2]);
}

#[test]
fn a_job_cancelled_in_the_tick_that_completes_it_is_cancelled() {
    let mut rig = Rig::new(1);
    let (id, buffer) = rig.sample(job(1, 1));
    rig.ticks(N - 1);
    rig.core.tick(|core| core.cancel(id));
    assert!(!is_complete(&buffer) && buffer.failure.get().is_some());
    rig.run();
}

#[test]
fn neither_sampling_nor_scoring_starves_the_other() {
    let mut rig = Rig::new(2);
    let image = alone(&job(7, 1))[0].0.clone();
    let (_, mut scored) = rig.score(score_job(vec![image; 40]));
    let (_, sampled) = rig.sample(job(1, 6));
    let (mut samples, mut scores) = (0, 0);
    for _ in 0..12 {
        let before = sampled.sampled();
        rig.ticks(1);
        if sampled.sampled() > before {
            samples += 1;
        } else {
            scores += 1;
        }
    }
    assert!(samples >= 3 && scores >= 3, "{samples} steps, {scores} slices");
    rig.run();
    assert!(is_complete(&sampled) && scored.try_recv().unwrap().is_ok());
}

#[test]
fn a_job_cancelled_in_the_course_of_a_pass_leaves_the_others_scores_alone() {
    let sampled = alone(&job(7, 2));
    let mut rig = Rig::new(1);
    let (given_up, mut gone) = rig.score(score_job([sampled[0].0.clone()]));
    let (_, mut answer) = rig.score(score_job([sampled[1].0.clone()]));
    rig.ticks(1);
    rig.core.cancel(given_up);
    rig.run();
    assert_eq!(gone.try_recv().unwrap(), Err(Error::Cancelled));
    assert_eq!(answer.try_recv().unwrap().unwrap().0[0].log_likelihood, sampled[1].1);
}

#[test]
fn a_core_that_goes_tells_everyone() {
    let mut rig = Rig::new(1);
    let (_, buffer) = rig.sample(job(1, 2));
    let (_, mut answer) = rig.score(score_job([vec![0; N as usize]]));
    rig.ticks(1);
    drop(rig);
    engine_fault(buffer.failure.get());
    engine_fault(answer.try_recv().unwrap().err().as_ref());
}
