//! How far a fault of the model reaches: no further than whom it concerns.

use super::*;
use crate::model::scripted::{Call, Fault};
use crate::model::{ModelError, Slot};

fn step_error() -> Fault {
    Fault::Error(ModelError::Step("out of memory".into()))
}

#[test]
fn a_parameter_that_is_not_finite_ends_the_job_of_its_image_alone() {
    let mut rig = Rig::new(4);
    let expected = alone(&job(1, 1));
    let (_, good) = rig.sample(job(1, 1));
    let (_, bad) = rig.sample(job(2, 4));
    rig.ticks(2);
    rig.script.fail(Call::Step, 1, Fault::NotFinite(2));
    rig.run();
    assert!(engine_fault(bad.failure.get()).contains("not finite"));
    assert_eq!(values(&bad, 1).len(), 3, "nothing of the spoilt row was drawn");
    assert_eq!(outcome(&good), expected);
    assert_eq!(rig.script.batches()[4], 1, "its siblings leave with it, and the one in the queue too");
}

#[test]
fn a_prefix_with_a_bad_row_ends_its_job_alone() {
    for (reproducibility, call) in
        [(Reproducibility::BestEffort, Call::Absorb), (Reproducibility::BatchInvariant, Call::Step)]
    {
        let mut rig = Rig::new(2);
        rig.script.fail(call, 0, Fault::NotFinite(0));
        let (_, bad) = rig.sample(with_prefix(&[1, 2, 3], reproducibility, job(7, 1)));
        let (_, good) = rig.sample(job(1, 1));
        rig.run();
        assert!(engine_fault(bad.failure.get()).contains("not finite"));
        assert!(is_complete(&good));
    }
}

#[test]
fn spoilt_slots_end_their_jobs_alone() {
    let mut rig = Rig::new(3);
    let expected = alone(&job(1, 1));
    let (_, good) = rig.sample(job(1, 1));
    let (_, bad) = rig.sample(job(2, 1));
    rig.script.fail(Call::Step, 4, Fault::Error(ModelError::Slots(vec![Slot(1), Slot(2)])));
    rig.run();
    assert!(engine_fault(bad.failure.get()).contains("lost"));
    assert_eq!(outcome(&good), expected, "the rows of the others are good");
}

#[test]
fn a_spoilt_slot_ends_its_job_even_if_the_tick_had_no_part_for_it() {
    let mut rig = Rig::new(2);
    let (_, bad) = rig.sample(job(1, 1));
    let (_, _scored) = rig.score(score_job(vec![vec![0; N as usize]; 2]));
    rig.ticks(1);
    // Sampling had its turn, so this slot is opened in a tick that scores.
    let (_, good) = rig.sample(job(2, 1));
    rig.script.fail(Call::Open, 0, Fault::Error(ModelError::Slots(vec![Slot(0)])));
    rig.ticks(1);
    assert_eq!((rig.script.calls(Call::Score), rig.script.calls(Call::Step)), (1, 1));
    assert!(engine_fault(bad.failure.get()).contains("lost"));
    assert_eq!(rig.shard.gauges.load(clock()).running, 1, "its slot is not held for a phantom");
    rig.run();
    assert!(is_complete(&good));
}

#[test]
fn a_failed_step_ends_its_images_and_the_next_job_goes_on() {
    for fault in [step_error(), Fault::Panic] {
        let mut rig = Rig::new(2);
        let (_, first) = rig.sample(job(1, 1));
        let (_, second) = rig.sample(job(2, 1));
        let (_, queued) = rig.sample(job(3, 1));
        rig.script.fail(Call::Step, 5, fault);
        rig.run();
        assert!(engine_fault(first.failure.get()).contains("failed"));
        engine_fault(second.failure.get());
        assert_eq!(outcome(&queued), alone(&job(3, 1)));
    }
}

fn no_memory() -> Fault {
    Fault::Error(ModelError::Memory("scripted".into()))
}

#[test]
fn a_step_there_is_no_memory_for_is_made_in_halves_and_nobody_notices() {
    let (expected, before) = (alone(&job(1, 5)), 3);
    let mut rig = Rig::new(5);
    let (_, buffer) = rig.sample(job(1, 5));
    rig.ticks(before);
    rig.script.leave_room_for(2);
    rig.run();
    assert_eq!(outcome(&buffer), expected, "to the bit");
    assert_eq!(buffer.failure.get(), None);
    assert_eq!(rig.script.batches()[before as usize..][..5], [5, 2, 3, 1, 2]);
}

#[test]
fn what_does_not_fit_even_alone_ends_alone() {
    let mut rig = Rig::new(4);
    let streams: Vec<_> = (1..5).map(|seed| rig.sample(job(seed, 1)).1).collect();
    rig.ticks(3);
    // All four, the first two, the first.
    (0..3).for_each(|later| rig.script.fail(Call::Step, later, no_memory()));
    rig.run();
    assert_eq!(rig.script.batches()[3..9], [4, 2, 1, 1, 2, 3]);
    assert_eq!(streams[0].failure.get(), Some(&Error::OutOfMemory));
    assert_eq!(values(&streams[0], 0).len(), 3);
    for (seed, stream) in (2..).zip(&streams[1..]) {
        assert_eq!(outcome(stream), alone(&job(seed, 1)));
    }
}

#[test]
fn the_rest_of_a_job_that_does_not_fit_is_not_stepped_any_more() {
    let mut rig = Rig::new(4);
    let (_, bad) = rig.sample(job(1, 3));
    let (_, good) = rig.sample(job(2, 1));
    (0..3).for_each(|later| rig.script.fail(Call::Step, later, no_memory()));
    rig.run();
    assert_eq!(bad.failure.get(), Some(&Error::OutOfMemory));
    assert_eq!(outcome(&good), alone(&job(2, 1)));
    assert_eq!(rig.script.batches()[..4], [4, 2, 1, 1], "its second and third image were gone by then");
}

#[test]
fn want_of_memory_never_ends_the_model() {
    let mut rig = Rig::new(1);
    for call in [Call::Step, Call::Open, Call::Absorb, Call::Step, Call::Open, Call::Absorb] {
        rig.script.fail(call, 0, no_memory());
        let wanted = match call {
            Call::Absorb => with_prefix(&[1], Reproducibility::BestEffort, job(7, 1)),
            _ => job(1, 1),
        };
        let (_, bad) = rig.sample(wanted);
        rig.run();
        assert_eq!(bad.failure.get(), Some(&Error::OutOfMemory), "{call:?}");
    }
    for _ in 0..2 {
        rig.script.fail(Call::Score, 0, no_memory());
        let (_, mut bad) = rig.score(score_job([vec![0; N as usize]]));
        rig.run();
        assert_eq!(bad.try_recv().unwrap().unwrap_err(), Error::OutOfMemory);
    }
    let (_, good) = rig.sample(job(1, 1));
    rig.run();
    assert!(is_complete(&good));
}

#[test]
fn a_slot_that_does_not_open_ends_its_job_alone() {
    for fault in [step_error(), Fault::Panic, Fault::Error(ModelError::Slots(vec![Slot(0)]))] {
        let mut rig = Rig::new(2);
        rig.script.fail(Call::Open, 0, fault);
        let (_, bad) = rig.sample(job(1, 1));
        let (_, good) = rig.sample(job(2, 1));
        rig.run();
        engine_fault(bad.failure.get());
        assert_eq!(outcome(&good), alone(&job(2, 1)));
    }
}

#[test]
fn a_panic_on_absorbing_or_closing_is_contained() {
    let mut rig = Rig::new(1);
    rig.script.fail(Call::Absorb, 0, Fault::Panic);
    let (_, bad) = rig.sample(with_prefix(&[1], Reproducibility::BestEffort, job(7, 1)));
    let (_, good) = rig.sample(job(1, 1));
    rig.run();
    engine_fault(bad.failure.get());
    assert!(is_complete(&good));
    rig.script.fail(Call::Close, 0, Fault::Panic);
    let (_, good) = rig.sample(job(1, 2));
    rig.run();
    assert!(is_complete(&good));
}

/// Ticks until the model is given up; the reason, or nothing if all work was done first.
fn until_fatal(rig: &mut Rig) -> Option<String> {
    loop {
        match rig.tick() {
            Tick::Worked => {}
            Tick::Idle => return None,
            Tick::Fatal(why) => return Some(why),
        }
    }
}

#[test]
fn a_second_failed_step_in_a_row_is_the_end() {
    let mut rig = Rig::new(1);
    rig.script.fail(Call::Step, 2, step_error());
    rig.script.fail(Call::Step, 3, step_error());
    let (_, first) = rig.sample(job(1, 1));
    let (_, second) = rig.sample(job(2, 1));
    let why = until_fatal(&mut rig).unwrap();
    assert!(why.contains("twice") && why.contains("out of memory"), "{why}");
    engine_fault(first.failure.get());
    assert_eq!(second.failure.get(), None);
    rig.core.end_all(&Error::EngineFault("over".into()));
    assert_eq!(engine_fault(second.failure.get()), "over");
}

#[test]
fn a_step_that_succeeds_clears_the_suspicion_and_an_opened_slot_does_not() {
    let mut rig = Rig::new(1);
    rig.script.fail(Call::Step, 0, step_error());
    rig.script.fail(Call::Step, 2, step_error());
    (0..3).for_each(|seed| drop(rig.sample(job(seed, 1))));
    assert_eq!(until_fatal(&mut rig), None);
    rig.script.fail(Call::Step, 0, step_error());
    rig.script.fail(Call::Open, 1, step_error());
    (0..2).for_each(|seed| drop(rig.sample(job(seed, 1))));
    assert!(until_fatal(&mut rig).is_some());
}

#[test]
fn a_model_that_cannot_go_on_says_so_at_once() {
    let mut rig = Rig::new(1);
    rig.script.fail(Call::Step, 1, Fault::Error(ModelError::Fatal("device lost".into())));
    let (_, _buffer) = rig.sample(job(1, 1));
    assert_eq!(until_fatal(&mut rig).as_deref(), Some("device lost"));
}

#[test]
fn a_failed_scoring_pass_ends_its_jobs_and_sampling_goes_on() {
    for fault in [step_error(), Fault::Panic, Fault::Stuck, Fault::Error(ModelError::Slots(vec![Slot(0)]))] {
        let mut rig = Rig::new(1);
        let (_, sampled) = rig.sample(job(1, 1));
        let (_, mut bad) = rig.score(score_job(vec![vec![0; N as usize]; 2]));
        rig.script.fail(Call::Score, 1, fault);
        rig.run();
        engine_fault(bad.try_recv().unwrap().err().as_ref());
        assert!(is_complete(&sampled));
        let (_, mut good) = rig.score(score_job([vec![0; N as usize]]));
        rig.run();
        assert!(good.try_recv().unwrap().is_ok());
    }
}

#[test]
fn failed_scoring_passes_end_the_model_only_if_nothing_succeeds_between() {
    for a_step_between in [true, false] {
        let mut rig = Rig::new(1);
        rig.script.fail(Call::Score, 0, step_error());
        rig.script.fail(Call::Score, 1, step_error());
        drop(rig.score(score_job([vec![0; N as usize]])));
        assert_eq!(until_fatal(&mut rig), None);
        if a_step_between {
            drop(rig.sample(job(1, 1)));
            assert_eq!(until_fatal(&mut rig), None);
        }
        drop(rig.score(score_job([vec![0; N as usize]])));
        assert_eq!(until_fatal(&mut rig).is_none(), a_step_between);
    }
}

#[test]
fn a_bad_row_in_a_pass_ends_its_job_alone() {
    let sampled = alone(&job(7, 2));
    let mut rig = Rig::new(1);
    let (_, mut bad) = rig.score(score_job([sampled[0].0.clone()]));
    let (_, mut good) = rig.score(score_job([sampled[1].0.clone()]));
    rig.script.fail(Call::Score, 1, Fault::NotFinite(1));
    rig.run();
    assert!(engine_fault(bad.try_recv().unwrap().err().as_ref()).contains("not finite"));
    assert_eq!(good.try_recv().unwrap().unwrap().0[0].log_likelihood, sampled[1].1);
}

#[test]
fn a_model_that_does_not_warm_up_is_not_used() {
    for call in [Call::Open, Call::Step, Call::Absorb, Call::Score, Call::Close] {
        let mut rig = Rig::new(2);
        rig.script.fail(call, 0, Fault::Panic);
        assert!(rig.core.warm_up().unwrap_err().to_string().contains("panicked: scripted"));
    }
    let mut rig = Rig::new(2);
    rig.core.warm_up().unwrap();
    assert_eq!(rig.script.batches(), [1, 2]);
    rig.check_empty();
}
