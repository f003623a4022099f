//! The async side of an engine: permits, submission, and streams that cancel what nobody reads any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::event::Run;
use super::health::Health;
use crate::error::Error;
use crate::job::{SampleJob, ScoreJob};
use crate::spec::ModelSpec;

/// Cheap to clone; every clone feeds the same engine.
#[derive(Clone, Debug)]
pub struct Handle {}

/// What one request consumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Values sampled.
    pub sampled_values: u64,
    /// Values that came as prefixes.
    pub prefix_values: u64,
    /// Largest number of images in one step with one of this job's.
    pub peak_batch: u32,
}

/// Where one request's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From submission to the first slot.
    pub queue: Duration,
    /// From there to the end of the first prefix.
    pub prefill: Duration,
    /// From submission to the first value.
    pub first_value: Duration,
    /// From the first value to the last.
    pub decode: Duration,
}

/// The end of a sampling job.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSummary {
    /// Log-likelihood of each image in nats, prefix included.
    pub log_likelihoods: Vec<f64>,
    /// What it consumed.
    pub usage: Usage,
    /// Where the time went.
    pub timing: Timing,
}

impl Handle {
    /// What the model promises.
    #[must_use]
    pub fn spec(&self) -> &Arc<ModelSpec> {
        todo!()
    }

    /// Queues a sampling job; never waits.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Draining`], [`Error::ModelFailed`].
    pub fn sample(&self, _job: SampleJob, _deadline: Option<Instant>) -> Result<SampleStream, Error> {
        todo!()
    }

    /// Queues a scoring job; never waits.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Draining`], [`Error::ModelFailed`].
    pub fn score(&self, _job: ScoreJob, _deadline: Option<Instant>) -> Result<ScoreTicket, Error> {
        todo!()
    }

    /// The engine's health, now and as it changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        todo!()
    }

    /// Stops admission; what was admitted goes on.
    pub fn drain(&self) {
        todo!()
    }

    /// Resolves when no permit is out any more: every stream and ticket is gone.
    pub async fn drained(&self) {
        todo!()
    }
}

/// A sampling job under way. Owns its permits: dropping it frees them and cancels the job within one step.
#[derive(Debug)]
pub struct SampleStream {}

impl SampleStream {
    /// Whatever waits to be read, whole units of the job's granularity only; waits if nothing does. `None` once every
    /// value of every image has been handed out. `partial_after`: hand out incomplete units too, once this much time has
    /// passed since the call with something waiting.
    ///
    /// # Errors
    /// Why the job ended early; the stream is over then.
    pub async fn next(&mut self, _partial_after: Option<Duration>) -> Option<Result<Vec<Run>, Error>> {
        todo!()
    }

    /// Totals, once `next` has returned `None`.
    #[must_use]
    pub fn summary(&self) -> Option<SampleSummary> {
        todo!()
    }
}

/// One scored image.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Log-likelihood of the image in nats.
    pub log_likelihood: f64,
    /// Log-probability of each value in rank order, in nats, if asked for.
    pub log_probs: Option<Vec<f32>>,
}

/// A scoring job under way. Owns its permits: dropping it frees them and cancels the job.
#[derive(Debug)]
pub struct ScoreTicket {}

impl ScoreTicket {
    /// The scores in the order of the job's items, and where the time went.
    ///
    /// # Errors
    /// Why the job ended early.
    pub async fn scores(self) -> Result<(Vec<Score>, Timing), Error> {
        todo!()
    }
}
