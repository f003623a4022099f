//! One revision of a model, from its package to its end: a task that owns the engine, and what others see of it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{interval, timeout};

use super::fit::{LOW_MODEL, fits_below};
use super::memory::Share;
use super::{Inner, Source, listed};
use crate::engine::catalogue::State;
use crate::engine::footprint::Footprint;
use crate::engine::health::Health;
use crate::engine::{Engine, Handle, cohort};
use crate::error::{Error, Violations};
use crate::machine;
use crate::model::PixelModel;
use crate::spec::ModelSpec;

/// What an engine may take to end once everything was cancelled: a step, unless a device hangs.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often engines are looked at; nothing announces that something did not happen.
const LOOK: Duration = Duration::from_millis(500);
const GONE: &str = "the engine thread is gone";

/// Whose place a revision takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// Nobody's: the catalogue shows how far it is.
    First,
    /// That of the revision which serves, and which has `limit` to finish then.
    Next { limit: Duration },
}

/// What others see of a revision; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Life {
    built: watch::Receiver<Option<Arc<ModelSpec>>>,
    outcome: watch::Receiver<Option<Result<(), Error>>>,
    retire: watch::Sender<Option<Duration>>,
    gone: watch::Receiver<Option<bool>>,
}

impl Life {
    /// What its package has turned out to be, so far.
    pub(super) fn spec(&self) -> Option<Arc<ModelSpec>> {
        self.built.borrow().clone()
    }

    /// Whether it came to serve, once that is known.
    pub(super) fn outcome(&self) -> Option<Result<(), Error>> {
        self.outcome.borrow().clone()
    }

    /// Resolves once that is known; with nothing if it never will be.
    pub(super) async fn settled(mut self) -> Option<Result<(), Error>> {
        self.outcome.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Ends it once what it has is finished, or after `limit`. Nobody may be sent there any more.
    pub(super) fn retire(&self, limit: Duration) {
        self.retire.send_replace(Some(limit));
    }

    /// When it has ended: whether it had finished everything.
    pub(super) fn gone(&self) -> watch::Receiver<Option<bool>> {
        self.gone.clone()
    }
}

/// The other end of a [`Life`].
pub(super) struct Task {
    inner: Arc<Inner>,
    name: String,
    role: Role,
    built: watch::Sender<Option<Arc<ModelSpec>>>,
    outcome: watch::Sender<Option<Result<(), Error>>>,
    retire: watch::Receiver<Option<Duration>>,
    gone: watch::Sender<Option<bool>>,
}

/// Why a package does not come to serve.
enum Fault {
    Package(Violations),
    Other(Error),
}

impl From<Violations> for Fault {
    fn from(faults: Violations) -> Self {
        Fault::Package(faults)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Other(error)
    }
}

impl Task {
    pub(super) fn new(inner: Arc<Inner>, name: String, role: Role) -> (Self, Life) {
        let ((built, is_built), (outcome, has_outcome)) = (watch::channel(None), watch::channel(None));
        let ((retire, is_retired), (gone, is_gone)) = (watch::channel(None), watch::channel(None));
        let life = Life { built: is_built, outcome: has_outcome, retire, gone: is_gone };
        (Self { inner, name, role, built, outcome, retire: is_retired, gone }, life)
    }

    /// The whole life.
    pub(super) async fn run(self, source: Source) {
        let stop = self.inner.stop.clone();
        // A package that is still being read at the end is left to its thread.
        let (engine, share) = match stop.run_until_cancelled(self.start(source)).await {
            None => return,
            Some(Err(fault)) => return self.failed(fault),
            Some(Ok(started)) => started,
        };
        let handle = engine.handle();
        let retired = match stop.run_until_cancelled(self.serve(&handle)).await {
            Some(Ok(drained)) => Some(drained),
            Some(Err(fault)) => {
                self.failed(fault);
                None
            }
            None => None,
        };
        let (name, stopping) = (self.name.clone(), stop.is_cancelled());
        let end = if stopping { Error::Draining } else { Error::ModelDraining { name } };
        // The memory is taken until the threads have let go of it, however long that is.
        let ending = spawn_blocking(move || {
            engine.stop_with(end);
            drop(share);
        });
        // All models are waited for at the end, with a limit of their own.
        let wait = if stopping { Duration::MAX } else { STOP_TIMEOUT };
        if timeout(wait, ending).await.is_err() {
            tracing::warn!(model = self.name, "the engine did not stop; leaving it behind");
        }
        if let Some(drained) = retired {
            self.leave(&handle, drained);
        }
    }

    /// Everything until the engine's threads run.
    async fn start(&self, source: Source) -> Result<(Engine, Share), Fault> {
        let (settings, share) = (self.inner.settings, self.inner.memory.share(&self.name));
        let (fixed_slots, shards) = (settings.fixed_slots, settings.shards);
        let built = spawn_blocking(move || build(source, share, fixed_slots, shards)).await;
        let (model, share) = built.unwrap_or_else(|panic| Err(self.broken(format!("loading panicked: {panic}"))))?;
        // First, so that no two wait for each other.
        let spec = Arc::new(model.spec().clone());
        self.built.send_replace(Some(Arc::clone(&spec)));
        self.check_low_model(&spec).await?;
        let started = spawn_blocking(move || Engine::start(model, shards, settings.engine)).await;
        let started = started.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let engine = started.map_err(|error| self.broken(format!("the engine did not start: {error}")))?;
        Ok((engine, share))
    }

    /// Checks that the model which `spec` leaves low-resolution images to can draw them. One that was refused is no fault
    /// here: requests that bring such an image can be answered, and the others learn why not.
    async fn check_low_model(&self, spec: &ModelSpec) -> Result<(), Violations> {
        let Some(name) = &spec.low_model else { return Ok(()) };
        let lower = self.inner.entries().get(name).filter(|entry| !entry.unloading).map(|entry| entry.life.clone());
        let mut lower = lower.ok_or_else(|| self.no_low_model(name))?;
        match lower.built.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(lower)) => fits_below(lower, spec),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn no_low_model(&self, name: &str) -> Violations {
        let entries = self.inner.entries();
        let known = listed(entries.keys().map(String::as_str));
        Violations::one(LOW_MODEL, format!("must name a package that is served here ({known}), got {name:?}"))
    }

    /// Warms up, takes its place, and stays there until it is to retire; then whether everything could be finished.
    async fn serve(&self, handle: &Handle) -> Result<bool, Fault> {
        let mut health = handle.health();
        if let Role::First = self.role {
            self.inner.catalogue.set(&self.name, State::Warming);
        }
        match health.wait_for(|health| *health != Health::Warming).await.as_deref() {
            Ok(Health::Failed(why)) => return Err(self.broken(why.clone())),
            Ok(_) => {}
            Err(_) => return Err(self.broken(GONE.to_owned())),
        }
        self.take_place(handle)?;
        let mut retire = self.retire.clone();
        let retired = async {
            let limit = retire.wait_for(Option::is_some).await.ok().and_then(|limit| *limit).unwrap_or_default();
            timeout(limit, handle.finished()).await.is_ok()
        };
        let broke = async {
            match health.wait_for(|health| matches!(health, Health::Failed(_))).await.as_deref() {
                Ok(Health::Failed(why)) => why.clone(),
                _ => GONE.to_owned(),
            }
        };
        tokio::select! {
            drained = retired => Ok(drained),
            never = self.watch(handle) => match never {},
            why = broke => {
                tracing::error!(model = self.name, why, "broke down");
                self.inner.catalogue.set(&self.name, State::Failed { why: why.clone() });
                self.inner.breakdown.send_replace(Some((self.name.clone(), why)));
                // The server ends now.
                std::future::pending().await
            }
        }
    }

    /// Says when the engine hangs in a step, and when it gets on again; ends the process if the settings say so. Whoever waits
    /// for it is left alone: their deadlines end that, or the step does.
    async fn watch(&self, handle: &Handle) -> Infallible {
        let (mut hangs, mut looks) = (false, interval(LOOK));
        loop {
            looks.tick().await;
            let stalled = handle.stalled();
            match stalled {
                Some(since) if !hangs => {
                    tracing::error!(model = self.name, ?since, "no step was completed although there is work");
                    if self.inner.settings.stall_exit {
                        let why = format!("no step was completed for {} s", since.as_secs());
                        self.inner.breakdown.send_replace(Some((self.name.clone(), why)));
                    }
                }
                None if hangs => tracing::warn!(model = self.name, "steps are completed again"),
                _ => {}
            }
            hangs = stalled.is_some();
        }
    }

    /// Takes requests from now on, unless the models that name each other have changed since they were looked at.
    fn take_place(&self, handle: &Handle) -> Result<(), Fault> {
        let mut entries = self.inner.entries();
        let spec = handle.spec();
        for (name, entry) in entries.iter().filter(|(name, entry)| **name != self.name && !entry.has_failed()) {
            let Some(other) = entry.life.spec() else { continue };
            if spec.low_model.as_ref() == Some(name) {
                fits_below(&other, spec)?;
            }
            // One that is not there yet looks at this one itself.
            let serves = matches!(entry.life.outcome(), Some(Ok(())));
            if serves && other.low_model.as_ref() == Some(&self.name) {
                fits_below(spec, &other).map_err(|faults| {
                    let mut all = Violations::new();
                    all.add_within(&format!("models/{name}"), faults);
                    all
                })?;
            }
        }
        if let Some(name) = &spec.low_model
            && entries.get(name).is_none_or(|entry| entry.unloading)
        {
            drop(entries);
            return Err(self.no_low_model(name).into());
        }
        self.inner.catalogue.replace(&self.name, handle.clone());
        if let (Role::Next { limit }, Some(entry)) = (self.role, entries.get_mut(&self.name))
            && let Some(next) = entry.next.take()
        {
            entry.life.retire(limit);
            entry.life = next;
        }
        tracing::info!(model = self.name, revision = spec.revision, "serving");
        self.outcome.send_replace(Some(Ok(())));
        Ok(())
    }

    /// It has ended as it should.
    fn leave(&self, handle: &Handle, drained: bool) {
        let mut entries = self.inner.entries();
        if entries.get(&self.name).is_some_and(|entry| entry.unloading) {
            entries.remove(&self.name);
            self.inner.catalogue.remove(&self.name);
        }
        self.inner.catalogue.retired(handle);
        let revision = &handle.spec().revision;
        match drained {
            true => tracing::info!(model = self.name, revision, "unloaded"),
            false => tracing::warn!(model = self.name, revision, "unloaded; requests were cut"),
        }
        self.gone.send_replace(Some(drained));
    }

    fn broken(&self, why: String) -> Fault {
        Fault::Other(Error::ModelFailed { name: self.name.clone(), why })
    }

    /// It does not come to serve.
    fn failed(&self, fault: Fault) {
        let name = self.name.clone();
        let error = match fault {
            Fault::Other(error) => error,
            Fault::Package(faults) => {
                for fault in faults.iter() {
                    tracing::error!(model = name, field = fault.field, "{}", fault.description);
                }
                Error::ModelFailed { name: name.clone(), why: format!("package refused: {faults}") }
            }
        };
        let why = match &error {
            Error::ModelFailed { why, .. } => why.clone(),
            other => other.to_string(),
        };
        let mut entries = self.inner.entries();
        let error = match (self.role, error) {
            (Role::First, error) => {
                tracing::error!(model = name, why, "not serving");
                self.inner.catalogue.set(&name, State::Failed { why });
                error
            }
            (Role::Next { .. }, error) => {
                let entry = entries.get_mut(&name);
                let old = entry.and_then(|entry| entry.next.take().and(entry.life.spec()));
                let revision = old.map(|spec| spec.revision.clone()).unwrap_or_default();
                tracing::error!(model = name, revision, why, "not reloaded; the old revision goes on serving");
                match error {
                    Error::ModelFailed { why, .. } => Error::ReloadFailed { name, revision, why },
                    other => other,
                }
            }
        };
        self.outcome.send_replace(Some(Err(error)));
    }
}

/// Builds a model with the slots that it is to have, in memory that it has been given before.
fn build(
    source: Source,
    mut share: Share,
    fixed_slots: bool,
    shards: u32,
) -> Result<(Box<dyn PixelModel>, Share), Fault> {
    if let Some(inspect) = &source.inspect {
        share.resize(inspect()?.weight_bytes)?;
    }
    let model = (source.load)()?;
    // Only a model that has been built knows what it takes.
    let spec = model.spec();
    let slots = if fixed_slots { spec.slots } else { cohort::slots(spec, shards, machine::last_level_cache()) };
    share.resize(Footprint::of(spec, slots, shards).total())?;
    if slots == spec.slots {
        return Ok((model, share));
    }
    let model = model.shard(slots).map_err(|error| Violations::one("engine.slots", error.to_string()))?;
    Ok((model, share))
}
