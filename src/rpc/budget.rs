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
        Share { budget: self.clone(), held: None, number, listed: false, evicted: CancellationToken::new() }
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
    /// Whether it is among the keepers.
    listed: bool,
    evicted: CancellationToken,
}

impl Share {
    /// Holds `bytes` of the budget, no more and no less. A stream says when it last needed as much.
    ///
    /// # Errors
    /// [`Error::UploadsFull`].
    pub(super) fn hold(&mut self, bytes: usize, used: Option<Instant>) -> Result<(), Error> {
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
        match used.filter(|_| bytes > 0) {
            Some(used) => {
                let keeper = Keeper { bytes, used, evicted: self.evicted.clone() };
                self.budget.keepers().insert(self.number, keeper);
                self.listed = true;
            }
            None => self.settle(),
        }
        Ok(())
    }

    /// Its client has sent everything: what it keeps is for us to use up.
    pub(super) fn settle(&mut self) {
        if std::mem::take(&mut self.listed) {
            self.budget.keepers().remove(&self.number);
        }
    }

    /// What rings when its call is to end.
    pub(super) fn evicted(&self) -> Evicted {
        Evicted(self.evicted.clone())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.settle();
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
    async fn a_share_is_given_back_and_only_streams_that_may_send_more_lose_theirs() {
        let budget = Budget::new(1000);
        let [mut call, mut stream, mut sent, mut empty] = [(); 4].map(|()| budget.share());
        let now = Some(Instant::now());
        call.hold(300, None).unwrap();
        stream.hold(500, now).unwrap();
        assert_eq!(budget.free(), 200);
        stream.hold(300, now).unwrap();
        sent.hold(200, now).unwrap();
        sent.settle();
        empty.hold(100, now).unwrap();
        empty.hold(0, now).unwrap();
        assert_eq!(budget.free(), 200);
        tokio::time::advance(MOST_PAUSE).await;
        let full = budget.share().hold(1000, None).unwrap_err();
        assert_eq!(full, Error::UploadsFull { requested: 1000, free: 200, limit: 1000 });
        assert!(stream.evicted().is_rung());
        assert!(![&call, &sent, &empty].into_iter().any(|share| share.evicted().is_rung()));
        assert_eq!(stream.evicted().rung().now_or_never(), Some(Error::RequestStalled));
        drop((call, stream, sent, empty));
        assert_eq!(budget.free(), 1000);
        assert!(budget.keepers().is_empty());
    }
}
