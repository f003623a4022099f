//! Which models there are, and what state each is in.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use tokio::sync::watch;

use super::Handle;
use crate::error::{Error, Violations};

/// Prefix of a model's resource name.
const COLLECTION: &str = "models/";

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
    /// Its package was refused, or it broke down.
    Failed {
        /// The first cause, or every fault of the package.
        why: String,
    },
}

/// Models by name; cheap to clone, every clone is the same catalogue.
#[derive(Clone, Debug)]
pub struct Catalogue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    models: RwLock<BTreeMap<String, State>>,
    /// Whether the server is draining; every send wakes those who watch the catalogue.
    draining: watch::Sender<bool>,
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
        Self { shared: Arc::new(Shared { models: RwLock::default(), draining }) }
    }

    /// Adds a model, or changes its state.
    pub fn set(&self, name: &str, state: State) {
        if let (true, State::Serving { handle, .. }) = (self.is_draining(), &state) {
            handle.drain();
        }
        // A panic elsewhere leaves the map whole: every write is one insertion.
        self.shared.models.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), state);
        self.shared.draining.send_modify(|_| {});
    }

    /// Every model and its state, by name.
    #[must_use]
    pub fn list(&self) -> BTreeMap<String, State> {
        self.shared.models.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The state of `name`, which may be `models/{name}` or the bare name.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`].
    pub fn get(&self, name: &str) -> Result<(String, State), Error> {
        let bare = name.strip_prefix(COLLECTION).unwrap_or(name);
        let models = self.shared.models.read().unwrap_or_else(PoisonError::into_inner);
        match models.get(bare) {
            Some(state) => Ok((bare.to_owned(), state.clone())),
            None => Err(Error::ModelNotFound { name: bare.to_owned(), known: known(&models) }),
        }
    }

    /// Where requests for `name` go: `models/{name}`, the bare name, or empty for the only model there is.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `model` if it is empty and there is a choice; [`Error::ModelNotFound`];
    /// [`Error::ModelLoading`]; [`Error::ModelFailed`].
    pub fn resolve(&self, name: &str) -> Result<Handle, Error> {
        let (name, state) = if name.is_empty() { self.only()? } else { self.get(name)? };
        match state {
            State::Serving { handle, .. } => Ok(handle),
            State::Loading | State::Warming => Err(Error::ModelLoading { name }),
            State::Failed { why } => Err(Error::ModelFailed { name, why }),
        }
    }

    fn only(&self) -> Result<(String, State), Error> {
        let models = self.shared.models.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = models.iter();
        match (all.next(), all.next()) {
            (Some((name, state)), None) => Ok((name.clone(), state.clone())),
            (None, _) => Err(Error::ModelNotFound { name: String::new(), known: known(&models) }),
            (Some(_), Some(_)) => {
                let mut violations = Violations::new();
                violations.add("model", format!("must name one of {}, got nothing", known(&models)));
                Err(Error::Invalid(violations))
            }
        }
    }

    /// Stops admission to every model; what was admitted goes on.
    pub fn drain(&self) {
        self.shared.draining.send_replace(true);
        for state in self.list().into_values() {
            if let State::Serving { handle, .. } = state {
                handle.drain();
            }
        }
    }

    /// Whether [`Catalogue::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    /// Resolves when no request is under way in any model.
    pub async fn drained(&self) {
        for state in self.list().into_values() {
            if let State::Serving { handle, .. } = state {
                handle.drained().await;
            }
        }
    }

    /// Changes whenever a model does, or draining begins; its value says whether the server is draining.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.shared.draining.subscribe()
    }
}

fn known(models: &BTreeMap<String, State>) -> String {
    if models.is_empty() { "none".to_owned() } else { models.keys().cloned().collect::<Vec<_>>().join(", ") }
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
