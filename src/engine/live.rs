//! An image in a slot: what is known of it, and who is told.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::event::SampleBuffer;
use crate::head::{Head, NotFinite};
use crate::image::{Canvas, Rank, Shape};
use crate::job::{Granularity, SampleJob};
use crate::model::ParamRows;
use crate::noise;
use crate::sched::{ImageKey, JobId};

/// Values between two moments at which a reader of this granularity is woken.
pub(super) fn unit(granularity: Granularity, shape: Shape) -> u32 {
    match granularity {
        Granularity::Value => 1,
        Granularity::Pixel => shape.channels(),
        Granularity::Row => shape.channels() * shape.width(),
    }
}

/// One image that holds a slot.
pub(super) struct Live {
    pub(super) key: ImageKey,
    pub(super) canvas: Canvas,
    job: Arc<SampleJob>,
    buffer: Arc<SampleBuffer>,
    /// Of every value so far, prefix included, in nats.
    log_likelihood: f64,
    unit: u32,
    /// A unit was completed that the reader has not been woken for.
    news: bool,
    /// Whether the reader has been woken at all.
    told: bool,
}

impl Live {
    /// An image that starts with `known` values of its prefix; the step leads through the rest of it.
    pub(super) fn new(key: ImageKey, job: Arc<SampleJob>, buffer: Arc<SampleBuffer>, known: Rank) -> Self {
        let shape = job.prefix.shape();
        // Not a clone of the prefix: this one has room for the whole image, so no step allocates.
        let mut canvas = Canvas::empty(shape);
        job.prefix.values().iter().take(known as usize).for_each(|&value| _ = canvas.push(value));
        let unit = unit(job.granularity, shape);
        Self { key, canvas, job, buffer, log_likelihood: 0.0, unit, news: false, told: false }
    }

    /// Sums the log-probabilities of the known values at `ranks`, from the rows that predicted them.
    pub(super) fn absorbed(
        &mut self,
        ranks: Range<Rank>,
        rows: &ParamRows,
        head: Head,
        clock: fn() -> Instant,
    ) -> Result<(), NotFinite> {
        let per_step = head.values_per_step(self.canvas.shape()).max(1) as usize;
        for (index, rank) in ranks.clone().enumerate() {
            self.log_likelihood += head.log_prob(rows.row(index / per_step), &self.canvas, rank)?;
        }
        if ranks.end >= self.job.prefix.known() {
            self.buffer.milestones.prefilled.get_or_init(clock);
        }
        Ok(())
    }

    /// Draws the values that `row` predicts, or takes them from the prefix as far as that goes. `batch`: images in the step.
    pub(super) fn advance(
        &mut self,
        row: &[f32],
        head: Head,
        batch: u32,
        clock: fn() -> Instant,
    ) -> Result<(), NotFinite> {
        let (prefix, before) = (self.job.prefix.known(), self.canvas.known());
        for _ in 0..head.values_per_step(self.canvas.shape()) {
            let rank = self.canvas.known();
            if let Some(&value) = self.job.prefix.values().get(rank as usize) {
                self.canvas.push(value);
                self.log_likelihood += head.log_prob(row, &self.canvas, rank)?;
                continue;
            }
            let place = self.job.noise_from + rank;
            let u = noise::uniform(self.job.seed, self.job.first_image + self.key.index, place);
            let drawn = head.draw(row, &self.canvas, &self.job.tuning, u)?;
            self.log_likelihood += drawn.log_prob;
            self.canvas.push(drawn.value);
            if let Some(image) = self.buffer.images.get(self.key.index as usize) {
                image.push(drawn.value, drawn.log_prob as f32);
            }
        }
        let known = self.canvas.known();
        let (buffer, milestones) = (&self.buffer, &self.buffer.milestones);
        if known >= prefix {
            milestones.prefilled.get_or_init(clock);
        }
        if known > prefix {
            milestones.first_value.get_or_init(clock);
            self.news |= before / self.unit != known / self.unit;
        }
        // A load is cheaper than an exchange, which is hardly ever needed.
        if buffer.peak_batch.load(Ordering::Relaxed) < batch {
            buffer.peak_batch.fetch_max(batch, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Wakes the reader if a unit was completed since the last time, and says whether. Unless it is `due`, only for the first
    /// unit and the last; what waits, a later step tells. `woken`: the job woken just before, if any; one wake-up tells of
    /// all its images.
    pub(super) fn tell(&mut self, due: bool, woken: &mut Option<JobId>) -> bool {
        if !self.news || self.told && !due && !self.canvas.is_complete() {
            return false;
        }
        (self.news, self.told) = (false, true);
        if woken.replace(self.key.job) != Some(self.key.job) {
            self.buffer.wake.notify_one();
        }
        true
    }

    /// Puts the log-likelihood of the complete image where its reader finds it.
    pub(super) fn finish(&self) {
        if let Some(image) = self.buffer.images.get(self.key.index as usize) {
            image.finish(self.log_likelihood);
        }
    }
}
