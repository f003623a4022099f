//! Deadlines hold in the queue, in the middle of a stream, and while nobody says anything.

use std::time::Duration;

use pixeld::app::Source;
use pixeld::image::Shape;
use pixeld::rpc::proto::SchedulingParams;
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::stream_generate_images_response::Event;
use pixeld::rpc::proto::stream_score_images_request::Part;
use pixeld::rpc::proto::{ScoringSpec, StreamGenerateImagesRequest};
use tokio_stream::StreamExt;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::harness::{Daemon, MODEL, PATIENCE, config, connect_deaf, next, patiently, read, refusal, stream};
use crate::scoring::part;
use crate::steady::{Gate, Steady};

/// Longer than it takes to open a stream, short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_deadline_that_passes_mid_stream_ends_the_stream_and_frees_its_slot() {
    let (daemon, gate) = Daemon::gated(1, config()).await;
    gate.allow(5);
    let mut request = Request::new(stream(1, 1));
    request.set_timeout(SHORT);
    let mut events = daemon.generation().stream_generate_images(request).await.unwrap().into_inner();
    let mut values = 0;
    let status = loop {
        match next(&mut events).await {
            Ok(Some(Event::Sampled(sampled))) => {
                values += sampled.runs.iter().map(|run| run.values.len()).sum::<usize>()
            }
            Ok(Some(Event::Started(_))) => {}
            Ok(other) => panic!("unexpected {other:?}"),
            Err(status) => break status,
        }
    };
    assert_eq!(values, 5);
    assert_eq!(refusal(&status), (Code::DeadlineExceeded, "DEADLINE_MID_STREAM".into(), vec![]));
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["values"], "5");
    gate.open();
    let request = daemon.generation().stream_generate_images(stream(1, 2)).await.unwrap();
    read(request.into_inner()).await.expect("the only slot is free again");
}

#[tokio::test]
async fn a_queue_timeout_or_a_deadline_ends_what_still_waits_for_a_slot() {
    let (daemon, gate) = Daemon::gated(1, config()).await;
    gate.allow(0);
    let first = daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    gate.blocked().await;
    let mut waiting = stream(1, 2);
    let queue_timeout = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
    waiting.spec.as_mut().unwrap().scheduling = Some(SchedulingParams { priority: 0, queue_timeout });
    let waiting = Request::new(waiting);
    let mut late = Request::new(stream(1, 3));
    late.set_timeout(SHORT);
    for request in [waiting, late] {
        let events = daemon.generation().stream_generate_images(request).await.unwrap().into_inner();
        let status = read(events).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::DeadlineExceeded, "QUEUE_TIMEOUT".into(), vec![]));
    }
    gate.open();
    read(first).await.expect("the one before it is not touched");
}

#[tokio::test]
async fn a_scoring_stream_whose_client_says_nothing_ends_at_its_deadline() {
    let daemon = Daemon::steady().await;
    let items = tokio_stream::once(part(Part::Spec(ScoringSpec::default()))).chain(tokio_stream::pending());
    let mut request = Request::new(items);
    request.set_timeout(SHORT);
    let mut answers = daemon.scoring().stream_score_images(request).await.unwrap().into_inner();
    let status = tokio::time::timeout(PATIENCE, answers.message()).await.expect("it ends").unwrap_err();
    assert_eq!(refusal(&status).0, Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_stream_nobody_reads_gives_its_place_back_at_its_deadline() {
    let mut config = config();
    config.engine.engine.queue_images = 0;
    // Large enough that it cannot hide in the buffers on the way.
    let large = Shape::new(256, 256, 3, 16).unwrap();
    let source = Source::new(MODEL, move || Ok(Box::new(Steady::new(MODEL, large, 1, &Gate::default()))));
    let daemon = Daemon::start(config, vec![source]).await;
    let mut deaf = GenerationServiceClient::new(connect_deaf(daemon.address));
    let mut request = Request::new(StreamGenerateImagesRequest { include_log_probs: true, ..stream(1, 1) });
    request.set_timeout(SHORT);
    let mut unread = deaf.stream_generate_images(request).await.unwrap().into_inner();
    let mut refused = 0;
    let second = patiently(async {
        loop {
            match daemon.generation().stream_generate_images(stream(1, 2)).await {
                Ok(second) => break second,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
            }
            refused += 1;
        }
    });
    let second = second.await;
    assert!(refused > 0, "the only place was taken until then");
    drop(second);
    let status = patiently(async {
        loop {
            match next(&mut unread).await {
                Ok(event) => assert!(event.is_some(), "it does not end well"),
                Err(status) => break status,
            }
        }
    });
    assert_eq!(refusal(&status.await).0, Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_timeout_that_is_none_is_refused() {
    let daemon = Daemon::steady().await;
    let mut request = Request::new(StreamGenerateImagesRequest::default());
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let status = daemon.generation().stream_generate_images(request).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_REQUEST".into(), vec!["grpc-timeout".into()]));
}
