//! The memory that all models together may take.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Error;

/// A budget; cheap to clone, every clone is the same one.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Bytes; `None` for no limit.
    limit: Option<u64>,
    used: Arc<Mutex<u64>>,
}

impl Memory {
    /// All of it is free.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { limit, used: Arc::default() }
    }

    /// Bytes there are; `None` for no limit.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes that are taken.
    #[must_use]
    pub fn used(&self) -> u64 {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing yet of it, for a revision of `model`.
    pub(super) fn share(&self, model: &str) -> Share {
        Share { model: model.to_owned(), bytes: 0, memory: self.clone() }
    }
}

/// What one revision has of the memory, as long as it lives.
#[derive(Debug)]
pub(super) struct Share {
    model: String,
    bytes: u64,
    memory: Memory,
}

impl Share {
    /// Makes it `wanted` bytes.
    ///
    /// # Errors
    /// [`Error::ModelMemoryFull`]; it is as before then.
    pub(super) fn resize(&mut self, wanted: u64) -> Result<(), Error> {
        let mut used = self.memory.used.lock().unwrap_or_else(PoisonError::into_inner);
        let others = used.saturating_sub(self.bytes);
        if let Some(limit) = self.memory.limit
            && wanted > limit.saturating_sub(others)
        {
            let (name, free) = (self.model.clone(), limit.saturating_sub(others));
            return Err(Error::ModelMemoryFull { name, wanted, free, limit });
        }
        *used = others.saturating_add(wanted);
        self.bytes = wanted;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.memory.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_its_numbers_and_what_ends_gives_back() {
        let memory = Memory::new(Some(100));
        let (mut first, mut second) = (memory.share("a"), memory.share("b"));
        first.resize(30).unwrap();
        first.resize(70).unwrap();
        let full = Error::ModelMemoryFull { name: "b".into(), wanted: 31, free: 30, limit: 100 };
        assert_eq!(second.resize(31), Err(full));
        second.resize(30).unwrap();
        assert_eq!(memory.used(), 100);
        drop(first);
        assert_eq!(memory.used(), 30);
        second.resize(100).unwrap();
        drop(second);
        assert_eq!(memory.used(), 0);
        Memory::new(None).share("c").resize(u64::MAX).unwrap();
    }
}
