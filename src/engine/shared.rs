//! What the engine thread and its handles have in common.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::core::SCORE_IMAGES;
use super::gauges::Gauges;
use super::health::Health;
use crate::sched::JobId;
use crate::spec::ModelSpec;

/// Everything both sides see.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spec: Arc<ModelSpec>,
    pub(super) health: watch::Sender<Health>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) cancelled: Cancelled,
    pub(super) sampling: Places,
    pub(super) scoring: Places,
    next_job: AtomicU64,
    stopping: AtomicBool,
}

impl Shared {
    pub(super) fn new(spec: &ModelSpec, queue_images: u32, now: Instant) -> Self {
        Self {
            spec: Arc::new(spec.clone()),
            health: watch::Sender::new(Health::Warming),
            gauges: Arc::new(Gauges::new(spec.slots, now)),
            cancelled: Cancelled::default(),
            sampling: Places::new(queue_images.saturating_add(spec.slots)),
            scoring: Places::new(queue_images.saturating_add(SCORE_IMAGES)),
            next_job: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    /// Images that can be here at once.
    pub(super) fn most_images(&self) -> u32 {
        self.sampling.limit.saturating_add(self.scoring.limit)
    }

    pub(super) fn new_job(&self) -> JobId {
        JobId(self.next_job.fetch_add(1, Ordering::Relaxed))
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

    /// The model broke down; the first cause stays.
    pub(super) fn fail(&self, why: String) {
        self.change_health(|health| (!matches!(health, Health::Failed(_))).then_some(Health::Failed(why)));
    }

    /// Takes nothing new from now on.
    pub(super) fn drain(&self) {
        self.change_health(|health| matches!(health, Health::Warming | Health::Ready).then_some(Health::Draining));
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// Places for images of one kind, waiting or not.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) limit: u32,
    pub(super) permits: Arc<Semaphore>,
}

impl Places {
    fn new(limit: u32) -> Self {
        Self { limit, permits: Arc::new(Semaphore::new(limit as usize)) }
    }

    pub(super) fn free(&self) -> u32 {
        self.permits.available_permits() as u32
    }
}

/// Jobs given up since the engine last looked. No longer than the jobs sent since then: each is given up once, by its
/// owner, and sending one makes the engine look.
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

/// A job's right to be worked on: its permits, and the duty to cancel it when nobody waits for it any more.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) shared: Arc<Shared>,
    pub(super) job: JobId,
    /// Whether the engine may still be at it.
    pub(super) open: bool,
    /// Given back after the cancellation is on its list, since a field is dropped after its struct.
    pub(super) _permits: OwnedSemaphorePermit,
}

impl Claim {
    /// Gives the job up.
    pub(super) fn cancel(&mut self) {
        if std::mem::take(&mut self.open) {
            self.shared.cancelled.push(self.job);
        }
    }

    /// The engine is done with it.
    pub(super) fn settle(&mut self) {
        self.open = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.cancel();
    }
}
