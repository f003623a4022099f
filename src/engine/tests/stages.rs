//! Two stages in one request: low-resolution images from one engine, and images of those from another.

use futures_util::FutureExt;

use super::streams::{read, settled};
use super::threads::{Daemon, random};
use super::*;
use crate::engine::health::Health;
use crate::engine::{Engine, Handle, SampleStream};
use crate::error::DeadlineStage;
use crate::image::Shape;
use crate::model::scripted::{Call, Fault};

/// Values of a low-resolution image.
const LOW: u32 = 4;
const QUEUE: u32 = 8;

/// An engine of images of `shape`, and of `slots` slots, warmed up.
fn engine(shape: Shape, slots: u32) -> Daemon {
    let (model, script) = Scripted::with_shape(slots, shape);
    let config = super::threads::config(QUEUE);
    let engine = Engine::start(Box::new(model), 1, config).unwrap();
    let handle = engine.handle();
    while *handle.health().borrow() == Health::Warming {
        std::thread::yield_now();
    }
    Daemon { engine, handle, script }
}

/// The model of the images, and the one of their low-resolution images.
fn engines(slots: u32) -> (Daemon, Daemon) {
    (engine(shape(), slots), engine(Shape::new(1, 2, 2, 5).unwrap(), slots))
}

/// Places that are free.
fn free(handle: &Handle) -> u32 {
    handle.shared.sampling.free(Class::Interactive)
}

/// What a job whose images have all come gives.
async fn finished(stream: &mut SampleStream, images: u32) -> Vec<Vec<u16>> {
    let (mut values, end) = read(stream).await;
    assert_eq!(end, Ok(()));
    values.truncate(images as usize);
    values
}

/// The job with a low-resolution image that it brings.
fn from_low(low: &[u16], job: SampleJob) -> SampleJob {
    SampleJob { condition: Condition { low: Some(low.into()), ..job.condition.clone() }, ..job }
}

#[tokio::test]
async fn each_image_is_drawn_from_a_low_resolution_image_of_its_own_whose_noise_lies_behind_its_own() {
    let (Daemon { handle: upper, .. }, Daemon { handle: lower, .. }) = engines(2);
    let job = SampleJob { condition: Condition { class: Some(2), low: None }, first_image: 5, ..job(7, 3) };
    let mut stream = upper.sample_from(&lower, job.clone(), None).unwrap();
    let images = finished(&mut stream, 3).await;
    let summary = stream.summary().unwrap();

    // As a job of the lower model draws them from the noise behind that of the images, and from no other.
    let first = job.first_stage(lower.spec());
    assert_eq!((first.noise_from, first.first_image, first.condition.class), (N, 5, Some(2)));
    let low = finished(&mut lower.sample(first.clone(), None).unwrap(), 3).await;
    assert_eq!(summary.low_images.iter().map(|low| low.values.to_vec()).collect::<Vec<_>>(), low);
    let elsewhere = finished(&mut lower.sample(SampleJob { noise_from: 0, ..first }, None).unwrap(), 3).await;
    assert!(low != elsewhere && low[0] != low[1] && low[1] != low[2]);

    let usage = summary.usage;
    assert_eq!(usage.sampled_values, u64::from(3 * (N + LOW)));
    for (index, (low, expected)) in (0..).zip(summary.low_images.iter().zip(&images)) {
        let alone = from_low(&low.values, SampleJob { images: 1, first_image: 5 + index, ..job.clone() });
        let mut alone = upper.sample(alone, None).unwrap();
        assert_eq!(finished(&mut alone, 1).await[0], *expected, "image {index}");
        let said = alone.summary().unwrap();
        assert_eq!(said.log_likelihoods, [summary.log_likelihoods[index as usize]]);
        assert_eq!(said.low_images, [], "it was brought");
        let score = lower.score(scored(lower.spec().shape, &low.values, 2), None).unwrap().scores().await.unwrap();
        assert!((score.0[0].log_likelihood - low.log_likelihood).abs() < 1e-6);
    }
}

fn scored(shape: Shape, values: &[u16], class: u32) -> ScoreJob {
    let canvas = Canvas::with_prefix(shape, values.to_vec()).unwrap();
    let condition = Condition { class: Some(class), low: None };
    ScoreJob { items: vec![(canvas, condition)], per_value: false, class: Class::Interactive }
}

#[tokio::test]
async fn the_same_seed_goes_on_from_a_prefix_with_the_same_low_resolution_image() {
    let (Daemon { handle: upper, .. }, Daemon { handle: lower, .. }) = engines(2);
    let mut whole = upper.sample_from(&lower, job(9, 1), None).unwrap();
    let expected = finished(&mut whole, 1).await;
    let resumed = with_prefix(&expected[0][..5], Reproducibility::BatchInvariant, job(9, 1));
    let mut resumed = upper.sample_from(&lower, resumed, None).unwrap();
    assert_eq!(finished(&mut resumed, 1).await[0][5..], expected[0][5..]);
    let [whole, resumed] = [&whole, &resumed].map(|stream| stream.summary().unwrap());
    assert_eq!((whole.low_images, whole.log_likelihoods), (resumed.low_images, resumed.log_likelihoods));
    assert_eq!((resumed.usage.prefix_values, resumed.usage.sampled_values), (5, u64::from(N - 5 + LOW)));
}

#[tokio::test]
async fn the_first_stage_counts_as_taking_in_and_into_the_first_value() {
    let (Daemon { handle: upper, .. }, Daemon { handle: lower, script, .. }) = engines(1);
    script.shut();
    script.let_through(1);
    let mut stream = upper.sample_from(&lower, job(1, 1), None).unwrap();
    script.wait_until_held();
    let held = Instant::now();
    while held.elapsed() < Duration::from_millis(20) {
        std::thread::yield_now();
    }
    script.open_gate();
    finished(&mut stream, 1).await;
    let timing = stream.summary().unwrap().timing;
    assert!(timing.prefill >= Duration::from_millis(20), "{timing:?}");
    assert!(timing.first_value >= timing.queue + timing.prefill, "{timing:?}");
}

#[tokio::test]
async fn a_stream_dropped_in_its_first_stage_frees_its_places_in_both_models_at_once() {
    let (upper, lower) = engines(1);
    let (before, opened) = ([free(&upper.handle), free(&lower.handle)], upper.script.calls(Call::Open));
    lower.script.shut();
    let stream = upper.handle.sample_from(&lower.handle, job(1, 2), None).unwrap();
    lower.script.wait_until_held();
    assert_eq!([free(&upper.handle), free(&lower.handle)], before.map(|free| free - 2));
    drop(stream);
    assert_eq!([free(&upper.handle), free(&lower.handle)], before);
    lower.script.open_gate();
    settled(&lower.handle).await;
    assert_eq!(lower.script.open_slots().len(), 0);
    assert_eq!(upper.script.calls(Call::Open), opened, "the second stage never began");
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_deadline_or_a_queue_timeout_that_passes_in_the_first_stage_frees_the_places_of_both_models() {
    let (upper, lower) = engines(1);
    let before = [free(&upper.handle), free(&lower.handle)];
    let deadline = Some((tokio::time::Instant::now() + MINUTE).into_std());
    let timed = SampleJob { queue_timeout: Some(MINUTE / 2), ..job(2, 1) };
    for (job, deadline) in [(job(1, 1), deadline), (timed, None)] {
        lower.script.shut();
        lower.script.let_through(2);
        let mut stream = upper.handle.sample_from(&lower.handle, job, deadline).unwrap();
        lower.script.wait_until_held();
        let (images, end) = read(&mut stream).await;
        assert_eq!(
            (images[0].len(), end),
            (0, Err(Error::DeadlineExceeded { stage: DeadlineStage::Queue, values: 0 }))
        );
        assert_eq!([free(&upper.handle), free(&lower.handle)], before, "although the stream is still there");
        lower.script.open_gate();
        settled(&lower.handle).await;
        assert_eq!(lower.script.open_slots().len(), 0);
        assert!(stream.next(None).await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn both_stages_are_held_to_one_deadline() {
    let (upper, lower) = engines(1);
    upper.script.shut();
    let begun = tokio::time::Instant::now();
    let deadline = Some((begun + MINUTE).into_std());
    let mut stream = upper.handle.sample_from(&lower.handle, job(1, 1), deadline).unwrap();
    // Time stands still only as long as nobody waits for it.
    while stream.first.as_ref().is_some_and(|first| !first.is_over()) {
        std::thread::yield_now();
    }
    assert!(stream.next(None).now_or_never().is_none());
    upper.script.wait_until_held();
    upper.script.let_through(3);
    upper.script.wait_until_held();
    let (images, end) = tokio::time::timeout(2 * MINUTE, read(&mut stream)).await.unwrap();
    assert_eq!(images[0].len(), 3);
    assert_eq!(end, Err(Error::DeadlineExceeded { stage: DeadlineStage::MidStream, values: 3 }));
    assert!(begun.elapsed() < MINUTE + Duration::from_millis(10));
    assert_eq!(free(&lower.handle), 1 + QUEUE, "the places of the first stage were free long before");
    upper.script.open_gate();
}

#[tokio::test]
async fn a_drain_that_begins_between_the_stages_lets_the_request_finish() {
    for over in [false, true] {
        let (upper, lower) = engines(1);
        lower.script.shut();
        let mut stream = upper.handle.sample_from(&lower.handle, job(1, 2), None).unwrap();
        lower.script.wait_until_held();
        if over {
            // The first stage is over, and nobody has looked.
            lower.script.open_gate();
            while stream.first.as_ref().is_some_and(|first| !first.is_over()) {
                std::thread::yield_now();
            }
        }
        [&upper, &lower].into_iter().for_each(|daemon| daemon.handle.drain());
        assert_eq!(upper.handle.sample_from(&lower.handle, job(2, 1), None).unwrap_err(), Error::Draining);
        lower.script.open_gate();
        assert_eq!(finished(&mut stream, 2).await[1].len(), N as usize);
        drop(stream);
        upper.handle.drained().await;
        lower.handle.drained().await;
    }
}

#[tokio::test]
async fn a_full_queue_of_either_model_refuses_the_request_and_keeps_no_place_in_the_other() {
    let (upper, lower) = engines(1);
    let all = 1 + QUEUE;
    for (full, other) in [(&upper, &lower), (&lower, &upper)] {
        full.script.shut();
        let held = full.handle.sample(job_of(full.handle.spec().shape, all), None).unwrap();
        let refused = upper.handle.sample_from(&lower.handle, job(2, 1), None).unwrap_err();
        assert!(matches!(refused, Error::QueueFull { requested: 1, free: 0, .. }), "{refused}");
        assert_eq!(free(&other.handle), all);
        drop(held);
        full.script.open_gate();
    }
}

fn job_of(shape: Shape, images: u32) -> SampleJob {
    SampleJob { prefix: Canvas::empty(shape), ..job(1, images) }
}

#[tokio::test]
async fn a_first_stage_that_fails_ends_the_request_and_says_which_model_it_was() {
    let (upper, lower) = engines(2);
    lower.script.fail(Call::Step, 2, Fault::Panic);
    let mut stream = upper.handle.sample_from(&lower.handle, job(1, 1), None).unwrap();
    let (images, end) = read(&mut stream).await;
    assert!(images[0].is_empty());
    let why = engine_fault(end.as_ref().err()).to_owned();
    assert!(why.contains("\"scripted\", which draws the low-resolution images"), "{why}");
    assert_eq!([free(&upper.handle), free(&lower.handle)], [2 + QUEUE; 2], "its places are free");
    assert_eq!(stream.summary(), None);
    let mut next = upper.handle.sample_from(&lower.handle, job(1, 1), None).unwrap();
    finished(&mut next, 1).await;
}

#[tokio::test]
async fn streams_in_two_stages_dropped_anywhere_leave_nothing_behind() {
    let (upper, lower) = engines(3);
    let (mut state, mut alive, mut ended) = (1, Vec::new(), [0; 3]);
    for _ in 0..2_000 {
        let images = 1 + (random(&mut state) % 3) as u32;
        let job = job(random(&mut state), images);
        match upper.handle.sample_from(&lower.handle, job, None) {
            Ok(stream) => alive.push(stream),
            Err(Error::QueueFull { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        // Others of the lower model's alone.
        if let Ok(mut stream) = lower.handle.sample(job_of(lower.handle.spec().shape, 1), None)
            && images == 1
        {
            finished(&mut stream, 1).await;
        }
        while alive.len() > (random(&mut state) % 4) as usize {
            let mut stream: SampleStream = alive.swap_remove(random(&mut state) as usize % alive.len());
            let mut over = false;
            for _ in 0..random(&mut state) % 16 {
                over = stream.next(None).await.is_none();
                if over {
                    break;
                }
            }
            ended[if over { 2 } else { usize::from(stream.first.is_none()) }] += 1;
        }
    }
    drop(alive);
    assert!(ended.iter().all(|&count| count > 20), "dropped in either stage, or read to the end: {ended:?}");
    for Daemon { handle, script, engine } in [upper, lower] {
        settled(&handle).await;
        assert_eq!(free(&handle), 3 + QUEUE);
        assert_eq!((script.open_slots().len(), script.violations()), (0, Vec::new()));
        let load = handle.load();
        assert_eq!((load.running, load.queued), (0, 0));
        engine.stop();
    }
}
