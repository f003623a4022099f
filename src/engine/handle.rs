//! The async side of an engine: permits and submission.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::core::Command;
use super::event::{Promise, SampleBuffer};
use super::gauges::Load;
use super::health::Health;
use super::pass::ScoreReply;
use super::shared::{Claim, Places, Shared};
use super::stream::{SampleStream, ScoreTicket};
use crate::error::{Error, Violations};
use crate::job::{SampleJob, ScoreJob};
use crate::sched::JobId;
use crate::spec::ModelSpec;

/// A wait worth naming, when nothing has been measured yet.
const UNKNOWN_WAIT: Duration = Duration::from_secs(1);
/// No estimate is shorter or longer than this.
const WAITS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));

/// Cheap to clone; every clone feeds the same engine.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: SyncSender<Command>,
    pub(super) shared: Arc<Shared>,
}

/// What a request wants places for.
#[derive(Clone, Copy)]
enum Kind {
    Sampling,
    Scoring,
}

impl Handle {
    pub(super) fn new(commands: SyncSender<Command>, shared: Arc<Shared>) -> Self {
        Self { commands, shared }
    }

    /// What the model promises.
    #[must_use]
    pub fn spec(&self) -> &Arc<ModelSpec> {
        &self.shared.spec
    }

    /// Queues a sampling job; never waits. `deadline`: when the client gives up.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Draining`], [`Error::ModelFailed`]; [`Error::Invalid`] for more images than there
    /// are places in all.
    pub fn sample(&self, job: SampleJob, deadline: Option<Instant>) -> Result<SampleStream, Error> {
        let permits = self.admit(Kind::Sampling, job.images)?;
        let buffer = Arc::new(SampleBuffer::new(&job));
        let id = self.shared.new_job();
        let make = SampleStream::maker(&job, Arc::clone(&buffer), deadline);
        let images = job.images;
        self.send(Command::Sample { id, job, promise: Promise::new(buffer) }, Kind::Sampling, images)?;
        Ok(make(self.claim(id, permits)))
    }

    /// Whether `items` more images to score would be taken now. Asked before they are decoded: a refusal should be cheap.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn may_score(&self, items: u32) -> Result<(), Error> {
        self.admit(Kind::Scoring, items).map(drop)
    }

    /// Queues a scoring job; never waits. `deadline`: when the client gives up.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Draining`], [`Error::ModelFailed`]; [`Error::Invalid`] for more items than there
    /// are places in all.
    pub fn score(&self, job: ScoreJob, deadline: Option<Instant>) -> Result<ScoreTicket, Error> {
        let items = job.items.len() as u32;
        let permits = self.admit(Kind::Scoring, items)?;
        let (sender, result) = oneshot::channel();
        let started = Arc::new(OnceLock::new());
        let id = self.shared.new_job();
        let reply = ScoreReply { started: Arc::clone(&started), result: sender };
        self.send(Command::Score { id, job, reply }, Kind::Scoring, items)?;
        Ok(ScoreTicket::new(self.claim(id, permits), result, started, deadline))
    }

    /// The engine's health, now and as it changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// How busy the engine is; a few loads of atomics.
    #[must_use]
    pub fn load(&self) -> Load {
        self.shared.gauges.load(Instant::now())
    }

    /// Stops admission; what was admitted goes on.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Resolves when no permit is out any more: every stream and ticket is gone. Call [`drain`](Self::drain) first.
    pub async fn drained(&self) {
        for places in [&self.shared.sampling, &self.shared.scoring] {
            // Fails only if the semaphore is closed, which nobody does. The permits go back at once: `admit` looks at the
            // health once it has its own, so whoever comes after `drain` was called is refused.
            let _ = places.permits.acquire_many(places.limit).await;
        }
    }

    /// Tells the thread to end what is left.
    pub(super) fn stop(&self) {
        self.shared.drain();
        self.shared.stop();
        // A full channel wakes the engine as well.
        let _ = self.commands.try_send(Command::Wake);
    }

    fn places(&self, kind: Kind) -> &Places {
        match kind {
            Kind::Sampling => &self.shared.sampling,
            Kind::Scoring => &self.shared.scoring,
        }
    }

    /// Permits for `images` images, before anything is spent on them.
    fn admit(&self, kind: Kind, images: u32) -> Result<OwnedSemaphorePermit, Error> {
        let places = self.places(kind);
        let permits = Arc::clone(&places.permits).try_acquire_many_owned(images);
        // Only now: see `drained`.
        self.serving()?;
        if images > places.limit {
            let field = match kind {
                Kind::Sampling => "image_count",
                Kind::Scoring => "items",
            };
            let mut violations = Violations::new();
            violations.add(field, format!("must be at most {}, the places of the queue, got {images}", places.limit));
            return Err(violations.into());
        }
        permits.map_err(|_| self.full(kind, images))
    }

    fn serving(&self) -> Result<(), Error> {
        match &*self.shared.health.borrow() {
            Health::Warming | Health::Ready => Ok(()),
            Health::Draining => Err(Error::Draining),
            Health::Failed(why) => Err(Error::ModelFailed { name: self.spec().name.clone(), why: why.clone() }),
        }
    }

    fn send(&self, command: Command, kind: Kind, images: u32) -> Result<(), Error> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => self.full(kind, images),
            // The thread is gone; by failing, or else by stopping.
            TrySendError::Disconnected(_) => self.serving().err().unwrap_or(Error::Draining),
        })
    }

    fn claim(&self, job: JobId, permits: OwnedSemaphorePermit) -> Claim {
        Claim { shared: Arc::clone(&self.shared), job, open: true, _permits: permits }
    }

    /// The refusal. Its wait is what the places still missing take to come free at the latest pace: every slot gives one
    /// back after as many steps as an image has; scoring gives one back for every image's worth of values.
    fn full(&self, kind: Kind, requested: u32) -> Error {
        let (places, spec, gauges) = (self.places(kind), self.spec(), &self.shared.gauges);
        let free = places.free();
        let missing = f64::from(requested.saturating_sub(free).max(1));
        let values = f64::from(spec.shape.values());
        let seconds = match kind {
            Kind::Sampling => {
                let steps = values / f64::from(spec.values_per_step().max(1));
                gauges.step().as_secs_f64() * steps * missing / f64::from(spec.slots.max(1))
            }
            Kind::Scoring => gauges.scored_value().as_secs_f64() * values * missing,
        };
        let measured = seconds > 0.0;
        let estimate = Duration::try_from_secs_f64(seconds).unwrap_or(WAITS.1).clamp(WAITS.0, WAITS.1);
        let retry_after = if measured { estimate } else { UNKNOWN_WAIT };
        Error::QueueFull { name: spec.name.clone(), requested, free, limit: places.limit, retry_after }
    }
}
