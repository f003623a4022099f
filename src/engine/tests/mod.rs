//! The engine against a scripted model: its core by hand, tick by tick, and then the whole of it with its thread.

mod core;
mod faults;
mod overload;
mod shards;
mod stages;
mod streams;
mod threads;

use std::sync::Arc;

use super::core::{Command, Core, Tick};
use super::event::{Promise, SampleBuffer};
use super::part::{Part, Whole};
use super::pass::{ScoreReply, Scored, Sheet};
use super::shared::{Kind, Shard};
use crate::error::Error;
use crate::head::Tuning;
use crate::image::Canvas;
use crate::job::{Class, Granularity, Reproducibility, SampleJob, ScoreJob};
use crate::model::Condition;
use crate::model::scripted::{Script, Scripted, shape};
use crate::sched::JobId;
use std::cell::Cell;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Values of a scripted image.
const N: u32 = 12;

fn job(seed: u64, images: u32) -> SampleJob {
    SampleJob {
        images,
        first_image: 0,
        condition: Condition::default(),
        lows: Vec::new(),
        prefix: Canvas::empty(shape()),
        tuning: Tuning::default(),
        seed,
        noise_from: 0,
        reproducibility: Reproducibility::BatchInvariant,
        class: Class::Interactive,
        granularity: Granularity::Value,
        queue_timeout: None,
    }
}

fn with_prefix(values: &[u16], reproducibility: Reproducibility, job: SampleJob) -> SampleJob {
    SampleJob { prefix: Canvas::with_prefix(shape(), values.to_vec()).unwrap(), reproducibility, ..job }
}

fn score_job(images: impl IntoIterator<Item = Vec<u16>>) -> ScoreJob {
    let item = |values| (Canvas::with_prefix(shape(), values).unwrap(), Condition::default());
    ScoreJob { items: images.into_iter().map(item).collect(), per_value: true, class: Class::Interactive }
}

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// How far the clock goes when it is looked at.
    static PACE: Cell<Duration> = const { Cell::new(Duration::from_millis(1)) };
    static EPOCH: Instant = Instant::now();
}

/// A clock that goes on whenever it is looked at.
fn clock() -> Instant {
    NOW.set(NOW.get() + PACE.get());
    EPOCH.with(|epoch| *epoch) + NOW.get()
}

type Answer = oneshot::Receiver<Scored>;

/// A core without a thread.
struct Rig {
    core: Core,
    script: Arc<Script>,
    shard: Arc<Shard>,
    next: u64,
}

impl Rig {
    fn new(slots: u32) -> Self {
        let (model, script) = Scripted::new(slots);
        let shard = Arc::new(Shard::new("scripted", slots, clock()));
        Self { core: Core::new(Box::new(model), 0.5, clock, Arc::clone(&shard)), script, shard, next: 0 }
    }

    fn id(&mut self) -> JobId {
        self.next += 1;
        JobId(self.next)
    }

    /// A job's only part.
    fn part(&self, id: JobId, kind: Kind, images: u32) -> Part {
        let whole = Arc::new(Whole::new(id, vec![Arc::clone(&self.shard)]));
        Part::new(whole, Arc::clone(&self.shard), kind, images)
    }

    fn sample(&mut self, job: SampleJob) -> (JobId, Arc<SampleBuffer>) {
        let (id, buffer) = (self.id(), Arc::new(SampleBuffer::new(&job)));
        let promise = Promise::new(Arc::clone(&buffer), self.part(id, Kind::Sampling, job.images));
        self.core.apply(Command::Sample { id, images: 0..job.images, job: Arc::new(job), promise });
        (id, buffer)
    }

    fn score(&mut self, job: ScoreJob) -> (JobId, Answer) {
        let (id, (sender, answer)) = (self.id(), oneshot::channel());
        let images = job.items.len() as u32;
        let sheet = Sheet::new(job.items.len(), sender);
        let reply = ScoreReply::new(Arc::default(), sheet, self.part(id, Kind::Scoring, images));
        self.core.apply(Command::Score { id, job: Arc::new(job), images: 0..images, reply });
        (id, answer)
    }

    fn tick(&mut self) -> Tick {
        self.core.tick(|_| ())
    }

    fn ticks(&mut self, count: u32) {
        (0..count).for_each(|_| assert_eq!(self.tick(), Tick::Worked));
    }

    /// Until there is nothing left to do; then nothing may be left behind.
    fn run(&mut self) {
        while self.tick() == Tick::Worked {}
        self.check_empty();
    }

    fn check_empty(&mut self) {
        assert_eq!(self.tick(), Tick::Idle);
        assert_eq!(self.script.open_slots().len(), 0);
        assert_eq!(self.script.violations(), Vec::<String>::new());
        assert_eq!(self.shard.burden(Kind::Sampling), (0, 0));
        let load = self.shard.gauges.load(clock());
        assert_eq!((load.running, load.queued, load.scoring, load.since_progress), (0, 0, 0, None));
        let [submitted, completed, given_up] = self.shard.ledger.numbers();
        assert_eq!(submitted, completed + given_up, "what comes in comes out, once");
    }
}

/// The values of image `index`, as far as they are there.
fn values(buffer: &SampleBuffer, index: usize) -> Vec<u16> {
    buffer.images[index].run(0, 0, u32::MAX).values
}

fn is_complete(buffer: &SampleBuffer) -> bool {
    buffer.milestones.finished.get().is_some()
}

/// What a job gives when it runs alone: the values and the log-likelihood of each image.
fn alone(job: &SampleJob) -> Vec<(Vec<u16>, f64)> {
    let mut rig = Rig::new(job.images);
    let (_, buffer) = rig.sample(job.clone());
    rig.run();
    outcome(&buffer)
}

fn outcome(buffer: &SampleBuffer) -> Vec<(Vec<u16>, f64)> {
    let images = buffer.images.iter().enumerate();
    images.map(|(index, image)| (values(buffer, index), image.log_likelihood().unwrap())).collect()
}

fn engine_fault(error: Option<&Error>) -> &str {
    match error {
        Some(Error::EngineFault(why)) => why,
        other => panic!("expected an engine fault, got {other:?}"),
    }
}
