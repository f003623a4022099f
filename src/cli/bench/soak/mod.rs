//! `pixeld bench soak`: every kind of client at once for as long as asked, and what is left of them in the daemon afterwards.

mod clients;
mod process;
mod reloads;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use self::clients::{Outcome, Site};
use self::process::{Books, Process, Usage, mib, slope_per_hour};
use self::reloads::Packages;
use super::load::{SLOW_WINDOW, duration, measured};
use crate::cli::access::{Access, Channel};
use crate::cli::connect::{self, Target};
use crate::cli::failure::Failure;
use crate::cli::{client, output};
use crate::noise;
use crate::rpc::proto::ModelState;

/// Shortest time between two looks at the process, and most looks in a run.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS: u32 = 2000;
/// How long the daemon may take to be idle once its clients are gone: keepalive finds the last of those that said nothing.
const SETTLE: Duration = Duration::from_secs(60);
/// Between two reloads at least.
const RELOAD_PAUSE: Duration = Duration::from_secs(3);
/// Samples of the memory that people are shown.
const SHOWN: usize = 20;

const AFTER_HELP: &str = "\
Every client does one thing again and again, with --pause in between:
  sample     streams one to four images and checks every value, order and checksum
  score      scores images of chance values, one in two with an item that cannot be read
  cancel     drops a stream after a random share of its values
  slow       reads a message now and then, over a connection that buffers next to nothing
  deadline   streams with a deadline of 1 to 50 ms
  malformed  sends what must be refused: unknown models, broken rules, messages of another type, no HTTP/2 at all
  connect    opens a connection, says nothing, half a preface or one call, and goes
  reload     one client, every 3 s: changes the manifest of a package and reloads its model, which must change the revision;
             one time in three it spoils the manifest first, and the old revision must go on

What is explained: the status that the request must have, and being refused for want of room or time. Anything else, an
image that the daemon lost count of, or one that it completed less often than clients received it, ends the command with
an error. The slope of the memory is that of the samples after the first quarter, by least squares; it is told, not judged.";

/// Flags of `pixeld bench soak`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Flags {
    /// Daemon to load, for example http://127.0.0.1:50051
    #[arg(long, value_name = "URL")]
    endpoint: String,
    /// Its process, on this machine: memory, threads and file descriptors are looked at
    #[arg(long)]
    pid: u32,
    /// Where its metrics are (metrics.listen), which account for the images
    #[arg(long, value_name = "ADDR")]
    metrics: SocketAddr,
    /// How long
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = measured)]
    duration: Duration,
    /// Unix socket of its admin listener, for reloads
    #[arg(long, value_name = "PATH", requires = "packages")]
    admin: Option<PathBuf>,
    /// Folder of the packages that it serves (models.root). Their manifests are changed: give it a copy
    #[arg(long, value_name = "DIR", requires = "admin")]
    packages: Option<PathBuf>,
    /// What clients do [default: all of it; reload only with --admin]
    #[arg(long, value_enum, value_delimiter = ',')]
    traffic: Vec<Traffic>,
    /// Clients of each kind
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// Requests of each kind at most, for storms [default: as many as there is time for]
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// Between two requests of a client
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = duration)]
    pause: Duration,
    /// Decides what clients ask for and when they leave
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tell everything as one JSON object on one line
    #[arg(long)]
    json: bool,
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Traffic {
    Sample,
    Score,
    Cancel,
    Slow,
    Deadline,
    Malformed,
    Connect,
    Reload,
}

/// Numbers of a client, the same in every run of a seed.
pub(super) struct Chance {
    seed: u64,
    client: u32,
    draws: u32,
}

impl Chance {
    /// A number in (0, 1).
    fn share(&mut self) -> f64 {
        self.draws = self.draws.wrapping_add(1);
        noise::uniform(self.seed, self.client, self.draws)
    }

    /// A whole number below `end`.
    fn below(&mut self, end: u32) -> u32 {
        (self.share() * f64::from(end)) as u32
    }
}

/// What all clients have counted.
#[derive(Debug, Default)]
struct Tally {
    /// Requests by kind and outcome.
    outcomes: BTreeMap<(Traffic, String), u64>,
    begun: BTreeMap<Traffic, u64>,
    unexplained: BTreeMap<String, u64>,
    /// Images asked for, and those of them that came whole.
    asked: u64,
    received: u64,
}

/// The report.
#[derive(Debug, Serialize)]
struct Report {
    seconds: f64,
    /// Requests by kind and what they came to.
    outcomes: BTreeMap<Traffic, BTreeMap<String, u64>>,
    unexplained: BTreeMap<String, u64>,
    images: Images,
    /// Of the idle daemon before the clients came and after they left.
    before: Usage,
    after: Usage,
    /// Most that was seen in between.
    most: Usage,
    /// Growth of the resident memory after the first quarter.
    rss_slope_mib_per_hour: Option<f64>,
    /// Seconds since the start, and what the process used then.
    samples: Vec<(f64, Usage)>,
}

/// Images as clients and the daemon count them; those of the daemon since the start of the run.
#[derive(Debug, Serialize)]
struct Images {
    asked: u64,
    received: u64,
    submitted: u64,
    completed: u64,
    given_up: u64,
    left: u64,
}

impl Flags {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let windows = [None, Some(SLOW_WINDOW)];
        if self.traffic.contains(&Traffic::Reload) && self.admin.is_none() {
            return Err(Failure::Usage("--traffic reload needs --admin and --packages".to_owned()));
        }
        let work = async |channels: &[Channel]| match &self.admin {
            Some(socket) => {
                let operated = async |admin: &Channel| self.soak(channels, Some(admin)).await;
                connect::with(Target::Socket(socket.clone()), operated).await
            }
            None => self.soak(channels, None).await,
        };
        let target = Target::Remote(Box::new(Access::default().remote(&self.endpoint)?));
        let report = connect::several(target, &windows, work).await?;
        if self.json {
            output::json(&report)?;
        } else {
            report.tell()?;
        }
        report.judge()
    }

    async fn soak(&self, channels: &[Channel], admin: Option<&Channel>) -> Result<Report, Failure> {
        let [channel, narrow] = channels else {
            return Err(Failure::Internal("there are not two connections".to_owned()));
        };
        let mut models = client::list(channel).await?;
        // A model that needs an image of low resolution is one that nobody here could feed.
        models.retain(|model| {
            let fed = model.low_resolution_shape.is_none() || !model.low_resolution_model.is_empty();
            model.state() == ModelState::Ready && fed
        });
        let address = self.endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let packages = match (admin, &self.packages) {
            (Some(admin), Some(folder)) => Some(Packages::new(admin.clone(), folder.clone(), &models)?),
            _ => None,
        };
        let site = Arc::new(Site::new([channel.clone(), narrow.clone()], address, models, packages)?);
        let process = Process::of(self.pid);
        let (books, before) = (Books::read(self.metrics).await?, process.usage()?);

        let (tally, begun) = (Arc::new(Mutex::new(Tally::default())), Instant::now());
        let end = begun + self.duration;
        let mut clients = JoinSet::new();
        let all = Traffic::value_variants();
        for (number, &kind) in (0..).zip(if self.traffic.is_empty() { all } else { &self.traffic }) {
            let (count, pause) = match kind {
                Traffic::Reload if self.admin.is_none() => continue,
                // Two would come upon each other's packages.
                Traffic::Reload => (1, self.pause.max(RELOAD_PAUSE)),
                _ => (self.clients, self.pause),
            };
            for client in 0..count {
                let chance = Chance { seed: self.seed, client: number * self.clients + client, draws: 0 };
                let (site, tally) = (Arc::clone(&site), Arc::clone(&tally));
                clients.spawn(repeat(site, kind, chance, tally, (end, pause, self.requests)));
            }
        }
        let mut samples = Vec::new();
        let every = LOOK.max(self.duration / LOOKS);
        let mut looks = tokio::time::interval(every);
        while !clients.is_empty() {
            tokio::select! {
                Some(done) = clients.join_next() => done.map_err(|error| Failure::Internal(error.to_string()))?,
                _ = looks.tick() => samples.push((begun.elapsed(), process.usage()?)),
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let left = self.settle().await?;
        // The connections that clients of their own had are closed by now, and the daemon's pools have their size.
        let (ended, after) = (Books::read(self.metrics).await?, process.usage()?);
        let tally = std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
        let mut outcomes: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for ((kind, outcome), count) in tally.outcomes {
            outcomes.entry(kind).or_default().insert(outcome, count);
        }
        Ok(Report {
            seconds,
            outcomes,
            unexplained: tally.unexplained,
            images: Images {
                asked: tally.asked,
                received: tally.received,
                submitted: ended.submitted.saturating_sub(books.submitted),
                completed: ended.completed.saturating_sub(books.completed),
                given_up: ended.given_up.saturating_sub(books.given_up),
                left,
            },
            before,
            after,
            most: samples.iter().fold(before, |most, (_, usage)| most.max(*usage)),
            rss_slope_mib_per_hour: slope_per_hour(&samples),
            samples: samples.into_iter().map(|(at, usage)| (at.as_secs_f64(), usage)).collect(),
        })
    }

    /// Waits until the daemon is idle; the images that are left if it never is.
    async fn settle(&self) -> Result<u64, Failure> {
        let end = Instant::now() + SETTLE;
        let mut looks = tokio::time::interval(LOOK);
        loop {
            // Gauges are set once a second, so an idle one is believed at the third time.
            for _ in 0..3 {
                looks.tick().await;
            }
            let left = Books::read(self.metrics).await?.here();
            if left == 0 || Instant::now() > end {
                return Ok(left);
            }
        }
    }
}

/// One client: one request after the other until there is no time, or none is left to be made.
async fn repeat(
    site: Arc<Site>,
    kind: Traffic,
    mut chance: Chance,
    tally: Arc<Mutex<Tally>>,
    (end, pause, most): (Instant, Duration, Option<u64>),
) {
    while Instant::now() < end {
        {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            let begun = tally.begun.entry(kind).or_default();
            if most.is_some_and(|most| *begun >= most) {
                return;
            }
            *begun += 1;
        }
        let Outcome { what, explained, asked, received } = site.request(kind, &mut chance).await;
        {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            if !explained {
                *tally.unexplained.entry(format!("{kind:?}: {what}")).or_default() += 1;
            }
            *tally.outcomes.entry((kind, what)).or_default() += 1;
            tally.asked += asked;
            tally.received += received;
        }
        sleep_until((Instant::now() + pause).into()).await;
    }
}

impl Report {
    fn tell(&self) -> Result<(), Failure> {
        output::line(&format!("{:.1} s", self.seconds))?;
        for (kind, outcomes) in &self.outcomes {
            let outcomes: Vec<_> = outcomes.iter().map(|(what, count)| format!("{what} {count}")).collect();
            output::line(&format!("{:<10} {}", format!("{kind:?}").to_lowercase(), outcomes.join(", ")))?;
        }
        let Images { asked, received, submitted, completed, given_up, left } = self.images;
        output::line(&format!(
            "images     {asked} asked for, {received} received; the daemon: {submitted} submitted = {completed} completed + \
             {given_up} given up + {left} left"
        ))?;
        for (when, usage) in [("before", self.before), ("most", self.most), ("after", self.after)] {
            output::line(&format!("{when:<10} {usage}"))?;
        }
        let every = self.samples.len().div_ceil(SHOWN).max(1);
        let shown = self.samples.iter().step_by(every);
        let shown: Vec<_> = shown.map(|(at, usage)| format!("{:.1} at {at:.0} s", mib(usage.rss_kib as f64))).collect();
        output::line(&format!("RSS MiB    {}", shown.join(", ")))?;
        let slope = self.rss_slope_mib_per_hour.map_or("too short to tell".to_owned(), |mib| format!("{mib:.1} MiB/h"));
        output::line(&format!("RSS slope  {slope}, after the first quarter"))
    }

    /// An error if anything was left unexplained.
    fn judge(&self) -> Result<(), Failure> {
        let mut faults: Vec<_> = self.unexplained.iter().map(|(what, count)| format!("{count} x {what}")).collect();
        let Images { asked, received, submitted, completed, given_up, left } = self.images;
        if left > 0 || submitted != completed + given_up {
            faults.push(format!("{submitted} images were submitted, {} ended", completed + given_up));
        }
        if received > completed || submitted > asked {
            faults.push(format!(
                "{received} images of {completed} completed were received, {submitted} of {asked} asked"
            ));
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(Failure::Internal(format!("unexplained:\n  {}", faults.join("\n  "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(images: [u64; 6], unexplained: &[(&str, u64)]) -> Report {
        let [asked, received, submitted, completed, given_up, left] = images;
        let usage = Usage { rss_kib: 1, threads: 1, descriptors: 1 };
        Report {
            seconds: 1.0,
            outcomes: BTreeMap::new(),
            unexplained: unexplained.iter().map(|&(what, count)| (what.to_owned(), count)).collect(),
            images: Images { asked, received, submitted, completed, given_up, left },
            before: usage,
            after: usage,
            most: usage,
            rss_slope_mib_per_hour: None,
            samples: Vec::new(),
        }
    }

    #[test]
    fn whatever_is_not_accounted_for_is_an_error() {
        assert_eq!(report([9, 5, 8, 6, 2, 0], &[]).judge(), Ok(()));
        assert!(report([9, 5, 8, 6, 2, 0], &[("Sample: Internal", 1)]).judge().is_err());
        assert!(report([9, 5, 8, 6, 1, 0], &[]).judge().is_err(), "one was lost");
        assert!(report([9, 5, 8, 6, 3, 0], &[]).judge().is_err(), "one ended twice");
        assert!(report([9, 5, 8, 6, 2, 1], &[]).judge().is_err(), "one never ended");
        assert!(report([9, 7, 8, 6, 2, 0], &[]).judge().is_err(), "one was received that never was");
        assert!(report([7, 5, 8, 6, 2, 0], &[]).judge().is_err(), "one was made that nobody asked for");
    }
}
