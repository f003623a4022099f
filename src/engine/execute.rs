//! The middle beat of a tick: carrying a plan out, and keeping what goes wrong to whom it concerns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, Job, SCORE_IMAGES, SLICE_ROWS};
use super::live::Live;
use crate::error::Error;
use crate::image::Canvas;
use crate::model::{Condition, ModelError, ScoreRow, Slot, StepRow};
use crate::sched::{Absorb, Admission, Advance, ImageKey, Outcome, Plan, ScoreSlice};

/// What is said of faults outside. The cause itself may name paths and devices; it goes to the log.
const NOT_FINITE: &str = "the network gave a parameter that is not finite";
const CALL_FAILED: &str = "an evaluation of the model failed";
const SLOT_SPOILT: &str = "the model lost the state of the image";
/// Time between two steps that wake readers, for each image in the making: to wake its reader, and what the transport does
/// then, takes a core some tens of microseconds. So up to sixteen images cost a shard a thousand wake-ups a second at most; values
/// that came sooner travel together, and readers are woken together, which costs less again.
/// docs/PERFORMANCE.md has what that wins.
const WAKE_INTERVAL: Duration = Duration::from_millis(1);
/// Longest time between two such steps: a picture of a screen, so nobody who watches sees the difference. More than sixteen
/// images therefore cost more wake-ups.
const LONGEST_WAKE_INTERVAL: Duration = Duration::from_millis(16);

impl Core {
    /// First evaluations, one image and a full batch of every kind, so that no request pays for them.
    ///
    /// # Errors
    /// What kept the model from it.
    pub(super) fn warm_up(&mut self) -> Result<(), ModelError> {
        let shape = self.spec.shape;
        let known = self.spec.values_per_step().min(shape.values());
        let condition = Condition::least(&self.spec.condition);
        let zeros = |count: u32| Canvas::with_prefix(shape, vec![0; count as usize]).unwrap_or(Canvas::empty(shape));
        let (start, taken, whole) = (zeros(0), zeros(known), zeros(shape.values()));
        for images in [1, self.spec.slots] {
            let slots = || (0..images).map(Slot);
            slots().try_for_each(|slot| self.model.open(slot, &condition))?;
            let batch: Vec<_> = slots().map(|slot| StepRow { slot, canvas: &start }).collect();
            self.model.step(&batch, &mut self.rows)?;
            slots().try_for_each(|slot| self.model.close(slot))?;
        }
        self.model.open(Slot(0), &condition)?;
        self.model.absorb(Slot(0), &taken, 0..known, &mut self.rows)?;
        self.model.close(Slot(0))?;
        for images in [1, SCORE_IMAGES] {
            let pass = vec![ScoreRow { canvas: &whole, condition: &condition }; images as usize];
            self.model.score(&pass, 0, SLICE_ROWS, &mut self.rows)?;
        }
        Ok(())
    }

    /// Carries `plan` out. An error is the end of the model.
    pub(super) fn execute(&mut self, plan: &Plan) -> Result<Outcome, String> {
        let mut outcome = Outcome::default();
        let began = (self.clock)();
        for &slot in &plan.release {
            if let Some(place) = self.places.get_mut(slot.0 as usize) {
                *place = None;
            }
            let closed = self.model.close(slot);
            self.settle(closed, &[], &mut outcome)?;
        }
        for admission in &plan.admit {
            self.admit(admission, began, &mut outcome)?;
        }
        if let Some(absorb) = &plan.absorb {
            self.absorb(absorb, &mut outcome)?;
        }
        let mut joined = began;
        if !plan.advance.is_empty() {
            joined = (self.clock)();
            self.network = Duration::ZERO;
            self.advance(&plan.advance, began, &mut outcome)?;
        }
        let mut now = (self.clock)();
        outcome.sampling = now.duration_since(began);
        if !plan.advance.is_empty() {
            // From step to step, with what lies between: that is the pace at which images come.
            let last = self.stepped.replace(now);
            let pace = last.map_or(outcome.sampling, |last| now.duration_since(last));
            self.shard.gauges.stepped(pace);
            let images = plan.advance.len() as u32;
            let values = images * self.spec.values_per_step();
            let join = joined.duration_since(began);
            let draw = outcome.sampling.saturating_sub(join + self.network);
            self.meter.stepped(pace, [join, self.network, draw], images, values);
        }
        if let Some(slice) = &plan.score {
            let began = now;
            self.score(slice, began, &mut outcome)?;
            now = (self.clock)();
            outcome.scoring = now.duration_since(began);
            let ranks = outcome.scored_to.saturating_sub(slice.from);
            let values = ranks * slice.images.len() as u32;
            self.shard.gauges.scored(outcome.scoring, values);
            self.meter.scored(outcome.scoring, values);
        }
        self.shard.gauges.progressed(now);
        Ok(outcome)
    }

    fn admit(&mut self, admission: &Admission, now: Instant, outcome: &mut Outcome) -> Result<(), String> {
        let &Admission { slot, image } = admission;
        // Its job may have failed with another image, earlier in this very plan.
        let Some(Job::Sample { job, promise }) = self.jobs.get(&image.job) else { return Ok(()) };
        let (job, buffer) = (Arc::clone(job), promise.buffer());
        let known = if self.replays(&job) { 0 } else { self.whole_steps(&job) };
        buffer.milestones.admitted.get_or_init(|| now);
        if job.prefix.known() == 0 {
            buffer.milestones.prefilled.get_or_init(|| now);
        }
        let condition = job.condition_of(image.index);
        if let Some(place) = self.places.get_mut(slot.0 as usize) {
            *place = Some(Live::new(image, job, buffer, known));
        }
        let opened = self.model.open(slot, &condition);
        self.settle(opened, &[image], outcome)
    }

    fn absorb(&mut self, absorb: &Absorb, outcome: &mut Outcome) -> Result<(), String> {
        let Some(live) = live(&mut self.places, absorb.slot, absorb.image) else { return Ok(()) };
        let absorbed = self.model.absorb(absorb.slot, &live.canvas, absorb.ranks.clone(), &mut self.rows);
        let finite =
            absorbed.is_err() || live.absorbed(absorb.ranks.clone(), &self.rows, self.spec.head, self.clock).is_ok();
        self.settle(absorbed, &[absorb.image], outcome)?;
        if !finite {
            self.fail(absorb.image, not_finite(), outcome);
        }
        Ok(())
    }

    fn advance(&mut self, advance: &[Advance], began: Instant, outcome: &mut Outcome) -> Result<(), String> {
        let mut stepping = std::mem::take(&mut self.stepping);
        stepping.clear();
        stepping.extend(advance.iter().filter(|part| self.is_live(part)));
        let stepped = self.step(&stepping, began, outcome);
        self.stepping = stepping;
        stepped
    }

    /// Whether the image is there. One whose opening failed, or whose job did, is planned for but is not.
    fn is_live(&self, part: &Advance) -> bool {
        let place = self.places.get(part.slot.0 as usize).and_then(Option::as_ref);
        place.is_some_and(|live| live.key == part.image)
    }

    /// Carries out the step of images that are there, in halves where there is no memory for all of them and the step can be
    /// made again.
    fn step(&mut self, stepping: &[Advance], began: Instant, outcome: &mut Outcome) -> Result<(), String> {
        // The one allocation of a step here: rows that borrow canvases cannot outlive it.
        let mut rows = Vec::with_capacity(stepping.len());
        for part in stepping {
            if let Some(live) = self.places.get(part.slot.0 as usize).and_then(Option::as_ref) {
                rows.push(StepRow { slot: part.slot, canvas: &live.canvas });
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let asked = (self.clock)();
        let stepped = self.model.step(&rows, &mut self.rows);
        self.network += (self.clock)().duration_since(asked);
        if let (Err(ModelError::Memory(why)), 2.., false) =
            (&stepped, stepping.len(), self.spec.execution.carries_state)
        {
            tracing::warn!(model = self.spec.name, why, images = stepping.len(), "no memory for a step; halving it");
            let (first, second) = stepping.split_at(stepping.len() / 2);
            self.step(first, began, outcome)?;
            let left: Vec<_> = second.iter().filter(|part| self.is_live(part)).copied().collect();
            return self.step(&left, began, outcome);
        }
        if stepped.is_err() {
            let images: Vec<_> = stepping.iter().map(|part| part.image).collect();
            self.settle(stepped, &images, outcome)?;
        }
        // Whatever a fault has cost is gone by now; what is left of the step counts.
        self.draw(stepping, began, outcome);
        Ok(())
    }

    /// Decides the next values of every image of the step that began at `now`, then wakes whom they concern.
    fn draw(&mut self, stepping: &[Advance], now: Instant, outcome: &mut Outcome) {
        let batch = stepping.len() as u32;
        for (row, part) in stepping.iter().enumerate() {
            let Some(live) = live(&mut self.places, part.slot, part.image) else { continue };
            if live.advance(self.rows.row(row), self.spec.head, batch, self.clock).is_err() {
                self.fail(part.image, not_finite(), outcome);
            }
        }
        let interval = (WAKE_INTERVAL * batch).min(LONGEST_WAKE_INTERVAL);
        let due = self.told.is_none_or(|told| now.saturating_duration_since(told) >= interval);
        if due {
            self.told = Some(now);
        }
        let mut woken = None;
        for part in stepping {
            if let Some(live) = live(&mut self.places, part.slot, part.image) {
                live.tell(due, &mut woken);
            }
        }
    }

    fn score(&mut self, slice: &ScoreSlice, now: Instant, outcome: &mut Outcome) -> Result<(), String> {
        if slice.from == 0 {
            self.pass.clear();
            for &image in &slice.images {
                if let Some(Job::Score { job, reply }) = self.jobs.get(&image.job) {
                    reply.started.get_or_init(|| now);
                    self.pass.join(image, job);
                }
            }
        }
        // Until it is known to be more; a pass that stays where it is ends.
        outcome.scored_to = slice.from;
        let scored = self.model.score(&self.pass.rows(), slice.from, SLICE_ROWS, &mut self.rows);
        match scored {
            Ok(reached) => {
                outcome.scored_to = reached.min(self.spec.shape.values());
                let mut spoilt = Vec::new();
                let (rows, head) = (&self.rows, self.spec.head);
                self.pass.add(slice.from, outcome.scored_to, rows, head, |image| spoilt.push(image));
                spoilt.into_iter().for_each(|image| self.fail(image, not_finite(), outcome));
                Ok(())
            }
            // A pass has no slots: whatever the model says, it is the whole pass that failed.
            Err(ModelError::Slots(slots)) => {
                let failed = Err(ModelError::Step(format!("slots {slots:?} failed in a scoring pass")));
                self.settle(failed, &slice.images, outcome)
            }
            Err(other) => self.settle(Err(other), &slice.images, outcome),
        }
    }

    /// Ends the images that a call on behalf of `images` has cost. An error is the end of the model.
    fn settle(
        &mut self,
        result: Result<(), ModelError>,
        images: &[ImageKey],
        outcome: &mut Outcome,
    ) -> Result<(), String> {
        let Err(error) = result else { return Ok(()) };
        tracing::error!(model = self.spec.name, images = images.len(), %error, "model call failed");
        match error {
            ModelError::Slots(slots) => {
                let image = |slot: Slot| self.places.get(slot.0 as usize)?.as_ref().map(|live| live.key);
                let spoilt: Vec<_> = slots.into_iter().filter_map(image).collect();
                let lost = || Error::EngineFault(SLOT_SPOILT.into());
                spoilt.into_iter().for_each(|image| self.fail(image, lost(), outcome));
            }
            ModelError::Memory(_) => images.iter().for_each(|&image| self.fail(image, Error::OutOfMemory, outcome)),
            ModelError::Step(_) => {
                let failed = || Error::EngineFault(CALL_FAILED.into());
                images.iter().for_each(|&image| self.fail(image, failed(), outcome));
            }
            ModelError::Fatal(why) => return Err(why),
        }
        Ok(())
    }

    /// Ends the job of an image that failed. Its other images are cancelled once the plan is committed.
    fn fail(&mut self, image: ImageKey, error: Error, outcome: &mut Outcome) {
        outcome.failed.push(image);
        self.end(image.job, error);
    }
}

fn not_finite() -> Error {
    Error::EngineFault(NOT_FINITE.into())
}

/// The image in `slot`, if it is `image`.
fn live(places: &mut [Option<Live>], slot: Slot, image: ImageKey) -> Option<&mut Live> {
    places.get_mut(slot.0 as usize)?.as_mut().filter(|live| live.key == image)
}
