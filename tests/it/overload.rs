//! More work than there is room or time for, and the same work twice.

use std::sync::Arc;
use std::time::Duration;

use pixeld::app::Source;
use pixeld::engine::SCORE_IMAGES;
use pixeld::image::Shape;
use pixeld::rpc::proto::stream_generate_images_response::Event;
use pixeld::rpc::proto::stream_score_images_request::Part;
use pixeld::rpc::proto::{
    Conditioning, GenerateImagesRequest, Image, ImageEncoding, Priority, SchedulingParams, ScoreImagesRequest,
    ScoreItem, ScoringSpec, StreamGenerateImagesRequest,
};
use tokio::task::{JoinSet, yield_now};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::harness::{Daemon, MODEL, QUEUE, config, next, patiently, read, refusal, shape, stream};
use crate::scoring::{item, part, score_all};
use crate::steady::{Gate, Steady};

/// Longer than it takes to open a stream.
const SHORT: Duration = Duration::from_millis(300);

fn of_class(priority: Priority, seed: u64) -> StreamGenerateImagesRequest {
    let mut request = stream(1, seed);
    let scheduling = SchedulingParams { priority: priority.into(), queue_timeout: None };
    request.spec.as_mut().unwrap().scheduling = Some(scheduling);
    request
}

#[tokio::test]
async fn batch_work_is_shed_first_and_served_last() {
    let (daemon, gate) = Daemon::gated(1, config()).await;
    gate.allow(1);
    let mut held = Vec::new();
    // The slot and half of the queue.
    for seed in 0..1 + u64::from(QUEUE / 2) {
        let batch = daemon.generation().stream_generate_images(of_class(Priority::Batch, seed)).await;
        held.push(batch.unwrap().into_inner());
    }
    gate.blocked().await;
    let status = daemon.generation().stream_generate_images(of_class(Priority::Batch, 99)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "QUEUE_FULL".into(), vec![]));
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    assert!(status.metadata().contains_key(pixeld::rpc::PUSHBACK));
    let interactive = of_class(Priority::Interactive, 100);
    let interactive = daemon.generation().stream_generate_images(interactive).await.expect("there is room for people");
    // As many steps as the image in the slot and one more take.
    gate.allow(2 * u64::from(shape().values()) - 1);
    read(interactive.into_inner()).await.expect("it is next, whoever waits");
    gate.open();
    for mut events in held {
        while next(&mut events).await.unwrap().is_some() {}
    }
}

#[tokio::test]
async fn batch_work_that_waits_ends_like_a_refusal_where_people_would_be_refused() {
    let (daemon, gate) = Daemon::gated(1, config()).await;
    gate.allow(1);
    let open = async |priority, seed| daemon.generation().stream_generate_images(of_class(priority, seed)).await;
    let mut held = vec![open(Priority::Interactive, 0).await.unwrap().into_inner()];
    gate.blocked().await;
    let batch = open(Priority::Batch, 1).await.unwrap().into_inner();
    for seed in 2..=u64::from(QUEUE) {
        held.push(open(Priority::Interactive, seed).await.unwrap().into_inner());
    }
    held.push(open(Priority::Interactive, 100).await.expect("batch work makes room").into_inner());
    let status = read(batch).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "QUEUE_FULL".into(), vec![]));
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    assert!(status.metadata().contains_key(pixeld::rpc::PUSHBACK));
    let status = open(Priority::Interactive, 101).await.unwrap_err();
    assert_eq!(refusal(&status).1, "QUEUE_FULL", "there is no more of it");
    gate.open();
    for mut events in held {
        while next(&mut events).await.unwrap().is_some() {}
    }
}

/// Payloads that are refused as soon as they are looked at.
fn unreadable() -> (Conditioning, ScoreItem) {
    let conditioning = Conditioning { prefix: vec![16].into(), ..Conditioning::default() };
    let png = Image { data: vec![0; 60].into(), encoding: ImageEncoding::Png.into(), shape: None };
    (conditioning, ScoreItem { image: Some(png), ..item(0) })
}

#[tokio::test]
async fn a_full_queue_refuses_before_a_payload_is_decoded() {
    let (daemon, gate) = Daemon::gated(1, config()).await;
    let daemon = Arc::new(daemon);
    let (conditioning, broken) = unreadable();
    let mut generation = stream(1, 1);
    generation.spec.as_mut().unwrap().conditioning = Some(conditioning);
    let whole = GenerateImagesRequest { spec: generation.spec.clone(), encoding: 0 };
    let scoring = ScoreImagesRequest { spec: None, items: vec![broken.clone()] };
    let parts = || vec![part(Part::Spec(ScoringSpec::default())), part(Part::Item(broken.clone()))];
    let codes = async || {
        [
            daemon.generation().stream_generate_images(generation.clone()).await.unwrap_err().code(),
            daemon.generation().generate_images(whole.clone()).await.unwrap_err().code(),
            daemon.scoring().score_images(scoring.clone()).await.unwrap_err().code(),
            score_all(&daemon, parts()).await.1.unwrap_err().code(),
        ]
    };
    assert_eq!(codes().await, [Code::InvalidArgument; 4], "where there is room they are looked at");

    gate.allow(0);
    let mut held = Vec::new();
    for seed in 0..=u64::from(QUEUE) {
        held.push(daemon.generation().stream_generate_images(stream(1, seed)).await.unwrap().into_inner());
    }
    gate.blocked().await;
    let (mut scores, items) = (JoinSet::new(), QUEUE + SCORE_IMAGES);
    for _ in 0..items / 8 {
        let daemon = Arc::clone(&daemon);
        let items = (0..8).map(item).collect();
        scores.spawn(async move { daemon.scoring().score_images(ScoreImagesRequest { spec: None, items }).await });
    }
    let handle = daemon.handle(MODEL);
    patiently(async {
        while handle.load().submitted < u64::from(1 + QUEUE + items) {
            yield_now().await;
        }
    })
    .await;
    assert_eq!(codes().await, [Code::ResourceExhausted; 4], "where there is not they are not");
    gate.open();
    for mut events in held {
        while next(&mut events).await.unwrap().is_some() {}
    }
    scores.join_all().await.into_iter().for_each(|scored| assert_eq!(scored.unwrap().into_inner().scores.len(), 8));
}

#[tokio::test]
async fn an_item_of_a_scoring_stream_that_would_be_late_is_refused_with_the_estimate() {
    let (shape, gate) = (Shape::new(64, 512, 1, 256).unwrap(), Gate::default());
    let model = Steady::new(MODEL, shape, 1, &gate);
    let daemon = Daemon::start(config(), vec![Source::new(MODEL, move || Ok(Box::new(model)))]).await;
    let image = || Image { data: vec![7; shape.values() as usize].into(), ..Image::default() };
    let item = || ScoreItem { image: Some(image()), ..ScoreItem::default() };
    let parts = || tokio_stream::iter([part(Part::Spec(ScoringSpec::default())), part(Part::Item(item()))]);
    let score = async |deadline| {
        let mut request = Request::new(parts());
        request.set_timeout(deadline);
        let mut answers = daemon.scoring().stream_score_images(request).await?.into_inner();
        patiently(answers.message()).await
    };
    score(Duration::from_secs(24 * 3600)).await.expect("who has time is let in");
    let measured = ScoreImagesRequest { spec: None, items: vec![item()] };
    let measured = daemon.scoring().score_images(measured).await.unwrap().into_inner().timing.unwrap();
    let pass = Duration::try_from(measured.decode_duration.unwrap()).unwrap();
    let status = score(pass / 2).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::DeadlineExceeded, "DEADLINE_INFEASIBLE".into(), vec![]));
    assert!(status.get_error_details().error_info().unwrap().metadata.contains_key("estimated_wait_ms"));
    assert_eq!(daemon.handle(MODEL).load().submitted, 2, "nothing of it was begun");
}

/// A daemon whose images take a million steps: most of a second, whatever the machine.
async fn slow() -> (Daemon, Gate) {
    let gate = Gate::default();
    let model = Steady::new(MODEL, Shape::new(512, 680, 3, 16).unwrap(), 1, &gate);
    (Daemon::start(config(), vec![Source::new(MODEL, move || Ok(Box::new(model)))]).await, gate)
}

fn soon() -> Request<StreamGenerateImagesRequest> {
    let mut request = Request::new(stream(1, 2));
    request.set_timeout(SHORT);
    request
}

#[tokio::test]
async fn a_deadline_that_cannot_be_met_is_refused_at_once_with_the_estimate() {
    let (daemon, _gate) = slow().await;
    let mut first = daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    while !matches!(next(&mut first).await.unwrap(), Some(Event::Sampled(_))) {}
    let whole = GenerateImagesRequest { spec: soon().into_inner().spec, encoding: 0 };
    let mut whole = Request::new(whole);
    whole.set_timeout(SHORT);
    for status in [
        daemon.generation().stream_generate_images(soon()).await.unwrap_err(),
        daemon.generation().generate_images(whole).await.unwrap_err(),
    ] {
        assert_eq!(refusal(&status), (Code::DeadlineExceeded, "DEADLINE_INFEASIBLE".into(), vec![]));
        let details = status.get_error_details();
        let estimate: u128 = details.error_info().unwrap().metadata["estimated_wait_ms"].parse().unwrap();
        assert!(estimate > SHORT.as_millis(), "{estimate} ms");
    }
    assert_eq!(daemon.handle(MODEL).load().submitted, 1, "nothing of them was begun");
    let mut patient = Request::new(stream(1, 2));
    patient.set_timeout(Duration::from_secs(24 * 3600));
    daemon.generation().stream_generate_images(patient).await.expect("who has time is let in");
}

#[tokio::test]
async fn no_deadline_is_refused_before_anything_was_measured() {
    let (daemon, gate) = slow().await;
    gate.allow(0);
    let events = daemon.generation().stream_generate_images(soon()).await.unwrap().into_inner();
    assert_eq!(refusal(&read(events).await.unwrap_err()).1, "QUEUE_TIMEOUT");
}

#[tokio::test]
async fn the_operator_bounds_the_wait_and_a_request_can_only_tighten_that() {
    let mut config = config();
    config.limits.queue_timeout = SHORT;
    let (daemon, gate) = Daemon::gated(1, config).await;
    gate.allow(0);
    let first = daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    gate.blocked().await;
    let hour = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    for queue_timeout in [None, hour] {
        let mut waiting = stream(1, 2);
        waiting.spec.as_mut().unwrap().scheduling = Some(SchedulingParams { priority: 0, queue_timeout });
        let events = daemon.generation().stream_generate_images(waiting).await.unwrap().into_inner();
        let status = read(events).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::DeadlineExceeded, "QUEUE_TIMEOUT".into(), vec![]));
    }
    drop(first);
}

#[tokio::test]
async fn a_request_id_is_refused_while_its_request_runs() {
    let (daemon, gate) = Daemon::gated(1, config()).await;
    gate.allow(1);
    let named = |id: &str| {
        let mut request = stream(1, 1);
        request.spec.as_mut().unwrap().request_id = id.into();
        request
    };
    let open = async |id| daemon.generation().stream_generate_images(named(id)).await;
    let mut first = open("mine").await.unwrap().into_inner();
    let whole = GenerateImagesRequest { spec: named("mine").spec, encoding: 0 };
    for status in [open("mine").await.unwrap_err(), daemon.generation().generate_images(whole).await.unwrap_err()] {
        assert_eq!(refusal(&status), (Code::AlreadyExists, "ALREADY_RUNNING".into(), vec![]));
    }
    drop(open("other").await.expect("another is not touched"));
    gate.open();
    while next(&mut first).await.unwrap().is_some() {}
    let again = open("mine").await.expect("the first has ended");
    // One that is given up has ended too.
    gate.allow(0);
    drop(again);
    patiently(async { while open("mine").await.is_err() {} }).await;
}
