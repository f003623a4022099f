//! Which image does what in the next step: a pure value, driven by the engine.
//!
//! It knows job ids, slots and ranks and nothing else: no clock, channel, tensor, log or async. Every image has a known
//! length and state size, so a slot is reserved when an image is admitted and nothing is ever pre-empted. Images join and
//! leave at any step. How many may wait is bounded outside, by the permits that `engine::handle` gives out; deadlines are
//! kept by the streams that hold those permits, and reach the scheduler as cancellations.

mod queue;
mod scheduler;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::time::Duration;

pub use scheduler::Scheduler;

use crate::image::Rank;
use crate::model::Slot;

/// Names a job; given out by the engine, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// Names one image of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageKey {
    /// The job.
    pub job: JobId,
    /// Which of its images, from 0.
    pub index: u32,
}

/// What a job's images need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A slot, until every value is known.
    Sample {
        /// Values known from the start.
        prefix: Rank,
        /// Whether the prefix goes through the step, one rank at a time, instead of the parallel pass.
        replay: bool,
    },
    /// A place in a scoring pass.
    Score,
}

/// Fixed numbers of one model on one device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Images that can be in the making at once.
    pub slots: u32,
    /// Values of an image, N.
    pub values: Rank,
    /// Values one step decides.
    pub values_per_step: u32,
    /// Share of the time that scoring gets while both kinds of work wait, above 0 and below 1.
    pub score_share: f64,
    /// Images a scoring pass takes together, at most.
    pub score_images: u32,
    /// Ranks of a prefix taken in by one parallel pass, at most.
    pub absorb_ranks: u32,
}

/// An image given a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The slot.
    pub slot: Slot,
    /// The image.
    pub image: ImageKey,
}

/// A piece of a prefix to take in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absorb {
    /// The slot.
    pub slot: Slot,
    /// The image.
    pub image: ImageKey,
    /// Which of its known ranks.
    pub ranks: Range<Rank>,
}

/// One image's part in the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// The slot.
    pub slot: Slot,
    /// The image.
    pub image: ImageKey,
    /// The rank it stands at.
    pub rank: Rank,
}

/// One slice of a scoring pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreSlice {
    /// The images of the pass; the same from its first slice to its last.
    pub images: Vec<ImageKey>,
    /// Where the slice starts.
    pub from: Rank,
}

/// What one tick of the engine will do, in this order. A tick takes prefixes in and steps, or scores: while both kinds of
/// work wait, whichever is behind its share of the time goes next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Slots to close.
    pub release: Vec<Slot>,
    /// Slots to open.
    pub admit: Vec<Admission>,
    /// A piece of a prefix to take in; at most one a tick, so that no step waits for more than one.
    pub absorb: Option<Absorb>,
    /// The step.
    pub advance: Vec<Advance>,
    /// The scoring slice.
    pub score: Option<ScoreSlice>,
}

/// What came of a plan.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Images that failed, of `admit`, `absorb`, `advance` or `score`. Everything else of the plan was done.
    pub failed: Vec<ImageKey>,
    /// The rank that the scoring slice reached.
    pub scored_to: Rank,
    /// Time that opening, taking in and stepping took.
    pub sampling: Duration,
    /// Time that the scoring slice took.
    pub scoring: Duration,
}

/// How a commit changed an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Every value is known, or every rank is scored.
    Finished(ImageKey),
    /// It failed and its slot is free again.
    Failed(ImageKey),
}

/// Counts for people and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Images waiting for a slot.
    pub queued: u32,
    /// Those of them that are of batch requests.
    pub queued_batch: u32,
    /// Images holding a slot.
    pub running: u32,
    /// Images waiting to be scored or in the scoring pass.
    pub scoring: u32,
}
