//! What a run has shown so far, in histograms and counts, so that its size does not grow with the run.
//!
//! Two windows in one: streams that *arrived* while it was open are counted and timed, to their end; values and images
//! that were *received* while it was open make the throughput, whichever stream they belong to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::Code;

use super::record::PerSecond;
use crate::cli::failure::Failure;

/// Longest time that is told apart, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// What a stream's reader does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    /// Reads everything as it comes.
    Reader,
    /// Stops for a while after `started`.
    Slow,
    /// Leaves when this share of its values has arrived.
    Canceller(f64),
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Completed,
    /// Not taken, for want of room or because the server is not there.
    Refused(Code),
    /// Ended by any other status.
    Failed(Code),
    /// Dropped by us, as its role demands.
    Cancelled,
    /// Still running at the end.
    Unfinished,
    /// Never sent, because too many streams were open.
    Unsent,
}

/// One image as its values arrived.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) values: u32,
    pub(super) first: Option<Instant>,
    pub(super) last: Option<Instant>,
}

/// A stream at its end.
#[derive(Debug)]
pub(super) struct Ended<'a> {
    pub(super) arrived: Instant,
    pub(super) role: Role,
    pub(super) ending: Ending,
    pub(super) at: Instant,
    pub(super) images: &'a [Seen],
    /// Values of a whole image; unknown before `started`.
    pub(super) image_values: Option<u32>,
}

/// Bounds on what counts as good.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slo {
    pub(super) first_value: Option<Duration>,
    pub(super) image: Option<Duration>,
}

/// Streams of one role. All the others add up to `scheduled`.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Counts {
    pub(super) scheduled: u64,
    pub(super) completed: u64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    pub(super) unfinished: u64,
    pub(super) unsent: u64,
}

impl Counts {
    fn add(&mut self, ending: Ending) {
        let count = match ending {
            Ending::Completed => &mut self.completed,
            Ending::Refused(_) => &mut self.refused,
            Ending::Failed(_) => &mut self.failed,
            Ending::Cancelled => &mut self.cancelled,
            Ending::Unfinished => &mut self.unfinished,
            Ending::Unsent => &mut self.unsent,
        };
        *count += 1;
        self.scheduled += 1;
    }
}

/// What became of the streams that arrived in the window.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Outcomes {
    pub(super) reader: Counts,
    pub(super) slow: Counts,
    pub(super) canceller: Counts,
    /// By the status that ended them; those that we cut have none.
    pub(super) status: BTreeMap<String, u64>,
    /// Measurements behind the figures, of readers only.
    pub(super) measured: Measured,
}

/// How many measurements there are of each time, and how many of them only say "at least".
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Measured {
    pub(super) first_values: u64,
    pub(super) first_values_at_least: u64,
    pub(super) images: u64,
    pub(super) images_at_least: u64,
    pub(super) gaps: u64,
    pub(super) gaps_at_least: u64,
}

/// Percentiles, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) p999: u64,
    pub(super) max: u64,
}

/// What the run measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// From the arrival of the request to the first value of each image.
    pub(super) first_value_us: Option<Spread>,
    /// Between messages with values of one image.
    pub(super) gap_us: Option<Spread>,
    /// From the arrival of the request to the last value of each image.
    pub(super) image_us: Option<Spread>,
    /// How late the client was to send.
    pub(super) send_lag_us: Option<Spread>,
    pub(super) images_per_s: f64,
    pub(super) values_per_s: f64,
    pub(super) messages_per_s: f64,
    pub(super) values_per_message: Option<f64>,
    pub(super) goodput_images_per_s: f64,
    pub(super) goodput_share: Option<f64>,
    /// With the daemon, if that is in this process.
    pub(super) client_cpu_s: f64,
}

/// Times, some of which only say "at least".
#[derive(Debug)]
pub(super) struct Times {
    histogram: Histogram<u64>,
    at_least: u64,
}

impl Times {
    pub(super) fn new() -> Result<Self, Failure> {
        let histogram =
            Histogram::new_with_bounds(1, LONGEST_US, 3).map_err(|error| Failure::Internal(error.to_string()))?;
        Ok(Self { histogram, at_least: 0 })
    }

    fn record(&mut self, from: Instant, to: Instant) {
        self.took(to.saturating_duration_since(from));
    }

    pub(super) fn took(&mut self, time: Duration) {
        self.histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    fn record_at_least(&mut self, from: Instant, to: Instant) {
        self.record(from, to);
        self.at_least += 1;
    }

    /// Microseconds.
    pub(super) fn mean(&self) -> f64 {
        self.histogram.mean()
    }

    pub(super) fn spread(&self) -> Option<Spread> {
        let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|quantile| self.histogram.value_at_quantile(quantile));
        let spread = Spread { p50, p90, p99, p999, max: self.histogram.max() };
        (!self.histogram.is_empty()).then_some(spread)
    }
}

#[derive(Debug)]
struct Sums {
    first_value: Times,
    gap: Times,
    whole_image: Times,
    lag: Times,
    outcomes: Outcomes,
    messages: u64,
    values: u64,
    images: u64,
    /// Images received in the window that had come in time.
    good_received: u64,
    /// Images that readers who arrived in the window were to get, and those of them that came in time.
    wanted: u64,
    good: u64,
    per_second: PerSecond,
}

impl Sums {
    /// Takes in the times of an image.
    fn image(&mut self, stream: &Ended<'_>, image: &Seen) {
        let Ended { arrived, at, image_values, .. } = *stream;
        let whole = image_values == Some(image.values);
        match image.first {
            Some(first) => self.first_value.record(arrived, first),
            None => self.first_value.record_at_least(arrived, at),
        }
        match image.last {
            Some(last) if whole => self.whole_image.record(arrived, last),
            Some(last) => {
                self.whole_image.record_at_least(arrived, at);
                self.gap.record_at_least(last, at);
            }
            None => self.whole_image.record_at_least(arrived, at),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tally {
    window: Range<Instant>,
    slo: Slo,
    sums: Mutex<Sums>,
}

impl Tally {
    pub(super) fn new(window: Range<Instant>, slo: Slo) -> Result<Self, Failure> {
        let seconds = window.end.duration_since(window.start).as_secs() as usize;
        let per_second = PerSecond { images: vec![0; seconds], values: vec![0; seconds] };
        let sums = Sums {
            first_value: Times::new()?,
            gap: Times::new()?,
            whole_image: Times::new()?,
            lag: Times::new()?,
            outcomes: Outcomes::default(),
            messages: 0,
            values: 0,
            images: 0,
            good_received: 0,
            wanted: 0,
            good: 0,
            per_second,
        };
        Ok(Self { window, slo, sums: Mutex::new(sums) })
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole second of the window that `now` is in; none past the last whole one.
    fn second(&self, now: Instant) -> usize {
        now.duration_since(self.window.start).as_secs() as usize
    }

    /// Whether times of this stream are measured.
    fn measures(&self, arrived: Instant, role: Role) -> bool {
        role == Role::Reader && self.window.contains(&arrived)
    }

    /// A request that arrived at `arrived` is sent now.
    pub(super) fn sent(&self, arrived: Instant, now: Instant) {
        if self.window.contains(&arrived) {
            self.sums().lag.record(arrived, now);
        }
    }

    /// A message came: for each image in it how many values, and when the values before them had come.
    pub(super) fn message(&self, arrived: Instant, role: Role, now: Instant, runs: &[(u32, Option<Instant>)]) {
        let mut sums = self.sums();
        if self.measures(arrived, role) {
            // Values that arrive together make one gap together; noughts between them would only hide the gaps.
            runs.iter().filter_map(|(_, before)| *before).for_each(|before| sums.gap.record(before, now));
        }
        if self.window.contains(&now) {
            let values: u64 = runs.iter().map(|(values, _)| u64::from(*values)).sum();
            sums.messages += 1;
            sums.values += values;
            if let Some(second) = sums.per_second.values.get_mut(self.second(now)) {
                *second += values;
            }
        }
    }

    /// A stream ended, one way or the other.
    pub(super) fn ended(&self, stream: &Ended<'_>) {
        let Ended { arrived, role, ending, at, images, .. } = *stream;
        let counts = role == Role::Reader && ending == Ending::Completed;
        let good = images.iter().filter(|image| counts && self.in_time(arrived, image)).count() as u64;
        let mut sums = self.sums();
        if ending == Ending::Completed && self.window.contains(&at) {
            sums.images += images.len() as u64;
            sums.good_received += good;
            if let Some(second) = sums.per_second.images.get_mut(self.second(at)) {
                *second += images.len() as u64;
            }
        }
        if !self.window.contains(&arrived) {
            return;
        }
        let counts = match role {
            Role::Reader => &mut sums.outcomes.reader,
            Role::Slow => &mut sums.outcomes.slow,
            Role::Canceller(_) => &mut sums.outcomes.canceller,
        };
        counts.add(ending);
        let code = match ending {
            Ending::Completed => Some(Code::Ok),
            Ending::Refused(code) | Ending::Failed(code) => Some(code),
            Ending::Cancelled | Ending::Unfinished | Ending::Unsent => None,
        };
        if let Some(code) = code {
            *sums.outcomes.status.entry(format!("{code:?}")).or_default() += 1;
        }
        if role != Role::Reader {
            return;
        }
        sums.wanted += images.len() as u64;
        sums.good += good;
        // A refusal is quick and no image; among the times it would make a full server look fast.
        if matches!(ending, Ending::Refused(_)) {
            return;
        }
        for image in images {
            sums.image(stream, image);
        }
    }

    fn in_time(&self, arrived: Instant, image: &Seen) -> bool {
        let within = |seen: Option<Instant>, bound: Option<Duration>| {
            seen.is_some_and(|seen| bound.is_none_or(|bound| seen.saturating_duration_since(arrived) <= bound))
        };
        within(image.first, self.slo.first_value) && within(image.last, self.slo.image)
    }

    /// Images received in the window so far, and the tail of the times to first value.
    pub(super) fn glance(&self) -> (u64, Option<u64>) {
        let sums = self.sums();
        (sums.images, sums.first_value.spread().map(|spread| spread.p99))
    }

    /// Everything, at the end.
    pub(super) fn finish(&self, client_cpu_s: f64) -> (Outcomes, Figures, PerSecond) {
        let sums = self.sums();
        let seconds = self.window.end.duration_since(self.window.start).as_secs_f64();
        let rate = |count: u64| count as f64 / seconds;
        let share = |part: u64, whole: u64| (whole > 0).then_some(part as f64 / whole as f64);
        let measured = Measured {
            first_values: sums.first_value.histogram.len(),
            first_values_at_least: sums.first_value.at_least,
            images: sums.whole_image.histogram.len(),
            images_at_least: sums.whole_image.at_least,
            gaps: sums.gap.histogram.len(),
            gaps_at_least: sums.gap.at_least,
        };
        let figures = Figures {
            first_value_us: sums.first_value.spread(),
            gap_us: sums.gap.spread(),
            image_us: sums.whole_image.spread(),
            send_lag_us: sums.lag.spread(),
            images_per_s: rate(sums.images),
            values_per_s: rate(sums.values),
            messages_per_s: rate(sums.messages),
            values_per_message: share(sums.values, sums.messages),
            goodput_images_per_s: rate(sums.good_received),
            goodput_share: share(sums.good, sums.wanted),
            client_cpu_s,
        };
        (Outcomes { measured, ..sums.outcomes.clone() }, figures, sums.per_second.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A window of 1.5 s that opens 10 s after the start of time; returns the start, too.
    fn tally(slo: Slo) -> (Tally, Instant) {
        let start = Instant::now();
        let opens = start + 10_000 * MS;
        (Tally::new(opens..opens + 1_500 * MS, slo).unwrap(), start)
    }

    fn ended(arrived: Instant, ending: Ending, after: Duration, image: Seen) -> (Instant, Ending, Instant, [Seen; 1]) {
        (arrived, ending, arrived + after, [image])
    }

    fn take(tally: &Tally, role: Role, (arrived, ending, at, images): (Instant, Ending, Instant, [Seen; 1])) {
        tally.ended(&Ended { arrived, role, ending, at, images: &images, image_values: Some(4) });
    }

    fn whole(arrived: Instant, first: Duration, last: Duration) -> Seen {
        Seen { values: 4, first: Some(arrived + first), last: Some(arrived + last) }
    }

    #[test]
    fn warm_up_is_in_no_figure_but_what_arrives_in_the_window_counts_as_throughput() {
        let (tally, start) = tally(Slo::default());
        let early = start + 9_900 * MS;
        tally.sent(early, early);
        tally.message(early, Role::Reader, early + 50 * MS, &[(3, None)]);
        tally.message(early, Role::Reader, early + 200 * MS, &[(1, Some(early + 50 * MS))]);
        let image = whole(early, 50 * MS, 200 * MS);
        take(&tally, Role::Reader, ended(early, Ending::Completed, 200 * MS, image));
        let (outcomes, figures, per_second) = tally.finish(0.0);
        assert_eq!(outcomes.reader.scheduled, 0);
        assert!(figures.first_value_us.is_none() && figures.gap_us.is_none() && figures.send_lag_us.is_none());
        assert_eq!((figures.images_per_s, figures.values_per_s), (1.0 / 1.5, 1.0 / 1.5));
        assert_eq!((per_second.images, per_second.values), (vec![1], vec![1]), "whole seconds only");
    }

    #[test]
    fn what_did_not_finish_is_in_the_times_as_long_as_it_lasted() {
        let (tally, start) = tally(Slo::default());
        let arrived = start + 10_000 * MS;
        for _ in 0..98 {
            let image = whole(arrived, 2 * MS, 4 * MS);
            take(&tally, Role::Reader, ended(arrived, Ending::Completed, 4 * MS, image));
        }
        take(&tally, Role::Reader, ended(arrived, Ending::Unsent, 900 * MS, Seen::default()));
        let part = Seen { values: 1, first: Some(arrived + 2 * MS), last: Some(arrived + 2 * MS) };
        take(&tally, Role::Reader, ended(arrived, Ending::Unfinished, 900 * MS, part));
        let (outcomes, figures, _) = tally.finish(0.0);
        let near = |us: u64, ms: u64| us.abs_diff(ms * 1000) <= ms;
        let image = figures.image_us.unwrap();
        assert!(near(image.p50, 4) && near(image.p99, 900), "{image:?}");
        assert!(near(figures.first_value_us.unwrap().max, 900));
        assert!(near(figures.gap_us.unwrap().max, 898), "the open gap");
        let Measured { images, images_at_least, first_values_at_least, gaps_at_least, .. } = outcomes.measured;
        assert_eq!((images, images_at_least, first_values_at_least, gaps_at_least), (100, 2, 1, 1));
        assert_eq!(figures.goodput_share, Some(0.98));
    }

    #[test]
    fn refusals_cost_goodput_and_make_no_time_shorter() {
        let (tally, start) = tally(Slo::default());
        let arrived = start + 10_000 * MS;
        let refused = Ending::Refused(Code::ResourceExhausted);
        take(&tally, Role::Reader, ended(arrived, refused, MS, Seen::default()));
        let image = whole(arrived, 2 * MS, 4 * MS);
        take(&tally, Role::Reader, ended(arrived, Ending::Completed, 4 * MS, image));
        let (outcomes, figures, _) = tally.finish(0.0);
        assert_eq!((figures.goodput_share, outcomes.measured.images), (Some(0.5), 1));
        assert_eq!(outcomes.status, BTreeMap::from([("Ok".to_owned(), 1), ("ResourceExhausted".to_owned(), 1)]));
        assert_eq!((outcomes.reader.scheduled, outcomes.reader.refused, outcomes.reader.completed), (2, 1, 1));
    }

    #[test]
    fn goodput_is_what_keeps_both_bounds() {
        let (tally, start) = tally(Slo { first_value: Some(10 * MS), image: Some(100 * MS) });
        let arrived = start + 10_000 * MS;
        for (first, last) in [(10, 100), (11, 100), (10, 101), (5, 50)] {
            let image = whole(arrived, first * MS, last * MS);
            take(&tally, Role::Reader, ended(arrived, Ending::Completed, 101 * MS, image));
        }
        // Not ours to blame on the server, so no part of the share.
        take(&tally, Role::Slow, ended(arrived, Ending::Completed, 900 * MS, whole(arrived, MS, 900 * MS)));
        take(&tally, Role::Canceller(0.5), ended(arrived, Ending::Cancelled, 9 * MS, Seen::default()));
        // Good, but received after the window: it is in the share, and in no rate.
        let last = arrived + 1_499 * MS;
        take(&tally, Role::Reader, ended(last, Ending::Completed, 10 * MS, whole(last, MS, 10 * MS)));
        take(&tally, Role::Reader, ended(last, Ending::Unsent, 10 * MS, Seen::default()));
        let (outcomes, figures, _) = tally.finish(0.0);
        assert_eq!((figures.goodput_share, figures.goodput_images_per_s), (Some(0.5), 2.0 / 1.5));
        assert_eq!((outcomes.slow.completed, outcomes.canceller.cancelled), (1, 1));
        assert_eq!(outcomes.measured.images, 6);
    }

    #[test]
    fn values_that_arrive_together_make_one_gap() {
        let (tally, start) = tally(Slo::default());
        let arrived = start + 10_000 * MS;
        tally.message(arrived, Role::Reader, arrived + MS, &[(1, None), (1, None)]);
        let runs = [(5, Some(arrived + MS)), (1, Some(arrived + MS))];
        tally.message(arrived, Role::Reader, arrived + 4 * MS, &runs);
        tally.message(arrived, Role::Slow, arrived + 500 * MS, &[(1, Some(arrived))]);
        let (outcomes, figures, _) = tally.finish(0.0);
        assert_eq!(outcomes.measured.gaps, 2);
        assert!(figures.gap_us.unwrap().p50.abs_diff(3000) <= 3);
        assert_eq!(figures.values_per_message, Some(3.0));
    }
}
