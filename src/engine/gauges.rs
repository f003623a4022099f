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
    /// Those of them that are of batch requests.
    pub queued_batch: u32,
    /// Images waiting to be scored, or being scored.
    pub scoring: u32,
    /// From one step to the next lately, in the mean over the shards; zero before the first.
    pub step: Duration,
    /// Time since the shard that is worst off last got something done, while it has work. Much more than `step` means that
    /// it is stuck.
    pub since_progress: Option<Duration>,
    /// Images ever taken in, to sample or to score.
    pub submitted: u64,
    /// Those of them that were completed.
    pub completed: u64,
    /// Those of them that ended otherwise: failed, late, or given up. The rest is still here.
    pub given_up: u64,
}

/// See [`Load`]; of one shard.
#[derive(Debug)]
pub(super) struct Gauges {
    slots: u32,
    epoch: Instant,
    running: AtomicU32,
    queued: AtomicU32,
    queued_batch: AtomicU32,
    scoring: AtomicU32,
    step_ns: Pace,
    scored_value_ns: Pace,
    /// Nanoseconds from `epoch` to the last progress, at least 1; 0 while idle.
    progress_ns: AtomicU64,
}

impl Gauges {
    pub(super) fn new(slots: u32, epoch: Instant) -> Self {
        let count = || AtomicU32::new(0);
        Self {
            slots,
            epoch,
            running: count(),
            queued: count(),
            queued_batch: count(),
            scoring: count(),
            step_ns: Pace::default(),
            scored_value_ns: Pace::default(),
            progress_ns: AtomicU64::new(0),
        }
    }

    pub(super) fn count(&self, snapshot: Snapshot) {
        self.running.store(snapshot.running, Relaxed);
        self.queued.store(snapshot.queued, Relaxed);
        self.queued_batch.store(snapshot.queued_batch, Relaxed);
        self.scoring.store(snapshot.scoring, Relaxed);
    }

    /// A step came `took` after the one before.
    pub(super) fn stepped(&self, took: Duration) {
        self.step_ns.took(took.as_nanos() as u64);
    }

    /// Scoring `values` values took `took`.
    pub(super) fn scored(&self, took: Duration, values: u32) {
        if let Some(each) = (took.as_nanos() as u64).checked_div(u64::from(values)) {
            self.scored_value_ns.took(each);
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

    /// What a step took lately; zero before the first.
    pub(super) fn step(&self) -> Duration {
        self.step_ns.lately()
    }

    /// The shortest step ever; zero before the first.
    pub(super) fn shortest_step(&self) -> Duration {
        self.step_ns.shortest()
    }

    /// What scoring a value took lately; zero before the first.
    pub(super) fn scored_value(&self) -> Duration {
        self.scored_value_ns.lately()
    }

    /// The least that scoring a value ever took; zero before the first.
    pub(super) fn shortest_scored_value(&self) -> Duration {
        self.scored_value_ns.shortest()
    }

    pub(super) fn load(&self, now: Instant) -> Load {
        let progress_ns = self.progress_ns.load(Relaxed);
        let since = || now.duration_since(self.epoch).saturating_sub(Duration::from_nanos(progress_ns));
        Load {
            slots: self.slots,
            running: self.running.load(Relaxed),
            queued: self.queued.load(Relaxed),
            queued_batch: self.queued_batch.load(Relaxed),
            scoring: self.scoring.load(Relaxed),
            step: self.step(),
            since_progress: (progress_ns > 0).then(since),
            ..Load::default()
        }
    }
}

/// How long something takes, in nanoseconds. One writer, so no exchange is needed.
#[derive(Debug, Default)]
struct Pace {
    lately: AtomicU64,
    shortest: AtomicU64,
}

/// Samples that the average goes over, about.
const AVERAGED: u64 = 32;
/// A sample counts as this many times the average at most: one pause of the machine says nothing of the next steps.
const MOST_TIMES: u64 = 8;

impl Pace {
    /// Takes in a sample; the first one counts in full.
    fn took(&self, sample: u64) {
        let (old, shortest) = (self.lately.load(Relaxed), self.shortest.load(Relaxed));
        let sample = sample.max(1);
        if old == 0 || sample < shortest {
            self.shortest.store(sample, Relaxed);
        }
        let tamed = sample.min(old.saturating_mul(MOST_TIMES));
        let new = if old == 0 { sample } else { (old * (AVERAGED - 1) + tamed).div_ceil(AVERAGED) };
        self.lately.store(new, Relaxed);
    }

    fn lately(&self) -> Duration {
        Duration::from_nanos(self.lately.load(Relaxed))
    }

    fn shortest(&self) -> Duration {
        Duration::from_nanos(self.shortest.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_of_the_machine_does_not_become_the_pace() {
        let pace = Pace::default();
        (0..100).for_each(|_| pace.took(1000));
        pace.took(1_000_000_000);
        assert!(pace.lately() < Duration::from_nanos(1300), "{:?}", pace.lately());
        assert_eq!(pace.shortest(), Duration::from_nanos(1000));
        (0..200).for_each(|_| pace.took(5000));
        assert!(pace.lately() > Duration::from_nanos(4900), "what lasts does: {:?}", pace.lately());
        (0..200).for_each(|_| pace.took(700));
        assert!(pace.lately() < Duration::from_nanos(750), "{:?}", pace.lately());
        assert_eq!(pace.shortest(), Duration::from_nanos(700));
    }
}
