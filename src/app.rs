//! The composition root, and the order of life: load, serve, drain, let go, stop.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::catalogue::{Catalogue, State};
use crate::engine::health::Health;
use crate::engine::{Engine, EngineConfig};
use crate::error::Violations;
use crate::image::Shape;
use crate::model::PixelModel;
use crate::rpc::{self, Connections, Uploads};
use crate::spec::ModelSpec;

/// What answered calls may take to leave their connections, and engines to finish their last step, beyond the drain.
const LINGER: Duration = Duration::from_millis(500);
/// What engines may take to end once everything was cancelled: a step, unless a device hangs.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds a model, or says everything that is wrong with its package. Runs on a thread of its own.
pub type Load = Box<dyn FnOnce() -> Result<Box<dyn PixelModel>, Violations> + Send>;

/// A model to be served.
pub struct Source {
    /// Its name in the catalogue.
    pub name: String,
    /// How it is built.
    pub load: Load,
}

impl Source {
    /// A model called `name`, built by `load`.
    pub fn new(
        name: impl Into<String>,
        load: impl FnOnce() -> Result<Box<dyn PixelModel>, Violations> + Send + 'static,
    ) -> Self {
        Self { name: name.into(), load: Box::new(load) }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish_non_exhaustive()
    }
}

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
    catalogue: Catalogue,
    /// One task for each model; it owns the engine.
    models: JoinSet<()>,
    stop: CancellationToken,
    broken: watch::Receiver<Option<(String, String)>>,
}

impl App {
    /// Begins to load every model, each on a thread of its own. Must be called within a tokio runtime.
    ///
    /// A model whose package is refused is logged and listed as failed; the others are served without it. One that names
    /// another is refused if the two do not fit.
    #[must_use]
    pub fn start(config: Config, sources: Vec<Source>) -> Self {
        let catalogue = Catalogue::new();
        let stop = CancellationToken::new();
        let (breakdowns, broken) = watch::channel(None);
        let mut models = JoinSet::new();
        let (built, specs): (Vec<_>, Vec<_>) = sources.iter().map(|_| watch::channel(None)).unzip();
        let names = sources.iter().map(|source| source.name.clone());
        let all: Arc<Specs> = Arc::new(names.zip(specs).collect());
        for (Source { name, load }, built) in sources.into_iter().zip(built) {
            catalogue.set(&name, State::Loading);
            let (catalogue, breakdowns, stop) = (catalogue.clone(), breakdowns.clone(), stop.clone());
            let life = Life { name, catalogue, breakdowns, stop, built, all: Arc::clone(&all) };
            models.spawn(life.run(load, config.engine.shards(), config.engine.engine));
        }
        Self { config, catalogue, models, stop, broken }
    }

    /// The models and their states.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Resolves when no model is being loaded or warmed up any more.
    pub fn loaded(&self) -> impl Future<Output = ()> + use<> {
        let catalogue = self.catalogue.clone();
        async move {
            let mut changes = catalogue.watch();
            let loading = |state: &State| matches!(state, State::Loading | State::Warming);
            while catalogue.list().values().any(loading) && changes.changed().await.is_ok() {}
        }
    }

    /// Serves connections until `shutdown` resolves, a model breaks, or `incoming` has ended and every connection is
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
        let Config { server, limits, .. } = &self.config;
        let (routes, mut health) = rpc::services(&self.catalogue, *limits, server.max_request_bytes)
            .map_err(|error| AppError::Services(error.into()))?;
        let mut connections = Connections::new(
            routes,
            (server.max_connections, server.max_streams_per_connection),
            Uploads::new(server.max_upload_bytes, server.max_request_bytes),
        );
        let mut incoming = pin!(incoming.fuse());
        let mut broken = self.broken.clone();
        let mut breakdown = None;
        // Before the first client can ask.
        health.report(&self.catalogue).await;

        tokio::select! {
            () = health.follow(&self.catalogue) => {}
            () = connections.serve(&mut incoming) => {}
            () = shutdown => {}
            Ok(found) = broken.wait_for(Option::is_some) => breakdown = found.clone(),
        }

        tracing::info!(timeout = ?server.drain_timeout, "draining");
        self.catalogue.drain();
        let gently = async {
            health.report(&self.catalogue).await;
            tokio::select! {
                // Connections are served on: what runs must be read, and who asks for more must hear that we drain.
                () = async { tokio::join!(health.follow(&self.catalogue), connections.serve(&mut incoming)); } => {}
                () = self.catalogue.drained() => {}
            }
            health.close().await;
            connections.finish().await;
            // Answers are on their way; what is still open now is a client that says nothing or reads nothing.
            _ = timeout(LINGER, connections.closed()).await;
        };
        if timeout(server.drain_timeout, gently).await.is_err() {
            tracing::warn!("requests were cut: they were still running at the end of the drain");
        }
        drop(connections);
        self.stop_models().await;
        breakdown.map_or(Ok(()), |(name, why)| Err(AppError::ModelBroke { name, why }))
    }

    async fn stop_models(&mut self) {
        self.stop.cancel();
        let all = async { while self.models.join_next().await.is_some() {} };
        if timeout(STOP_TIMEOUT, all).await.is_err() {
            tracing::warn!("a model did not stop; leaving it behind");
        }
    }
}

/// What every package has turned out to be: nothing yet, or never if it was refused.
type Specs = BTreeMap<String, watch::Receiver<Option<ModelSpec>>>;

/// The life of one model, from its package to its end.
struct Life {
    name: String,
    catalogue: Catalogue,
    breakdowns: watch::Sender<Option<(String, String)>>,
    stop: CancellationToken,
    /// Its own place in `all`.
    built: watch::Sender<Option<ModelSpec>>,
    all: Arc<Specs>,
}

impl Life {
    async fn run(self, load: Load, shards: u32, config: EngineConfig) {
        // A package that is still being read at the end is left to its thread.
        let Some(loaded) = self.stop.run_until_cancelled(spawn_blocking(load)).await else { return };
        let model = match loaded {
            Ok(Ok(model)) => model,
            Ok(Err(faults)) => return self.refused(&faults),
            Err(panic) => return self.failed(format!("loading panicked: {panic}")),
        };
        // First, so that no two wait for each other.
        let spec = model.spec().clone();
        self.built.send_replace(Some(spec.clone()));
        match self.stop.run_until_cancelled(self.check_low_model(&spec)).await {
            Some(Ok(())) => {}
            Some(Err(faults)) => return self.refused(&faults),
            None => return,
        }
        let start = spawn_blocking(move || Engine::start(model, shards, config));
        let Some(started) = self.stop.run_until_cancelled(start).await else { return };
        match started.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(engine) => {
                self.catalogue.set(&self.name, State::Warming);
                self.stop.run_until_cancelled(self.attend(&engine)).await;
                self.stop.cancelled().await;
                _ = spawn_blocking(|| engine.stop()).await;
            }
            Err(error) => self.failed(format!("the engine did not start: {error}")),
        }
    }

    /// Checks that the model which `spec` leaves low-resolution images to can draw them. One that was refused is no fault
    /// here: requests that bring such an image can be answered, and the others learn why not.
    async fn check_low_model(&self, spec: &ModelSpec) -> Result<(), Violations> {
        let Some(name) = &spec.low_model else { return Ok(()) };
        let Some(lower) = self.all.get(name) else {
            let known = self.all.keys().cloned().collect::<Vec<_>>().join(", ");
            let rule = format!("must name a package that is served here ({known}), got {name:?}");
            return Err(Violations::one(LOW_MODEL, rule));
        };
        match lower.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(lower)) => fits_below(lower, spec),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Keeps the catalogue in step with the engine; returns when it has failed.
    async fn attend(&self, engine: &Engine) {
        let mut health = engine.handle().health();
        loop {
            let now = health.borrow_and_update().clone();
            match now {
                Health::Ready => {
                    tracing::info!(model = self.name, "serving");
                    let state = State::Serving { handle: engine.handle(), since: SystemTime::now() };
                    self.catalogue.set(&self.name, state);
                }
                Health::Failed(why) => {
                    self.breakdowns.send_replace(Some((self.name.clone(), why.clone())));
                    return self.failed(why);
                }
                Health::Warming | Health::Draining => {}
            }
            if health.changed().await.is_err() {
                return self.failed("the engine thread is gone".to_owned());
            }
        }
    }

    fn refused(&self, faults: &Violations) {
        for fault in faults.iter() {
            tracing::error!(model = self.name, field = fault.field, "{}", fault.description);
        }
        self.failed(format!("package refused: {faults}"));
    }

    fn failed(&self, why: String) {
        tracing::error!(model = self.name, why, "not serving");
        self.catalogue.set(&self.name, State::Failed { why });
    }
}

const LOW_MODEL: &str = "condition.low_model";

/// Checks that `lower` can draw every low-resolution image that `upper` takes.
fn fits_below(lower: &ModelSpec, upper: &ModelSpec) -> Result<(), Violations> {
    let (name, mut faults) = (&lower.name, Violations::new());
    let mut refuse = |rule: String| faults.add(LOW_MODEL, rule);
    if let Some(low) = upper.condition.low.filter(|&low| low != lower.shape) {
        refuse(format!("must draw images of {}, {name:?} draws {}", described(low), described(lower.shape)));
    }
    if let Some(low) = lower.condition.low {
        refuse(format!("must need no low-resolution image itself, {name:?} needs one of {}", described(low)));
    }
    let [of_upper, of_lower] = [upper, lower].map(|spec| spec.condition.classes);
    if of_upper > 0 && ![0, of_upper].contains(&of_lower) {
        refuse(format!("must take {of_upper} classes or none, {name:?} takes {of_lower}"));
    }
    if lower.condition.class_required && !upper.condition.class_required {
        refuse(format!("must not need a class, {name:?} does and this one is sampled without"));
    }
    faults.into_result(())
}

fn described(shape: Shape) -> String {
    let [height, width, channels] = [shape.height(), shape.width(), shape.channels()];
    format!("{height} x {width} x {channels} with {} levels", shape.levels())
}
