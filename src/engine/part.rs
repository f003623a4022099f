//! A job in parts, one for each shard that works on it: how many are left, and how they are called back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::shared::{Kind, Shard};
use crate::sched::JobId;

/// What the parts of a job have in common.
#[derive(Debug)]
pub(super) struct Whole {
    job: JobId,
    /// Those that have, or are about to get, a part.
    shards: Vec<Arc<Shard>>,
    /// Parts that are not complete.
    left: AtomicU32,
    /// It is complete, it failed, or it was given up.
    over: AtomicBool,
}

impl Whole {
    pub(super) fn new(job: JobId, shards: Vec<Arc<Shard>>) -> Self {
        let left = AtomicU32::new(shards.len() as u32);
        Self { job, shards, left, over: AtomicBool::new(false) }
    }

    /// Takes the job out of every shard, unless it is over.
    pub(super) fn recall(&self) {
        if !self.over.swap(true, Ordering::AcqRel) {
            self.shards.iter().for_each(|shard| shard.cancelled.push(self.job));
        }
    }
}

/// One shard's share of a job, wherever it happens to be; its images count as the shard's until they have ended.
#[derive(Debug)]
pub(super) struct Part {
    whole: Arc<Whole>,
    shard: Arc<Shard>,
    kind: Kind,
    /// Images that have not ended.
    images: u32,
}

impl Part {
    pub(super) fn new(whole: Arc<Whole>, shard: Arc<Shard>, kind: Kind, images: u32) -> Self {
        shard.outstanding(kind).fetch_add(images, Ordering::Relaxed);
        shard.ledger.submitted(images);
        Self { whole, shard, kind, images }
    }

    /// An image is complete; whether it was the last of the part.
    pub(super) fn image_done(&mut self) -> bool {
        if let Some(left) = self.images.checked_sub(1) {
            self.images = left;
            self.shard.outstanding(self.kind).fetch_sub(1, Ordering::Relaxed);
            self.shard.ledger.completed();
        }
        self.images == 0
    }

    /// The part is complete; whether it was the last of the job. What the other parts did before is visible then.
    pub(super) fn done(&self) -> bool {
        let last = self.whole.left.fetch_sub(1, Ordering::AcqRel) == 1;
        if last {
            self.whole.over.store(true, Ordering::Release);
        }
        last
    }

    /// The part failed, and the job with it.
    pub(super) fn failed(&self) {
        self.whole.recall();
    }

    /// Whether the job has ended elsewhere, or was given up: then nothing of it needs to begin.
    pub(super) fn is_over(&self) -> bool {
        self.whole.over.load(Ordering::Acquire)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.shard.outstanding(self.kind).fetch_sub(self.images, Ordering::Relaxed);
        self.shard.ledger.given_up(self.images);
    }
}
