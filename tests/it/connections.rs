//! Limits of a connection, met by a client that knows no more of HTTP/2 than its frames.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use pixeld::rpc::proto::ScoringSpec;
use pixeld::rpc::proto::stream_score_images_request::Part;
use pixeld::rpc::proto::stream_score_images_response::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::harness::{Daemon, MODEL, config, connect, next, patiently, stream};
use crate::scoring::{item, part};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

/// A connection, frame by frame.
struct Raw(TcpStream);

impl Raw {
    async fn connect(address: SocketAddr) -> Self {
        let mut raw = Self(TcpStream::connect(address).await.unwrap());
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        raw.send(SETTINGS, 0, 0, &[]).await;
        raw
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = &(payload.len() as u32).to_be_bytes()[1..];
        let frame = [length, &[kind, flags], &stream.to_be_bytes(), payload].concat();
        _ = self.0.write_all(&frame).await;
    }

    /// The next frame's kind, stream and payload, or the end; answers pings by the way.
    async fn receive(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        loop {
            let mut head = [0; 9];
            patiently(self.0.read_exact(&mut head)).await.ok()?;
            let [_, a, b, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; usize::from(a) << 8 | usize::from(b)];
            self.0.read_exact(&mut payload).await.ok()?;
            match (kind, flags) {
                (PING, 0) => self.send(PING, ACK, 0, &payload).await,
                _ => return Some((kind, u32::from_be_bytes(stream), payload)),
            }
        }
    }

    /// Opens a call that scores images, and sends none.
    async fn call(&mut self, stream: u32) {
        let path = b"/pixeld.v1.ScoringService/StreamScoreImages";
        let kind = b"application/grpc";
        // POST, http, and two literals with names of the static table: :path, content-type (HPACK, RFC 7541).
        let block = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x0f, 0x10, kind.len() as u8], kind].concat();
        self.send(HEADERS, END_HEADERS, stream, &block).await;
    }
}

#[tokio::test]
async fn a_call_too_many_on_one_connection_is_refused_and_the_others_go_on() {
    let mut config = config();
    config.server.connections.streams = 2;
    let (daemon, _gate) = Daemon::gated(4, config).await;
    let mut raw = Raw::connect(daemon.address).await;
    for stream in [1, 3, 5] {
        raw.call(stream).await;
    }
    let refused = loop {
        let (kind, stream, payload) = raw.receive().await.expect("the connection stays");
        if kind == RST_STREAM {
            break (stream, payload);
        }
    };
    assert_eq!(refused, (5, REFUSED_STREAM.to_vec()));
    // When one has ended there is room again: this one is answered, or waits for its images, and is not refused.
    raw.send(RST_STREAM, 0, 1, &[0, 0, 0, 8]).await;
    raw.call(7).await;
    raw.send(PING, 0, 0, &[0; 8]).await;
    while let Some((kind, stream, _)) = raw.receive().await {
        assert_ne!((kind, stream), (RST_STREAM, 7));
        if kind == PING {
            return;
        }
    }
    panic!("the connection ended");
}

#[tokio::test]
async fn calls_end_within_the_grace_of_an_old_connection_and_are_cut_after_it() {
    for (grace, cut) in [(Duration::from_secs(60), false), (Duration::ZERO, true)] {
        let mut config = config();
        config.server.connections.age = Some(Duration::from_secs(1));
        config.server.connections.age_grace = grace;
        let (daemon, gate) = Daemon::gated(4, config).await;
        gate.allow(2);
        let mut client =
            pixeld::rpc::proto::generation_service_client::GenerationServiceClient::new(connect(daemon.address));
        let mut events = client.stream_generate_images(stream(1, 7)).await.unwrap().into_inner();
        gate.blocked().await;
        // Two connections that end of age one after the other are older than any one may become.
        for _ in 0..2 {
            let mut raw = Raw::connect(daemon.address).await;
            while raw.receive().await.is_some() {}
        }
        let read = async move {
            while next(&mut events).await?.is_some() {}
            Ok::<_, Status>(())
        };
        if cut {
            let status = patiently(read).await.unwrap_err();
            assert!(
                matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled),
                "{status:?}"
            );
        } else {
            gate.open();
            patiently(read).await.unwrap();
        }
    }
}

#[tokio::test]
async fn parallel_streams_of_small_items_that_wait_keep_their_connection() {
    const STREAMS: usize = 8;
    const ITEMS: u32 = 700;
    let mut config = config();
    config.server.max_upload_bytes = 256 << 20;
    config.engine.engine.queue_images = 1024;
    let (daemon, gate) = Daemon::gated(4, config).await;
    // Nothing is scored while a step stands still.
    gate.allow(0);
    let held = daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap();
    gate.blocked().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let calls: Vec<_> = (0..STREAMS)
        .map(|_| {
            let sent = Arc::clone(&sent);
            // One after the other, so that each is a frame of its own.
            let items = tokio_stream::iter(0..ITEMS).then(move |index| {
                sent.fetch_add(1, Relaxed);
                tokio::task::yield_now().map(move |()| part(Part::Item(item(index))))
            });
            let spec = ScoringSpec { model: MODEL.into(), ..ScoringSpec::default() };
            let parts = tokio_stream::iter([part(Part::Spec(spec))]).chain(items);
            let mut client = daemon.scoring();
            tokio::spawn(async move {
                let mut answers = client.stream_score_images(parts).await?.into_inner();
                let mut scores = 0;
                while let Some(answer) = answers.message().await? {
                    scores += u32::from(matches!(answer.event, Some(Event::Score(_))));
                }
                Ok::<_, Status>(scores)
            })
        })
        .collect();
    let unread = async {
        while sent.load(Relaxed) < STREAMS * 400 {
            tokio::task::yield_now().await
        }
    };
    patiently(unread).await;
    gate.open();
    for call in calls {
        assert_eq!(patiently(call).await.unwrap().unwrap(), ITEMS);
    }
    drop(held);
}
