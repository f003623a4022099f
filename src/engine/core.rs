//! One tick of the engine: plan, execute, commit. No thread, no tokio runtime, no clock of its own; driven by hand in tests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::event::Promise;
use super::gauges::Gauges;
use super::guarded::Guarded;
use super::live::Live;
use super::pass::{Pass, ScoreReply, ScoreWork};
use crate::error::Error;
use crate::job::{Reproducibility, SampleJob, ScoreJob};
use crate::model::{ParamRows, PixelModel};
use crate::sched::{Advance, Config, ImageKey, JobId, Plan, Scheduler, Transition, Work};
use crate::spec::ModelSpec;

/// Images a scoring pass takes together. Enough for a slice to be wide even where a family goes rank by rank, few enough
/// that the state of a pass stays small beside the slots'.
pub const SCORE_IMAGES: u32 = 16;

/// Rows that one slice of scoring, or one piece of a prefix, should be: enough to keep a matrix product busy, few enough
/// that a stream waits for no longer than a few steps take.
pub(super) const SLICE_ROWS: u32 = 256;

/// What is said outside when a scoring pass stands still.
const NO_PROGRESS: &str = "the model did not score what it was given";

/// What the engine is asked to do.
pub(super) enum Command {
    /// Sample a job's images.
    Sample { id: JobId, job: SampleJob, promise: Promise },
    /// Score a job's images.
    Score { id: JobId, job: ScoreJob, reply: ScoreReply },
    /// Nothing: come and look at what else has changed.
    Wake,
}

/// What a tick came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tick {
    /// There is nothing to do until a command comes.
    Idle,
    /// Something was done.
    Worked,
    /// The model cannot go on, and why. The jobs are still there; [`Core::end_all`] tells them.
    Fatal(String),
}

pub(super) enum Job {
    Sample { job: Arc<SampleJob>, promise: Promise, left: u32 },
    Score(ScoreWork),
}

/// A model, its scheduler and the work they have.
pub(super) struct Core {
    pub(super) spec: ModelSpec,
    pub(super) model: Guarded,
    scheduler: Scheduler,
    pub(super) clock: fn() -> Instant,
    pub(super) jobs: HashMap<JobId, Job>,
    /// By slot.
    pub(super) places: Vec<Option<Live>>,
    pub(super) pass: Pass,
    pub(super) rows: ParamRows,
    /// The part of a plan's step that is carried out; kept for its room.
    pub(super) stepping: Vec<Advance>,
    pub(super) gauges: Arc<Gauges>,
}

impl Core {
    pub(super) fn new(
        model: Box<dyn PixelModel>,
        score_share: f64,
        clock: fn() -> Instant,
        gauges: Arc<Gauges>,
    ) -> Self {
        let spec = model.spec().clone();
        let values_per_step = spec.values_per_step().max(1);
        let config = Config {
            slots: spec.slots,
            values: spec.shape.values(),
            values_per_step,
            score_share,
            score_images: SCORE_IMAGES,
            absorb_ranks: SLICE_ROWS * values_per_step,
        };
        Self {
            rows: ParamRows::new(spec.head.width(spec.shape)),
            places: (0..spec.slots).map(|_| None).collect(),
            model: Guarded::new(model),
            scheduler: Scheduler::new(config),
            clock,
            jobs: HashMap::new(),
            pass: Pass::default(),
            stepping: Vec::with_capacity(spec.slots as usize),
            gauges,
            spec,
        }
    }

    /// Takes a command in; its work begins with the next plan.
    pub(super) fn apply(&mut self, command: Command) {
        match command {
            Command::Sample { id, job, promise } => {
                let (images, prefix, class) = (job.images, job.prefix.known(), job.class);
                let replay = self.replays(&job);
                self.jobs.insert(id, Job::Sample { job: Arc::new(job), promise, left: images });
                self.scheduler.submit(id, images, Work::Sample { prefix, replay }, class);
            }
            Command::Score { id, job, reply } => {
                let (images, class) = (job.items.len() as u32, job.class);
                self.jobs.insert(id, Job::Score(ScoreWork::new(job, reply)));
                self.scheduler.submit(id, images, Work::Score, class);
            }
            Command::Wake => return,
        }
        self.gauges.resumed((self.clock)());
        self.publish();
    }

    /// Whether a known prefix goes through the step, since only that leaves the bits that sampling it would.
    pub(super) fn replays(&self, job: &SampleJob) -> bool {
        job.reproducibility == Reproducibility::BatchInvariant && !self.spec.execution.absorbs_exactly
    }

    /// Ends a job that nobody waits for any more. One that has ended already, or was never heard of, is no error.
    pub(super) fn cancel(&mut self, job: JobId) {
        if self.jobs.contains_key(&job) {
            self.end(job, Error::Cancelled);
            self.scheduler.cancel(job);
            self.publish();
        }
    }

    /// Ends every job with `error`.
    pub(super) fn end_all(&mut self, error: &Error) {
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.end(job, error.clone());
            self.scheduler.cancel(job);
        }
        self.publish();
    }

    /// Plans, executes, lets `meanwhile` bring in what has arrived since, and commits.
    pub(super) fn tick(&mut self, meanwhile: impl FnOnce(&mut Self)) -> Tick {
        let plan = self.scheduler.plan();
        if plan == Plan::default() {
            self.gauges.idle();
            return Tick::Idle;
        }
        let outcome = match self.execute(&plan) {
            Ok(outcome) => outcome,
            Err(why) => return Tick::Fatal(why),
        };
        meanwhile(self);
        let transitions = self.scheduler.commit(&plan, &outcome);
        for failed in &outcome.failed {
            self.scheduler.cancel(failed.job);
        }
        for &transition in &transitions {
            match transition {
                Transition::Finished(image) => self.finish(image),
                // Those that failed while executing have been told; a pass that does not move is found out only now.
                Transition::Failed(image) => {
                    self.end(image.job, Error::EngineFault(NO_PROGRESS.into()));
                    self.scheduler.cancel(image.job);
                }
            }
        }
        if !(plan.admit.is_empty() && transitions.is_empty()) {
            self.publish();
        }
        Tick::Worked
    }

    /// Tells the reader of `job`, if it still runs, why it ended, and forgets it and its images.
    pub(super) fn end(&mut self, job: JobId, error: Error) {
        match self.jobs.remove(&job) {
            Some(Job::Sample { promise, .. }) => {
                promise.fail(error);
                for place in &mut self.places {
                    place.take_if(|live| live.key.job == job);
                }
            }
            Some(Job::Score(work)) => {
                // A ticket that is gone wants no answer.
                let _ = work.reply.result.send(Err(error));
                if !self.pass.serves(|job| self.jobs.contains_key(&job)) {
                    self.pass.clear();
                }
            }
            None => {}
        }
    }

    /// An image is complete: enters it, and ends its job if it was the last.
    fn finish(&mut self, image: ImageKey) {
        let done = match self.jobs.get_mut(&image.job) {
            Some(Job::Sample { left, .. }) => {
                // Few enough slots that looking for it costs less than keeping an index.
                if let Some(place) = self.places.iter_mut().find(|place| place.as_ref().is_some_and(|l| l.key == image))
                    && let Some(live) = place.take()
                {
                    live.finish();
                    *left -= 1;
                }
                *left == 0
            }
            Some(Job::Score(work)) => self.pass.take(image).is_some_and(|score| work.enter(image.index, score)),
            // A sibling failed.
            None => return,
        };
        if !done {
            return;
        }
        match self.jobs.remove(&image.job) {
            Some(Job::Sample { promise, .. }) => promise.keep((self.clock)()),
            Some(Job::Score(work)) => work.deliver((self.clock)()),
            None => {}
        }
        if !self.pass.serves(|job| self.jobs.contains_key(&job)) {
            self.pass.clear();
        }
    }

    fn publish(&self) {
        self.gauges.count(self.scheduler.snapshot());
    }
}
