//! What a shard's thread says of itself while it works, for whoever asks: plain atomics, written by it alone.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::sched::Snapshot;

/// How busy an engine is. The numbers are read one by one and need not fit one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Images that can be in the making at once.
    pub slots: u32,
    /// Images in the making.
    pub running: u32,
    /// Images waiting for a slot.
    pub queued: u32,
    /// Images waiting to be scored, or being scored.
    pub scoring: u32,
    /// What a step took lately, in the mean over the shards; zero before the first.
    pub step: Duration,
    /// Time since the shard that is worst off last got something done, while it has work. Much more than `step` means that
    /// it is stuck.
    pub since_progress: Option<Duration>,
}

/// See [`Load`]; of one shard.
#[derive(Debug)]
pub(super) struct Gauges {
    slots: u32,
    epoch: Instant,
    running: AtomicU32,
    queued: AtomicU32,
    scoring: AtomicU32,
    step_ns: AtomicU64,
    scored_value_ns: AtomicU64,
    /// Nanoseconds from `epoch` to the last progress, at least 1; 0 while idle.
    progress_ns: AtomicU64,
}

impl Gauges {
    pub(super) fn new(slots: u32, epoch: Instant) -> Self {
        let (count, time) = (|| AtomicU32::new(0), || AtomicU64::new(0));
        Self {
            slots,
            epoch,
            running: count(),
            queued: count(),
            scoring: count(),
            step_ns: time(),
            scored_value_ns: time(),
            progress_ns: time(),
        }
    }

    pub(super) fn count(&self, snapshot: Snapshot) {
        self.running.store(snapshot.running, Relaxed);
        self.queued.store(snapshot.queued, Relaxed);
        self.scoring.store(snapshot.scoring, Relaxed);
    }

    /// A step took `took`.
    pub(super) fn stepped(&self, took: Duration) {
        average(&self.step_ns, took.as_nanos() as u64);
    }

    /// Scoring `values` values took `took`.
    pub(super) fn scored(&self, took: Duration, values: u32) {
        if let Some(each) = (took.as_nanos() as u64).checked_div(u64::from(values)) {
            average(&self.scored_value_ns, each);
        }
    }

    /// There is work, which starts the wait for progress if there was none before.
    pub(super) fn resumed(&self, now: Instant) {
        if self.progress_ns.load(Relaxed) == 0 {
            self.progressed(now);
        }
    }

    /// Something was done.
    pub(super) fn progressed(&self, now: Instant) {
        self.progress_ns.store((now.duration_since(self.epoch).as_nanos() as u64).max(1), Relaxed);
    }

    /// There is nothing to do.
    pub(super) fn idle(&self) {
        self.progress_ns.store(0, Relaxed);
    }

    pub(super) fn step(&self) -> Duration {
        Duration::from_nanos(self.step_ns.load(Relaxed))
    }

    pub(super) fn scored_value(&self) -> Duration {
        Duration::from_nanos(self.scored_value_ns.load(Relaxed))
    }

    pub(super) fn load(&self, now: Instant) -> Load {
        let progress_ns = self.progress_ns.load(Relaxed);
        let since = || now.duration_since(self.epoch).saturating_sub(Duration::from_nanos(progress_ns));
        Load {
            slots: self.slots,
            running: self.running.load(Relaxed),
            queued: self.queued.load(Relaxed),
            scoring: self.scoring.load(Relaxed),
            step: self.step(),
            since_progress: (progress_ns > 0).then(since),
        }
    }
}

/// Exponential average over about eight samples; the first one counts in full. One writer, so no exchange is needed.
fn average(place: &AtomicU64, sample: u64) {
    let old = place.load(Relaxed);
    place.store(if old == 0 { sample } else { old - old / 8 + sample / 8 }, Relaxed);
}
