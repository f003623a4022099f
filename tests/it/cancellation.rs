//! Clients that leave, clients that do not read, and requests that somebody cancels by their names.

use std::time::Duration;

use crate::harness::{Daemon, MODEL, config, connect_deaf, next, patiently, read, refusal, shape, stream};
use pixeld::app::Source;
use pixeld::image::Shape;
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::{
    CancelGenerationRequest, GenerateImagesRequest, ScoreDetail, ScoreImagesRequest, ScoreImagesResponse, ScoringSpec,
    StreamGenerateImagesRequest,
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use crate::scoring::item;
use crate::steady::{Gate, Steady};

async fn cancel(daemon: &Daemon, request_id: &str) -> Result<bool, Status> {
    let request = CancelGenerationRequest { request_id: request_id.into() };
    Ok(daemon.generation().cancel_generation(request).await?.into_inner().was_running)
}

fn named(id: &str, seed: u64) -> StreamGenerateImagesRequest {
    let mut request = stream(1, seed);
    request.spec.as_mut().unwrap().request_id = id.into();
    request
}

#[tokio::test]
async fn what_is_cancelled_by_its_name_ends_and_the_others_go_on_to_the_same_bytes() {
    let mut config = config();
    config.engine.engine.queue_images = 0;
    let (daemon, gate) = Daemon::gated(2, config).await;
    let open = async |id: &str, seed| daemon.generation().stream_generate_images(named(id, seed)).await;
    let alone = read(open("alone", 7).await.unwrap().into_inner()).await.unwrap();
    gate.allow(3);
    let mine = open("mine", 1).await.unwrap().into_inner();
    let other = open("other", 7).await.unwrap().into_inner();
    gate.blocked().await;
    assert_eq!(open("third", 3).await.unwrap_err().code(), Code::ResourceExhausted, "both places are taken");
    assert!(cancel(&daemon, "mine").await.unwrap());
    assert!(!cancel(&daemon, "mine").await.unwrap(), "it was told before");
    assert!(!cancel(&daemon, "nobody").await.unwrap());
    assert_eq!(refusal(&read(mine).await.unwrap_err()), (Code::Cancelled, "CANCELLED".into(), vec![]));
    let third = open("mine", 3).await.expect("its place is free, and so is its name").into_inner();
    // What the others take, and the step under way: nothing more is done for the first.
    gate.allow(u64::from(shape().values()) + 2);
    let (other, third) = tokio::join!(read(other), read(third));
    assert_eq!((other.unwrap().values, third.is_ok()), (alone.values, true));
    assert!(!cancel(&daemon, "other").await.unwrap(), "it has ended by itself");
    let load = daemon.handle(MODEL).load();
    assert_eq!((load.submitted, load.completed, load.given_up), (4, 3, 1));
}

#[tokio::test]
async fn a_request_without_a_stream_and_a_stream_that_nobody_reads_are_cancelled_too() {
    let gate = Gate::default();
    // More than the transport holds, with all that is told of it.
    let model = Steady::new(MODEL, Shape::new(64, 64, 3, 16).unwrap(), 4, &gate);
    let daemon = Daemon::start(config(), vec![Source::new(MODEL, move || Ok(Box::new(model)))]).await;
    let mut deaf = GenerationServiceClient::new(connect_deaf(daemon.address));
    let mut request = StreamGenerateImagesRequest { include_log_probs: true, ..named("unread", 1) };
    request.spec.as_mut().unwrap().image_count = Some(4);
    let mut unread = deaf.stream_generate_images(request).await.unwrap().into_inner();
    let load = || daemon.handle(MODEL).load();
    patiently(async {
        while load().completed < 4 {
            tokio::task::yield_now().await
        }
    })
    .await;
    gate.allow(1);
    let mut whole = daemon.generation();
    let whole = whole.generate_images(GenerateImagesRequest { spec: named("whole", 2).spec, encoding: 0 });
    let ended = async {
        gate.blocked().await;
        [cancel(&daemon, "whole").await.unwrap(), cancel(&daemon, "unread").await.unwrap()]
    };
    let (status, ended) = tokio::join!(patiently(whole), ended);
    assert_eq!((refusal(&status.unwrap_err()).1.as_str(), ended), ("CANCELLED", [true, true]));
    gate.open();
    let status = patiently(async {
        loop {
            if let Err(status) = next(&mut unread).await {
                break status;
            }
        }
    })
    .await;
    assert_eq!(refusal(&status).1, "CANCELLED");
}

#[tokio::test]
async fn a_name_that_no_request_can_have_is_refused() {
    let daemon = Daemon::steady().await;
    for wrong in ["", "a b", &"x".repeat(65)] {
        let status = cancel(&daemon, wrong).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_REQUEST".into(), vec!["request_id".into()]));
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_frees_its_places_and_its_slot() {
    let mut config = config();
    config.engine.engine.queue_images = 0;
    let (daemon, gate) = Daemon::gated(1, config).await;
    gate.allow(1);
    let open = || async { daemon.generation().stream_generate_images(stream(1, 1)).await };
    let first = open().await.unwrap();
    gate.blocked().await;
    assert_eq!(open().await.unwrap_err().code(), Code::ResourceExhausted, "the only place is taken");
    drop(first);
    let second = patiently(async {
        loop {
            match open().await {
                Ok(second) => break second,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
            }
        }
    });
    let second = second.await;
    // What the second takes, and the step under way: nothing more is done for the first.
    gate.allow(u64::from(shape().values()) + 2);
    read(second.into_inner()).await.expect("the slot went to the second");
}

#[tokio::test]
async fn a_client_that_never_reads_stops_no_one_else() {
    let (daemon, _gate) = Daemon::gated(2, config()).await;
    let mut deaf = Vec::new();
    for seed in 0..20 {
        let request = StreamGenerateImagesRequest { include_log_probs: true, ..stream(3, seed) };
        let channel = connect_deaf(daemon.address);
        let mut client = GenerationServiceClient::new(channel);
        deaf.push((client.stream_generate_images(request).await.unwrap().into_inner(), client));
    }
    let heard = read(daemon.generation().stream_generate_images(stream(2, 5)).await.unwrap().into_inner()).await;
    assert_eq!(heard.unwrap().values.len(), 2);
    // What was not read is still there, whole, when the reader comes at last.
    for (mut events, _client) in deaf {
        while next(&mut events).await.unwrap().is_some() {}
    }
}

#[tokio::test]
async fn an_answer_to_a_call_that_nobody_takes_is_given_up() {
    let mut config = config();
    config.server.connections.unread_timeout = Duration::from_secs(1);
    config.limits.items_per_request = 256;
    config.engine.engine.queue_images = 256;
    let (daemon, _gate) = Daemon::gated(2, config).await;
    let spec = ScoringSpec { detail: ScoreDetail::PerValue.into(), ..ScoringSpec::default() };
    let request = ScoreImagesRequest { spec: Some(spec), items: (0..256).map(item).collect() };
    // A client that reads when it likes, which those of calls with one answer do not.
    let mut client = tonic::client::Grpc::new(connect_deaf(daemon.address));
    client.ready().await.unwrap();
    let path = "/pixeld.v1.ScoringService/ScoreImages".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<ScoreImagesRequest, ScoreImagesResponse>::default();
    let mut answer = client.server_streaming(Request::new(request), path, codec).await.unwrap().into_inner();
    tokio::time::sleep_until(Instant::now() + Duration::from_secs(2)).await;
    let status = patiently(async {
        loop {
            match answer.message().await {
                Ok(Some(_)) => {}
                ended => break ended.unwrap_err(),
            }
        }
    });
    assert_eq!(refusal(&status.await), (Code::Aborted, "CLIENT_TOO_SLOW".into(), vec![]));
}
