//! The names of the generations under way: two at once may not have the same, or a client that sends one again would have it
//! made twice.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;

/// All of them; cheap to clone, every clone is the same list. No longer than there are open calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Running {
    ids: Arc<Mutex<HashSet<String>>>,
}

impl Running {
    /// Enters `id` until what is returned is dropped.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`].
    pub(super) fn enter(&self, id: String) -> Result<Entry, Error> {
        match self.ids().insert(id.clone()) {
            true => Ok(Entry { id, running: self.clone() }),
            false => Err(Error::AlreadyRunning { request_id: id }),
        }
    }

    fn ids(&self) -> MutexGuard<'_, HashSet<String>> {
        // A panic elsewhere leaves the set whole.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One generation on the list. Whoever does its work holds this.
#[derive(Debug)]
pub(super) struct Entry {
    id: String,
    running: Running,
}

impl Entry {
    /// Its name.
    pub(super) fn id(&self) -> &str {
        &self.id
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
}
