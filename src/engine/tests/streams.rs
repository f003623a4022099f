//! Streams, tickets and their deadlines, in a whole engine.

use tokio::time;

use super::threads::{Daemon, engine};
use super::*;
use crate::engine::event::Run;
use crate::engine::{Handle, SampleStream};
use crate::error::DeadlineStage;
use crate::model::scripted::Call;

/// Reads a stream to its end: the values of each image, and how it ended.
pub(super) async fn read(stream: &mut SampleStream) -> (Vec<Vec<u16>>, Result<(), Error>) {
    let mut images = vec![Vec::new(); 64];
    loop {
        match stream.next(None).await {
            Some(Ok(runs)) => {
                for Run { image, first, values, log_probs } in runs {
                    let so_far: &mut Vec<u16> = &mut images[image as usize];
                    if so_far.is_empty() {
                        so_far.resize(first as usize, 99);
                    }
                    assert_eq!(so_far.len(), first as usize, "no gap and no repetition");
                    assert_eq!(values.len(), log_probs.len());
                    so_far.extend(values);
                }
            }
            Some(Err(error)) => return (images, Err(error)),
            None => return (images, Ok(())),
        }
    }
}

fn deadline(after: Duration) -> Option<Instant> {
    Some((time::Instant::now() + after).into_std())
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_stream_hands_out_every_value_once_and_then_its_totals() {
    let Daemon { handle, engine, .. } = engine(2, 8);
    let expected = alone(&job(7, 3));
    let resumed = with_prefix(&expected[0].0[..3], Reproducibility::BatchInvariant, job(7, 1));
    for (job, prefix) in [(job(7, 3), 0), (resumed, 3)] {
        for granularity in [Granularity::Value, Granularity::Pixel, Granularity::Row] {
            let mut stream = handle.sample(SampleJob { granularity, ..job.clone() }, None).unwrap();
            assert_eq!(stream.summary(), None);
            let (images, end) = read(&mut stream).await;
            assert_eq!(end, Ok(()));
            for (image, (expected, _)) in images.iter().zip(&expected).take(job.images as usize) {
                assert_eq!(image[prefix..], expected[prefix..]);
            }
            assert!(stream.next(None).await.is_none(), "it stays at its end");
            let summary = stream.summary().unwrap();
            let likelihoods: Vec<_> = expected.iter().take(job.images as usize).map(|image| image.1).collect();
            assert_eq!(summary.log_likelihoods, likelihoods);
            let prefixes = u64::from(job.images) * prefix as u64;
            assert_eq!(summary.usage.prefix_values, prefixes);
            assert_eq!(summary.usage.sampled_values, u64::from(job.images * N) - prefixes);
            assert!((1..=2).contains(&summary.usage.peak_batch));
            assert!(summary.timing.first_value >= summary.timing.queue);
        }
    }
    engine.stop();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_passes_on_time_although_the_engine_is_inside_a_step() {
    let Daemon { handle, script, .. } = engine(1, 8);
    script.shut();
    script.let_through(3);
    let begun = time::Instant::now();
    let mut running = handle.sample(job(1, 1), deadline(MINUTE)).unwrap();
    let mut queued = handle.sample(job(2, 1), deadline(2 * MINUTE)).unwrap();
    script.wait_until_held();
    let (images, end) = read(&mut running).await;
    assert_eq!(images[0].len(), 3);
    assert_eq!(end, Err(Error::DeadlineExceeded { stage: DeadlineStage::MidStream, values: 3 }));
    assert!(begun.elapsed() < MINUTE + Duration::from_millis(10));
    assert_eq!(running.summary(), None);
    let (_, end) = read(&mut queued).await;
    assert_eq!(end, Err(Error::DeadlineExceeded { stage: DeadlineStage::Queue, values: 0 }));
    assert!(begun.elapsed() < 2 * MINUTE + Duration::from_millis(10));
    assert!(queued.next(None).await.is_none());
    // Still held by their owners, the streams have already given their work up.
    let steps = script.calls(Call::Step);
    script.open_gate();
    settled(&handle).await;
    assert_eq!(script.calls(Call::Step) - steps, 1, "the step under way");
    assert_eq!(script.open_slots().len(), 0);
}

/// Waits until the engine has nothing to do; on tokio's clock, which stands still meanwhile.
pub(super) async fn settled(handle: &Handle) {
    let begun = Instant::now();
    // A part counts from when it is sent; a shard that has none may still have slots to close.
    let shards = &handle.shared.shards;
    while shards.iter().any(|shard| shard.burden(Kind::Sampling) != (0, 0)) || handle.load().since_progress.is_some() {
        assert!(begun.elapsed() < MINUTE, "the engine does not come to rest: {:?}", handle.load());
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_queue_timeout_ends_with_the_first_value_or_with_admission_if_there_is_a_prefix() {
    let Daemon { handle, script, .. } = engine(2, 8);
    script.shut();
    let timed = |job| SampleJob { queue_timeout: Some(MINUTE), granularity: Granularity::Row, ..job };
    let mut running = handle.sample(timed(job(1, 1)), deadline(10 * MINUTE)).unwrap();
    script.wait_until_held();
    let resumed = timed(with_prefix(&[1, 2, 3], Reproducibility::BatchInvariant, job(7, 1)));
    let mut resuming = handle.sample(resumed, deadline(5 * MINUTE)).unwrap();
    let mut queued = handle.sample(timed(job(3, 1)), deadline(20 * MINUTE)).unwrap();
    // Only a step that begins after a job has come finds it in a slot.
    script.let_through(1);
    script.wait_until_held();
    let begun = time::Instant::now();
    let (_, end) = read(&mut queued).await;
    assert_eq!(end, Err(Error::DeadlineExceeded { stage: DeadlineStage::Queue, values: 0 }));
    assert!(begun.elapsed() < 2 * MINUTE);
    // The prefix is being replayed, and no value has come; but it did get its slot in time.
    let (_, end) = read(&mut resuming).await;
    assert_eq!(end, Err(Error::DeadlineExceeded { stage: DeadlineStage::MidStream, values: 0 }));
    // One value is no whole row, so nothing was handed out; but it is there.
    let (images, end) = read(&mut running).await;
    assert_eq!(images[0].len(), 0);
    assert_eq!(end, Err(Error::DeadlineExceeded { stage: DeadlineStage::MidStream, values: 1 }));
    script.open_gate();
}

#[tokio::test(start_paused = true)]
async fn an_incomplete_unit_is_handed_out_after_the_delay_and_not_before() {
    let Daemon { handle, script, .. } = engine(1, 8);
    script.shut();
    script.let_through(5);
    let job = SampleJob { granularity: Granularity::Row, ..job(1, 1) };
    let mut stream = handle.sample(job, None).unwrap();
    script.wait_until_held();
    let counts = |runs: Vec<Run>| runs.iter().map(|run| run.values.len()).collect::<Vec<_>>();
    let begun = time::Instant::now();
    assert_eq!(counts(stream.next(Some(MINUTE)).await.unwrap().unwrap()), [4]);
    assert_eq!(begun.elapsed(), Duration::ZERO, "a whole row waits for nothing");
    assert_eq!(counts(stream.next(Some(MINUTE)).await.unwrap().unwrap()), [1]);
    assert!(begun.elapsed() >= MINUTE && begun.elapsed() < 2 * MINUTE);
    // Nothing waits when the delay is over; what comes later is found out at the next one, without a wake-up.
    let late = tokio::spawn(async move { (stream.next(Some(MINUTE)).await.unwrap().unwrap(), stream) });
    time::sleep_until(begun + MINUTE * 5 / 2).await;
    script.let_through(1);
    script.wait_until_held();
    let (runs, mut stream) = late.await.unwrap();
    assert_eq!((runs[0].first, counts(runs)), (5, vec![1]));
    assert!(begun.elapsed() < 4 * MINUTE);
    // A delay of nothing does not spin, and the future may be dropped at any time.
    let dropped = time::timeout(Duration::from_millis(50), stream.next(Some(Duration::ZERO)));
    assert!(dropped.await.is_err());
    script.open_gate();
    let (images, end) = read(&mut stream).await;
    assert_eq!((images[0].len(), end), (N as usize, Ok(())), "nothing was lost with the future");
}

#[tokio::test]
async fn values_that_wait_come_in_one_go() {
    let Daemon { handle, script, .. } = engine(2, 8);
    script.shut();
    script.let_through(4);
    let mut stream = handle.sample(job(1, 2), None).unwrap();
    script.wait_until_held();
    let runs = stream.next(None).await.unwrap().unwrap();
    let seen: Vec<_> = runs.iter().map(|run| (run.image, run.first, run.values.len())).collect();
    assert_eq!(seen, [(0, 0, 4), (1, 0, 4)]);
    script.open_gate();
}

#[tokio::test(start_paused = true)]
async fn a_scoring_deadline_passes_on_time_and_the_job_is_given_up() {
    let Daemon { handle, script, .. } = engine(1, 8);
    script.shut();
    let _running = handle.sample(job(1, 1), None).unwrap();
    script.wait_until_held();
    let ticket = handle.score(score_job([vec![0; N as usize]]), deadline(MINUTE)).unwrap();
    let end = ticket.scores().await;
    assert_eq!(end.unwrap_err(), Error::DeadlineExceeded { stage: DeadlineStage::Queue, values: 0 });
    script.open_gate();
    settled(&handle).await;
    assert_eq!(handle.load().scoring, 0);
    let ticket = handle.score(score_job([vec![0; N as usize]]), None).unwrap();
    let (scores, timing) = ticket.scores().await.unwrap();
    assert_eq!((scores.len(), timing.first_value), (1, Duration::ZERO));
}
