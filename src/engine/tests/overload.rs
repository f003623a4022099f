//! More work than there is room or time for.

use std::sync::atomic::Ordering::Relaxed;

use super::threads::{Daemon, config, engine};
use super::*;
use crate::engine::shared::Shared;
use crate::model::PixelModel;
use crate::model::scripted::Call;

fn batch(seed: u64, images: u32) -> SampleJob {
    SampleJob { class: Class::Batch, ..job(seed, images) }
}

#[tokio::test]
async fn batch_work_is_refused_while_there_is_room_for_people_who_wait() {
    let Daemon { handle, script, .. } = engine(1, 4);
    script.shut();
    let mut held: Vec<_> = (0..3).map(|seed| handle.sample(batch(seed, 1), None).unwrap()).collect();
    let Err(Error::QueueFull { free, limit, retry_after, .. }) = handle.sample(batch(9, 1), None) else {
        panic!("a slot and half of the queue are all that batch work may have");
    };
    assert_eq!((free, limit), (0, 3));
    assert!(retry_after > Duration::ZERO);
    let most = handle.sample(batch(9, 4), None).unwrap_err();
    assert!(matches!(&most, Error::Invalid(rules) if rules.to_string().contains("at most 3")), "{most}");
    held.extend((0..2).map(|seed| handle.sample(job(seed, 1), None).unwrap()));
    assert!(matches!(handle.sample(batch(9, 1), None), Err(Error::QueueFull { free: 0, .. })));
    held.truncate(2);
    drop(handle.sample(batch(9, 1), None).expect("its place is free again"));
    script.open_gate();
}

#[tokio::test]
async fn batch_work_that_waits_makes_room_for_people_the_latest_first() {
    let Daemon { handle, script, .. } = engine(1, 4);
    script.shut();
    let mut running = handle.sample(batch(0, 1), None).unwrap();
    script.wait_until_held();
    let [mut early, mut late] = [1, 2].map(|seed| handle.sample(batch(seed, 1), None).unwrap());
    let mut people: Vec<_> = (3..5).map(|seed| handle.sample(job(seed, 1), None).unwrap()).collect();
    let Err(Error::QueueFull { free: 0, limit: 5, .. }) = handle.sample(job(9, 3), None) else {
        panic!("two wait, which is not enough for three");
    };
    people.push(handle.sample(job(5, 1), None).expect("one of the two makes room"));
    let Some(Err(Error::QueueFull { requested: 1, limit: 3, retry_after, .. })) = late.next(None).await else {
        panic!("it is told what it would have been told if it came now");
    };
    assert!(retry_after > Duration::ZERO);
    people.push(handle.sample(job(6, 1), None).expect("and the other"));
    assert!(matches!(early.next(None).await, Some(Err(Error::QueueFull { .. }))));
    // Who has a slot keeps it.
    assert!(matches!(handle.sample(job(9, 1), None), Err(Error::QueueFull { free: 0, limit: 5, .. })));
    script.open_gate();
    for stream in people.iter_mut().chain([&mut running]) {
        assert_eq!(super::streams::read(stream).await.1, Ok(()));
    }
    drop((people, running, early, late));
    handle.drain();
    handle.drained().await;
    let load = handle.load();
    assert_eq!((load.submitted, load.completed, load.given_up), (7, 5, 2), "every image ended once");
}

#[tokio::test]
async fn places_taken_before_a_request_is_looked_at_are_given_back_if_nothing_comes_of_it() {
    let Daemon { handle, script, .. } = engine(1, 1);
    let permit = handle.admit(Kind::Sampling, 2, Class::Batch).unwrap();
    assert!(matches!(handle.admit(Kind::Sampling, 1, Class::Interactive), Err(Error::QueueFull { .. })));
    drop(permit);
    let permit = handle.admit(Kind::Sampling, 1, Class::Interactive).unwrap();
    let mut stream = handle.sample_admitted(permit, None, job(1, 1), None).unwrap();
    assert_eq!(super::streams::read(&mut stream).await.1, Ok(()));
    assert_eq!(script.calls(Call::Open), 4, "three to warm up, and one image");
}

/// Two shards of one slot, in which a step and a value scored take ten milliseconds.
fn measured() -> Shared {
    let shared = Shared::new(Scripted::new(1).0.spec(), 2, &config(8), clock());
    for shard in &shared.shards {
        shard.gauges.stepped(Duration::from_millis(10));
        shard.gauges.scored(Duration::from_millis(120), N);
    }
    shared
}

fn millis(duration: Option<Duration>) -> f64 {
    (duration.unwrap().as_secs_f64() * 1e6).round() / 1e3
}

#[test]
fn nothing_is_estimated_before_anything_was_measured() {
    let shared = Shared::new(Scripted::new(1).0.spec(), 2, &config(8), clock());
    for kind in [Kind::Sampling, Kind::Scoring] {
        assert_eq!(shared.until_done(kind, 8, Class::Batch, 0), None);
        assert_eq!(shared.until_free(kind, 8), None);
    }
}

#[test]
fn an_image_that_need_not_wait_takes_its_steps_at_the_best_pace_there_was() {
    let shared = measured();
    (0..100).for_each(|_| shared.shards[0].gauges.stepped(Duration::from_millis(50)));
    assert_eq!(millis(shared.until_done(Kind::Sampling, 1, Class::Interactive, 0)), 120.0);
    assert_eq!(millis(shared.until_done(Kind::Sampling, 2, Class::Interactive, 6)), 60.0);
    assert_eq!(millis(shared.until_done(Kind::Scoring, 1, Class::Interactive, 0)), 120.0);
    assert_eq!(millis(shared.until_done(Kind::Scoring, 4, Class::Interactive, 0)), 240.0, "two for each shard");
}

#[test]
fn an_image_that_waits_counts_those_before_it_and_a_margin() {
    let shared = measured();
    shared.shards[1].outstanding(Kind::Sampling).fetch_add(4, Relaxed);
    // Three of them before it, two at a time: 18 steps, and 12 of its own.
    assert_eq!(millis(shared.until_done(Kind::Sampling, 1, Class::Interactive, 0)), 375.0);
    let _batch = shared.sampling.take(Class::Batch, 4).unwrap();
    assert_eq!(millis(shared.until_done(Kind::Sampling, 1, Class::Batch, 0)), 375.0);
    assert_eq!(millis(shared.until_done(Kind::Sampling, 1, Class::Interactive, 0)), 120.0, "batch work is passed by");
    // 32 are scored side by side; the four above have twelve milliseconds a value and shard, and so has this one.
    shared.shards[0].outstanding(Kind::Scoring).fetch_add(35, Relaxed);
    assert_eq!(millis(shared.until_done(Kind::Scoring, 1, Class::Interactive, 0)), (2.0 * 120.0 + 120.0) * 1.25);
}

#[test]
fn an_engine_hangs_when_it_has_work_and_completes_nothing_for_too_long() {
    let (shared, start) = (Shared::new(Scripted::new(1).0.spec(), 2, &config(8), clock()), clock());
    let gauges = &shared.shards[1].gauges;
    let after = |seconds| shared.stalled(start + Duration::from_secs(seconds));
    assert_eq!(after(1000), None, "an idle engine does not hang");
    gauges.resumed(start);
    assert_eq!(after(59), None);
    assert_eq!(after(61), Some(Duration::from_secs(61)));
    gauges.resumed(start + Duration::from_secs(60));
    assert_eq!(after(61), Some(Duration::from_secs(61)), "more work is no progress");
    gauges.progressed(start + Duration::from_secs(60));
    assert_eq!(after(61), None);
    gauges.idle();
    assert_eq!(after(1000), None);
}
