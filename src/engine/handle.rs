//! The async side of an engine: permits and submission.

use std::ops::Range;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::core::Command;
use super::event::{Promise, SampleBuffer};
use super::gauges::{Gauges, Load};
use super::health::Health;
use super::part::{Part, Whole};
use super::pass::{ScoreReply, Sheet};
use super::shared::{Claim, Kind, Places, Shared};
use super::split::split;
use super::stages::FirstStage;
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
    /// One for each shard.
    commands: Arc<[SyncSender<Command>]>,
    pub(super) shared: Arc<Shared>,
    /// Held by those who may still send requests.
    _lease: Option<TaskTrackerToken>,
}

impl Handle {
    pub(super) fn new(commands: Vec<SyncSender<Command>>, shared: Arc<Shared>) -> Self {
        Self { commands: commands.into(), shared, _lease: None }
    }

    /// The same for somebody who is about to send requests: [`finished`](Self::finished) waits until it is gone, and its
    /// clones.
    #[must_use]
    pub fn leased(&self) -> Self {
        Self { _lease: Some(self.shared.leases.token()), ..self.clone() }
    }

    /// Whether `other` feeds the same engine.
    #[must_use]
    pub fn is_same(&self, other: &Handle) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Resolves when all has ended of those who were to send requests here: call it where nobody is sent any more. Whoever has
    /// a [`leased`](Self::leased) handle is still admitted, then nothing new is.
    pub async fn finished(&self) {
        self.shared.leases.close();
        self.shared.leases.wait().await;
        self.drain();
        self.drained().await;
    }

    /// About how long an image that came now would wait for a slot, at the latest pace; `None` before a step was measured.
    /// Images leave a slot free when they are done, so one that waits has those before it and those in the slots to outlast.
    #[must_use]
    pub fn estimated_wait(&self) -> Option<Duration> {
        let (load, spec) = (self.load(), self.spec());
        if load.step.is_zero() {
            return None;
        }
        let ahead = (load.running + load.queued + 1).saturating_sub(load.slots);
        let steps = spec.shape.values().div_ceil(spec.values_per_step().max(1));
        let seconds = load.step.as_secs_f64() * f64::from(steps) * f64::from(ahead) / f64::from(load.slots.max(1));
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// What the model promises; its slots are those of all shards.
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
        let mut stream = SampleStream::new(&job, deadline);
        stream.claim = Some(self.send(job, &stream.buffer, permits)?);
        Ok(stream)
    }

    /// Queues a sampling job whose low-resolution images `lower` draws first, from the same seed; never waits. The job has
    /// its places from now on, and is sent as soon as those images are there and the stream is read.
    ///
    /// # Errors
    /// As [`sample`](Self::sample), of either model.
    pub fn sample_from(
        &self,
        lower: &Handle,
        job: SampleJob,
        deadline: Option<Instant>,
    ) -> Result<SampleStream, Error> {
        // First: whoever drains this model between the stages finds the job admitted.
        let permits = self.admit(Kind::Sampling, job.images)?;
        let mut stream = SampleStream::new(&job, deadline);
        let low = lower.sample(job.first_stage(lower.spec()), None)?;
        let lower = Arc::clone(lower.spec());
        stream.first = Some(Box::new(FirstStage { low, lower, job, permits, upper: self.clone() }));
        Ok(stream)
    }

    /// Sends an admitted job, whatever has become of admission since.
    pub(super) fn send(
        &self,
        job: SampleJob,
        buffer: &Arc<SampleBuffer>,
        permits: OwnedSemaphorePermit,
    ) -> Result<Claim, Error> {
        let (images, job) = (job.images, Arc::new(job));
        self.submit(Kind::Sampling, images, permits, |id, images, part| {
            let promise = Promise::new(Arc::clone(buffer), part);
            Command::Sample { id, job: Arc::clone(&job), images, promise }
        })
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
        let (started, sheet) = (Arc::new(OnceLock::new()), Sheet::new(job.items.len(), sender));
        let job = Arc::new(job);
        let claim = self.submit(Kind::Scoring, items, permits, |id, images, part| {
            let reply = ScoreReply::new(Arc::clone(&started), Arc::clone(&sheet), part);
            Command::Score { id, job: Arc::clone(&job), images, reply }
        })?;
        Ok(ScoreTicket::new(claim, result, started, deadline))
    }

    /// The engine's health, now and as it changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// How busy the engine is; a few loads of atomics.
    #[must_use]
    pub fn load(&self) -> Load {
        self.shared.load(Instant::now())
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

    /// Tells the threads to end what is left, with `error`.
    pub(super) fn stop(&self, error: Error) {
        self.shared.stop(error);
        self.shared.drain();
        for commands in self.commands.iter() {
            // A full channel wakes the shard as well.
            let _ = commands.try_send(Command::Wake);
        }
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
            Health::Draining => Err(self.shared.end().cloned().unwrap_or(Error::Draining)),
            Health::Failed(why) => Err(Error::ModelFailed { name: self.spec().name.clone(), why: why.clone() }),
        }
    }

    /// Divides a job among the shards and sends each the command that `make` gives for its part.
    fn submit(
        &self,
        kind: Kind,
        images: u32,
        permits: OwnedSemaphorePermit,
        make: impl Fn(JobId, Range<u32>, Part) -> Command,
    ) -> Result<Claim, Error> {
        let _turn = self.shared.submitting.lock().unwrap_or_else(PoisonError::into_inner);
        let burdens: Vec<_> = self.shared.shards.iter().map(|shard| shard.burden(kind)).collect();
        let lane = |(shard, images)| Some((self.shared.shards.get(shard)?, self.commands.get(shard)?, images));
        let parts: Vec<_> = split(images, &burdens).into_iter().filter_map(lane).collect();
        let id = self.shared.new_job();
        let shards = parts.iter().map(|(shard, ..)| Arc::clone(shard)).collect();
        let claim = Claim { whole: Arc::new(Whole::new(id, shards)), _permits: permits };
        for (shard, commands, range) in parts {
            let part = Part::new(Arc::clone(&claim.whole), Arc::clone(shard), kind, range.end - range.start);
            // A part that cannot be sent fails the job, which takes those out that were.
            commands.try_send(make(id, range, part)).map_err(|error| match error {
                TrySendError::Full(_) => self.full(kind, images),
                // The thread is gone; by failing, or else by stopping.
                TrySendError::Disconnected(_) => self.serving().err().unwrap_or(Error::Draining),
            })?;
        }
        Ok(claim)
    }

    /// The refusal. Its wait is what the places still missing take to come free at the latest pace: every slot of every shard
    /// gives one back after as many steps as an image has; each shard's scoring gives one back for every image's worth of
    /// values.
    fn full(&self, kind: Kind, requested: u32) -> Error {
        let (places, spec) = (self.places(kind), self.spec());
        let free = places.free();
        let missing = f64::from(requested.saturating_sub(free).max(1));
        let values = f64::from(spec.shape.values());
        let seconds = match kind {
            Kind::Sampling => {
                let steps = values / f64::from(spec.values_per_step().max(1));
                self.shared.mean(Gauges::step).as_secs_f64() * steps * missing / f64::from(spec.slots.max(1))
            }
            Kind::Scoring => {
                let each = self.shared.mean(Gauges::scored_value).as_secs_f64();
                each * values * missing / self.shared.shards.len().max(1) as f64
            }
        };
        let measured = seconds > 0.0;
        let estimate = Duration::try_from_secs_f64(seconds).unwrap_or(WAITS.1).clamp(WAITS.0, WAITS.1);
        let retry_after = if measured { estimate } else { UNKNOWN_WAIT };
        Error::QueueFull { name: spec.name.clone(), requested, free, limit: places.limit, retry_after }
    }
}
