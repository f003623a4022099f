//! Connections: accepting them, and letting go of them all at the end. `connection` serves each.
//!
//! Our own loop instead of the framework's, which leaves three things open: TCP_NODELAY on accepted sockets (forty
//! milliseconds a call on loopback without it), connections that outlive the server (a silent socket holds a shutdown up
//! for ever), and deadlines, which it answers with another code before ours can speak.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;
use tonic::service::Routes;

use super::connection::{Connection, ConnectionLimits};
use super::upload::Uploads;
use crate::security::Security;

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
    connection: Connection,
    tasks: JoinSet<()>,
}

impl Connections {
    /// None yet; those that come keep `limits`, are guarded by `security`, and their requests share `uploads`.
    pub(crate) fn new(routes: Routes, limits: ConnectionLimits, uploads: Uploads, security: Security) -> Self {
        Self { connection: Connection::new(routes, limits, uploads, security), tasks: JoinSet::new() }
    }

    /// Serves what `incoming` brings; returns when it has ended and every connection is closed.
    pub(crate) async fn serve<IO>(&mut self, incoming: &mut (impl Stream<Item = io::Result<IO>> + Unpin))
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut accepting = true;
        let most = self.connection.limits.most as usize;
        let (mut failures, mut refusals) = (Occasions::default(), Occasions::default());
        while accepting || !self.tasks.is_empty() {
            tokio::select! {
                next = incoming.next(), if accepting => match next {
                    // A client is told sooner by the end of its connection than by a silence that lasts until there is room.
                    Some(Ok(_)) if self.tasks.len() >= most => {
                        if let Some(count) = refusals.add(Instant::now()) {
                            tracing::warn!(server.max_connections = most, count, "connections closed as they came");
                        }
                    }
                    Some(Ok(io)) => _ = self.tasks.spawn(self.connection.clone().run(io)),
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

    /// Tells every client to open no more calls, and waits until all calls have been answered, but for those to health: one
    /// that watches and does not read would be waited for in vain.
    pub(crate) async fn finish(&mut self) {
        self.connection.goodbye.cancel();
        self.connection.uploads.close();
        self.connection.open.close();
        self.connection.open.wait().await;
    }

    /// Waits until every connection is closed, which follows when the client has taken what it was answered, or until nobody
    /// has taken anything for `patience`.
    pub(crate) async fn closed(&mut self, patience: Duration) {
        loop {
            let before = self.connection.written.load(Relaxed);
            let all = async { while self.tasks.join_next().await.is_some() {} };
            if timeout(patience, all).await.is_ok() || self.connection.written.load(Relaxed) == before {
                return;
            }
        }
    }
}

/// What comes many times a second, to be logged at the first and then once in a while.
#[derive(Debug, Default)]
pub(super) struct Occasions {
    logged: Option<Instant>,
    since: u64,
}

impl Occasions {
    /// Counts one at `now`; gives how many there were since the last were logged, if it is time to.
    pub(super) fn add(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if self.logged.is_some_and(|logged| now < logged + LOG_INTERVAL) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::rpc::connection::tests::LIMITS;
    use crate::security::TlsFiles;

    /// Security with a certificate of its own, or none.
    fn security(tls: bool) -> Security {
        if !tls {
            return Security::default();
        }
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str, content: String| {
            std::fs::write(root.path().join(name), content).unwrap();
            root.path().join(name)
        };
        let (certificate, key) = (file("c", made.cert.pem()), file("k", made.signing_key.serialize_pem()));
        Security::load(Some(&TlsFiles { certificate, key, client_ca: None }), &[].into()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_too_many_is_closed_until_another_ends() {
        // With TLS none of these comes to the end of its handshake, and they count all the same.
        for tls in [false, true] {
            let limits = ConnectionLimits { most: 2, ..LIMITS };
            let mut connections = Connections::new(Routes::default(), limits, Uploads::new(0, 0), security(tls));
            let (send, receive) = tokio::sync::mpsc::channel(1);
            let mut incoming = tokio_stream::wrappers::ReceiverStream::new(receive);
            let connect = async || {
                let (ours, theirs) = tokio::io::duplex(1 << 10);
                send.send(Ok(theirs)).await.unwrap();
                ours
            };
            // Whether the server has hung up. One that has not sends nothing to a client that has not spoken.
            let closed = async |io: &mut tokio::io::DuplexStream| {
                tokio::time::timeout(LIMITS.handshake_timeout / 4, io.read_u8()).await.is_ok()
            };
            tokio::select! {
                () = connections.serve(&mut incoming) => panic!("it serves as long as connections may come"),
                () = async {
                    let (mut first, mut second, mut third) = (connect().await, connect().await, connect().await);
                    assert!(closed(&mut third).await);
                    assert!(!closed(&mut first).await && !closed(&mut second).await);
                    drop(first);
                    let let_in = async { while closed(&mut connect().await).await {} };
                    tokio::time::timeout(LIMITS.handshake_timeout / 2, let_in).await.expect("there is room again");
                    // Who never finishes a handshake makes room by itself.
                    let mut silent = (connect().await, connect().await);
                    let ended = async { while !(closed(&mut silent.0).await && closed(&mut silent.1).await) {} };
                    tokio::time::timeout(LIMITS.handshake_timeout * 2, ended).await.expect("they are closed");
                    assert!(!closed(&mut connect().await).await);
                } => {}
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_as_long_as_clients_take_what_they_were_answered() {
        let patience = Duration::from_millis(200);
        let mut connections = Connections::new(Routes::default(), LIMITS, Uploads::new(0, 0), Security::default());
        let written = std::sync::Arc::clone(&connections.connection.written);
        connections.tasks.spawn(async move {
            let mut ticks = tokio::time::interval(patience / 2);
            for _ in 0..=20 {
                ticks.tick().await;
                written.fetch_add(1, Relaxed);
            }
        });
        let start = Instant::now();
        connections.closed(patience).await;
        assert_eq!(start.elapsed(), patience * 10, "to its end");
        connections.tasks.spawn(std::future::pending());
        connections.closed(patience).await;
        assert_eq!(start.elapsed(), patience * 11, "one that takes nothing is not waited for");
    }

    #[test]
    fn occasions_are_logged_at_the_first_and_then_once_in_a_while_with_their_number() {
        let (start, mut failures) = (Instant::now(), Occasions::default());
        let logged: Vec<_> = (0..500).filter_map(|n| failures.add(start + ACCEPT_PAUSE * n)).collect();
        assert_eq!(logged, [1, 200, 200]);
    }
}
