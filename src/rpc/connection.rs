//! The life of one connection: TLS, HTTP/2, and its end, which may come from the client, from us, or from its age.

use std::io::{self, Cursor};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::io::InspectWriter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use uuid::Uuid;

use super::call::{Calls, MAX_METADATA_BYTES, Open};
use super::listen::Occasions;
use super::upload::Uploads;
use crate::security::Security;

/// Upload windows: a stream may not hold more than this unread, nor all streams of a connection together. The transport ends a
/// connection whose unread small frames would take half of the latter by its count, 256 bytes each whatever is in them: a dozen
/// streams full of items of 72 bytes, which are honest, stay below.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Answer bytes that may wait in the transport for one stream: what a reader that stops keeps from us.
const MAX_SEND_BUFFER: usize = 64 << 10;
/// Resets in flight before a connection counts as an attack: a burst of honest cancels must stay below it.
const MAX_PENDING_RESETS: usize = 1000;
/// Headers that the transport refuses by itself, with an HTTP status (431) that gRPC clients can only call unknown. It does
/// so before anything of ours sees the request; so what is above our own limit, but not by far, is let through to be
/// refused in gRPC's words, and only what is absurd ends like that.
const MAX_HEADERS: u32 = 4 * MAX_METADATA_BYTES;
/// What every HTTP/2 client begins with. Pings begin only after it, so nothing else ends a connection that never says a word.
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// How many connections there may be, and how long one may do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections there may be at once.
    pub most: u32,
    /// Calls that one may have open at once.
    pub streams: u32,
    /// From accepting one to the first words of HTTP/2, a TLS handshake included.
    pub handshake_timeout: Duration,
    /// Silence after which the client is asked for a sign.
    pub keepalive_interval: Duration,
    /// How long it may take to give one.
    pub keepalive_timeout: Duration,
    /// How long one may stay that has no call open; `None`: for ever.
    pub idle: Option<Duration>,
    /// How long one may stay in all, give or take a tenth so that those of one moment do not end in one; `None`: for ever.
    pub age: Option<Duration>,
    /// How long calls may go on after that.
    pub age_grace: Duration,
    /// How long an answer may lie unread.
    pub unread_timeout: Duration,
}

/// What all connections share.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) limits: ConnectionLimits,
    pub(super) open: TaskTracker,
    pub(super) goodbye: CancellationToken,
    /// Bytes handed to sockets, over all connections.
    pub(super) written: Arc<AtomicU64>,
    routes: Routes,
    pub(super) uploads: Uploads,
    security: Security,
    failures: Arc<Mutex<Occasions>>,
}

impl Connection {
    pub(super) fn new(routes: Routes, limits: ConnectionLimits, uploads: Uploads, security: Security) -> Self {
        Self {
            limits,
            open: TaskTracker::new(),
            goodbye: CancellationToken::new(),
            written: Arc::default(),
            routes: routes.prepare(),
            uploads,
            security,
            failures: Arc::default(),
        }
    }

    /// Serves one that came on `io`, to its end.
    pub(super) async fn run(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (limit, written) = (Instant::now() + self.limits.handshake_timeout, Arc::clone(&self.written));
        let io = InspectWriter::new(io, move |bytes: &[u8]| _ = written.fetch_add(bytes.len() as u64, Relaxed));
        let Some(tls) = self.security.tls() else { return self.converse(io, limit).await };
        let handshake = timeout_at(limit, TlsAcceptor::from(tls).accept(io));
        let Some(shaken) = self.goodbye.run_until_cancelled(handshake).await else { return };
        match shaken.unwrap_or_else(|elapsed| Err(elapsed.into())) {
            Ok(io) => Box::pin(self.converse(io, limit)).await,
            Err(error) => {
                let count = self.failures.lock().unwrap_or_else(PoisonError::into_inner).add(Instant::now());
                if let Some(count) = count {
                    tracing::warn!(%error, count, "TLS handshakes failed; the last one for this reason");
                }
            }
        }
    }

    /// Speaks HTTP/2 with a client that has until `limit` to begin.
    async fn converse(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, limit: Instant) {
        let Some(begun) = self.goodbye.run_until_cancelled(timeout_at(limit, preface(io))).await else { return };
        let Ok(Ok(io)) = begun else { return tracing::debug!("connection closed: no HTTP/2 client spoke on it") };
        let Self { limits, routes, uploads, security, goodbye, .. } = self;
        let open = Open::new(self.open);
        let calls = open.watch();
        let service = TowerToHyperService::new(Calls::new(routes, security, uploads, open, limits.unread_timeout));
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(limits.keepalive_interval)
            .keep_alive_timeout(limits.keepalive_timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(MAX_HEADERS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_send_buf_size(MAX_SEND_BUFFER);
        let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
        let cut = tokio::select! {
            ended = connection.as_mut() => return report(ended),
            // The drain has its own limit.
            () = goodbye.cancelled() => None,
            () = aged(limits.age) => Some(Instant::now() + limits.age_grace),
            () = idle(calls, limits.idle) => Some(Instant::now() + limits.age_grace),
        };
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => report(ended),
            () = at(cut) => tracing::debug!("connection cut: calls went on past its age and grace"),
        }
    }
}

fn report(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection failed");
    }
}

/// `io` as it was, once a client's preface has come.
async fn preface<IO: AsyncRead + AsyncWrite>(io: IO) -> io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let (mut from, to) = tokio::io::split(io);
    let mut preface = [0; PREFACE_BYTES];
    from.read_exact(&mut preface).await?;
    Ok(tokio::io::join(Cursor::new(preface).chain(from), to))
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Resolves a tenth before `age`, after it, or between.
async fn aged(age: Option<Duration>) {
    let spread = 0.9 + 0.2 * f64::from(Uuid::new_v4().as_fields().0) / f64::from(u32::MAX);
    at(age.map(|age| Instant::now() + age.mul_f64(spread))).await;
}

/// Resolves when there was no call for as long as `limit`.
async fn idle(mut calls: watch::Receiver<usize>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    while calls.wait_for(|calls| *calls == 0).await.is_ok() {
        if timeout(limit, calls.changed()).await.is_err() {
            return;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
pub(in crate::rpc) mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;

    /// Those of the example configuration, but no end by themselves.
    pub(in crate::rpc) const LIMITS: ConnectionLimits = ConnectionLimits {
        most: 1,
        streams: 1,
        handshake_timeout: Duration::from_secs(10),
        keepalive_interval: Duration::from_secs(30),
        keepalive_timeout: Duration::from_secs(10),
        idle: None,
        age: None,
        age_grace: Duration::from_secs(60),
        unread_timeout: Duration::from_secs(30),
    };
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// Type and flags of frames, with nothing in them.
    const SETTINGS: [u8; 2] = [4, 0];
    const PONG: [u8; 2] = [6, 1];

    /// A connection that keeps `limits`, and the client's end of it.
    fn connect(limits: ConnectionLimits) -> (tokio::task::JoinHandle<()>, DuplexStream) {
        let connection = Connection::new(Routes::default(), limits, Uploads::new(0, 0), Security::default());
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        (tokio::spawn(connection.run(theirs)), ours)
    }

    fn frame([kind, flags]: [u8; 2], payload: &[u8]) -> Vec<u8> {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 0], payload].concat()
    }

    /// Answers pings until the server has hung up, as any client does; tells how long that took.
    async fn lives(io: &mut DuplexStream) -> Duration {
        let began = Instant::now();
        let mut head = [0; 9];
        while io.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[2])];
            io.read_exact(&mut payload).await.unwrap();
            if head[3..5] == [6, 0] && io.write_all(&frame(PONG, &payload)).await.is_err() {
                break;
            }
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_closed_and_one_that_speaks_is_not() {
        for (said, closed) in [(&b""[..], true), (b"PRI * HTTP/2.0", true), (HELLO, false)] {
            let (served, mut ours) = connect(LIMITS);
            ours.write_all(said).await.unwrap();
            let ended = timeout(LIMITS.handshake_timeout * 2, served).await;
            assert_eq!(ended.is_ok(), closed, "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_gives_no_sign_is_gone_after_the_keepalive() {
        let (served, mut ours) = connect(LIMITS);
        ours.write_all(&[HELLO, &frame(SETTINGS, b"")].concat()).await.unwrap();
        let began = Instant::now();
        timeout(Duration::from_secs(60), served).await.expect("it is closed").unwrap();
        assert_eq!(began.elapsed().as_secs(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_calls_is_closed_when_it_was_idle_for_long_enough_or_is_old() {
        let hour = Duration::from_secs(3600);
        for (limits, least, most) in [
            (ConnectionLimits { idle: Some(hour), ..LIMITS }, hour, hour + Duration::from_secs(1)),
            (ConnectionLimits { age: Some(hour), ..LIMITS }, hour.mul_f64(0.9), hour.mul_f64(1.1)),
            (LIMITS, hour * 4, hour * 5),
        ] {
            let (_served, mut ours) = connect(limits);
            ours.write_all(&[HELLO, &frame(SETTINGS, b"")].concat()).await.unwrap();
            let lived = timeout(hour * 4, lives(&mut ours)).await.unwrap_or(hour * 4);
            assert!((least..=most).contains(&lived), "{lived:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_begins_anew_with_every_call() {
        let (calls, limit) = (watch::Sender::new(0), Duration::from_secs(100));
        let mut idle = pin!(idle(calls.subscribe(), Some(limit)));
        for _ in 0..3 {
            // A call that is over before anybody looks counts too.
            assert!(timeout(limit / 2, &mut idle).await.is_err());
            calls.send_modify(|calls| *calls += 1);
            calls.send_modify(|calls| *calls -= 1);
            assert!(timeout(limit.mul_f64(0.9), &mut idle).await.is_err());
            calls.send_modify(|calls| *calls += 1);
            assert!(timeout(limit * 10, &mut idle).await.is_err());
            calls.send_modify(|calls| *calls -= 1);
        }
        let began = Instant::now();
        idle.await;
        assert_eq!(began.elapsed().as_secs(), limit.as_secs());
    }
}
