//! Every image that was taken in, and how it ended: what comes in comes out, once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metrics::Counter;

use crate::metric;

/// The books of one shard, of images to sample and to score. Parts of jobs keep them, so no way out goes unnoticed.
pub(super) struct Ledger {
    submitted: Account,
    completed: Account,
    given_up: Account,
}

/// A number for those who ask here, and the same for those who export it.
struct Account {
    number: AtomicU64,
    exported: Counter,
}

impl Account {
    fn new(exported: Counter) -> Self {
        Self { number: AtomicU64::new(0), exported }
    }

    fn add(&self, images: u32) {
        self.number.fetch_add(images.into(), Relaxed);
        self.exported.increment(images.into());
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [submitted, completed, given_up] = self.numbers();
        write!(f, "Ledger {{ {submitted} submitted, {completed} completed, {given_up} given up }}")
    }
}

impl Ledger {
    /// Of a shard of `model`; shards share their model's metrics.
    pub(super) fn new(model: &str) -> Self {
        let submitted = metrics::counter!(metric::SUBMITTED.name, "model" => model.to_owned());
        let given_up = metrics::counter!(metric::GIVEN_UP.name, "model" => model.to_owned());
        // The meter exports what was finished, by kind of work.
        let completed = Counter::noop();
        Self {
            submitted: Account::new(submitted),
            completed: Account::new(completed),
            given_up: Account::new(given_up),
        }
    }

    pub(super) fn submitted(&self, images: u32) {
        self.submitted.add(images);
    }

    pub(super) fn completed(&self) {
        self.completed.add(1);
    }

    pub(super) fn given_up(&self, images: u32) {
        self.given_up.add(images);
    }

    /// Images submitted, completed and given up.
    pub(super) fn numbers(&self) -> [u64; 3] {
        // Ends are read first: an image in between is still here, and none has ended that never came.
        let ended = [&self.completed, &self.given_up].map(|account| account.number.load(Relaxed));
        let [completed, given_up] = ended;
        [self.submitted.number.load(Relaxed), completed, given_up]
    }
}
