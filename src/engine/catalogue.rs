//! Which models there are, what state each is in, and the other names that stand for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use tokio::sync::watch;

use super::Handle;
use crate::error::{Error, Violations};

/// Prefix of a model's resource name.
const COLLECTION: &str = "models/";
/// Characters that are repeated of a name that nobody has.
const MAX_TOLD: usize = 100;

/// State of one model.
#[derive(Clone, Debug)]
pub enum State {
    /// Its package is being read.
    Loading,
    /// It runs its first evaluations.
    Warming,
    /// It takes requests.
    Serving {
        /// Where they go.
        handle: Handle,
        /// Since when.
        since: SystemTime,
    },
    /// It is being unloaded: what runs finishes, nothing new comes.
    Draining {
        /// Where requests went.
        handle: Handle,
        /// Since when it had served.
        since: SystemTime,
    },
    /// Its package was refused, or it broke down.
    Failed {
        /// The first cause, or every fault of the package.
        why: String,
    },
}

impl State {
    /// The engine, where there is one.
    #[must_use]
    pub fn handle(&self) -> Option<&Handle> {
        match self {
            State::Serving { handle, .. } | State::Draining { handle, .. } => Some(handle),
            State::Loading | State::Warming | State::Failed { .. } => None,
        }
    }
}

/// Models by name; cheap to clone, every clone is the same catalogue.
#[derive(Clone, Debug)]
pub struct Catalogue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    names: RwLock<Names>,
    /// Whether the server is draining; every send wakes those who watch the catalogue.
    draining: watch::Sender<bool>,
    /// Whether every model of the start has been looked at.
    settled: AtomicBool,
}

#[derive(Debug, Default)]
struct Names {
    models: BTreeMap<String, State>,
    /// What each alias stands for. A model's own name goes before an alias.
    aliases: BTreeMap<String, String>,
    /// Revisions that others have taken the place of, while requests finish with them.
    retiring: Vec<Handle>,
}

impl Names {
    /// The model that `name` stands for, and its state.
    fn get(&self, name: &str) -> Result<(String, State), Error> {
        let name = match (self.models.contains_key(name), self.aliases.get(name)) {
            (false, Some(model)) => model,
            _ => name,
        };
        match self.models.get(name) {
            Some(state) => Ok((name.to_owned(), state.clone())),
            None => Err(self.not_found(name)),
        }
    }

    fn not_found(&self, name: &str) -> Error {
        Error::ModelNotFound { name: name.chars().take(MAX_TOLD).collect(), known: self.known() }
    }

    /// The names there are, for people.
    fn known(&self) -> String {
        let aliases = self.aliases.keys().filter(|alias| !self.models.contains_key(*alias));
        let names: Vec<_> = self.models.keys().chain(aliases).map(String::as_str).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

impl Default for Catalogue {
    fn default() -> Self {
        Self::new()
    }
}

impl Catalogue {
    /// No models.
    #[must_use]
    pub fn new() -> Self {
        let (draining, _) = watch::channel(false);
        Self { shared: Arc::new(Shared { names: RwLock::default(), draining, settled: AtomicBool::new(false) }) }
    }

    // A panic elsewhere leaves the names whole: every write is one insertion or removal.
    fn read(&self) -> RwLockReadGuard<'_, Names> {
        self.shared.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Names> {
        self.shared.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.shared.draining.send_modify(|_| {});
    }

    /// Adds a model, or changes its state.
    pub fn set(&self, name: &str, state: State) {
        if let (true, State::Serving { handle, .. }) = (self.is_draining(), &state) {
            handle.drain();
        }
        self.write().models.insert(name.to_owned(), state);
        self.announce();
    }

    /// Puts `handle` in the place of the revision that serves as `name`, from one request to the next. The old one is waited
    /// for by [`drained`](Self::drained) until it is [`retired`](Self::retired).
    pub fn replace(&self, name: &str, handle: Handle) {
        if self.is_draining() {
            handle.drain();
        }
        let state = State::Serving { handle, since: SystemTime::now() };
        let mut names = self.write();
        if let Some(old) = names.models.insert(name.to_owned(), state).and_then(|old| old.handle().cloned()) {
            names.retiring.push(old);
        }
        drop(names);
        self.announce();
    }

    /// A revision that was replaced has nothing to do any more.
    pub fn retired(&self, handle: &Handle) {
        self.write().retiring.retain(|other| !other.is_same(handle));
        self.announce();
    }

    /// Takes a model out.
    pub fn remove(&self, name: &str) {
        self.write().models.remove(name);
        self.announce();
    }

    /// Every model and its state, by name.
    #[must_use]
    pub fn list(&self) -> BTreeMap<String, State> {
        self.read().models.clone()
    }

    /// Every alias and the model that it stands for, whether there is one or not.
    #[must_use]
    pub fn aliases(&self) -> BTreeMap<String, String> {
        self.read().aliases.clone()
    }

    /// Makes `alias` stand for `model`, or for none any more, from one request to the next. Returns what it stood for.
    pub fn set_alias(&self, alias: &str, model: Option<&str>) -> Option<String> {
        let mut names = self.write();
        let previous = match model {
            Some(model) => names.aliases.insert(alias.to_owned(), model.to_owned()),
            None => names.aliases.remove(alias),
        };
        drop(names);
        self.announce();
        previous
    }

    /// The state of the model that `name` stands for: `models/{name}` or the bare name, or an alias in either form. The name
    /// that comes with it is the model's own.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`].
    pub fn get(&self, name: &str) -> Result<(String, State), Error> {
        self.read().get(bare(name))
    }

    /// Where requests for `name` go: `models/{name}`, the bare name, an alias, or empty for the only model there is.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `model` if it is empty and there is a choice; [`Error::ModelNotFound`];
    /// [`Error::ModelLoading`]; [`Error::ModelDraining`]; [`Error::ModelFailed`].
    pub fn resolve(&self, name: &str) -> Result<Handle, Error> {
        let names = self.read();
        let (name, state) = if name.is_empty() { only(&names)? } else { names.get(bare(name))? };
        match state {
            // Leased before anyone else can replace it.
            State::Serving { handle, .. } => Ok(handle.leased()),
            State::Loading | State::Warming => Err(Error::ModelLoading { name }),
            State::Draining { .. } => Err(Error::ModelDraining { name }),
            State::Failed { why } => Err(Error::ModelFailed { name, why }),
        }
    }

    /// Says that the server is about to drain, in whatever tells of its state; requests are admitted as before.
    pub fn announce_drain(&self) {
        self.shared.draining.send_replace(true);
    }

    /// Stops admission to every model; what was admitted goes on.
    pub fn drain(&self) {
        self.shared.draining.send_replace(true);
        self.handles().iter().for_each(Handle::drain);
    }

    /// Whether [`Catalogue::drain`] or [`Catalogue::announce_drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    /// Whether there was a moment since the start at which no model was being loaded. What is loaded later changes nothing.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let loading = |state: &State| matches!(state, State::Loading | State::Warming);
        let settled = self.shared.settled.load(Ordering::Relaxed) || !self.read().models.values().any(loading);
        self.shared.settled.store(settled, Ordering::Relaxed);
        settled
    }

    /// Resolves when no request is under way in any model, or in a revision that was replaced.
    pub async fn drained(&self) {
        for handle in self.handles() {
            handle.drained().await;
        }
    }

    fn handles(&self) -> Vec<Handle> {
        let names = self.read();
        names.models.values().filter_map(State::handle).chain(&names.retiring).cloned().collect()
    }

    /// Changes whenever a model or an alias does, or draining begins; its value says whether the server is draining.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.shared.draining.subscribe()
    }
}

/// A name without its collection.
#[must_use]
pub fn bare(name: &str) -> &str {
    name.strip_prefix(COLLECTION).unwrap_or(name)
}

/// The only model that does not go away.
fn only(names: &Names) -> Result<(String, State), Error> {
    let mut all = names.models.iter().filter(|(_, state)| !matches!(state, State::Draining { .. }));
    match (all.next(), all.next()) {
        (Some((name, state)), None) => Ok((name.clone(), state.clone())),
        (None, _) => Err(names.not_found("")),
        (Some(_), Some(_)) => {
            Err(Violations::one("model", format!("must name one of {}, got nothing", names.known())).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(names: &[&str]) -> Catalogue {
        let catalogue = Catalogue::new();
        names.iter().for_each(|name| catalogue.set(name, State::Loading));
        catalogue
    }

    #[test]
    fn a_model_is_found_by_either_name() {
        let catalogue = catalogue(&["a", "b"]);
        for name in ["a", "models/a"] {
            assert_eq!(catalogue.resolve(name).unwrap_err(), Error::ModelLoading { name: "a".into() });
        }
        let unknown = Error::ModelNotFound { name: "c".into(), known: "a, b".into() };
        assert_eq!(catalogue.resolve("models/c").unwrap_err(), unknown);
    }

    #[test]
    fn no_name_means_the_only_model_and_is_refused_when_there_is_a_choice() {
        assert!(matches!(catalogue(&[]).resolve(""), Err(Error::ModelNotFound { .. })));
        assert!(matches!(catalogue(&["a"]).resolve(""), Err(Error::ModelLoading { .. })));
        let Err(Error::Invalid(violations)) = catalogue(&["a", "b"]).resolve("") else { panic!("must be refused") };
        let all: Vec<_> = violations.iter().collect();
        assert_eq!(all[0].field, "model");
        assert!(all[0].description.contains("a, b"));
    }

    #[test]
    fn an_alias_stands_for_a_model_in_either_form_and_never_for_one_that_has_its_name() {
        let catalogue = catalogue(&["a", "b"]);
        assert_eq!(catalogue.set_alias("stable", Some("a")), None);
        for name in ["stable", "models/stable"] {
            assert_eq!(catalogue.resolve(name).unwrap_err(), Error::ModelLoading { name: "a".into() });
            assert_eq!(catalogue.get(name).unwrap().0, "a");
        }
        assert_eq!(catalogue.set_alias("stable", Some("gone")), Some("a".into()));
        let gone = Error::ModelNotFound { name: "gone".into(), known: "a, b, stable".into() };
        assert_eq!(catalogue.resolve("stable").unwrap_err(), gone);
        catalogue.set_alias("b", Some("a"));
        assert_eq!(catalogue.resolve("b").unwrap_err(), Error::ModelLoading { name: "b".into() });
        assert_eq!(catalogue.set_alias("stable", None), Some("gone".into()));
        assert!(matches!(catalogue.resolve("stable"), Err(Error::ModelNotFound { name, .. }) if name == "stable"));
    }

    #[test]
    fn a_model_that_failed_says_why() {
        let catalogue = catalogue(&["a"]);
        let mut watch = catalogue.watch();
        watch.mark_unchanged();
        catalogue.set("a", State::Failed { why: "no weights".into() });
        assert!(watch.has_changed().unwrap());
        let failed = Error::ModelFailed { name: "a".into(), why: "no weights".into() };
        assert_eq!(catalogue.resolve("").unwrap_err(), failed);
    }
}
