//! Batch jobs that wait for a slot make room for people who wait: they end as if they had been refused.

use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use super::event::SampleBuffer;
use super::part::Whole;
use super::shared::{Claim, Permit};
use crate::error::Error;

/// Batch jobs to sample that were sent to an engine, in the order they came. Whoever reads a job owns it; once it is gone,
/// so is its place here, with the next one that comes.
#[derive(Debug, Default)]
pub(super) struct Batch(Mutex<Vec<Job>>);

#[derive(Debug)]
struct Job {
    images: u32,
    permit: Weak<Mutex<Option<Permit>>>,
    whole: Weak<Whole>,
    buffer: Weak<SampleBuffer>,
}

impl Job {
    /// Whether it is there, and none of its images has a slot.
    fn waits(&self) -> bool {
        self.permit.strong_count() > 0
            && self.buffer.upgrade().is_some_and(|buffer| buffer.milestones.admitted.get().is_none())
    }

    fn shed(&self, error: Error) {
        let (Some(buffer), Some(whole), Some(permit)) =
            (self.buffer.upgrade(), self.whole.upgrade(), self.permit.upgrade())
        else {
            return;
        };
        // Before the shards hear of it, who would only say that it was cancelled.
        buffer.failure.get_or_init(|| error);
        whole.recall();
        buffer.wake.notify_one();
        permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Batch {
    /// A job of `images` images was sent.
    pub(super) fn enter(&self, images: u32, claim: &Claim, buffer: Weak<SampleBuffer>) {
        let (permit, whole) = claim.weak();
        let mut jobs = self.jobs();
        jobs.retain(|job| job.permit.strong_count() > 0);
        jobs.push(Job { images, permit, whole, buffer });
    }

    /// Frees `missing` places, by ending the jobs that came last and wait, each with the `error` for its images; or none if
    /// all of them would not be enough.
    pub(super) fn make_room(&self, missing: u32, error: impl Fn(u32) -> Error) {
        let mut jobs = self.jobs();
        let (mut freed, mut shed) = (0, Vec::new());
        for (place, job) in jobs.iter().enumerate().rev().filter(|(_, job)| job.waits()) {
            if freed >= missing {
                break;
            }
            freed += job.images;
            shed.push(place);
        }
        if freed >= missing {
            // The last of them first, so that the places of the others stay theirs.
            shed.into_iter().map(|place| jobs.remove(place)).for_each(|job| job.shed(error(job.images)));
        }
    }

    fn jobs(&self) -> MutexGuard<'_, Vec<Job>> {
        // A panic elsewhere leaves the list whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
