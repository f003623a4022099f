//! Requests that come in pieces, or not at all: what they may hold, and for how long.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::Request;
use http_body::{Body, Frame};
use pixeld::rpc::proto::stream_score_images_request::Part;
use pixeld::rpc::proto::{Image, ScoreImagesRequest, ScoreItem, ScoringSpec, StreamScoreImagesRequest};
use prost::Message;
use tokio::task::{JoinSet, yield_now};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use tower::ServiceExt;

use crate::harness::{Daemon, MODEL, config, connect, patiently, read, refusal, stream as sampled};
use crate::scoring::item;

pub(crate) const SCORE: &str = "ScoringService/ScoreImages";
const STREAM_SCORE: &str = "ScoringService/StreamScoreImages";

/// A request body made of pieces, which need not be messages.
struct Pieces<S>(S);

impl<S: Stream<Item = Result<Bytes, Status>> + Unpin> Body for Pieces<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.0).poll_next(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// Calls a method with `pieces`, after which the client says no more, but does not end the request either until it goes
/// `away`; reads the answer to its end.
pub(crate) async fn call_until(away: CancellationToken, channel: Channel, method: &str, pieces: Vec<Bytes>) -> Status {
    let gone = stream::once(Box::pin(async move { Err(away.cancelled().map(|()| Status::cancelled("gone")).await) }));
    let body = tonic::body::Body::new(Pieces(stream::iter(pieces.into_iter().map(Ok)).chain(gone)));
    let request = Request::post(format!("http://pixeld/pixeld.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("grpc-encoding", "gzip")
        .header("te", "trailers");
    let answer = channel.oneshot(request.body(body).unwrap()).await.unwrap();
    let (head, mut body) = answer.into_parts();
    let mut end = Status::from_header_map(&head.headers);
    while end.is_none() {
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let frame = frame.expect("an answer ends with a status").unwrap();
        end = frame.trailers_ref().and_then(Status::from_header_map);
    }
    end.unwrap()
}

async fn call(channel: Channel, method: &str, pieces: Vec<Bytes>) -> Status {
    call_until(CancellationToken::new(), channel, method, pieces).await
}

/// What stands before `length` bytes of a message.
pub(crate) fn prefix(flag: u8, length: u32) -> Bytes {
    [&[flag][..], &length.to_be_bytes()].concat().into()
}

fn framed(message: &impl Message) -> Vec<Bytes> {
    let message = message.encode_to_vec();
    vec![prefix(0, message.len() as u32), message.into()]
}

/// A scoring request of about so many bytes, with a wrong image in it.
fn large(bytes: usize) -> ScoreImagesRequest {
    let image = Some(Image { data: vec![0; bytes].into(), ..Image::default() });
    ScoreImagesRequest { spec: None, items: vec![ScoreItem { image, ..ScoreItem::default() }] }
}

#[tokio::test]
async fn requests_that_stay_half_sent_share_one_budget_and_give_it_back() {
    let mut config = config();
    config.server.max_upload_bytes = 4 * config.server.max_request_bytes;
    let largest = config.server.max_request_bytes as u32;
    let daemon = Daemon::start(config, vec![]).await;
    for method in [SCORE, STREAM_SCORE] {
        let (mut calls, away) = (JoinSet::new(), CancellationToken::new());
        for _ in 0..3 {
            // A connection each, so that no limit of a connection helps. Half of it came, which counts twice.
            let half = vec![prefix(0, largest), vec![b'\n'; largest as usize * 3 / 4].into()];
            calls.spawn(call_until(away.clone(), connect(daemon.address), method, half));
        }
        let refused = patiently(calls.join_next()).await.unwrap().unwrap();
        assert_eq!(refusal(&refused), (Code::ResourceExhausted, "UPLOADS_FULL".into(), vec![]));
        assert!(refused.metadata().contains_key(pixeld::rpc::PUSHBACK));
        let info = refused.get_error_details().error_info().unwrap().metadata.clone();
        assert!(info["requested"].parse::<u32>().unwrap() > info["free"].parse().unwrap(), "{info:?}");
        assert_eq!(calls.len(), 2, "those that fit are waited for");
        away.cancel();
        patiently(async {
            let whole = || call(daemon.channel.clone(), SCORE, framed(&large(60 << 10)));
            while refusal(&whole().await).1 == "UPLOADS_FULL" {
                yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_is_answered_once_it_is_whole_whether_or_not_the_client_says_that_it_has_ended() {
    let daemon = Daemon::steady().await;
    let whole = framed(&ScoreImagesRequest { spec: None, items: vec![item(0)] });
    let more = [whole.clone(), vec![Bytes::from_static(b"what nobody asked for")]].concat();
    // In one piece too: then the rest comes along with what is wanted.
    for pieces in [whole, more.clone(), vec![more.concat().into()]] {
        let status = patiently(call(daemon.channel.clone(), SCORE, pieces)).await;
        assert_eq!(status.code(), Code::Ok, "{status:?}");
    }
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_by_its_prefix() {
    let daemon = Daemon::steady().await;
    let largest = config().server.max_request_bytes as u32;
    for (method, flag) in [(SCORE, 0), (SCORE, 1), (STREAM_SCORE, 0), (STREAM_SCORE, 1)] {
        let status = patiently(call(daemon.channel.clone(), method, vec![prefix(flag, largest + 1)])).await;
        let expected = (Code::InvalidArgument, "INVALID_REQUEST".into(), vec!["request".into()]);
        assert_eq!(refusal(&status), expected, "{method} {flag}");
        assert!(status.message().contains("at most 65536 bytes, got 65537"), "{}", status.message());
    }
}

#[tokio::test]
async fn a_message_of_crumbs_is_refused_before_room_is_made_for_them() {
    let mut config = config();
    (config.server.max_request_bytes, config.server.max_upload_bytes) = (1 << 20, 2 << 20);
    let daemon = Daemon::start(config, vec![]).await;
    let crumbs = ScoreImagesRequest { spec: None, items: vec![ScoreItem::default(); 400_000] };
    let status = daemon.scoring().score_images(crumbs).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_REQUEST".into(), vec!["request".into()]));
    assert!(status.message().contains("131072 fields"), "{}", status.message());
}

#[tokio::test]
async fn metadata_above_the_limit_is_refused_in_words_of_grpc() {
    let daemon = Daemon::steady().await;
    let mut request = tonic::Request::new(ScoreImagesRequest { spec: None, items: vec![item(0)] });
    request.metadata_mut().insert("token", "x".repeat(40 << 10).parse().unwrap());
    let status = daemon.scoring().score_images(request).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_REQUEST".into(), vec!["metadata".into()]));
    assert!(status.message().contains("at most 16384 bytes"), "{}", status.message());
    daemon.scoring().score_images(ScoreImagesRequest { spec: None, items: vec![item(0)] }).await.unwrap();
}

#[tokio::test]
async fn what_is_not_grpc_is_refused_with_the_status_of_http_that_says_so() {
    let daemon = Daemon::steady().await;
    for (kind, accepted) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc; charset=utf-8", true),
        ("application/grpc+json", false),
        ("application/grpc-web", false),
        ("text/plain", false),
    ] {
        let body = framed(&ScoreImagesRequest { spec: None, items: vec![item(0)] }).into_iter().map(Ok);
        let request = Request::post(format!("http://pixeld/pixeld.v1.{SCORE}")).header("content-type", kind);
        let request = request.body(tonic::body::Body::new(Pieces(stream::iter(body)))).unwrap();
        let answer = daemon.channel.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status() == 200, accepted, "{kind}: {}", answer.status());
        assert!(accepted || answer.status() == 415, "{kind}: {}", answer.status());
    }
}

#[tokio::test]
async fn what_is_announced_and_does_not_come_keeps_nobody_out() {
    let mut config = config();
    config.server.max_upload_bytes = 2 * config.server.max_request_bytes;
    let largest = config.server.max_request_bytes as u32;
    let daemon = Daemon::gated(1, config).await.0;
    let (mut calls, away) = (JoinSet::new(), CancellationToken::new());
    for method in [SCORE, STREAM_SCORE].repeat(10) {
        let begun = vec![prefix(0, largest), Bytes::from_static(b"\n")];
        calls.spawn(call_until(away.clone(), connect(daemon.address), method, begun));
    }
    for _ in 0..20 {
        assert!(calls.try_join_next().is_none(), "they are waited for");
        let whole = call(daemon.channel.clone(), SCORE, framed(&large(40 << 10))).await;
        assert_eq!(refusal(&whole).1, "INVALID_REQUEST", "it was read");
    }
    // With none of the memory left, health can be asked for all the same.
    let rest = vec![prefix(0, largest), vec![b'\n'; largest as usize - 1000].into()];
    let full = call_until(away.clone(), connect(daemon.address), SCORE, rest.clone());
    calls.spawn(full);
    patiently(async {
        while refusal(&call(daemon.channel.clone(), SCORE, framed(&large(40 << 10))).await).1 != "UPLOADS_FULL" {}
    })
    .await;
    let mut health = HealthClient::new(daemon.channel.clone());
    health.check(HealthCheckRequest { service: "liveness".to_owned() }).await.expect("a probe is answered");
    read(daemon.generation().stream_generate_images(sampled(1, 1)).await.unwrap().into_inner())
        .await
        .expect("it is small");
    away.cancel();
}

#[tokio::test]
async fn a_stream_that_keeps_memory_and_is_not_read_from_loses_it_to_others() {
    let mut config = config();
    config.server.max_request_bytes = 128 << 10;
    // While it comes it counts twice.
    config.server.max_upload_bytes = 200 << 10;
    let (daemon, gate) = Daemon::gated(1, config).await;
    // Nothing is scored while a step stands still, so that the stream takes nothing in once its window is full.
    gate.allow(0);
    let held = daemon.generation().stream_generate_images(sampled(1, 1)).await.unwrap();
    gate.blocked().await;
    let part = |part: Part| StreamScoreImagesRequest { part: Some(part) };
    // With a field that nobody knows, of 100 KB.
    let spec = part(Part::Spec(ScoringSpec { model: MODEL.into(), ..ScoringSpec::default() })).encode_to_vec();
    let first = [&spec[..], &[0xc2, 0x3e, 0x80, 0x80, 0x06], &[0; 3 << 15]].concat();
    let items = (0..100).flat_map(|index| framed(&part(Part::Item(item(index)))));
    let pieces = [prefix(0, first.len() as u32), first.into()].into_iter().chain(items).collect();
    let mut scores =
        JoinSet::from_iter([call_until(CancellationToken::new(), connect(daemon.address), STREAM_SCORE, pieces)]);
    let engine = daemon.handle(MODEL);
    patiently(async {
        while engine.load().submitted < 30 {
            yield_now().await
        }
    })
    .await;
    let full = async || refusal(&call(daemon.channel.clone(), SCORE, framed(&large(80 << 10))).await).1;
    assert_eq!(full().await, "UPLOADS_FULL");
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_secs(10)).await;
    patiently(async { while full().await == "UPLOADS_FULL" {} }).await;
    let status = patiently(scores.join_next()).await.unwrap().unwrap();
    assert_eq!(refusal(&status), (Code::Aborted, "REQUEST_STALLED".into(), vec![]));
    drop((held, gate));
}

#[tokio::test]
async fn a_request_that_has_yet_to_come_does_not_hold_the_end_up() {
    let mut daemon = Daemon::steady().await;
    let (mut calls, away) = (JoinSet::new(), CancellationToken::new());
    for pieces in [vec![], vec![prefix(0, 100)]] {
        calls.spawn(call_until(away.clone(), connect(daemon.address), SCORE, pieces));
    }
    // They are there once a later call on a connection of its own was answered.
    call(daemon.channel.clone(), SCORE, framed(&large(10))).await;
    daemon.stop();
    while let Some(told) = patiently(calls.join_next()).await {
        assert_eq!(refusal(&told.unwrap()), (Code::Unavailable, "SERVER_DRAINING".into(), vec![]));
    }
    patiently(daemon.ended()).await.unwrap();
}
