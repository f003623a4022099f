//! `pixeld bench capacity`: what so many replicas carry, simulated with the daemon's own scheduler and recorded step times.

mod balance;
mod fleet;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use serde::Serialize;

use self::balance::Balance;
use self::fleet::{Demand, Fleet, Outcome, simulate};
use self::steps::StepTimes;
use super::arrivals::{Arrivals, Law};
use super::drive::MAX_OPEN;
use super::load::{duration, measured, rate, share};
use super::record::{self, Record, Step};
use super::tally::Spread;
use crate::cli::failure::Failure;
use crate::cli::output;
use crate::engine::EngineConfig;

/// Replicas at most, which is far more than a simulation of one model is good for.
const MAX_REPLICAS: u32 = 100_000;
/// Slots of all replicas together, for the room that they take here.
const MAX_SLOTS: u64 = 1 << 24;

const AFTER_HELP: &str = "\
Every shard of every replica is the scheduler that the daemon runs, in simulated time; a step takes what STEPS recorded for as
many images, and for as many shards as step at once on its machine (`bench step --threads`). Requests arrive by the laws of
`bench load`, and are counted as it counts them: goodput is images a second that came within --slo-image of their arrival, its
share is of all that were asked for, refused ones included; nobody asks again. The same seed gives the same table.

Not simulated: the network, proxies and clients, what sending values costs, replicas that fail or start, scoring, prefixes and
requests that are given up. docs/capacity.md compares it with three replicas as they ran.

Examples:
  pixeld bench step --model digits --backend native --batch 1,2,4,8,16 --from-rank 0 --steps 64 --json > steps.json
  pixeld bench capacity steps.json --rate 2000 --slo-image 500ms --replicas 1,2,3,4
  pixeld bench capacity steps.json --rate 100000 --slo-image 500ms --find --balance two-choices
  pixeld bench capacity --step 1:150,16:1100 --steps-per-image 64 --rate 800 --slo-image 200ms --replicas 1";

/// Flags of `pixeld bench capacity`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
#[command(group = ArgGroup::new("times").required(true).args(["recorded", "step"]))]
#[command(group = ArgGroup::new("fleet").required(true).args(["replicas", "find"]))]
pub(super) struct Flags {
    /// What `pixeld bench step --json` measured
    #[arg(value_name = "STEPS")]
    recorded: Vec<PathBuf>,
    /// Whose steps to take, if STEPS has several models
    #[arg(long, requires = "recorded")]
    model: Option<String>,
    /// On which backend
    #[arg(long, default_value = "native", requires = "recorded")]
    backend: String,
    /// Step times in place of STEPS: images of a step and what it takes in microseconds, whatever else steps
    #[arg(long, value_name = "IMAGES:US", value_delimiter = ',', requires = "steps_per_image", value_parser = step)]
    step: Vec<(u32, f64)>,
    /// Steps of an image, with --step
    #[arg(long, value_name = "N", requires = "step", value_parser = clap::value_parser!(u32).range(1..))]
    steps_per_image: Option<u32>,
    /// Replicas to simulate, one number after the other
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=MAX_REPLICAS as i64))]
    replicas: Vec<u32>,
    /// Look for the fewest replicas that keep --good-share
    #[arg(long)]
    find: bool,
    /// Share of the images that has to be good, with --find
    #[arg(long, value_name = "P", default_value_t = 0.99, value_parser = share)]
    good_share: f64,
    /// How requests are given to replicas
    #[arg(long, value_enum, default_value_t = Balance::Least)]
    balance: Balance,
    /// Replicas on one machine, whose shards slow each other down as recorded
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    per_machine: u32,
    /// Shards of a replica (engine.shards)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    shards: u32,
    /// Slots of a shard (engine.slots)
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    slots: u32,
    /// Images that may wait at a replica (engine.queue_images)
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().queue_images)]
    queue_images: u32,
    /// Images that arrive in a second, at all replicas together
    #[arg(long, value_name = "IMAGES_PER_SECOND", value_parser = rate)]
    rate: f64,
    /// Images in each request
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    images: u32,
    /// How arrivals are spread in time
    #[arg(long, value_enum, default_value_t = Law::Poisson)]
    arrivals: Law,
    /// Requests in each group, with --arrivals burst
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MAX_OPEN as i64))]
    burst_size: u32,
    /// Longest good time from the arrival of a request to the last value of an image
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    slo_image: Duration,
    /// How long arrivals are counted
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = measured)]
    duration: Duration,
    /// Load before that, which is in no figure
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    warmup: Duration,
    /// Decides arrivals, and replicas drawn at random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// One simulation, as it is told in JSON.
#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    balance: Balance,
    per_machine: u32,
    shards: u32,
    slots: u32,
    queue_images: u32,
    rate: f64,
    images: u32,
    arrivals: Law,
    slo_image_s: f64,
    duration_s: f64,
    warmup_s: f64,
    seed: u64,
    steps_per_image: u32,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

fn step(text: &str) -> Result<(u32, f64), String> {
    let (images, micros) = text.split_once(':').unwrap_or((text, ""));
    let images = images.parse().ok().filter(|images| (1..=4096).contains(images));
    let micros = micros.parse().ok().filter(|micros| *micros > 0.0 && *micros <= 1e9);
    images.zip(micros).ok_or_else(|| format!("must be 1 to 4096 images, a colon and microseconds, got {text}"))
}

impl Flags {
    pub(super) fn run(self) -> Result<(), Failure> {
        let steps = self.step_times()?;
        let (shards, places) = (self.per_machine.saturating_mul(self.shards), self.places());
        steps.cover(shards, self.slots).map_err(Failure::Usage)?;
        if self.images > places {
            let why = "the places of a replica: a request is admitted as a whole";
            return Err(Failure::Usage(format!("--images: must be at most {places}, {why}, got {}", self.images)));
        }
        let requests = self.rate / f64::from(self.images);
        let until = self.warmup + self.duration;
        let demand = Demand {
            arrivals: Arrivals::new(self.arrivals, requests, self.burst_size, self.seed, until),
            images: self.images,
            seed: self.seed,
            warmup: self.warmup,
            duration: self.duration,
            slo: self.slo_image,
        };
        if demand.arrivals.clone().all(|after| after < self.warmup) {
            return Err(Failure::Usage(format!(
                "--rate: no request arrives within --duration, at {} images/s",
                self.rate
            )));
        }
        let fleet = |replicas| Fleet {
            replicas,
            per_machine: self.per_machine,
            shards: self.shards,
            slots: self.slots,
            queue_images: self.queue_images,
            balance: self.balance,
            steps: steps.clone(),
        };
        let run = |replicas: u32| {
            let slots = u64::from(replicas) * u64::from(self.shards) * u64::from(self.slots);
            if slots > MAX_SLOTS {
                return Err(Failure::Usage(format!(
                    "slots of {replicas} replicas: must be at most {MAX_SLOTS}, got {slots}"
                )));
            }
            let outcome = simulate(&fleet(replicas), &demand)?;
            self.tell(&outcome, steps.of_an_image)?;
            Ok(outcome)
        };
        let head = || if self.json { Ok(()) } else { output::line(&row(HEAD.map(str::to_owned))) };
        if self.find {
            let alone = steps.step(1, 1) * steps.of_an_image;
            if alone > self.slo_image {
                return Err(Failure::Usage(format!(
                    "--slo-image: no number of replicas keeps {:?}: an image alone takes {alone:?}",
                    self.slo_image
                )));
            }
            head()?;
            let found = fewest(|replicas| Ok(run(replicas)?.goodput_share >= self.good_share))?;
            let told = found.map_or_else(
                || format!("no {MAX_REPLICAS} replicas or fewer keep a share of {}", self.good_share),
                |found| format!("{found} replicas keep a share of {}", self.good_share),
            );
            return if self.json { Ok(()) } else { output::line(&told) };
        }
        head()?;
        self.replicas.iter().try_for_each(|&replicas| run(replicas).map(|_| ()))
    }

    /// Images that a replica admits.
    fn places(&self) -> u32 {
        self.queue_images.saturating_add(self.shards.saturating_mul(self.slots))
    }

    fn step_times(&self) -> Result<StepTimes, Failure> {
        let missing = || Failure::Usage("there is no step time".to_owned());
        if let Some(of_an_image) = self.steps_per_image {
            let given: Vec<_> = self.step.iter().map(|&(images, micros)| (u32::MAX, images, micros)).collect();
            return StepTimes::new(&given, of_an_image).ok_or_else(missing);
        }
        let mut steps = Vec::new();
        for path in &self.recorded {
            steps.extend(record::read(path)?.into_iter().filter_map(|record| match record {
                Record::Step(step) => Some(step),
                Record::Load(_) => None,
            }));
        }
        recorded(&steps, self.model.as_deref(), &self.backend).map_err(Failure::Usage)
    }

    fn tell(&self, outcome: &Outcome, steps_per_image: u32) -> Result<(), Failure> {
        if self.json {
            return output::json(&Line {
                kind: "capacity",
                balance: self.balance,
                per_machine: self.per_machine,
                shards: self.shards,
                slots: self.slots,
                queue_images: self.queue_images,
                rate: self.rate,
                images: self.images,
                arrivals: self.arrivals,
                slo_image_s: self.slo_image.as_secs_f64(),
                duration_s: self.duration.as_secs_f64(),
                warmup_s: self.warmup.as_secs_f64(),
                seed: self.seed,
                steps_per_image,
                outcome,
            });
        }
        let percent = |share: f64| format!("{:.2}", share * 100.0);
        let ms = |spread: Option<Spread>, of: fn(Spread) -> u64| {
            spread.map_or_else(String::new, |spread| format!("{:.1}", of(spread) as f64 / 1e3))
        };
        output::line(&row([
            outcome.replicas.to_string(),
            format!("{:.1}", outcome.images_per_s),
            format!("{:.1}", outcome.goodput_images_per_s),
            percent(outcome.goodput_share),
            percent(outcome.refused_share),
            ms(outcome.wait_us, |spread| spread.p50),
            ms(outcome.wait_us, |spread| spread.p99),
            ms(outcome.image_us, |spread| spread.p50),
            ms(outcome.image_us, |spread| spread.p99),
            percent(outcome.busy_share),
            format!("{:.2}", outcome.images_per_step),
        ]))
    }
}

const HEAD: [&str; 11] = [
    "replicas",
    "images/s",
    "goodput/s",
    "good %",
    "refused %",
    "wait ms",
    "p99",
    "image ms",
    "p99",
    "busy %",
    "batch",
];

fn row(cells: [String; 11]) -> String {
    cells.iter().map(|cell| format!("{cell:>9}")).collect::<Vec<_>>().join(" ")
}

/// The step times of one model on one backend, from measurements of perhaps several.
///
/// # Errors
/// What is missing, or what there is more than one of.
fn recorded(steps: &[Step], model: Option<&str>, backend: &str) -> Result<StepTimes, String> {
    let wanted: Vec<_> =
        steps.iter().filter(|step| step.backend == backend && model.is_none_or(|model| step.model == model)).collect();
    // Images/s follow from the mean step, so both tell how many steps an image takes.
    let of_an_image =
        |step: &Step| f64::from(step.batch) * f64::from(step.threads) * 1e6 / (step.step_us.mean * step.images_per_s);
    let kinds: BTreeSet<_> = wanted
        .iter()
        .map(|step| (step.model.as_str(), step.precision.as_str(), of_an_image(step).round() as u32))
        .collect();
    let (1, Some(&(_, _, of_an_image))) = (kinds.len(), kinds.first()) else {
        let names: Vec<_> = kinds.iter().map(|(model, precision, _)| format!("{model} ({precision})")).collect();
        return Err(match names.is_empty() {
            true => format!("STEPS: no step of {} on {backend} was measured", model.unwrap_or("any model")),
            false => format!("STEPS: must be of one model in one precision, got {}", names.join(", ")),
        });
    };
    let measured: Vec<_> = wanted.iter().map(|step| (step.threads, step.batch, step.step_us.mean)).collect();
    let valid = measured.iter().all(|(shards, images, micros)| *shards > 0 && *images > 0 && *micros > 0.0);
    let times = StepTimes::new(&measured, of_an_image).filter(|times| valid && times.of_an_image > 0);
    times.ok_or_else(|| "STEPS: steps must have images and take time".to_owned())
}

/// The least number of replicas for which `suffices` holds, which must hold for every larger number then; `None` if it is more
/// than [`MAX_REPLICAS`].
fn fewest(mut suffices: impl FnMut(u32) -> Result<bool, Failure>) -> Result<Option<u32>, Failure> {
    // Always too few, and enough.
    let (mut low, mut high) = (0, 1);
    while !suffices(high)? {
        if high == MAX_REPLICAS {
            return Ok(None);
        }
        (low, high) = (high, (high * 2).min(MAX_REPLICAS));
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match suffices(middle)? {
            true => high = middle,
            false => low = middle,
        }
    }
    Ok(Some(high))
}
