//! The names of the generations under way: two at once may not have the same, or a client that sends one again would have it
//! made twice; and by its name one can be cancelled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// All of them; cheap to clone, every clone is the same list. No longer than there are open calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Running {
    ids: Arc<Mutex<HashMap<String, CancellationToken>>>,
}

impl Running {
    /// Enters `id` until what is returned is dropped.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`].
    pub(super) fn enter(&self, id: String) -> Result<Entry, Error> {
        let (mut ids, cancelled) = (self.ids(), CancellationToken::new());
        if ids.contains_key(&id) {
            return Err(Error::AlreadyRunning { request_id: id });
        }
        ids.insert(id.clone(), cancelled.clone());
        Ok(Entry { id, cancelled, running: self.clone() })
    }

    /// Ends the generation called `id`; whether there was one that had not been told before.
    pub(super) fn cancel(&self, id: &str) -> bool {
        let ids = self.ids();
        let found = ids.get(id).filter(|cancelled| !cancelled.is_cancelled());
        found.inspect(|cancelled| cancelled.cancel()).is_some()
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        // A panic elsewhere leaves the list whole.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One generation on the list. Whoever does its work holds this.
#[derive(Debug)]
pub(super) struct Entry {
    id: String,
    cancelled: CancellationToken,
    running: Running,
}

impl Entry {
    /// Its name.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Cancelled when somebody wants it to end.
    pub(super) fn cancelled(&self) -> CancellationToken {
        self.cancelled.clone()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.ids().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_until_its_generation_has_ended() {
        let running = Running::default();
        let first = running.enter("a".into()).unwrap();
        let _other = running.clone().enter("b".into()).unwrap();
        assert_eq!(running.enter("a".into()).unwrap_err(), Error::AlreadyRunning { request_id: "a".into() });
        drop(first);
        assert_eq!(running.enter("a".into()).unwrap().id(), "a");
        assert_eq!(running.ids().len(), 1, "it is gone again");
    }

    #[test]
    fn what_runs_is_cancelled_once_and_nothing_else_is() {
        let running = Running::default();
        let [first, other] = ["a", "b"].map(|id| running.enter(id.into()).unwrap());
        assert!(running.cancel("a") && first.cancelled().is_cancelled());
        assert!(!running.cancel("a"), "it was told before");
        assert!(!running.cancel("c") && !other.cancelled().is_cancelled());
        drop(first);
        assert!(!running.cancel("a"), "it has ended");
        let again = running.enter("a".into()).unwrap();
        assert!(!again.cancelled().is_cancelled(), "another of the same name is another");
        assert!(running.cancel("a"));
    }
}
