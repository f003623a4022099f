//! The async side of an engine: permits and submission.

use std::ops::Range;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::core::Command;
use super::event::{Promise, SampleBuffer};
use super::footprint::Footprint;
use super::gauges::Load;
use super::health::Health;
use super::part::{Part, Whole};
use super::pass::{ScoreReply, Sheet};
use super::shared::{Claim, Kind, Permit, Shared};
use super::split::split;
use super::stages::FirstStage;
use super::stream::{SampleStream, ScoreTicket};
use crate::error::{Error, Violations};
use crate::image::Rank;
use crate::job::{Class, SampleJob, ScoreJob};
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

    /// Takes places for `images` images of `class`, before anything is spent on them; never waits. To be asked before a
    /// request is decoded: a refusal should be cheap. Where people would be refused who want images sampled, batch jobs that
    /// wait for a slot end instead, the latest first, with the error that they would be refused with.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Draining`], [`Error::ModelFailed`]; [`Error::Invalid`] for more images than there
    /// are places in all.
    pub fn admit(&self, kind: Kind, images: u32, class: Class) -> Result<Permit, Error> {
        let places = self.shared.places(kind);
        let permit = places.take(class, images);
        // Only now: see `drained`.
        self.serving()?;
        let limit = places.limit(class);
        if images > limit {
            let field = match kind {
                Kind::Sampling => "image_count",
                Kind::Scoring => "items",
            };
            let rule = format!("must be at most {limit}, the places of the queue for this class, got {images}");
            return Err(Violations::one(field, rule).into());
        }
        if let Some(permit) = permit {
            return Ok(permit);
        }
        let made = (kind == Kind::Sampling && class == Class::Interactive).then(|| {
            let missing = images.saturating_sub(places.free(class));
            self.shared.batch.make_room(missing, |shed| self.full(kind, shed, Class::Batch));
            places.take(class, images)
        });
        // Again, as it may have changed before the places were taken.
        self.serving()?;
        made.flatten().ok_or_else(|| self.full(kind, images, class))
    }

    /// What `images` more images of `class`, of which `known` values are there, would take from now to the last value of the
    /// last, if they were admitted. `None` before anything was measured.
    #[must_use]
    pub fn estimate(&self, kind: Kind, images: u32, class: Class, known: Rank) -> Option<Duration> {
        self.shared.until_done(kind, images, class, known)
    }

    /// Queues a sampling job; never waits. `deadline`: when the client gives up.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub fn sample(&self, job: SampleJob, deadline: Option<Instant>) -> Result<SampleStream, Error> {
        let permit = self.admit(Kind::Sampling, job.images, job.class)?;
        self.sample_admitted(permit, None, job, deadline)
    }

    /// Queues a sampling job whose low-resolution images `lower` draws first, from the same seed; never waits. The job has
    /// its places from now on, and is sent as soon as those images are there and the stream is read.
    ///
    /// # Errors
    /// As [`admit`](Self::admit), of either model.
    pub fn sample_from(
        &self,
        lower: &Handle,
        job: SampleJob,
        deadline: Option<Instant>,
    ) -> Result<SampleStream, Error> {
        // First: whoever drains this model between the stages finds the job admitted.
        let permit = self.admit(Kind::Sampling, job.images, job.class)?;
        let first = lower.admit(Kind::Sampling, job.images, job.class)?;
        self.sample_admitted(permit, Some((lower, first)), job, deadline)
    }

    /// Queues a sampling job that has its places: `permit` here, and in `lower` where that draws the low-resolution images
    /// first. See [`sample`](Self::sample) and [`sample_from`](Self::sample_from).
    ///
    /// # Errors
    /// [`Error::QueueFull`] if a burst has filled the way to the engine; [`Error::Draining`] or [`Error::ModelFailed`] if it
    /// is gone.
    pub fn sample_admitted(
        &self,
        permit: Permit,
        lower: Option<(&Handle, Permit)>,
        job: SampleJob,
        deadline: Option<Instant>,
    ) -> Result<SampleStream, Error> {
        let mut stream = SampleStream::new(&job, deadline);
        match lower {
            None => stream.claim = Some(self.send(job, &stream.buffer, permit)?),
            Some((lower, first)) => {
                let low = lower.sample_admitted(first, None, job.first_stage(lower.spec()), None)?;
                let lower = Arc::clone(lower.spec());
                stream.first = Some(Box::new(FirstStage { low, lower, job, permit, upper: self.clone() }));
            }
        }
        Ok(stream)
    }

    /// Sends an admitted job, whatever has become of admission since.
    pub(super) fn send(&self, job: SampleJob, buffer: &Arc<SampleBuffer>, permit: Permit) -> Result<Claim, Error> {
        let (images, class, job) = (job.images, job.class, Arc::new(job));
        let claim = self.submit(Kind::Sampling, (images, class), permit, |id, images, part| {
            let promise = Promise::new(Arc::clone(buffer), part);
            Command::Sample { id, job: Arc::clone(&job), images, promise }
        })?;
        if class == Class::Batch {
            self.shared.batch.enter(images, &claim, Arc::downgrade(buffer));
        }
        Ok(claim)
    }

    /// Queues a scoring job; never waits. `deadline`: when the client gives up.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub fn score(&self, job: ScoreJob, deadline: Option<Instant>) -> Result<ScoreTicket, Error> {
        let permit = self.admit(Kind::Scoring, job.items.len() as u32, job.class)?;
        self.score_admitted(permit, job, deadline)
    }

    /// Queues a scoring job that has its places.
    ///
    /// # Errors
    /// As [`sample_admitted`](Self::sample_admitted).
    pub fn score_admitted(
        &self,
        permit: Permit,
        job: ScoreJob,
        deadline: Option<Instant>,
    ) -> Result<ScoreTicket, Error> {
        let (sender, result) = oneshot::channel();
        let (started, sheet) = (Arc::new(OnceLock::new()), Sheet::new(job.items.len(), sender));
        let (items, class, job) = (job.items.len() as u32, job.class, Arc::new(job));
        let claim = self.submit(Kind::Scoring, (items, class), permit, |id, images, part| {
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

    /// What the model is counted with against the memory that models may take.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let shards = self.shared.shards.len().max(1) as u32;
        Footprint::of(self.spec(), self.spec().slots / shards, shards)
    }

    /// How busy the engine is; a few loads of atomics.
    #[must_use]
    pub fn load(&self) -> Load {
        self.shared.load(Instant::now())
    }

    /// For how long nothing was done although there is work, if that is longer than the configuration allows: the engine
    /// hangs in a step then.
    #[must_use]
    pub fn stalled(&self) -> Option<Duration> {
        self.shared.stalled(Instant::now())
    }

    /// Stops admission; what was admitted goes on.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Resolves when no permit is out any more: every stream and ticket is gone. Call [`drain`](Self::drain) first.
    pub async fn drained(&self) {
        for places in [&self.shared.sampling, &self.shared.scoring] {
            // They go back at once: `admit` looks at the health once it has its own, so whoever comes after `drain` was called
            // is refused.
            places.all_free().await;
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
        (images, class): (u32, Class),
        permit: Permit,
        make: impl Fn(JobId, Range<u32>, Part) -> Command,
    ) -> Result<Claim, Error> {
        let _turn = self.shared.submitting.lock().unwrap_or_else(PoisonError::into_inner);
        let burdens: Vec<_> = self.shared.shards.iter().map(|shard| shard.burden(kind)).collect();
        let lane = |(shard, images)| Some((self.shared.shards.get(shard)?, self.commands.get(shard)?, images));
        let parts: Vec<_> = split(images, &burdens).into_iter().filter_map(lane).collect();
        let id = self.shared.new_job();
        let shards = parts.iter().map(|(shard, ..)| Arc::clone(shard)).collect();
        let claim = Claim::new(Whole::new(id, shards), permit);
        for (shard, commands, range) in parts {
            let part = Part::new(Arc::clone(&claim.whole), Arc::clone(shard), kind, range.end - range.start);
            // A part that cannot be sent fails the job, which takes those out that were.
            commands.try_send(make(id, range, part)).map_err(|error| match error {
                TrySendError::Full(_) => self.full(kind, images, class),
                // The thread is gone; by failing, or else by stopping.
                TrySendError::Disconnected(_) => self.serving().err().unwrap_or(Error::Draining),
            })?;
        }
        Ok(claim)
    }

    /// The refusal, with an estimate of when there will be room.
    fn full(&self, kind: Kind, requested: u32, class: Class) -> Error {
        let places = self.shared.places(kind);
        let (free, limit) = (places.free(class), places.limit(class));
        let estimate = self.shared.until_free(kind, requested.saturating_sub(free).max(1));
        let retry_after = estimate.map_or(UNKNOWN_WAIT, |estimate| estimate.clamp(WAITS.0, WAITS.1));
        Error::QueueFull { name: self.spec().name.clone(), requested, free, limit, retry_after }
    }
}
