//! `pixeld bench load`: streams against a daemon, on a schedule or as many as asked, and what became of them.

use std::time::Duration;

use clap::{ArgGroup, Args};
use humantime_serde::re::humantime;
use serde::Serialize;
use serde_json::{Map, Value};

use super::arrivals::{Arrivals, Law};
use super::drive::{self, Channels, MAX_OPEN};
use super::plan::{Classes, Mode, Plan};
use super::record::{Load, Record};
use super::tally::{Counts, Figures, Outcomes, Slo, Spread};
use crate::cli::access::Channel;
use crate::cli::failure::Failure;
use crate::cli::source::{Granularity, Source};
use crate::cli::{client, connect, output, progress};
use crate::rpc::proto::{Model, ModelState};

/// Bytes that the transport of a slow reader takes in unread: the daemon is held up from the first message on.
pub(super) const SLOW_WINDOW: u32 = 64;
/// Runs have an end, and a number for each second of them is kept.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Images a second at most: more than a client sends.
const MAX_RATE: f64 = 1e6;

const AFTER_HELP: &str = "\
With --rate the load is open: arrivals are drawn from the schedule in advance, a request is sent when it arrives whatever
became of those before it, and every time counts from the arrival, even if the client was late to send (`sent` tells how
late). A daemon that stalls therefore shows in the times of all who arrived meanwhile. With --streams it is closed: so
many streams are kept open, for the throughput at saturation, and times count from the moment a stream is opened; who
would have come meanwhile is not asked, so do not take latencies from it.

What is counted: streams that arrived within --duration, after --warmup, to their end or until --drain is over.
  first value   from arrival to the first value of each image
  gap           between messages that bring values of one image; values that come in one message make one gap together
  image         from arrival to the last value of each image
Times are of streams that are neither slow nor cancelled. One that failed, or had not finished at the end, counts with
the time it had lasted; a refused one has no time, but lowers the goodput. Images/s, values/s and messages/s are what
was received within --duration. Goodput is the images/s among them that kept both --slo bounds; its share is of all the
images that readers were to get. scheduled = completed + refused + failed + cancelled + unfinished + unsent; unsent is
what arrived while 16384 streams were open, and its time lasts to the end of --duration.

A cancelled stream (--cancel-share) is dropped after a random share of its values, from none on. A slow one
(--slow-share) reads nothing for --slow-pause after `started`, over a connection that buffers next to nothing, and then
reads on to the end; the daemon gives up on who has not read for 30 seconds.

Without --endpoint the daemon runs in this process: both share the processor, and the CPU seconds are of both.

Examples:
  pixeld bench load --rate 20 --duration 30s --slo-first-value 50ms --slo-image 2s
  pixeld bench load --endpoint http://127.0.0.1:50051 --model digits --arrivals burst --burst-size 32 --rate 100
  pixeld bench load --streams 16 --connections 4 --granularity row --json >> saturated.json";

/// Flags of `pixeld bench load`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
#[command(group = ArgGroup::new("mode").required(true).args(["rate", "streams"]))]
pub(super) struct Flags {
    #[command(flatten)]
    source: Source,
    /// Model to sample; may be left out if there is only one
    #[arg(long, default_value = "", hide_default_value = true)]
    model: String,
    /// Class label of every image [default: a random one for each request, if the model has classes]
    #[arg(long, value_name = "LABEL")]
    class: Option<u32>,
    /// Images in each request
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    images: u32,
    /// Smallest unit that a stream carries
    #[arg(long, value_enum, default_value_t = Granularity::Value)]
    granularity: Granularity,
    /// Open load: images that arrive in a second, on average
    #[arg(long, value_name = "IMAGES_PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// How arrivals are spread in time
    #[arg(long, value_enum, default_value_t = Law::Poisson, conflicts_with = "streams")]
    arrivals: Law,
    /// Requests in each group, with --arrivals burst
    #[arg(long, value_name = "N", default_value_t = 8, conflicts_with = "streams",
          value_parser = clap::value_parser!(u32).range(1..=MAX_OPEN as i64))]
    burst_size: u32,
    /// Closed load: streams kept open
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_OPEN as i64))]
    streams: Option<u32>,
    /// How long arrivals are counted
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = measured)]
    duration: Duration,
    /// Load before that, which is in no figure
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    warmup: Duration,
    /// How long streams that still run are waited for after that
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    drain: Duration,
    /// Decides arrivals, classes, roles and images
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Share of the streams that is dropped on the way, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    cancel_share: f64,
    /// Share of the streams that stops reading for a while, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    slow_share: f64,
    /// How long a slow reader stops
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    slow_pause: Duration,
    /// Deadline of each request, counted from its arrival [default: none]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    deadline: Option<Duration>,
    /// Longest good time to the first value [default: any]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    slo_first_value: Option<Duration>,
    /// Longest good time to the last value [default: any]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    slo_image: Option<Duration>,
    /// Connections that the requests take in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// Tell everything as one JSON object on one line, which `pixeld bench compare` reads
    #[arg(long)]
    json: bool,
}

/// The flags and what they came to, as they stand in the record.
#[derive(Serialize)]
struct Parameters<'a> {
    endpoint: Option<&'a str>,
    in_process: bool,
    model: &'a str,
    class: Option<u32>,
    images: u32,
    granularity: Granularity,
    rate: Option<f64>,
    arrivals: Option<Law>,
    burst_size: Option<u32>,
    streams: Option<u32>,
    duration_s: f64,
    warmup_s: f64,
    drain_s: f64,
    seed: u64,
    cancel_share: f64,
    slow_share: f64,
    slow_pause_s: Option<f64>,
    deadline_s: Option<f64>,
    slo_first_value_s: Option<f64>,
    slo_image_s: Option<f64>,
    connections: u32,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 250ms or 2m"))?;
    if duration > LONGEST {
        return Err(format!("must be at most {} s, got {} s", LONGEST.as_secs(), duration.as_secs()));
    }
    Ok(duration)
}

pub(super) fn measured(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|duration| match duration.as_secs() {
        0 => Err(format!("must be at least 1 s, got {} ms", duration.as_millis())),
        _ => Ok(duration),
    })
}

fn number(text: &str, fits: impl Fn(f64) -> bool, limits: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number| fits(*number)).ok_or_else(|| format!("must be {limits}, got {text}"))
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    number(text, |share| (0.0..=1.0).contains(&share), "from 0 to 1")
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    number(text, |rate| rate > 0.0 && rate <= MAX_RATE, &format!("above 0 and at most {MAX_RATE}"))
}

impl Flags {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let both = self.cancel_share + self.slow_share;
        if both > 1.0 {
            return Err(Failure::Usage(format!(
                "--cancel-share and --slow-share: must be at most 1 together, got {both}"
            )));
        }
        let slow = (self.slow_share > 0.0).then_some(Some(SLOW_WINDOW));
        let windows: Vec<_> = (0..self.connections).map(|_| None).chain(slow).collect();
        let work = async |channels: &[Channel]| self.measure(channels).await;
        let (load, outcomes, figures) = connect::several(self.source.target()?, &windows, work).await?;
        if self.json {
            return output::json(&Record::Load(load));
        }
        self.tell(&load, &outcomes, &figures)
    }

    async fn measure(&self, channels: &[Channel]) -> Result<(Load, Outcomes, Figures), Failure> {
        let Some(first) = channels.first() else { return Err(Failure::Internal("there is no connection".to_owned())) };
        let model = client::get(first, &self.model).await?;
        let (plan, slo) = (self.plan(&model)?, Slo { first_value: self.slo_first_value, image: self.slo_image });
        let (fast, slow) = channels.split_at(self.connections as usize);
        let channels = Channels { fast: fast.to_vec(), slow: slow.first().cloned() };
        let bar = progress::clock(plan.warmup + plan.duration);
        let driven = drive::run(&plan, slo, &channels, &bar).await;
        let (tally, client_cpu_s) = driven.map_err(|failure| failure.renaming("--count", "--images"))?;
        bar.finish_and_clear();
        let (outcomes, figures, per_second) = tally.finish(client_cpu_s);
        let parameters = match json(&self.parameters(client::short(&model.name)))? {
            Value::Object(parameters) => parameters,
            _ => Map::new(),
        };
        let load = Load {
            version: crate::cli::VERSION.to_owned(),
            revision: model.revision,
            parameters,
            outcomes: json(&outcomes)?,
            figures: json(&figures)?,
            per_second,
        };
        Ok((load, outcomes, figures))
    }

    fn plan(&self, model: &Model) -> Result<Plan, Failure> {
        let name = client::short(&model.name);
        if model.state() != ModelState::Ready {
            let (state, why) = (client::state(model), &model.state_message);
            return Err(Failure::Unavailable(format!("model {name} is not serving: it is {state} {why}")));
        }
        let classes = match (self.class, model.class_count) {
            (Some(class), count) if class >= count => {
                return Err(Failure::Usage(format!("--class: must be below the {count} of model {name}, got {class}")));
            }
            (Some(class), _) => Classes::Only(class),
            (None, 0) => Classes::None,
            (None, count) => Classes::Random(count),
        };
        let mode = match (self.rate, self.streams) {
            (Some(rate), _) => {
                let until = self.warmup + self.duration;
                let requests = rate / f64::from(self.images);
                let schedule = Arrivals::new(self.arrivals, requests, self.burst_size, self.seed, until);
                if schedule.clone().all(|after| after < self.warmup) {
                    let arrivals = format!("{rate} images/s in requests of {}", self.images);
                    return Err(Failure::Usage(format!("--rate: no request arrives within --duration, at {arrivals}")));
                }
                Mode::Open(schedule)
            }
            (None, streams) => Mode::Closed { streams: streams.unwrap_or(1) },
        };
        Ok(Plan {
            mode,
            model: model.name.clone(),
            classes,
            images: self.images,
            flush: self.granularity.flush(),
            seed: self.seed,
            cancel_share: self.cancel_share,
            slow_share: self.slow_share,
            slow_pause: self.slow_pause,
            deadline: self.deadline,
            warmup: self.warmup,
            duration: self.duration,
            drain: self.drain,
        })
    }

    fn parameters<'a>(&'a self, model: &'a str) -> Parameters<'a> {
        let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
        Parameters {
            endpoint: self.source.endpoint.as_deref(),
            in_process: self.source.endpoint.is_none(),
            model,
            class: self.class,
            images: self.images,
            granularity: self.granularity,
            rate: self.rate,
            arrivals: self.rate.map(|_| self.arrivals),
            burst_size: (self.rate.is_some() && self.arrivals == Law::Burst).then_some(self.burst_size),
            streams: self.streams,
            duration_s: self.duration.as_secs_f64(),
            warmup_s: self.warmup.as_secs_f64(),
            drain_s: self.drain.as_secs_f64(),
            seed: self.seed,
            cancel_share: self.cancel_share,
            slow_share: self.slow_share,
            slow_pause_s: seconds(Some(self.slow_pause).filter(|_| self.slow_share > 0.0)),
            deadline_s: seconds(self.deadline),
            slo_first_value_s: seconds(self.slo_first_value),
            slo_image_s: seconds(self.slo_image),
            connections: self.connections,
        }
    }

    fn tell(&self, load: &Load, outcomes: &Outcomes, figures: &Figures) -> Result<(), Failure> {
        let place = self.source.endpoint.as_deref().unwrap_or("a daemon in this process");
        let model = load.parameters.get("model").and_then(Value::as_str).unwrap_or_default();
        let mode = match self.rate {
            Some(rate) => format!("{rate} images/s, {:?} arrivals", self.arrivals).to_lowercase(),
            None => format!("{} streams kept open", self.streams.unwrap_or(1)),
        };
        output::line(&format!("{model} on {place}: {mode}, for {:?} after {:?}", self.duration, self.warmup))?;
        for (role, counts) in
            [("streams", outcomes.reader), ("slow", outcomes.slow), ("cancelling", outcomes.canceller)]
        {
            if counts.scheduled > 0 || role == "streams" {
                output::line(&format!("{role:<12} {}", sum(counts)))?;
            }
        }
        let status: Vec<_> = outcomes.status.iter().map(|(code, count)| format!("{code} {count}")).collect();
        output::line(&format!("{:<12} {}", "status", status.join(", ")))?;
        let measured = outcomes.measured;
        for (name, spread, at_least) in [
            ("first value", figures.first_value_us, measured.first_values_at_least),
            ("gap", figures.gap_us, measured.gaps_at_least),
            ("image", figures.image_us, measured.images_at_least),
            ("sent late", figures.send_lag_us, 0),
        ] {
            output::line(&format!("{name:<12} {}", percentiles(spread, at_least)))?;
        }
        let Figures { images_per_s, values_per_s, messages_per_s, client_cpu_s, .. } = figures;
        let each = figures.values_per_message.unwrap_or_default();
        output::line(&format!(
            "{:<12} {images_per_s:.2} images/s, {values_per_s:.0} values/s, {messages_per_s:.0} messages/s of {each:.2} values",
            "received",
        ))?;
        let share = figures.goodput_share.map_or_else(String::new, |share| format!(", {:.1} %", share * 100.0));
        output::line(&format!("{:<12} {:.2} images/s{share}", "goodput", figures.goodput_images_per_s))?;
        let whose = if self.source.endpoint.is_none() { "client and daemon together" } else { "the client" };
        output::line(&format!("{:<12} {client_cpu_s:.2} s, {whose}", "CPU"))
    }
}

fn json(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::Internal(error.to_string()))
}

fn sum(counts: Counts) -> String {
    let Counts { scheduled, completed, refused, failed, cancelled, unfinished, unsent } = counts;
    format!(
        "{scheduled} scheduled = {completed} completed + {refused} refused + {failed} failed + {cancelled} cancelled + \
         {unfinished} unfinished + {unsent} unsent"
    )
}

fn percentiles(spread: Option<Spread>, at_least: u64) -> String {
    let Some(Spread { p50, p90, p99, p999, max }) = spread else { return "nothing to tell".to_owned() };
    let [p50, p90, p99, p999, max] = [p50, p90, p99, p999, max].map(|us| format!("{:.2}", us as f64 / 1000.0));
    let open = if at_least > 0 { format!(" ({at_least} of them at least)") } else { String::new() };
    format!("p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p999}  max {max} ms{open}")
}
