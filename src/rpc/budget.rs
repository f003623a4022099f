//! The memory for messages on their way in: what all clients share of it, and who has to give some back.
//!
//! A stream keeps the room for its largest message, since the framework's buffers never become smaller. One that does so without
//! need is ended where others find no room. It has to be told by whoever answers it: a body that nobody reads hears nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// How long a stream may keep the memory of its largest message without one of half the size, once others find none.
pub(super) const MOST_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of every call that are outside the budget, so that small requests find room however much is uploaded.
pub(super) const SPARED: usize = 4 << 10;

/// So many bytes, shared by all connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    free: Arc<Semaphore>,
    limit: usize,
    /// Streams that hold some of it, by their numbers.
    keepers: Arc<Mutex<BTreeMap<u64, Keeper>>>,
    numbers: Arc<AtomicU64>,
}

/// A stream that holds memory.
#[derive(Debug)]
struct Keeper {
    bytes: usize,
    /// When a message came that counts for half as much as its largest, or more.
    used: Instant,
    evicted: CancellationToken,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        let free = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Self { free, limit, keepers: Arc::default(), numbers: Arc::default() }
    }

    /// Nothing of it yet, for one call.
    pub(super) fn share(&self) -> Share {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        Share { budget: self.clone(), held: None, number, evicted: CancellationToken::new() }
    }

    /// Bytes that nobody holds.
    pub(super) fn free(&self) -> usize {
        self.free.available_permits()
    }

    fn keepers(&self) -> MutexGuard<'_, BTreeMap<u64, Keeper>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends streams that keep memory without need, the largest first, until `requested` bytes are free or will be.
    fn make_room(&self, requested: usize) {
        let (now, keepers) = (Instant::now(), self.keepers());
        let mut idle: Vec<_> = keepers.values().filter(|keeper| now >= keeper.used + MOST_PAUSE).collect();
        idle.sort_by_key(|keeper| Reverse(keeper.bytes));
        let mut free = self.free();
        for keeper in idle {
            if free >= requested {
                break;
            }
            free += keeper.bytes;
            keeper.evicted.cancel();
        }
    }
}

/// What one call holds of a budget. Dropping it gives that back.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
    number: u64,
    evicted: CancellationToken,
}

impl Share {
    /// Holds what `bytes` take of the budget, no more and no less. A stream says when it last needed as much.
    ///
    /// # Errors
    /// [`Error::UploadsFull`].
    pub(super) fn hold(&mut self, bytes: usize, used: Option<Instant>) -> Result<(), Error> {
        let bytes = bytes.saturating_sub(SPARED);
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if let Some(less) = held.checked_sub(bytes) {
            drop(self.held.as_mut().and_then(|held| held.split(less)));
        } else {
            let (all, requested) = (Arc::clone(&self.budget.free), bytes - held);
            let more = u32::try_from(requested).ok().and_then(|requested| all.try_acquire_many_owned(requested).ok());
            let Some(more) = more else {
                self.budget.make_room(requested);
                let (free, limit) = (self.budget.free(), self.budget.limit);
                return Err(Error::UploadsFull { requested, free, limit });
            };
            match &mut self.held {
                Some(held) => held.merge(more),
                None => self.held = Some(more),
            }
        }
        if let (Some(used), true) = (used, self.held.is_some()) {
            self.budget.keepers().insert(self.number, Keeper { bytes, used, evicted: self.evicted.clone() });
        }
        Ok(())
    }

    /// What rings when its call is to end.
    pub(super) fn evicted(&self) -> Evicted {
        Evicted(self.evicted.clone())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.held.is_some() {
            self.budget.keepers().remove(&self.number);
        }
    }
}

/// Request extension: rings when the call is to end because it keeps memory that others need.
#[derive(Clone, Debug, Default)]
pub(super) struct Evicted(CancellationToken);

impl Evicted {
    /// That of `request`.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// Resolves when it rings, with what the client is told.
    pub(super) async fn rung(self) -> Error {
        self.0.cancelled_owned().await;
        Error::RequestStalled
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    impl Evicted {
        pub(in crate::rpc) fn is_rung(&self) -> bool {
            self.0.is_cancelled()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_is_given_back_and_only_streams_lose_theirs() {
        let budget = Budget::new(10 * SPARED);
        let (mut call, mut stream) = (budget.share(), budget.share());
        call.hold(6 * SPARED, None).unwrap();
        stream.hold(5 * SPARED, Some(Instant::now())).unwrap();
        assert_eq!(budget.free(), SPARED);
        stream.hold(3 * SPARED, Some(Instant::now())).unwrap();
        assert_eq!(budget.free(), 3 * SPARED);
        tokio::time::advance(MOST_PAUSE).await;
        let full = budget.share().hold(5 * SPARED, None).unwrap_err();
        assert_eq!(full, Error::UploadsFull { requested: 4 * SPARED, free: 3 * SPARED, limit: 10 * SPARED });
        assert!(stream.evicted().is_rung() && !call.evicted().is_rung());
        assert_eq!(stream.evicted().rung().now_or_never(), Some(Error::RequestStalled));
        drop((call, stream));
        assert_eq!(budget.free(), 10 * SPARED);
        assert!(budget.keepers().is_empty());
    }
}
