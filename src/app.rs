//! The composition root, and the order of life: load, serve, drain, let go, stop.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::Config;
use crate::engine::catalogue::{Catalogue, State};
use crate::fleet::{Fleet, Packages, Settings};
pub use crate::fleet::{Load, Source};
use crate::rpc::{self, ConnectionLimits, Connections, Routes, ServerInfo, Uploads};
use crate::security::Security;

/// What answered calls may take to leave their connections, and engines to finish their last step, beyond the drain.
const LINGER: Duration = Duration::from_millis(500);
/// What the answers that are cut may take to be told so: a step or two, and the way to the client.
const CUT_LINGER: Duration = Duration::from_millis(200);
/// What engines may take to end once everything was cancelled: a step, unless a device hangs.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Operators at once, and calls of each.
const OPERATORS: u32 = 32;
/// Request messages of operators and probes, in bytes: a name or two.
const SMALL_REQUEST_BYTES: usize = 64 << 10;

/// Why serving ended other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A model broke down in a way that only a new process can mend.
    #[error("model {name:?} broke down: {why}")]
    ModelBroke {
        /// The model.
        name: String,
        /// The first cause.
        why: String,
    },
    /// The services could not be put together.
    #[error("cannot set up the services: {0}")]
    Services(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The daemon without its process: models being loaded or served, and everything that answers for them.
#[derive(Debug)]
pub struct App {
    config: Config,
    fleet: Fleet,
    health: rpc::Health,
    /// Cancelled by an operator who wants it to end.
    drain: CancellationToken,
    log: Option<rpc::LogFilter>,
    /// Listeners beside that of clients.
    beside: Vec<JoinHandle<()>>,
    /// Ends the models of an app that was never served.
    _stop: DropGuard,
    security: Security,
}

impl App {
    /// Begins to load every model, each on a thread of its own. Must be called within a tokio runtime.
    ///
    /// A model whose package is refused is logged and listed as failed; the others are served without it. One that names
    /// another is refused if the two do not fit.
    #[must_use]
    pub fn start(config: Config, sources: Vec<Source>) -> Self {
        Self::start_with(config, sources, Arc::new(|| Ok(Vec::new())))
    }

    /// The same; `packages` finds what may be loaded later.
    #[must_use]
    pub fn start_with(config: Config, sources: Vec<Source>, packages: Packages) -> Self {
        let settings = Settings {
            shards: config.engine.shards(),
            fixed_slots: config.engine.slots.is_some(),
            engine: config.engine.engine,
            stall_exit: config.engine.stall_exit,
            drain_timeout: config.server.drain_timeout,
            max_memory: config.engine.max_model_bytes,
        };
        let fleet = Fleet::new(settings, packages);
        for (alias, model) in &config.models.aliases {
            fleet.catalogue().set_alias(alias, Some(model));
            if sources.iter().any(|source| source.name == *alias) {
                tracing::warn!(alias, "models.aliases: there is a model of that name, which goes before");
            }
        }
        let stop = fleet.stopping().drop_guard();
        fleet.begin(sources);
        Self {
            config,
            security: Security::default(),
            fleet,
            health: rpc::Health::new(),
            drain: CancellationToken::new(),
            log: None,
            beside: Vec::new(),
            _stop: stop,
        }
    }

    /// The models as they come and go.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Guards what is served. Without it nothing is, whatever the configuration says: for a client in the same process.
    #[must_use]
    pub fn guarded(self, security: Security) -> Self {
        Self { security, ..self }
    }

    /// Lets operators change what is logged.
    #[must_use]
    pub fn logging(self, log: rpc::LogFilter) -> Self {
        Self { log: Some(log), ..self }
    }

    /// The models and their states.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        self.fleet.catalogue()
    }

    /// Resolves when no model is being loaded or warmed up any more.
    pub fn loaded(&self) -> impl Future<Output = ()> + use<> {
        let catalogue = self.catalogue().clone();
        async move {
            let mut changes = catalogue.watch();
            let loading = |state: &State| matches!(state, State::Loading | State::Warming);
            while catalogue.list().values().any(loading) && changes.changed().await.is_ok() {}
        }
    }

    /// Serves operators on the connections of `incoming`, which are nobody else's, until the app has ended. Must be called
    /// within a tokio runtime, once.
    ///
    /// # Errors
    /// [`AppError::Services`].
    pub fn administer<IO>(
        &mut self,
        incoming: impl Stream<Item = io::Result<IO>> + Send + 'static,
    ) -> Result<(), AppError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let engine = &self.config.engine;
        let (device, now) = (engine.device.unwrap_or_default(), ServerInfo::now());
        let info = ServerInfo { backend: engine.backend, device, precision: engine.precision, ..now };
        let routes = rpc::admin_services(&self.fleet, self.log.clone(), info, self.drain.clone(), &self.health)
            .map_err(|error| AppError::Services(error.into()))?;
        // Operators may stay for as long as they like.
        let limits = ConnectionLimits {
            most: OPERATORS,
            streams: OPERATORS,
            idle: None,
            age: None,
            ..self.config.server.connections
        };
        self.serve_beside(incoming, routes, limits, self.security.within_the_machine());
        Ok(())
    }

    /// Answers health, and nothing else, on the connections of `incoming`, in plain text and to everybody, until the app has
    /// ended. Must be called within a tokio runtime.
    pub async fn answer_probes<IO>(&mut self, incoming: impl Stream<Item = io::Result<IO>> + Send + 'static)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Before the first one asks.
        self.health.report(self.fleet.catalogue()).await;
        let routes = rpc::health_services(&self.health);
        self.serve_beside(incoming, routes, self.config.server.connections, Security::default());
    }

    /// Serves `routes`, whose messages are small, until the app has ended.
    fn serve_beside<IO>(
        &mut self,
        incoming: impl Stream<Item = io::Result<IO>> + Send + 'static,
        routes: Routes,
        limits: ConnectionLimits,
        security: Security,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let uploads = Uploads::new(SMALL_REQUEST_BYTES * 64, SMALL_REQUEST_BYTES);
        let mut connections = Connections::new(routes, limits, uploads, security);
        let stop = self.fleet.stopping();
        self.beside.push(tokio::spawn(async move {
            let mut incoming = pin!(incoming.fuse());
            stop.run_until_cancelled(connections.serve(&mut incoming)).await;
            // Nobody waits for a model that is not loaded any more.
            _ = timeout(LINGER, async {
                connections.finish().await;
                connections.closed(LINGER).await;
            })
            .await;
        }));
    }

    /// Serves connections until `shutdown` resolves, an operator wants it to end, a model breaks, or `incoming` has ended and every connection is
    /// closed; then lets running requests finish, for as long as the configuration says, and stops.
    ///
    /// `incoming` is an [`rpc::Listener`], or any stream of byte streams, for example one end of a `tokio::io::duplex`.
    ///
    /// # Errors
    /// [`AppError::ModelBroke`], after the drain; [`AppError::Services`].
    pub async fn serve<IO>(
        mut self,
        incoming: impl Stream<Item = io::Result<IO>>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), AppError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (Config { server, limits, .. }, catalogue) = (&self.config, self.fleet.catalogue());
        let (mut health, max_bytes) = (self.health, server.max_request_bytes);
        let routes =
            rpc::services(catalogue, *limits, max_bytes, &health).map_err(|error| AppError::Services(error.into()))?;
        let mut connections = Connections::new(
            routes,
            server.connections,
            Uploads::new(server.max_upload_bytes, server.max_request_bytes),
            self.security.clone(),
        );
        let mut incoming = pin!(incoming.fuse());
        let mut broken = self.fleet.breakdown();
        let mut breakdown = None;
        // Before the first client can ask.
        health.report(catalogue).await;

        tokio::select! {
            () = health.follow(catalogue) => {}
            () = connections.serve(&mut incoming) => {}
            () = shutdown => {}
            () = self.drain.cancelled() => {}
            Ok(found) = broken.wait_for(Option::is_some) => breakdown = found.clone(),
        }

        tracing::info!(delay = ?server.drain_delay, timeout = ?server.drain_timeout, "draining");
        if breakdown.is_none() && !server.drain_delay.is_zero() {
            catalogue.announce_drain();
            // Proxies and balancers see that they should send nothing more; what they send until then is served.
            let serving_on = async {
                tokio::select! {
                    () = health.follow(catalogue) => {}
                    () = connections.serve(&mut incoming) => {}
                }
            };
            _ = timeout(server.drain_delay, serving_on).await;
        }
        catalogue.drain();
        let gently = async {
            health.report(catalogue).await;
            tokio::select! {
                // Connections are served on: what runs must be read, and who asks for more must hear that we drain.
                () = async { tokio::join!(health.follow(catalogue), connections.serve(&mut incoming)); } => {}
                () = catalogue.drained() => {}
            }
            health.close().await;
            connections.finish().await;
            // Answers are on their way; what is still open then is a client that says nothing or reads nothing.
            connections.closed(LINGER).await;
        };
        if timeout(server.drain_timeout, gently).await.is_err() {
            tracing::warn!("requests were cut: they were still running at the end of the drain");
            // Who reads on hears that it was the server's end, and which.
            self.fleet.stopping().cancel();
            _ = timeout(CUT_LINGER, async {
                connections.finish().await;
                connections.closed(CUT_LINGER).await;
            })
            .await;
        }
        drop(connections);
        self.fleet.stop(STOP_TIMEOUT).await;
        for listener in self.beside.drain(..) {
            _ = listener.await;
        }
        breakdown.map_or(Ok(()), |(name, why)| Err(AppError::ModelBroke { name, why }))
    }
}
