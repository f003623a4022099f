//! A channel to a server: one over the network, or the same server in this process behind a pipe of memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Endpoint, Uri};

use super::access::{Access, Bearer, Channel, Remote};
use super::failure::Failure;
use super::packages;
use crate::app::AppError;
use crate::config::Config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server from which nothing is heard is asked for a sign after this long, and is gone if none comes in as long again.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Bytes that may wait in the pipe each way.
const PIPE_BYTES: usize = 1 << 20;

/// Where the models run.
pub(super) enum Target {
    /// On another server.
    Remote(Box<Remote>),
    /// On the server that listens on this Unix socket.
    Socket(PathBuf),
    /// In this process, as configured.
    Local(Box<Config>),
}

/// Does `work` with a channel to `target`, unless the user presses Ctrl-C: dropping the work drops its streams, which
/// cancels them on the server. A server in this process is stopped in either case; pressing again waits for nothing.
pub(super) async fn with<T>(
    target: Target,
    work: impl AsyncFnOnce(&Channel) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let work = async |channels: &[Channel]| match channels {
        [channel] => work(channel).await,
        _ => Err(Failure::Internal(format!("there are {} connections instead of one", channels.len()))),
    };
    several(target, &[None], work).await
}

/// The same with a connection for each of `windows`: the bytes of one stream that it takes in before they are read, or
/// `None` for what is usual.
pub(super) async fn several<T>(
    target: Target,
    windows: &[Option<u32>],
    work: impl AsyncFnOnce(&[Channel]) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|error| Failure::Internal(format!("cannot wait for signals: {error}")))?;
    let connect = async {
        match target {
            Target::Remote(target) => remote(*target, windows).await,
            Target::Socket(path) => socket(&path).await,
            Target::Local(config) => local(*config, windows).await,
        }
    };
    let connection = tokio::select! {
        connected = Box::pin(connect) => connected?,
        _ = interrupt.recv() => return Err(Failure::Interrupted),
    };
    let done = tokio::select! {
        done = Box::pin(work(&connection.channels)) => done.map_err(|failure| match failure {
            // The package is one that our user gave us, and no waiting makes it better.
            Failure::NotServing(why) if connection.server.is_some() => Failure::Usage(why),
            other => other,
        }),
        _ = interrupt.recv() => Err(Failure::Interrupted),
    };
    let closed = tokio::select! {
        closed = connection.close() => closed,
        _ = interrupt.recv() => Err(Failure::Interrupted),
    };
    done.and_then(|done| closed.map(|()| done))
}

/// Channels, and the server behind them if that is ours.
struct Connection {
    channels: Vec<Channel>,
    server: Option<Server>,
}

/// The server in this process.
struct Server {
    /// Dropped to stop it.
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), AppError>>,
}

impl Connection {
    /// Stops the server if it is ours, and waits for its engines.
    async fn close(self) -> Result<(), Failure> {
        drop(self.channels);
        let Some(Server { stop, task }) = self.server else { return Ok(()) };
        drop(stop);
        let ended = task.await.map_err(|error| Failure::Internal(error.to_string()))?;
        ended.map_err(|error| Failure::Internal(error.to_string()))
    }
}

async fn remote(Remote { url, tls, bearer }: Remote, windows: &[Option<u32>]) -> Result<Connection, Failure> {
    let uri: Uri = url.parse().map_err(|error| Failure::Usage(format!("--endpoint {url}: {error}")))?;
    // A port beyond 65535 is no port to the parser, and no fault either: it would connect to port 80.
    let whole = uri.authority().is_some_and(|authority| uri.port().is_some() || authority.as_str() == authority.host());
    let encrypted = uri.scheme_str() == Some("https");
    if !(encrypted || uri.scheme_str() == Some("http")) || !whole {
        return Err(Failure::Usage(format!("--endpoint {url}: must be http://HOST:PORT or https://HOST:PORT")));
    }
    let mut endpoint = Endpoint::from(uri);
    if encrypted {
        let unusable = |error| Failure::Usage(format!("--tls-ca, --tls-cert or --tls-key: {}", innermost(&error)));
        endpoint = endpoint.tls_config(tls).map_err(unusable)?;
    }
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .tcp_nodelay(true);
    let mut channels = Vec::with_capacity(windows.len());
    for window in windows {
        let connected = endpoint.clone().initial_stream_window_size(*window).connect().await;
        let channel = connected.map_err(|error| {
            let cause = innermost(&error);
            Failure::Unavailable(format!("cannot connect to {url}: {cause}; is `pixeld serve` running there?"))
        })?;
        channels.push(Channel::new(channel, bearer.clone()));
    }
    Ok(Connection { channels, server: None })
}

/// A channel over a Unix socket.
async fn socket(path: &Path) -> Result<Connection, Failure> {
    let owned = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = owned.clone();
        async { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://unix.socket").connect_timeout(CONNECT_TIMEOUT);
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| {
        let (cause, path) = (innermost(&error), path.display());
        Failure::Unavailable(format!("cannot connect to {path}: {cause}; does `pixeld serve` have it as admin.listen?"))
    })?;
    Ok(Connection { channels: vec![Channel::new(channel, Access::default().bearer()?)], server: None })
}

/// Starts a server in this process and waits until its models are loaded, or refused.
async fn local(config: Config, windows: &[Option<u32>]) -> Result<Connection, Failure> {
    let app = packages::start(config)?;
    app.loaded().await;
    let (clients, servers): (Vec<_>, Vec<_>) = windows.iter().map(|_| tokio::io::duplex(PIPE_BYTES)).unzip();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(app.serve(tokio_stream::iter(servers.into_iter().map(Ok::<DuplexStream, _>)), async {
        _ = stopped.await;
    }));
    let mut channels = Vec::with_capacity(windows.len());
    for (client, window) in clients.into_iter().zip(windows) {
        let mut client = Some(TokioIo::new(client));
        // There is one pipe; were it ever lost, the server would be gone as well.
        let connector = tower::service_fn(move |_: Uri| {
            let pipe = client.take().ok_or_else(|| std::io::Error::other("the server in this process is gone"));
            std::future::ready(pipe)
        });
        let endpoint = Endpoint::from_static("http://in.process").initial_stream_window_size(*window);
        let connected = endpoint.connect_with_connector(connector).await;
        let channel = connected.map_err(|error| Failure::Internal(innermost(&error)))?;
        channels.push(Channel::new(channel, Bearer::default()));
    }
    Ok(Connection { channels, server: Some(Server { stop, task }) })
}

/// The cause of all causes: what a transport error says itself is just "transport error".
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
