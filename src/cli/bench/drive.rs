//! Keeps a load going: requests are sent when the schedule says, whatever became of those before them, or a number of
//! streams is kept open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::arrivals::Arrivals;
use super::plan::{Mode, Plan};
use super::tally::{Ending, Role, Slo, Tally};
use crate::cli::access::Channel;
use crate::cli::failure::Failure;

/// Streams open at once at most: what a daemon that stands still may cost the client. What arrives beyond that is counted
/// as unsent.
pub(super) const MAX_OPEN: usize = 1 << 14;
/// Arrivals that may wait to be sent while the client is busy; they are late then, and their times say so.
const WAITING: usize = 1 << 10;
/// Before a stream that is kept open is opened again after it was refused: at once would be an attack.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at the progress.
const GLANCE: Duration = Duration::from_millis(200);

/// Where requests go.
pub(super) struct Channels {
    /// In turn.
    pub(super) fast: Vec<Channel>,
    /// Where the transport takes next to nothing that is not read.
    pub(super) slow: Option<Channel>,
}

impl Channels {
    fn of(&self, number: u32, role: Role) -> Option<Channel> {
        let slow = self.slow.as_ref().filter(|_| role == Role::Slow);
        slow.or_else(|| self.fast.iter().cycle().nth(number as usize % self.fast.len().max(1))).cloned()
    }
}

/// Runs `plan`; returns what came of it and the CPU seconds that this process used in the window.
pub(super) async fn run(
    plan: &Plan,
    slo: Slo,
    channels: &Channels,
    bar: &ProgressBar,
) -> Result<(Arc<Tally>, f64), Failure> {
    let began = Instant::now();
    let opens = began + plan.warmup;
    let closes = opens + plan.duration;
    let tally = Arc::new(Tally::new(opens..closes, slo)?);
    let show = async {
        let mut glances = tokio::time::interval(GLANCE);
        loop {
            glances.tick().await;
            bar.set_position(began.elapsed().as_millis() as u64);
            let (images, first_value) = tally.glance();
            let tail = first_value.map_or_else(String::new, |us| format!(", p99 to first value {} ms", us / 1000));
            let phase =
                if opens.elapsed().is_zero() { "warming up".to_owned() } else { format!("{images} images{tail}") };
            bar.set_message(phase);
        }
    };
    let cpu = async {
        sleep_until(opens.into()).await;
        let before = cpu_seconds()?;
        sleep_until(closes.into()).await;
        Ok(cpu_seconds()? - before)
    };
    let work = async { tokio::try_join!(send(plan, channels, &tally, began), cpu) };
    let ((), cpu) = tokio::select! {
        done = work => done,
        never = show => never,
    }?;
    Ok((tally, cpu))
}

async fn send(plan: &Plan, channels: &Channels, tally: &Arc<Tally>, began: Instant) -> Result<(), Failure> {
    let closes = began + plan.warmup + plan.duration;
    let end = CancellationToken::new();
    let mut cut = std::pin::pin!(sleep_until((closes + plan.drain).into()));
    let mut tasks = JoinSet::new();
    let (sender, mut arrivals) = mpsc::channel(WAITING);
    let mut number = 0u32;
    let start = |tasks: &mut JoinSet<_>, number: u32, at: Instant| {
        let arrived = plan.request(number, at);
        let Some(channel) = channels.of(number, arrived.role).filter(|_| tasks.len() < MAX_OPEN) else {
            return arrived.unsent(tally, closes);
        };
        let (tally, end, closed) = (Arc::clone(tally), end.clone(), matches!(plan.mode, Mode::Closed { .. }));
        tasks.spawn(async move {
            let ending = arrived.run(channel, &tally, &end).await?;
            if closed && !matches!(ending, Ending::Completed | Ending::Cancelled) {
                let again = Instant::now() + REFUSED_PAUSE;
                end.run_until_cancelled(sleep_until(again.into())).await;
            }
            Ok::<_, Failure>(())
        });
    };
    match &plan.mode {
        Mode::Open(schedule) => {
            let schedule = schedule.clone();
            // A thread, because the runtime's timers are a millisecond late and wait behind its work.
            std::thread::Builder::new()
                .name("arrivals".to_owned())
                .spawn(move || keep_time(began, schedule, &sender))
                .map_err(|error| Failure::Internal(format!("cannot start a thread: {error}")))?;
        }
        Mode::Closed { streams } => {
            drop(sender);
            for _ in 0..*streams {
                start(&mut tasks, number, Instant::now());
                number = number.wrapping_add(1);
            }
        }
    }
    loop {
        tokio::select! {
            Some(at) = arrivals.recv() => {
                start(&mut tasks, number, at);
                number = number.wrapping_add(1);
            }
            Some(done) = tasks.join_next() => {
                done.map_err(|error| Failure::Internal(error.to_string()))??;
                if matches!(plan.mode, Mode::Closed { .. }) && closes.elapsed().is_zero() {
                    start(&mut tasks, number, Instant::now());
                    number = number.wrapping_add(1);
                }
            }
            () = &mut cut, if !tasks.is_empty() && !end.is_cancelled() => end.cancel(),
            else => return Ok(()),
        }
    }
}

/// Tells each arrival at its time, until nobody listens.
fn keep_time(began: Instant, schedule: Arrivals, arrivals: &mpsc::Sender<Instant>) {
    for after in schedule {
        let at = began + after;
        // Parking may end early.
        while let Some(left) = at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::park_timeout(left);
        }
        if arrivals.blocking_send(at).is_err() {
            return;
        }
    }
}

/// CPU seconds that this process has used: user and system, all threads.
fn cpu_seconds() -> Result<f64, Failure> {
    /// What Linux counts in towards programs, whatever its own clock does.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")
        .map_err(|error| Failure::Internal(format!("cannot read /proc/self/stat: {error}")))?;
    // The second field is the program's name, which may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}
