//! Two stages in one request: a job that waits for its low-resolution images, which are a job of another model's.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::Notify;

use super::event::{ImageBuffer, SampleBuffer};
use super::handle::Handle;
use super::shared::{Claim, Permit};
use super::stream::SampleStream;
use crate::error::Error;
use crate::image::{Canvas, Shape};
use crate::job::SampleJob;
use crate::spec::ModelSpec;

/// Said where a job is over and yet not done.
const UNFINISHED: &str = "an image was not finished";

/// A low-resolution image that was drawn for a request.
#[derive(Clone, Debug, PartialEq)]
pub struct LowImage {
    /// Its shape.
    pub shape: Shape,
    /// Its values in raster order.
    pub values: Arc<[u16]>,
    /// Its log-likelihood in nats, under the model that drew it.
    pub log_likelihood: f64,
}

/// A job between admission and being sent. Dropping it gives up both stages, and their places.
#[derive(Debug)]
pub(super) struct FirstStage {
    /// The job that draws the low-resolution images. Nobody reads it: its buffer has all of them in the end.
    pub(super) low: SampleStream,
    /// The model that does.
    pub(super) lower: Arc<ModelSpec>,
    /// What waits for them.
    pub(super) job: SampleJob,
    pub(super) permit: Permit,
    /// Where it will go.
    pub(super) upper: Handle,
}

/// What the first stage leaves to be told of it.
#[derive(Debug, Default)]
pub(super) struct Drawn {
    pub(super) images: Vec<LowImage>,
    /// When the first of them got a slot.
    pub(super) admitted: Option<Instant>,
    /// Values sampled for them.
    pub(super) values: u64,
    /// Largest number of images in one step with one of them.
    pub(super) peak_batch: u32,
}

impl FirstStage {
    /// Woken whenever it may be over.
    pub(super) fn wake(&self) -> &Notify {
        &self.low.buffer.wake
    }

    /// Whether there is nothing to wait for any more.
    pub(super) fn is_over(&self) -> bool {
        let buffer = &self.low.buffer;
        buffer.milestones.finished.get().is_some() || buffer.failure.get().is_some()
    }

    /// Sends the job that waited, which puts its values into `buffer`. The places of the first stage are free then.
    ///
    /// # Errors
    /// Why there are no low-resolution images; what [`Handle::send`] says.
    pub(super) fn finish(self, buffer: &Arc<SampleBuffer>) -> Result<(Claim, Drawn), Error> {
        let Self { low, lower, mut job, permit, upper } = self;
        let low = &low.buffer;
        if let Some(error) = low.failure.get() {
            return Err(named(error, &lower.name));
        }
        let image = |image: &ImageBuffer| {
            let canvas = Canvas::with_prefix(lower.shape, image.run(0, 0, u32::MAX).values)?;
            let values = canvas.to_raster(lower.order).into();
            Some(LowImage { shape: lower.shape, values, log_likelihood: image.log_likelihood()? })
        };
        let images: Option<Vec<_>> = low.images.iter().map(image).collect();
        let images = images.ok_or_else(|| named(&Error::EngineFault(UNFINISHED.into()), &lower.name))?;
        job.lows = images.iter().map(|image| Arc::clone(&image.values)).collect();
        let drawn = Drawn {
            images,
            admitted: low.milestones.admitted.get().copied(),
            values: low.sampled(),
            peak_batch: low.peak_batch.load(Ordering::Relaxed),
        };
        Ok((upper.send(job, buffer, permit)?, drawn))
    }
}

/// `error`, which is of another model than the one asked for, with the name of that model.
fn named(error: &Error, model: &str) -> Error {
    match error {
        Error::EngineFault(why) => {
            Error::EngineFault(format!("model {model:?}, which draws the low-resolution images: {why}"))
        }
        other => other.clone(),
    }
}
