//! One tick of the engine: plan, execute, commit. No thread, no tokio runtime, no clock of its own; driven by hand in tests.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::Promise;
use super::guarded::Guarded;
use super::live::Live;
use super::meter::Meter;
use super::pass::{Pass, ScoreReply};
use super::shared::Shard;
use crate::error::Error;
use crate::image::Rank;
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
    /// Sample these images of a job.
    Sample { id: JobId, job: Arc<SampleJob>, images: Range<u32>, promise: Promise },
    /// Score these images of a job.
    Score { id: JobId, job: Arc<ScoreJob>, images: Range<u32>, reply: ScoreReply },
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

/// A part of a job that the core has taken in.
pub(super) enum Job {
    Sample { job: Arc<SampleJob>, promise: Promise },
    Score { job: Arc<ScoreJob>, reply: ScoreReply },
}

/// A shard of a model, its scheduler and the work they have.
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
    /// When the last step ended, since there has been work without a break.
    pub(super) stepped: Option<Instant>,
    /// Time that the network took in the step being made.
    pub(super) network: Duration,
    /// When all readers were last told what they had not been.
    pub(super) told: Option<Instant>,
    pub(super) shard: Arc<Shard>,
    pub(super) meter: Meter,
}

impl Core {
    pub(super) fn new(model: Box<dyn PixelModel>, score_share: f64, clock: fn() -> Instant, shard: Arc<Shard>) -> Self {
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
            stepped: None,
            told: None,
            network: Duration::ZERO,
            stepping: Vec::with_capacity(spec.slots as usize),
            meter: Meter::new(&spec.name),
            shard,
            spec,
        }
    }

    /// Takes a command in; its work begins with the next plan.
    pub(super) fn apply(&mut self, command: Command) {
        match command {
            // Another shard was faster; what it said of it here may have come before the part itself.
            Command::Sample { promise, .. } if promise.is_over() => return promise.fail(Error::Cancelled),
            Command::Score { reply, .. } if reply.is_over() => return reply.fail(Error::Cancelled),
            Command::Sample { id, job, images, promise } => {
                let (prefix, class) = (self.whole_steps(&job), job.class);
                let replay = self.replays(&job);
                self.jobs.insert(id, Job::Sample { job, promise });
                self.scheduler.submit(id, images, Work::Sample { prefix, replay }, class);
            }
            Command::Score { id, job, images, reply } => {
                let class = job.class;
                self.jobs.insert(id, Job::Score { job, reply });
                self.scheduler.submit(id, images, Work::Score, class);
            }
            Command::Wake => return,
        }
        self.shard.gauges.resumed((self.clock)());
        self.publish();
    }

    /// Known values that make whole steps. What is known of the next one is taken from the prefix when the step is drawn.
    pub(super) fn whole_steps(&self, job: &SampleJob) -> Rank {
        let known = job.prefix.known();
        known - known % self.spec.values_per_step().max(1)
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
            self.shard.gauges.idle();
            self.stepped = None;
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
            Some(Job::Score { reply, .. }) => {
                reply.fail(error);
                if !self.pass.serves(|job| self.jobs.contains_key(&job)) {
                    self.pass.clear();
                }
            }
            None => {}
        }
    }

    /// An image is complete: enters it, and ends the job here if it was the last.
    fn finish(&mut self, image: ImageKey) {
        let done = match self.jobs.get_mut(&image.job) {
            Some(Job::Sample { promise, .. }) => {
                // Few enough slots that looking for it costs less than keeping an index.
                let mut places = self.places.iter_mut();
                let place = places.find_map(|place| place.take_if(|live| live.key == image));
                place.is_some_and(|live| {
                    live.finish();
                    self.meter.image_sampled();
                    promise.image_done()
                })
            }
            Some(Job::Score { reply, .. }) => self.pass.take(image).is_some_and(|score| {
                self.meter.image_scored();
                reply.enter(image.index, score)
            }),
            // A sibling failed.
            None => return,
        };
        if !done {
            return;
        }
        match self.jobs.remove(&image.job) {
            Some(Job::Sample { promise, .. }) => promise.keep((self.clock)()),
            Some(Job::Score { reply, .. }) => reply.keep((self.clock)()),
            None => {}
        }
        if !self.pass.serves(|job| self.jobs.contains_key(&job)) {
            self.pass.clear();
        }
    }

    fn publish(&self) {
        self.shard.gauges.count(self.scheduler.snapshot());
    }
}
