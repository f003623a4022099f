//! What the engine tells the readers of a job: a buffer the size of the whole image, so the engine never waits for anyone.
//!
//! One writer (the thread of the shard that has the image) appends values and moves a watermark; any number of readers take
//! what lies below it.
//! There is no lock: a value is stored before the watermark passes it (release) and read after the watermark was seen to
//! have passed it (acquire). A reader that never comes costs the buffer and nothing else.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::Notify;

use super::part::Part;
use crate::error::Error;
use crate::image::Rank;
use crate::job::SampleJob;

/// Consecutive values of one image, in rank order.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Which image of the job, from 0.
    pub image: u32,
    /// Rank of the first value.
    pub first: Rank,
    /// The values.
    pub values: Vec<u16>,
    /// Natural log of each value's probability under the model, as many as values.
    pub log_probs: Vec<f32>,
}

/// The values of one image as they are sampled.
#[derive(Debug)]
pub struct ImageBuffer {
    /// Ranks before this one came with the request and are not stored here.
    start: Rank,
    values: Box<[AtomicU16]>,
    log_probs: Box<[AtomicU32]>,
    /// Values stored so far, counted from `start`.
    stored: AtomicU32,
    log_likelihood: OnceLock<f64>,
}

impl ImageBuffer {
    /// Room for ranks `start..values`.
    #[must_use]
    pub fn new(start: Rank, values: Rank) -> Self {
        let room = values.saturating_sub(start) as usize;
        Self {
            start,
            values: (0..room).map(|_| AtomicU16::new(0)).collect(),
            log_probs: (0..room).map(|_| AtomicU32::new(0)).collect(),
            stored: AtomicU32::new(0),
            log_likelihood: OnceLock::new(),
        }
    }

    /// Appends a value; only the shard that has the image calls this. Beyond the room nothing happens.
    pub fn push(&self, value: u16, log_prob: f32) {
        let index = self.stored.load(Ordering::Relaxed);
        if let (Some(place), Some(log)) = (self.values.get(index as usize), self.log_probs.get(index as usize)) {
            place.store(value, Ordering::Relaxed);
            log.store(log_prob.to_bits(), Ordering::Relaxed);
            self.stored.store(index + 1, Ordering::Release);
        }
    }

    /// Marks the image complete with the log-likelihood of all its values, prefix included, in nats.
    pub fn finish(&self, log_likelihood: f64) {
        // Only the shard that has the image finishes it, and once.
        let _ = self.log_likelihood.set(log_likelihood);
    }

    /// Log-likelihood of the whole image in nats, once it is complete.
    #[must_use]
    pub fn log_likelihood(&self) -> Option<f64> {
        self.log_likelihood.get().copied()
    }

    /// Values stored so far.
    #[must_use]
    pub fn stored(&self) -> u32 {
        self.stored.load(Ordering::Acquire)
    }

    /// The stored values `taken..upto`, as a run of image `image`. `upto` is cut to what is stored.
    #[must_use]
    pub fn run(&self, image: u32, taken: u32, upto: u32) -> Run {
        let span = taken as usize..upto.min(self.stored()).max(taken) as usize;
        let values = self.values.get(span.clone()).unwrap_or_default();
        let log_probs = self.log_probs.get(span).unwrap_or_default();
        Run {
            image,
            first: self.start + taken,
            values: values.iter().map(|value| value.load(Ordering::Relaxed)).collect(),
            log_probs: log_probs.iter().map(|log| f32::from_bits(log.load(Ordering::Relaxed))).collect(),
        }
    }
}

/// When things happened to a job. Set once each, by the shard it happens in first.
#[derive(Debug, Default)]
pub struct Milestones {
    /// The first of its images got a slot.
    pub admitted: OnceLock<Instant>,
    /// Its first prefix was taken in; the same as `admitted` if there is none.
    pub prefilled: OnceLock<Instant>,
    /// Its first value was sampled.
    pub first_value: OnceLock<Instant>,
    /// Its last image was complete.
    pub finished: OnceLock<Instant>,
}

/// Everything the engine tells the reader of a sampling job.
#[derive(Debug)]
pub struct SampleBuffer {
    /// One for each image of the job.
    pub images: Vec<ImageBuffer>,
    /// When things happened.
    pub milestones: Milestones,
    /// Largest number of images in one step with one of this job's.
    pub peak_batch: AtomicU32,
    /// Why it ended early, if it did.
    pub failure: OnceLock<Error>,
    /// Woken whenever a unit of the job's granularity, the last value or a failure is there to be read.
    pub wake: Notify,
}

impl SampleBuffer {
    /// Room for every value that `job` wants sampled.
    #[must_use]
    pub fn new(job: &SampleJob) -> Self {
        let image = || ImageBuffer::new(job.prefix.known(), job.prefix.shape().values());
        Self {
            images: (0..job.images).map(|_| image()).collect(),
            milestones: Milestones::default(),
            peak_batch: AtomicU32::new(0),
            failure: OnceLock::new(),
            wake: Notify::new(),
        }
    }

    /// Values sampled so far, over all images.
    #[must_use]
    pub fn sampled(&self) -> u64 {
        self.images.iter().map(|image| u64::from(image.stored())).sum()
    }
}

/// Said to the readers of an engine that went without a word.
pub(super) const ENGINE_GONE: &str = "the engine has ended";

/// A shard's end of a buffer, wherever its part of the job happens to be: in the command channel, in the core, or nowhere
/// any more. However it goes, by an unwinding thread or a closed channel, its reader is told, so no stream can hang.
#[derive(Debug)]
pub(super) struct Promise {
    buffer: Arc<SampleBuffer>,
    part: Part,
    kept: bool,
}

impl Promise {
    pub(super) fn new(buffer: Arc<SampleBuffer>, part: Part) -> Self {
        Self { buffer, part, kept: false }
    }

    pub(super) fn buffer(&self) -> Arc<SampleBuffer> {
        Arc::clone(&self.buffer)
    }

    /// See [`Part::is_over`].
    pub(super) fn is_over(&self) -> bool {
        self.part.is_over()
    }

    /// See [`Part::image_done`].
    pub(super) fn image_done(&mut self) -> bool {
        self.part.image_done()
    }

    /// Every image of the part is complete; the last part completes the job.
    pub(super) fn keep(mut self, now: Instant) {
        self.kept = true;
        if self.part.done() {
            self.buffer.milestones.finished.get_or_init(|| now);
        }
    }

    /// The job ends here, and why. Of several failures the first is told.
    pub(super) fn fail(self, error: Error) {
        self.break_off(error);
    }

    fn break_off(&self, error: Error) {
        // Before the others hear of it, who would only say that they were cancelled.
        self.buffer.failure.get_or_init(|| error);
        self.part.failed();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if !self.kept {
            self.break_off(Error::EngineFault(ENGINE_GONE.into()));
        }
        self.buffer.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_on_another_thread_sees_every_value_in_order_and_none_before_it_is_stored() {
        let buffer = ImageBuffer::new(3, 10_003);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..10_000u16).for_each(|value| buffer.push(value, -f32::from(value))));
            let mut seen = 0;
            while seen < 10_000 {
                let run = buffer.run(5, seen, u32::MAX);
                assert_eq!((run.image, run.first), (5, 3 + seen));
                for (value, log_prob) in run.values.iter().zip(&run.log_probs) {
                    assert_eq!(u32::from(*value), seen);
                    assert_eq!(*log_prob, -f32::from(*value));
                    seen += 1;
                }
            }
        });
        buffer.push(1, 0.0);
        assert_eq!(buffer.stored(), 10_000, "there is room for no more");
    }
}
