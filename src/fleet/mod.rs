//! The models that are served, as they come and go: loading, replacing, unloading, aliases, and the memory they share.
//!
//! Each revision is one task (`life`). Whatever changes who serves happens under one lock, so that no two decisions are made
//! on the same state; requests never take it.

mod fit;
mod life;
mod memory;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::life::{Life, Role, Task};
pub use self::memory::Memory;
use crate::engine::EngineConfig;
use crate::engine::catalogue::{Catalogue, State, bare};
use crate::error::{Error, Violations};
use crate::model::PixelModel;
use crate::model::manifest::check_name;
use crate::repository::Outline;
use crate::spec::ModelSpec;

/// Aliases there may be.
const MAX_ALIASES: usize = 1024;

/// Builds a model, or says everything that is wrong with its package. Runs on a thread of its own.
pub type Load = Box<dyn FnOnce() -> Result<Box<dyn PixelModel>, Violations> + Send>;
/// Reads what a package says of itself, without its weights. Runs on a thread of its own.
pub type Inspect = Box<dyn Fn() -> Result<Outline, Violations> + Send>;
/// Finds every package that there is now, or says why it cannot. Runs on a thread of its own.
pub type Packages = Arc<dyn Fn() -> Result<Vec<Source>, String> + Send + Sync>;

/// A model to be served.
pub struct Source {
    /// Its name in the catalogue.
    pub name: String,
    /// How it is built.
    pub load: Load,
    /// How it is looked at before; `None` where there is no package.
    pub inspect: Option<Inspect>,
}

impl Source {
    /// A model called `name`, built by `load`.
    pub fn new(
        name: impl Into<String>,
        load: impl FnOnce() -> Result<Box<dyn PixelModel>, Violations> + Send + 'static,
    ) -> Self {
        Self { name: name.into(), load: Box::new(load), inspect: None }
    }

    /// The same, of a package that can be looked at by `inspect`.
    #[must_use]
    pub fn inspected(self, inspect: impl Fn() -> Result<Outline, Violations> + Send + 'static) -> Self {
        Self { inspect: Some(Box::new(inspect)), ..self }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How models are run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Shards of each.
    pub shards: u32,
    /// Whether models come with the slots that they are to have; otherwise they get as many as [`crate::engine::cohort`] says.
    pub fixed_slots: bool,
    /// The rest of an engine.
    pub engine: EngineConfig,
    /// Whether an engine that hangs ends the process.
    pub stall_exit: bool,
    /// How long requests may go on with a revision that goes, unless somebody says otherwise.
    pub drain_timeout: Duration,
    /// Bytes that all models may take; `None` for no limit.
    pub max_memory: Option<u64>,
}

/// What looking for packages has changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rescan {
    /// Models that were not served and are now.
    pub loaded: Vec<String>,
    /// Models that serve another revision.
    pub reloaded: Vec<String>,
    /// Models that were left as they are.
    pub unchanged: Vec<String>,
    /// What could not be loaded or reloaded, and why.
    pub failed: Vec<(String, Error)>,
}

/// Every model; cheap to clone, every clone is the same fleet.
#[derive(Clone, Debug)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    catalogue: Catalogue,
    packages: Packages,
    memory: Memory,
    /// By name. Held while it is decided who serves.
    entries: Mutex<BTreeMap<String, Entry>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// The first model that broke down while it served, and why.
    breakdown: watch::Sender<Option<(String, String)>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("settings", &self.settings).field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl Inner {
    // A panic elsewhere leaves the entries whole: every write is one assignment.
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is under one name.
#[derive(Debug)]
struct Entry {
    /// The revision that loads, serves, or was refused.
    life: Life,
    /// One that is to take its place.
    next: Option<Life>,
    unloading: bool,
}

impl Entry {
    fn new(life: Life) -> Self {
        Self { life, next: None, unloading: false }
    }

    /// What keeps others from doing anything with it.
    fn busy(&self) -> Option<&'static str> {
        match self {
            Entry { unloading: true, .. } => Some("unloaded"),
            Entry { next: Some(_), .. } => Some("reloaded"),
            Entry { life, .. } if life.outcome().is_none() => Some("loaded"),
            _ => None,
        }
    }

    fn has_failed(&self) -> bool {
        matches!(self.life.outcome(), Some(Err(_)))
    }
}

impl Fleet {
    /// No models yet; more than those it will be told of are found by `packages`.
    #[must_use]
    pub fn new(settings: Settings, packages: Packages) -> Self {
        let inner = Inner {
            settings,
            catalogue: Catalogue::new(),
            packages,
            memory: Memory::new(settings.max_memory),
            entries: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            breakdown: watch::Sender::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins to load `sources`. All are known from the first moment on, in whatever order they name each other. Must be
    /// called within a tokio runtime.
    pub fn begin(&self, sources: Vec<Source>) {
        let mut entries = self.inner.entries();
        for source in sources {
            let (name, role) = (source.name.clone(), Role::First);
            entries.insert(name, Entry::new(self.spawn(source, role)));
        }
    }

    /// The models and their states.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.inner.catalogue
    }

    /// The memory they share.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.inner.memory
    }

    /// How they are run.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The first model that breaks down while it serves, and why.
    #[must_use]
    pub fn breakdown(&self) -> watch::Receiver<Option<(String, String)>> {
        self.inner.breakdown.subscribe()
    }

    /// Loads a package that is not served, or one that failed; resolves once it serves, at once if it does already. Goes on
    /// if it is not waited for.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] if there is no such package; [`Error::ModelFailed`] and [`Error::ModelMemoryFull`] if it is
    /// refused; [`Error::ModelBusy`]; [`Error::Invalid`] if an alias has its name; [`Error::Draining`].
    pub async fn load(&self, name: &str) -> Result<(), Error> {
        self.open()?;
        let name = bare(name);
        let stands = |entry: &&Entry| !entry.unloading && !entry.has_failed();
        let standing = self.inner.entries().get(name).filter(stands).map(|entry| entry.life.clone());
        let life = match standing {
            Some(life) => life,
            None => {
                let failed = |why| Error::ModelFailed { name: name.to_owned(), why };
                let source = self.find(name).await.map_err(failed)?;
                self.begin_load(source.map_err(|known| Error::ModelNotFound { name: name.to_owned(), known })?)?
            }
        };
        self.settled(life).await
    }

    /// Loads the package of a model again, beside the revision that serves, and lets it take over. Resolves once it has; the
    /// old revision has `limit` to finish what it has. Goes on if it is not waited for. Returns the revision before, if one
    /// served.
    ///
    /// # Errors
    /// [`Error::ReloadFailed`] and [`Error::ModelMemoryFull`] if the new revision is refused, the old one serves on then;
    /// [`Error::ModelNotFound`]; [`Error::ModelBusy`]; what [`load`](Self::load) says if none served.
    pub async fn reload(&self, name: &str, limit: Option<Duration>) -> Result<Option<String>, Error> {
        self.open()?;
        let (name, state) = self.inner.catalogue.get(name)?;
        let serving = state.handle().map(|handle| handle.spec().revision.clone());
        let failed = |why: String| match &serving {
            Some(revision) => Error::ReloadFailed { name: name.clone(), revision: revision.clone(), why },
            None => Error::ModelFailed { name: name.clone(), why },
        };
        let source = self.find(&name).await.map_err(&failed)?;
        let source = source.map_err(|known| failed(format!("there is no such package any more; there are {known}")))?;
        let (life, previous) = self.begin_reload(source, limit)?;
        self.settled(life).await?;
        Ok(previous.map(|spec| spec.revision.clone()))
    }

    /// Takes a model out: nothing new is sent to it, and what it has may go on for `limit`. Resolves once it is gone, with
    /// whether all of that finished. Goes on if it is not waited for.
    ///
    /// # Errors
    /// [`Error::ModelInUse`], [`Error::ModelNotFound`], [`Error::ModelBusy`]; [`Error::Draining`].
    pub async fn unload(&self, name: &str, limit: Option<Duration>) -> Result<bool, Error> {
        self.open()?;
        let inner = &self.inner;
        let mut gone = {
            let mut entries = inner.entries();
            let (name, state) = inner.catalogue.get(name)?;
            let entry = entries.get(&name).ok_or_else(|| not_found(&entries, &name))?;
            if let Some(doing) = entry.busy() {
                return Err(Error::ModelBusy { name, doing });
            }
            if let Some(by) = needed_by(&entries, &inner.catalogue, &name) {
                return Err(Error::ModelInUse { name, by });
            }
            let (State::Serving { handle, since }, Some(entry)) = (state, entries.get_mut(&name)) else {
                // It failed, so there is nothing to wait for.
                entries.remove(&name);
                inner.catalogue.remove(&name);
                return Ok(true);
            };
            entry.unloading = true;
            inner.catalogue.set(&name, State::Draining { handle, since });
            tracing::info!(model = name, "unloading");
            entry.life.retire(limit.unwrap_or(inner.settings.drain_timeout));
            entry.life.gone()
        };
        match gone.wait_for(Option::is_some).await {
            Ok(drained) => Ok((*drained).unwrap_or_default()),
            Err(_) => Err(self.ended()),
        }
    }

    /// Makes `alias` stand for `model`, from one request to the next, or for none any more if that is empty. Returns what it
    /// stood for.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no name for a model, or that of one; [`Error::ModelNotFound`] if there is no such model.
    pub fn set_alias(&self, alias: &str, model: &str) -> Result<Option<String>, Error> {
        let (alias, model, catalogue) = (bare(alias), bare(model), &self.inner.catalogue);
        let refuse = |rule: String| Err(Violations::one("alias", rule).into());
        if let Err(rule) = check_name(alias) {
            return refuse(rule);
        }
        let entries = self.inner.entries();
        if model.is_empty() {
            return Ok(catalogue.set_alias(alias, None));
        }
        if entries.contains_key(alias) {
            return refuse(format!("must not be the name of a model, got {alias:?}"));
        }
        if entries.get(model).is_none_or(|entry| entry.unloading) {
            return Err(not_found(&entries, model));
        }
        let aliases = catalogue.aliases();
        if aliases.len() >= MAX_ALIASES && !aliases.contains_key(alias) {
            return refuse(format!("must be one of at most {MAX_ALIASES}"));
        }
        Ok(catalogue.set_alias(alias, Some(model)))
    }

    /// Looks for packages: loads those that are not served or failed, one after the other, reloads those whose revision is
    /// another, and leaves the rest as it is, models without a package too.
    ///
    /// # Errors
    /// Why packages cannot be looked for.
    pub async fn rescan(&self) -> Result<Rescan, String> {
        let mut found = Rescan::default();
        for source in self.sources().await? {
            let name = source.name.clone();
            match self.update(source).await {
                Ok(change) => match change {
                    Change::Loaded => found.loaded.push(name),
                    Change::Reloaded => found.reloaded.push(name),
                    Change::None => found.unchanged.push(name),
                },
                Err(error) => found.failed.push((name, error)),
            }
        }
        Ok(found)
    }

    /// Ends every model and waits for their threads, `limit` at most.
    pub async fn stop(&self, limit: Duration) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(limit, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("a model did not stop; leaving it behind");
        }
    }

    /// Cancelled at the end, or to bring it about.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    fn open(&self) -> Result<(), Error> {
        if self.inner.catalogue.is_draining() { Err(Error::Draining) } else { Ok(()) }
    }

    async fn sources(&self) -> Result<Vec<Source>, String> {
        let packages = Arc::clone(&self.inner.packages);
        spawn_blocking(move || packages()).await.unwrap_or_else(|panic| Err(format!("looking for packages: {panic}")))
    }

    /// The package called `name`, or the names that there are.
    async fn find(&self, name: &str) -> Result<Result<Source, String>, String> {
        let mut sources = self.sources().await?;
        Ok(match sources.iter().position(|source| source.name == name) {
            Some(index) => Ok(sources.swap_remove(index)),
            None => Err(listed(sources.iter().map(|source| source.name.as_str()))),
        })
    }

    async fn update(&self, source: Source) -> Result<Change, Error> {
        self.open()?;
        let (name, state) = match self.inner.catalogue.list().remove(&source.name) {
            None | Some(State::Failed { .. }) => {
                self.settled(self.begin_load(source)?).await?;
                return Ok(Change::Loaded);
            }
            Some(state) => (source.name.clone(), state),
        };
        let (State::Serving { handle, .. }, Some(inspect)) = (state, source.inspect) else { return Ok(Change::None) };
        let revision = handle.spec().revision.clone();
        let failed = |why: String| Error::ReloadFailed { name: name.clone(), revision: revision.clone(), why };
        let (inspect, outline) = spawn_blocking(move || {
            let outline = inspect();
            (inspect, outline)
        })
        .await
        .map_err(|panic| failed(format!("reading its manifest: {panic}")))?;
        let outline = outline.map_err(|faults| failed(format!("package refused: {faults}")))?;
        if outline.revision == revision {
            return Ok(Change::None);
        }
        let source = Source { inspect: Some(inspect), load: source.load, name: source.name };
        self.settled(self.begin_reload(source, None)?.0).await?;
        Ok(Change::Reloaded)
    }

    fn begin_load(&self, source: Source) -> Result<Life, Error> {
        let (name, mut entries) = (source.name.clone(), self.inner.entries());
        match entries.get(&name) {
            Some(Entry { unloading: true, .. }) => return Err(Error::ModelBusy { name, doing: "unloaded" }),
            Some(entry) if !entry.has_failed() => return Ok(entry.life.clone()),
            _ => {}
        }
        if let Some(model) = self.inner.catalogue.aliases().get(&name) {
            let rule = format!("must not be that of an alias, {name:?} stands for {model:?}");
            return Err(Violations::one("name", rule).into());
        }
        let life = self.spawn(source, Role::First);
        entries.insert(name, Entry::new(life.clone()));
        Ok(life)
    }

    /// The new life, and what serves until then.
    fn begin_reload(&self, source: Source, limit: Option<Duration>) -> Result<(Life, Option<Arc<ModelSpec>>), Error> {
        let (name, mut entries) = (source.name.clone(), self.inner.entries());
        let Some(entry) = entries.get_mut(&name) else { return Err(not_found(&entries, &name)) };
        if let Some(doing) = entry.busy() {
            return Err(Error::ModelBusy { name, doing });
        }
        if entry.has_failed() {
            *entry = Entry::new(self.spawn(source, Role::First));
            return Ok((entry.life.clone(), None));
        }
        let limit = limit.unwrap_or(self.inner.settings.drain_timeout);
        let life = self.spawn(source, Role::Next { limit });
        entry.next = Some(life.clone());
        Ok((life, entry.life.spec()))
    }

    /// Begins a life. The lock is held: it cannot take its place before it has one.
    fn spawn(&self, source: Source, role: Role) -> Life {
        if let Role::First = role {
            self.inner.catalogue.set(&source.name, State::Loading);
        }
        let (task, life) = Task::new(Arc::clone(&self.inner), source.name.clone(), role);
        self.inner.tasks.spawn(task.run(source));
        life
    }

    /// Resolves once a life has become what it was to be, or not.
    async fn settled(&self, life: Life) -> Result<(), Error> {
        life.settled().await.unwrap_or_else(|| Err(self.ended()))
    }

    /// What those hear whose model ended without a word.
    fn ended(&self) -> Error {
        match self.inner.stop.is_cancelled() {
            true => Error::Draining,
            false => Error::EngineFault("the task of the model is gone".to_owned()),
        }
    }
}

/// What became of a package that was looked at.
enum Change {
    Loaded,
    Reloaded,
    None,
}

/// The alias or the model that names `name`.
fn needed_by(entries: &BTreeMap<String, Entry>, catalogue: &Catalogue, name: &str) -> Option<String> {
    let alias = catalogue.aliases().into_iter().find(|(_, model)| model == name);
    let lower = |life: &Life| life.spec().is_some_and(|spec| spec.low_model.as_deref() == Some(name));
    let names_it = |entry: &Entry| lower(&entry.life) || entry.next.as_ref().is_some_and(lower);
    let above = || {
        let mut others = entries.iter().filter(|(_, entry)| !entry.unloading && !entry.has_failed());
        others
            .find(|(_, entry)| names_it(entry))
            .map(|(upper, _)| format!("model {upper:?}, whose images it draws first"))
    };
    alias.map(|(alias, _)| format!("alias {alias:?}")).or_else(above)
}

fn not_found(entries: &BTreeMap<String, Entry>, name: &str) -> Error {
    Error::ModelNotFound { name: name.to_owned(), known: listed(entries.keys().map(String::as_str)) }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
