//! What the threads of an engine and its handles have in common.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;

use super::core::SCORE_IMAGES;
use super::gauges::{Gauges, Load};
use super::health::Health;
use super::ledger::Ledger;
use super::part::Whole;
use super::shed::Batch;
use super::thread::EngineConfig;
use crate::error::Error;
use crate::job::Class;
use crate::sched::JobId;
use crate::spec::ModelSpec;

/// What those hear whose model broke down; the cause itself goes to the log.
const BROKE_DOWN: &str = "the model broke down";

/// What a request wants images for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be made.
    Sampling,
    /// To be told how likely they are.
    Scoring,
}

/// Everything both sides see.
#[derive(Debug)]
pub(super) struct Shared {
    /// Of the whole engine: its slots are those of all shards.
    pub(super) spec: Arc<ModelSpec>,
    pub(super) health: watch::Sender<Health>,
    pub(super) shards: Vec<Arc<Shard>>,
    pub(super) sampling: Places,
    pub(super) scoring: Places,
    pub(super) batch: Batch,
    /// Held while a job is divided and sent: two that came at once would find the same shard idle.
    pub(super) submitting: Mutex<()>,
    /// One for each handle of somebody who may still send requests.
    pub(super) leases: TaskTracker,
    next_job: AtomicU64,
    /// Shards that have not warmed up.
    cold: AtomicU32,
    /// What ends whatever is left, once something does.
    end: OnceLock<Error>,
    stall_timeout: Duration,
}

impl Shared {
    /// Of an engine of `shards` shards that are as `spec` says.
    pub(super) fn new(spec: &ModelSpec, shards: u32, config: &EngineConfig, now: Instant) -> Self {
        let slots = spec.slots.saturating_mul(shards);
        let scored_together = SCORE_IMAGES.saturating_mul(shards);
        Self {
            spec: Arc::new(ModelSpec { slots, ..spec.clone() }),
            health: watch::Sender::new(Health::Warming),
            shards: (0..shards).map(|_| Arc::new(Shard::new(&spec.name, spec.slots, now))).collect(),
            sampling: Places::new(config, slots),
            scoring: Places::new(config, scored_together),
            batch: Batch::default(),
            submitting: Mutex::default(),
            leases: TaskTracker::new(),
            next_job: AtomicU64::new(0),
            cold: AtomicU32::new(shards),
            end: OnceLock::new(),
            stall_timeout: config.stall_timeout,
        }
    }

    /// Images that can be here at once.
    pub(super) fn most_images(&self) -> u32 {
        self.sampling.limit(Class::Interactive).saturating_add(self.scoring.limit(Class::Interactive))
    }

    pub(super) fn new_job(&self) -> JobId {
        JobId(self.next_job.fetch_add(1, Ordering::Relaxed))
    }

    /// See [`Load`].
    pub(super) fn load(&self, now: Instant) -> Load {
        let mut all = Load { step: self.mean(Gauges::step), ..Load::default() };
        for load in self.shards.iter().map(|shard| shard.gauges.load(now)) {
            all.slots += load.slots;
            all.running += load.running;
            all.queued += load.queued;
            all.queued_batch += load.queued_batch;
            all.scoring += load.scoring;
            all.since_progress = all.since_progress.max(load.since_progress);
        }
        for [submitted, completed, given_up] in self.shards.iter().map(|shard| shard.ledger.numbers()) {
            all.submitted += submitted;
            all.completed += completed;
            all.given_up += given_up;
        }
        all
    }

    /// Since when nothing was done although there is work, if that is longer than any step takes.
    pub(super) fn stalled(&self, now: Instant) -> Option<Duration> {
        self.load(now).since_progress.filter(|since| *since > self.stall_timeout)
    }

    /// The mean of a time over the shards that have measured it; zero if none has.
    pub(super) fn mean(&self, time: impl Fn(&Gauges) -> Duration) -> Duration {
        let times: Vec<_> =
            self.shards.iter().map(|shard| time(&shard.gauges)).filter(|time| !time.is_zero()).collect();
        times.iter().sum::<Duration>().checked_div(times.len() as u32).unwrap_or_default()
    }

    /// Moves to the health that `next` finds right for the present one, if any.
    pub(super) fn change_health(&self, next: impl FnOnce(&Health) -> Option<Health>) {
        self.health.send_if_modified(|health| match next(health) {
            Some(changed) => {
                *health = changed;
                true
            }
            None => false,
        });
    }

    /// A shard has warmed up; with the last of them the engine is ready.
    pub(super) fn warmed(&self) {
        if self.cold.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.change_health(|health| (*health == Health::Warming).then_some(Health::Ready));
        }
    }

    /// A shard broke down, and the engine with it; the first cause stays.
    pub(super) fn fail(&self, why: String) {
        self.change_health(|health| (!matches!(health, Health::Failed(_))).then_some(Health::Failed(why)));
        self.end.get_or_init(|| Error::EngineFault(BROKE_DOWN.into()));
    }

    /// Takes nothing new from now on.
    pub(super) fn drain(&self) {
        self.change_health(|health| matches!(health, Health::Warming | Health::Ready).then_some(Health::Draining));
    }

    /// Ends whatever is left with `error`.
    pub(super) fn stop(&self, error: Error) {
        self.end.get_or_init(|| error);
    }

    /// What to end everything with, if it is to end.
    pub(super) fn end(&self) -> Option<&Error> {
        self.end.get()
    }
}

/// What one thread and everyone else see of each other.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) gauges: Gauges,
    pub(super) cancelled: Cancelled,
    pub(super) ledger: Ledger,
    sampling: AtomicU32,
    scoring: AtomicU32,
}

impl Shard {
    /// Of a model of that name.
    pub(super) fn new(model: &str, slots: u32, now: Instant) -> Self {
        Self {
            gauges: Gauges::new(slots, now),
            cancelled: Cancelled::default(),
            ledger: Ledger::new(model),
            sampling: AtomicU32::new(0),
            scoring: AtomicU32::new(0),
        }
    }

    /// Images sent to it that have not ended.
    pub(super) fn outstanding(&self, kind: Kind) -> &AtomicU32 {
        match kind {
            Kind::Sampling => &self.sampling,
            Kind::Scoring => &self.scoring,
        }
    }

    /// What it has to do, as images of `kind` and of the other.
    pub(super) fn burden(&self, kind: Kind) -> (u32, u32) {
        let [sampling, scoring] = [&self.sampling, &self.scoring].map(|images| images.load(Ordering::Relaxed));
        match kind {
            Kind::Sampling => (sampling, scoring),
            Kind::Scoring => (scoring, sampling),
        }
    }
}

/// Places for images of one kind, waiting or not.
#[derive(Debug)]
pub(super) struct Places {
    all: Pool,
    /// Those of them that batch work may take. The rest is kept for people who wait, so that batch work is shed first.
    batch: Pool,
}

#[derive(Debug)]
struct Pool {
    limit: u32,
    permits: Arc<Semaphore>,
}

impl Pool {
    fn new(limit: u32) -> Self {
        Self { limit, permits: Arc::new(Semaphore::new(limit as usize)) }
    }

    fn free(&self) -> u32 {
        self.permits.available_permits() as u32
    }

    fn take(&self, images: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_many_owned(images).ok()
    }
}

impl Places {
    /// A queue as `config` says, and `together` images that are worked on at once.
    fn new(config: &EngineConfig, together: u32) -> Self {
        let waiting = f64::from(config.queue_images) * config.batch_share;
        Self {
            all: Pool::new(config.queue_images.saturating_add(together)),
            batch: Pool::new((waiting.ceil() as u32).saturating_add(together)),
        }
    }

    /// Most images of `class` at once.
    pub(super) fn limit(&self, class: Class) -> u32 {
        match class {
            Class::Interactive => self.all.limit,
            Class::Batch => self.all.limit.min(self.batch.limit),
        }
    }

    /// Places that are free for `class`.
    pub(super) fn free(&self, class: Class) -> u32 {
        match class {
            Class::Interactive => self.all.free(),
            Class::Batch => self.all.free().min(self.batch.free()),
        }
    }

    /// Places that batch work has.
    pub(super) fn taken_by_batch(&self) -> u32 {
        self.batch.limit.saturating_sub(self.batch.free())
    }

    /// Takes `images` places, all or none.
    pub(super) fn take(&self, class: Class, images: u32) -> Option<Permit> {
        let batch = match class {
            Class::Interactive => None,
            Class::Batch => Some(self.batch.take(images)?),
        };
        Some(Permit { _all: self.all.take(images)?, _batch: batch })
    }

    /// Resolves when nobody has a place.
    pub(super) async fn all_free(&self) {
        // Fails only if the semaphore is closed, which nobody does.
        let _ = self.all.permits.acquire_many(self.all.limit).await;
    }
}

/// Places of the images of one request, taken before it is looked at. Dropping it gives them back.
#[derive(Debug)]
pub struct Permit {
    _all: OwnedSemaphorePermit,
    _batch: Option<OwnedSemaphorePermit>,
}

/// Jobs called back since the shard last looked. No longer than the parts sent since then: each is called back once, and
/// sending one makes the shard look.
#[derive(Debug, Default)]
pub(super) struct Cancelled {
    any: AtomicBool,
    jobs: Mutex<Vec<JobId>>,
}

impl Cancelled {
    pub(super) fn push(&self, job: JobId) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.push(job);
        self.any.store(true, Ordering::Release);
    }

    /// Takes all of them. Between two steps there are mostly none, which costs no lock.
    pub(super) fn take(&self) -> Vec<JobId> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(false, Ordering::Release);
        std::mem::take(&mut *jobs)
    }
}

/// A job's right to be worked on: its permits, and the duty to call it back when nobody waits for it any more.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) whole: Arc<Whole>,
    /// Given back after the job is on the lists, since a field is dropped after its struct; or taken, if the job is shed.
    permit: Arc<Mutex<Option<Permit>>>,
}

impl Claim {
    /// On a job that is about to be sent.
    pub(super) fn new(whole: Whole, permit: Permit) -> Self {
        Self { whole: Arc::new(whole), permit: Arc::new(Mutex::new(Some(permit))) }
    }

    /// What it consists of, for those who have no right to it.
    pub(super) fn weak(&self) -> (Weak<Mutex<Option<Permit>>>, Weak<Whole>) {
        (Arc::downgrade(&self.permit), Arc::downgrade(&self.whole))
    }

    /// Gives the job up, unless it has ended.
    pub(super) fn recall(&self) {
        self.whole.recall();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.recall();
    }
}
