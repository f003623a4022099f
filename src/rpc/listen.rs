//! Connections: accepting them, serving HTTP/2 on each, and letting go of them all at the end.
//!
//! Our own loop instead of the framework's, which leaves three things open: TCP_NODELAY on accepted sockets (forty
//! milliseconds a call on loopback without it), connections that outlive the server (a silent socket holds a shutdown up
//! for ever), and deadlines, which it answers with another code before ours can speak.

use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use super::call::{Calls, MAX_METADATA_BYTES};
use super::upload::Uploads;

/// A client that does not answer a ping for this long is gone.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Upload windows: a stream may not hold more than this unread, nor all streams of a connection together.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Answer bytes that may wait in the transport for one stream: what a reader that stops keeps from us.
const MAX_SEND_BUFFER: usize = 64 << 10;
/// Resets in flight before a connection counts as an attack: a burst of honest cancels must stay below it.
const MAX_PENDING_RESETS: usize = 1000;
/// Headers that the transport refuses by itself, with an HTTP status (431) that gRPC clients can only call unknown. It does
/// so before anything of ours sees the request; so what is above our own limit, but not by far, is let through to be
/// refused in gRPC's words, and only what is absurd ends like that.
const MAX_HEADERS: u32 = 4 * MAX_METADATA_BYTES;
/// What every HTTP/2 client begins with.
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// How long it may take to. Pings begin only after it, so nothing else ends a connection that never says a word.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Breath between two tries of `accept` after it failed, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often at most that is logged, or that there are too many connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A bound TCP listener: a stream of connections with TCP_NODELAY set.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
}

impl Listener {
    /// Binds; port 0 takes a free one.
    ///
    /// # Errors
    /// Whatever the operating system has against the address.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { inner: TcpListener::bind(address).await? })
    }

    /// The address in effect.
    ///
    /// # Errors
    /// If the operating system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl Stream for Listener {
    type Item = io::Result<TcpStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (socket, _) = ready!(self.inner.poll_accept(context))?;
        socket.set_nodelay(true)?;
        Poll::Ready(Some(Ok(socket)))
    }
}

/// Every connection there is.
#[derive(Debug)]
pub(crate) struct Connections {
    routes: Routes,
    most: usize,
    max_streams: u32,
    uploads: Uploads,
    open: TaskTracker,
    goodbye: CancellationToken,
    tasks: JoinSet<()>,
}

impl Connections {
    /// None yet, and `most` at once; each may have `max_streams` calls open at once, whose requests share `uploads`.
    pub(crate) fn new(routes: Routes, (most, max_streams): (u32, u32), uploads: Uploads) -> Self {
        Self {
            routes: routes.prepare(),
            most: most as usize,
            max_streams,
            uploads,
            open: TaskTracker::new(),
            goodbye: CancellationToken::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Serves what `incoming` brings; returns when it has ended and every connection is closed.
    pub(crate) async fn serve<IO>(&mut self, incoming: &mut (impl Stream<Item = io::Result<IO>> + Unpin))
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut accepting = true;
        let (mut failures, mut refusals) = (Occasions::default(), Occasions::default());
        while accepting || !self.tasks.is_empty() {
            tokio::select! {
                next = incoming.next(), if accepting => match next {
                    // A client is told sooner by the end of its connection than by a silence that lasts until there is room.
                    Some(Ok(_)) if self.tasks.len() >= self.most => {
                        if let Some(count) = refusals.add(Instant::now()) {
                            tracing::warn!(server.max_connections = self.most, count, "connections closed as they came");
                        }
                    }
                    Some(Ok(io)) => self.add(io),
                    Some(Err(error)) => {
                        if let Some(count) = failures.add(Instant::now()) {
                            tracing::warn!(%error, count, "cannot accept connections");
                        }
                        tokio::time::sleep_until(Instant::now() + ACCEPT_PAUSE).await;
                    }
                    None => accepting = false,
                },
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => {}
            }
        }
    }

    fn add(&mut self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service =
            TowerToHyperService::new(Calls::new(self.routes.clone(), self.uploads.clone(), self.open.clone()));
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(self.max_streams)
            .max_header_list_size(MAX_HEADERS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_send_buf_size(MAX_SEND_BUFFER);
        let goodbye = self.goodbye.clone();
        self.tasks.spawn(async move {
            let begun = tokio::select! {
                begun = tokio::time::timeout(PREFACE_TIMEOUT, preface(io)) => begun,
                () = goodbye.cancelled() => return,
            };
            let Ok(Ok(io)) = begun else { return tracing::debug!("connection closed: no HTTP/2 client spoke on it") };
            let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(io), service));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = goodbye.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection failed");
            }
        });
    }

    /// Tells every client to open no more calls, and waits until all calls have been answered.
    pub(crate) async fn finish(&mut self) {
        self.goodbye.cancel();
        self.open.close();
        self.open.wait().await;
    }

    /// Waits until every connection is closed.
    pub(crate) async fn closed(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What comes many times a second, to be logged at the first and then once in a while.
#[derive(Debug, Default)]
struct Occasions {
    logged: Option<Instant>,
    since: u64,
}

impl Occasions {
    /// Counts one at `now`; gives how many there were since the last were logged, if it is time to.
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if self.logged.is_some_and(|logged| now < logged + LOG_INTERVAL) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

/// `io` as it was, once a client's preface has come.
async fn preface<IO: AsyncRead + AsyncWrite>(io: IO) -> io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let (mut from, to) = tokio::io::split(io);
    let mut preface = [0; PREFACE_BYTES];
    from.read_exact(&mut preface).await?;
    Ok(tokio::io::join(Cursor::new(preface).chain(from), to))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_closed_and_one_that_speaks_is_not() {
        for (said, closed) in
            [(&b""[..], true), (b"PRI * HTTP/2.0", true), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false)]
        {
            let mut connections = Connections::new(Routes::default(), (1, 1), Uploads::new(0, 0));
            let (mut ours, theirs) = tokio::io::duplex(1 << 10);
            connections.add(theirs);
            ours.write_all(said).await.unwrap();
            let ended = tokio::time::timeout(PREFACE_TIMEOUT * 2, connections.closed()).await;
            assert_eq!(ended.is_ok(), closed, "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_too_many_is_closed_until_another_ends() {
        let mut connections = Connections::new(Routes::default(), (2, 1), Uploads::new(0, 0));
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let mut incoming = tokio_stream::wrappers::ReceiverStream::new(receive);
        let connect = async || {
            let (ours, theirs) = tokio::io::duplex(1 << 10);
            send.send(Ok(theirs)).await.unwrap();
            ours
        };
        // Whether the server has hung up. One that has not sends nothing to a client that has not spoken.
        let closed = async |io: &mut tokio::io::DuplexStream| {
            tokio::time::timeout(PREFACE_TIMEOUT / 4, io.read_u8()).await.is_ok()
        };
        tokio::select! {
            () = connections.serve(&mut incoming) => panic!("it serves as long as connections may come"),
            () = async {
                let (mut first, mut second, mut third) = (connect().await, connect().await, connect().await);
                assert!(closed(&mut third).await);
                assert!(!closed(&mut first).await && !closed(&mut second).await);
                drop(first);
                let let_in = async { while closed(&mut connect().await).await {} };
                tokio::time::timeout(PREFACE_TIMEOUT / 2, let_in).await.expect("there is room again");
            } => {}
        }
    }

    #[test]
    fn occasions_are_logged_at_the_first_and_then_once_in_a_while_with_their_number() {
        let (start, mut failures) = (Instant::now(), Occasions::default());
        let logged: Vec<_> = (0..500).filter_map(|n| failures.add(start + ACCEPT_PAUSE * n)).collect();
        assert_eq!(logged, [1, 200, 200]);
    }
}
