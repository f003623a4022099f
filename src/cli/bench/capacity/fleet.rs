//! A fleet in simulated time: replicas whose shards are the daemon's own schedulers, behind a balancer.
//!
//! A replica does what `engine` does, without a model: a request is admitted while there are places, divided among the shards by
//! `engine::split`, and every shard plans, steps and commits; a step takes as long as it was recorded to. What arrives during a
//! step waits for its end, images join and leave at any step, and those that wait are taken first in, first out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use serde::Serialize;

use super::balance::Balance;
use super::steps::StepTimes;
use crate::cli::bench::arrivals::Arrivals;
use crate::cli::bench::tally::{Spread, Times};
use crate::cli::failure::Failure;
use crate::engine::{SCORE_IMAGES, split};
use crate::job::Class;
use crate::sched::{self, Config, JobId, Plan, Scheduler, Transition, Work};

/// What is simulated.
#[derive(Clone, Debug)]
pub(super) struct Fleet {
    pub(super) replicas: u32,
    /// Replicas that share a machine, whose steps slow each other down.
    pub(super) per_machine: u32,
    /// Of a replica.
    pub(super) shards: u32,
    /// Of a shard.
    pub(super) slots: u32,
    /// Images that may wait at a replica.
    pub(super) queue_images: u32,
    pub(super) balance: Balance,
    pub(super) steps: StepTimes,
}

/// What is asked of it.
#[derive(Clone, Debug)]
pub(super) struct Demand {
    pub(super) arrivals: Arrivals,
    /// Of each request.
    pub(super) images: u32,
    pub(super) seed: u64,
    /// In no figure.
    pub(super) warmup: Duration,
    /// In which arrivals are counted, after the warm-up.
    pub(super) duration: Duration,
    /// Longest good time from the arrival of a request to the last value of an image.
    pub(super) slo: Duration,
}

impl Demand {
    /// Whether arrivals are counted at this moment.
    fn counts(&self, at: Duration) -> bool {
        at >= self.warmup && at - self.warmup < self.duration
    }
}

/// What came of it. Images are counted by when their request arrived, but for those of a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Outcome {
    pub(super) replicas: u32,
    /// Images completed while arrivals were counted, and those of them that were good.
    pub(super) images_per_s: f64,
    pub(super) goodput_images_per_s: f64,
    /// Of all images asked for.
    pub(super) goodput_share: f64,
    pub(super) refused_share: f64,
    /// From the arrival to the slot; of images that were not refused.
    pub(super) wait_us: Option<Spread>,
    pub(super) mean_wait_us: f64,
    /// From the arrival to the last value.
    pub(super) image_us: Option<Spread>,
    /// Share of the time that shards were stepping.
    pub(super) busy_share: f64,
    /// Images of a step, in the mean.
    pub(super) images_per_step: f64,
}

/// Simulates `fleet` under `demand`, until every image that was admitted is done.
pub(super) fn simulate(fleet: &Fleet, demand: &Demand) -> Result<Outcome, Failure> {
    let mut run = Run::new(fleet, demand)?;
    for (number, arrival) in (0u32..).zip(demand.arrivals.clone()) {
        while run.ends.peek().is_some_and(|Reverse(end)| end.at <= arrival) {
            run.next_end();
        }
        run.arrive(number, arrival);
    }
    while !run.ends.is_empty() {
        run.next_end();
    }
    Ok(run.outcome())
}

struct Shard {
    scheduler: Scheduler,
    /// What it is doing.
    plan: Plan,
    stepping: bool,
    /// Images that have not ended.
    images: u32,
}

struct Request {
    arrived: Duration,
    replica: usize,
    /// Images that have not ended.
    images: u32,
}

/// The end of a step; those at one moment in the order in which they began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    at: Duration,
    step: u64,
    shard: usize,
}

struct Run<'a> {
    fleet: &'a Fleet,
    demand: &'a Demand,
    /// Those of the first replica, then those of the next.
    shards: Vec<Shard>,
    /// Of each replica: requests, and images, that have not ended.
    requests: Vec<u32>,
    images: Vec<u32>,
    /// Of each machine: shards that are stepping.
    stepping: Vec<u32>,
    under_way: HashMap<JobId, Request>,
    ends: BinaryHeap<Reverse<End>>,
    steps: u64,
    stepped_images: u64,
    stepped_for: Duration,
    wait: Times,
    whole_image: Times,
    asked: u64,
    refused: u64,
    good: u64,
    completed_meanwhile: u64,
    good_meanwhile: u64,
}

impl<'a> Run<'a> {
    fn new(fleet: &'a Fleet, demand: &'a Demand) -> Result<Self, Failure> {
        let config = Config {
            slots: fleet.slots,
            values: fleet.steps.of_an_image,
            values_per_step: 1,
            // Nothing is scored and no prefix is known.
            score_share: 0.5,
            score_images: SCORE_IMAGES,
            absorb_ranks: 1,
        };
        let (replicas, shards) = (fleet.replicas as usize, fleet.shards as usize);
        let idle = || Shard { scheduler: Scheduler::new(config), plan: Plan::default(), stepping: false, images: 0 };
        Ok(Self {
            fleet,
            demand,
            shards: std::iter::repeat_with(idle).take(replicas * shards).collect(),
            requests: vec![0; replicas],
            images: vec![0; replicas],
            stepping: vec![0; replicas.div_ceil(fleet.per_machine.max(1) as usize)],
            under_way: HashMap::new(),
            ends: BinaryHeap::new(),
            steps: 0,
            stepped_images: 0,
            stepped_for: Duration::ZERO,
            wait: Times::new()?,
            whole_image: Times::new()?,
            asked: 0,
            refused: 0,
            good: 0,
            completed_meanwhile: 0,
            good_meanwhile: 0,
        })
    }

    fn arrive(&mut self, number: u32, now: Duration) {
        let (images, counts) = (self.demand.images, self.demand.counts(now));
        let replica = self.fleet.balance.choose(&self.requests, self.demand.seed, number);
        let (Some(requests), Some(held)) = (self.requests.get_mut(replica), self.images.get_mut(replica)) else {
            return;
        };
        self.asked += if counts { u64::from(images) } else { 0 };
        let places = self.fleet.queue_images.saturating_add(self.fleet.slots.saturating_mul(self.fleet.shards));
        if held.saturating_add(images) > places {
            self.refused += if counts { u64::from(images) } else { 0 };
            return;
        }
        *requests += 1;
        *held += images;
        let job = JobId(number.into());
        self.under_way.insert(job, Request { arrived: now, replica, images });
        let first = replica * self.fleet.shards as usize;
        let own = self.shards.iter().skip(first).take(self.fleet.shards as usize);
        let loads: Vec<_> = own.map(|shard| (shard.images, 0)).collect();
        for (index, range) in split(images, &loads) {
            let Some(shard) = self.shards.get_mut(first + index) else { continue };
            shard.images += range.end - range.start;
            shard.scheduler.submit(job, range, Work::Sample { prefix: 0, replay: false }, Class::Interactive);
            if !shard.stepping {
                self.begin(first + index, now);
            }
        }
    }

    /// Begins the next step of a shard, if there is one.
    fn begin(&mut self, index: usize, now: Duration) {
        let machine = index / (self.fleet.shards * self.fleet.per_machine).max(1) as usize;
        let counts = self.demand.counts(now);
        let (Some(shard), Some(stepping)) = (self.shards.get_mut(index), self.stepping.get_mut(machine)) else {
            return;
        };
        let mut plan = shard.scheduler.plan();
        // Slots that are only given back take no time.
        while plan != Plan::default() && plan.advance.is_empty() {
            shard.scheduler.commit(&plan, &sched::Outcome::default());
            plan = shard.scheduler.plan();
        }
        let works = plan != Plan::default();
        *stepping = *stepping + u32::from(works) - u32::from(shard.stepping);
        shard.stepping = works;
        if !works {
            return;
        }
        for admission in &plan.admit {
            let arrived = self.under_way.get(&admission.image.job).map(|request| request.arrived);
            if let Some(arrived) = arrived.filter(|arrived| self.demand.counts(*arrived)) {
                self.wait.took(now - arrived);
            }
        }
        let images = plan.advance.len() as u32;
        let took = self.fleet.steps.step(*stepping, images);
        shard.plan = plan;
        self.ends.push(Reverse(End { at: now + took, step: self.steps, shard: index }));
        self.steps += 1;
        self.stepped_images += u64::from(images);
        if counts {
            self.stepped_for += took;
        }
    }

    /// Ends the step that ends next, and begins the one after it.
    fn next_end(&mut self) {
        let Some(Reverse(End { at, shard: index, .. })) = self.ends.pop() else { return };
        let Some(shard) = self.shards.get_mut(index) else { return };
        let plan = std::mem::take(&mut shard.plan);
        for transition in shard.scheduler.commit(&plan, &sched::Outcome::default()) {
            let (Transition::Finished(image) | Transition::Failed(image)) = transition;
            if let Some(shard) = self.shards.get_mut(index) {
                shard.images -= 1;
            }
            self.finish(image.job, at);
        }
        self.begin(index, at);
    }

    /// An image of `job` is complete.
    fn finish(&mut self, job: JobId, now: Duration) {
        let meanwhile = self.demand.counts(now);
        let Some(request) = self.under_way.get_mut(&job) else { return };
        let (arrived, replica) = (request.arrived, request.replica);
        request.images -= 1;
        let last = request.images == 0;
        if last {
            self.under_way.remove(&job);
        }
        if let (Some(images), Some(requests)) = (self.images.get_mut(replica), self.requests.get_mut(replica)) {
            *images -= 1;
            *requests -= u32::from(last);
        }
        let good = now - arrived <= self.demand.slo;
        self.completed_meanwhile += u64::from(meanwhile);
        self.good_meanwhile += u64::from(meanwhile && good);
        if self.demand.counts(arrived) {
            self.whole_image.took(now - arrived);
            self.good += u64::from(good);
        }
    }

    fn outcome(self) -> Outcome {
        let seconds = self.demand.duration.as_secs_f64();
        let share = |of: u64| of as f64 / self.asked.max(1) as f64;
        Outcome {
            replicas: self.fleet.replicas,
            images_per_s: self.completed_meanwhile as f64 / seconds,
            goodput_images_per_s: self.good_meanwhile as f64 / seconds,
            goodput_share: share(self.good),
            refused_share: share(self.refused),
            wait_us: self.wait.spread(),
            mean_wait_us: self.wait.mean(),
            image_us: self.whole_image.spread(),
            busy_share: self.stepped_for.as_secs_f64() / (seconds * self.shards.len().max(1) as f64),
            images_per_step: self.stepped_images as f64 / self.steps.max(1) as f64,
        }
    }
}
