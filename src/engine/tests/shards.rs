//! Jobs in parts: two cores by hand, and engines of several shards.

use tokio::time;

use super::streams::{read, settled};
use super::threads::{Daemon, engine_of};
use super::*;
use crate::engine::health::Health;
use crate::engine::{Engine, SCORE_IMAGES};
use crate::error::Error;
use crate::model::ModelError;
use crate::model::scripted::{Call, Fault};

/// Two shards without threads.
struct Pair([Rig; 2]);

impl Pair {
    fn new(slots: u32) -> Self {
        Self([Rig::new(slots), Rig::new(slots)])
    }

    fn whole(&self, id: JobId) -> Arc<Whole> {
        Arc::new(Whole::new(id, self.0.iter().map(|rig| Arc::clone(&rig.shard)).collect()))
    }

    /// Half of the images for each.
    fn sample(&mut self, id: u64, job: SampleJob) -> (Arc<Whole>, Arc<SampleBuffer>) {
        let (whole, buffer, parts) = self.sample_parts(JobId(id), job);
        self.0.iter_mut().zip(parts).for_each(|(rig, part)| rig.core.apply(part));
        (whole, buffer)
    }

    fn sample_parts(&self, id: JobId, job: SampleJob) -> (Arc<Whole>, Arc<SampleBuffer>, [Command; 2]) {
        let (whole, buffer) = (self.whole(id), Arc::new(SampleBuffer::new(&job)));
        let (half, job) = (job.images / 2, Arc::new(job));
        let part = |index: usize, images: std::ops::Range<u32>| {
            let part =
                Part::new(Arc::clone(&whole), Arc::clone(&self.0[index].shard), Kind::Sampling, images.len() as u32);
            let promise = Promise::new(Arc::clone(&buffer), part);
            Command::Sample { id, job: Arc::clone(&job), images, promise }
        };
        let parts = [part(0, 0..half), part(1, half..job.images)];
        (whole, buffer, parts)
    }

    fn score(&mut self, id: u64, job: ScoreJob) -> Answer {
        let (whole, (sender, answer)) = (self.whole(JobId(id)), oneshot::channel());
        let (items, sheet, job) = (job.items.len() as u32, Sheet::new(job.items.len(), sender), Arc::new(job));
        for (rig, images) in self.0.iter_mut().zip([0..items / 2, items / 2..items]) {
            let part = Part::new(Arc::clone(&whole), Arc::clone(&rig.shard), Kind::Scoring, images.len() as u32);
            let reply = ScoreReply::new(Arc::default(), Arc::clone(&sheet), part);
            rig.core.apply(Command::Score { id: JobId(id), job: Arc::clone(&job), images, reply });
        }
        answer
    }

    /// A step of each, and what was called back meanwhile.
    fn tick(&mut self) -> bool {
        let tick = |rig: &mut Rig| {
            let worked = rig.tick() == Tick::Worked;
            rig.shard.cancelled.take().into_iter().for_each(|job| rig.core.cancel(job));
            worked
        };
        let [first, second] = &mut self.0;
        tick(first) | tick(second)
    }

    /// Until there is nothing left to do; then nothing may be left behind.
    fn run(&mut self) {
        while self.tick() {}
        self.0.iter_mut().for_each(Rig::check_empty);
    }
}

#[test]
fn a_job_in_two_parts_is_the_job_and_ends_with_the_last() {
    let mut pair = Pair::new(2);
    let (_, buffer) = pair.sample(7, job(7, 5));
    while pair.0[0].tick() == Tick::Worked {}
    assert!(!is_complete(&buffer) && buffer.failure.get().is_none(), "the other part has not begun");
    pair.run();
    assert!(is_complete(&buffer) && buffer.failure.get().is_none());
    assert_eq!(outcome(&buffer), alone(&job(7, 5)));
    assert_eq!(buffer.sampled(), u64::from(5 * N));
    assert_eq!(buffer.peak_batch.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[test]
fn a_failure_anywhere_ends_the_job_once_and_everywhere() {
    for failing in [0, 1] {
        for step in 0..2 * u64::from(N) {
            let mut pair = Pair::new(2);
            pair.0[failing].script.fail(Call::Step, step, Fault::NotFinite(0));
            // Four images for two slots: some wait when it happens.
            let (_, buffer) = pair.sample(7, job(7, 8));
            while buffer.failure.get().is_none() {
                assert!(pair.tick());
            }
            assert!(pair.tick(), "a step that was under way, or slots to be closed");
            pair.tick();
            for rig in &mut pair.0 {
                assert_eq!(rig.tick(), Tick::Idle, "and that is all that is left to do");
            }
            pair.run();
            assert!(engine_fault(buffer.failure.get()).contains("not finite"), "the first cause is told");
            assert!(!is_complete(&buffer));
            assert_eq!(Arc::strong_count(&buffer), 1, "nobody keeps anything of it");
        }
    }
}

#[test]
fn a_job_that_is_given_up_leaves_every_shard() {
    let mut pair = Pair::new(2);
    let (whole, buffer) = pair.sample(7, job(7, 8));
    assert!(pair.tick());
    whole.recall();
    whole.recall();
    assert!(pair.tick() && pair.tick() && !pair.tick(), "the step under way, and slots to be closed");
    pair.run();
    assert_eq!(buffer.failure.get(), Some(&Error::Cancelled));
}

#[test]
fn a_part_that_comes_after_its_job_has_ended_is_not_begun() {
    let mut pair = Pair::new(2);
    let (_, buffer, [first, second]) = pair.sample_parts(JobId(7), job(7, 2));
    pair.0[0].script.fail(Call::Step, 0, Fault::Panic);
    pair.0[0].core.apply(first);
    while pair.tick() {}
    engine_fault(buffer.failure.get());
    pair.0[1].core.apply(second);
    pair.run();
    assert_eq!(pair.0[1].script.calls(Call::Open), 0);
    engine_fault(buffer.failure.get());
}

#[test]
fn a_part_that_is_lost_is_a_failure_of_the_job() {
    let mut pair = Pair::new(2);
    let (_, buffer) = pair.sample(7, job(7, 4));
    let mut answer = pair.score(8, score_job(vec![vec![0; N as usize]; 4]));
    pair.0[1] = Rig::new(2);
    assert!(engine_fault(buffer.failure.get()).contains("ended"));
    assert!(engine_fault(answer.try_recv().unwrap().err().as_ref()).contains("ended"));
    pair.run();
}

#[test]
fn scores_of_all_parts_come_in_the_order_of_the_items() {
    let sampled = alone(&job(7, 5));
    let mut pair = Pair::new(1);
    let mut answer = pair.score(7, score_job(sampled.iter().map(|(values, _)| values.clone())));
    while pair.0[1].tick() == Tick::Worked {}
    assert!(answer.try_recv().is_err(), "there is no answer before the last part");
    pair.run();
    let (scores, _) = answer.try_recv().unwrap().unwrap();
    let likelihoods: Vec<_> = scores.iter().map(|score| score.log_likelihood).collect();
    assert_eq!(likelihoods, sampled.iter().map(|(_, likelihood)| *likelihood).collect::<Vec<_>>());
}

#[test]
fn a_failed_part_of_a_scoring_job_ends_it_once_and_everywhere() {
    for failing in [0, 1] {
        let mut pair = Pair::new(1);
        pair.0[failing].script.fail(Call::Score, 1, Fault::NotFinite(0));
        let mut answer = pair.score(7, score_job(vec![vec![0; N as usize]; 80]));
        pair.run();
        assert!(engine_fault(answer.try_recv().unwrap().err().as_ref()).contains("not finite"));
        let slices = pair.0.each_ref().map(|rig| rig.script.calls(Call::Score));
        assert!(slices.iter().all(|&slices| slices <= 3), "{slices:?}: nobody goes on with it");
    }
}

#[tokio::test]
async fn any_number_of_shards_gives_the_same_images_and_scores() {
    let expected = alone(&job(7, 7));
    let resumed = with_prefix(&expected[0].0[..3], Reproducibility::BatchInvariant, job(7, 1));
    for shards in 1..=4 {
        let Daemon { handle, script, engine } = engine_of(shards, 2, 16);
        let mut stream = handle.sample(SampleJob { granularity: Granularity::Row, ..job(7, 7) }, None).unwrap();
        let mut rest = handle.sample(resumed.clone(), None).unwrap();
        let ticket = handle.score(score_job(expected.iter().map(|(values, _)| values.clone())), None).unwrap();
        let (images, end) = read(&mut stream).await;
        assert_eq!(end, Ok(()));
        assert_eq!(images[..7], expected.iter().map(|(values, _)| values.clone()).collect::<Vec<_>>());
        let summary = stream.summary().unwrap();
        let likelihoods: Vec<_> = expected.iter().map(|(_, likelihood)| *likelihood).collect();
        assert_eq!(summary.log_likelihoods, likelihoods);
        assert_eq!(summary.usage.sampled_values, u64::from(7 * N));
        assert_eq!(read(&mut rest).await.0[0][3..], expected[0].0[3..]);
        let scores = ticket.scores().await.unwrap().0;
        assert_eq!(scores.iter().map(|score| score.log_likelihood).collect::<Vec<_>>(), likelihoods);
        settled(&handle).await;
        assert_eq!(handle.load().slots, 2 * shards);
        // Four are the warm-up.
        assert!(script.shards().iter().all(|script| script.calls(Call::Open) > 4), "every shard had a part");
        engine.stop();
    }
}

/// An engine of two shards whose steps are held back, and the scripts of both.
fn held(slots: u32) -> (Daemon, [Arc<Script>; 2]) {
    let daemon = engine_of(2, slots, 8);
    let other = daemon.script.shards().remove(0);
    let scripts = [Arc::clone(&daemon.script), other];
    scripts.iter().for_each(|script| script.shut());
    (daemon, scripts)
}

#[tokio::test]
async fn two_idle_shards_get_a_half_each_and_what_comes_next_goes_where_less_is() {
    let (Daemon { handle, engine, .. }, scripts) = held(8);
    let [first, second] = scripts.each_ref();
    let mut halves = handle.sample(job(1, 16), None).unwrap();
    let burdens = || handle.shared.shards.iter().map(|shard| shard.burden(Kind::Sampling).0).collect::<Vec<_>>();
    assert_eq!(burdens(), [8, 8]);
    scripts.iter().for_each(|script| script.wait_until_held());
    first.open_gate();
    while burdens() != [0, 8] {
        tokio::task::yield_now().await;
    }
    let mut one = handle.sample(job(2, 1), None).unwrap();
    let mut three = handle.sample(job(3, 3), None).unwrap();
    assert_eq!(read(&mut one).await.1, Ok(()), "it did not wait for the shard that stands still");
    assert_eq!(read(&mut three).await.1, Ok(()));
    second.open_gate();
    assert_eq!(read(&mut halves).await.1, Ok(()));
    assert_eq!(scripts.each_ref().map(|script| script.batches().into_iter().max()), [Some(8), Some(8)]);
    engine.stop();
}

#[tokio::test]
async fn refusals_count_the_slots_and_the_pace_of_all_shards() {
    let (Daemon { handle, .. }, scripts) = held(2);
    let _all = handle.sample(job(1, 12), None).unwrap();
    scripts.iter().for_each(|script| script.wait_until_held());
    let Err(Error::QueueFull { free: 0, limit: 12, retry_after, .. }) = handle.sample(job(1, 1), None) else {
        panic!("there is no room");
    };
    assert!(retry_after < Duration::from_secs(60), "{retry_after:?}");
    let most = 8 + 2 * SCORE_IMAGES as usize;
    drop(handle.score(score_job(vec![vec![0; N as usize]; most]), None).unwrap());
    assert!(handle.score(score_job(vec![vec![0; N as usize]; most + 1]), None).is_err());
    scripts.iter().for_each(|script| script.open_gate());
}

#[tokio::test]
async fn a_dropped_stream_leaves_all_shards_at_once() {
    let (Daemon { handle, engine, .. }, scripts) = held(2);
    let stream = handle.sample(job(1, 8), None).unwrap();
    let ticket = handle.score(score_job(vec![vec![0; N as usize]; 8]), None).unwrap();
    scripts.iter().for_each(|script| script.wait_until_held());
    let steps = || scripts.each_ref().map(|script| script.calls(Call::Step));
    let before = steps();
    drop((stream, ticket));
    assert_eq!(
        (handle.shared.sampling.free(Class::Interactive), handle.shared.scoring.free(Class::Interactive)),
        (12, 8 + 2 * SCORE_IMAGES)
    );
    scripts.iter().for_each(|script| script.open_gate());
    settled(&handle).await;
    assert_eq!(steps(), before.map(|steps| steps + 1), "the steps under way");
    assert!(scripts.iter().all(|script| script.open_slots().is_empty()));
    engine.stop();
}

#[tokio::test]
async fn a_failed_job_leaves_the_other_shard_while_its_reader_looks_away() {
    let (Daemon { handle, engine, .. }, scripts) = held(2);
    let mut stream = handle.sample(job(1, 4), None).unwrap();
    scripts.iter().for_each(|script| script.wait_until_held());
    scripts[1].fail(Call::Step, 0, Fault::NotFinite(1));
    scripts[1].open_gate();
    while handle.shared.shards[1].burden(Kind::Sampling) != (0, 0) {
        tokio::task::yield_now().await;
    }
    let steps = scripts[0].calls(Call::Step);
    scripts[0].open_gate();
    settled(&handle).await;
    assert_eq!(scripts[0].calls(Call::Step), steps + 1, "the step under way");
    assert!(scripts.iter().all(|script| script.open_slots().is_empty()));
    assert!(engine_fault(read(&mut stream).await.1.err().as_ref()).contains("not finite"));
    drop(stream);
    assert_eq!(handle.shared.sampling.free(Class::Interactive), 12);
    assert_eq!(read(&mut handle.sample(job(2, 4), None).unwrap()).await.1, Ok(()), "the engine goes on");
    engine.stop();
}

#[tokio::test]
async fn one_shard_that_cannot_go_on_ends_the_engine() {
    let (Daemon { handle, engine, .. }, scripts) = held(2);
    let mut streams = [handle.sample(job(1, 1), None).unwrap(), handle.sample(job(2, 1), None).unwrap()];
    let mut queued = handle.sample(job(3, 8), None).unwrap();
    let ticket = handle.score(score_job(vec![vec![0; N as usize]; 40]), None).unwrap();
    scripts.iter().for_each(|script| script.wait_until_held());
    scripts[1].fail(Call::Step, 0, Fault::Error(ModelError::Fatal("device lost".into())));
    scripts[1].open_gate();
    let mut health = handle.health();
    health.wait_for(|health| matches!(health, Health::Failed(why) if why == "device lost")).await.unwrap();
    scripts[0].open_gate();
    for stream in streams.iter_mut().chain([&mut queued]) {
        engine_fault(read(stream).await.1.err().as_ref());
    }
    engine_fault(ticket.scores().await.err().as_ref());
    assert!(matches!(handle.sample(job(4, 1), None), Err(Error::ModelFailed { .. })));
    engine.stop();
}

#[tokio::test]
async fn an_engine_is_ready_when_all_shards_are() {
    let (model, script) = Scripted::new(1);
    script.shut();
    let engine = Engine::start(Box::new(model), 2, super::threads::config(8)).unwrap();
    let (handle, other) = (engine.handle(), script.shards().remove(0));
    let mut stream = handle.sample(job(1, 1), None).unwrap();
    script.open_gate();
    assert_eq!(read(&mut stream).await.1, Ok(()), "the warm shard works already");
    other.wait_until_held();
    assert_eq!(*handle.health().borrow(), Health::Warming);
    other.open_gate();
    handle.health().wait_for(|health| *health == Health::Ready).await.unwrap();
    engine.stop();
}

#[tokio::test]
async fn draining_waits_for_every_part() {
    let (Daemon { handle, engine, .. }, scripts) = held(1);
    let mut stream = handle.sample(job(1, 2), None).unwrap();
    handle.drain();
    scripts[0].open_gate();
    while handle.shared.shards[0].burden(Kind::Sampling) != (0, 0) {
        tokio::task::yield_now().await;
    }
    assert!(time::timeout(Duration::from_millis(5), handle.drained()).await.is_err());
    scripts[1].open_gate();
    assert_eq!(read(&mut stream).await.1, Ok(()), "what was admitted goes on, on all shards");
    drop(stream);
    handle.drained().await;
    engine.stop();
}

#[test]
fn a_part_that_finds_no_room_takes_the_others_back() {
    let mut pair = Pair::new(2);
    let (_, _, [taken, refused]) = pair.sample_parts(JobId(7), job(7, 2));
    pair.0[0].core.apply(taken);
    assert!(pair.tick());
    drop(refused);
    pair.run();
    assert!(pair.0[0].script.calls(Call::Step) < u64::from(N));
}
