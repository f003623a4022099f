//! When requests arrive: a function of the law, the rate and the seed, and of nothing that happens during the run.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::noise;

/// How arrivals are spread in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Law {
    /// Equal intervals
    Constant,
    /// Independent of each other, as many users are
    Poisson,
    /// Groups at once, in equal intervals
    Burst,
}

/// What a number is drawn for; it is the rank in the noise, so that draws never share one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Draw {
    Interval,
    Role,
    Point,
    Class,
    Replica,
    OtherReplica,
}

/// The number in (0, 1) that decides `what` for request `number`.
pub(super) fn draw(seed: u64, number: u32, what: Draw) -> f64 {
    noise::uniform(seed, number, what as u32)
}

/// Arrival times, counted from the start of the run, in order.
#[derive(Clone, Debug)]
pub(super) struct Arrivals {
    law: Law,
    /// Mean seconds between two requests.
    interval: f64,
    burst_size: u32,
    seed: u64,
    until: Duration,
    number: u32,
    /// The last arrival of a Poisson process, in seconds.
    clock: f64,
}

impl Arrivals {
    /// `rate` requests a second on average; a burst is `burst_size` of them.
    pub(super) fn new(law: Law, rate: f64, burst_size: u32, seed: u64, until: Duration) -> Self {
        Self { law, interval: 1.0 / rate, burst_size, seed, until, number: 0, clock: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // Products where that is possible: a sum of intervals would drift.
        let seconds = match self.law {
            Law::Constant => f64::from(self.number) * self.interval,
            Law::Poisson => {
                self.clock -= draw(self.seed, self.number, Draw::Interval).ln() * self.interval;
                self.clock
            }
            Law::Burst => f64::from(self.number - self.number % self.burst_size) * self.interval,
        };
        self.number = self.number.checked_add(1)?;
        Duration::try_from_secs_f64(seconds).ok().filter(|after| *after < self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn arrivals(law: Law, seed: u64) -> Vec<f64> {
        Arrivals::new(law, 5.0, 4, seed, HOUR).map(|after| after.as_secs_f64()).collect()
    }

    #[test]
    fn every_law_keeps_the_mean_rate() {
        assert_eq!(arrivals(Law::Constant, 1).len(), 18_000);
        assert_eq!(arrivals(Law::Burst, 1).len(), 18_000);
        // Three standard deviations of a Poisson count are 402.
        let count = arrivals(Law::Poisson, 1).len();
        assert!(count.abs_diff(18_000) < 402, "{count}");
    }

    #[test]
    fn poisson_intervals_are_exponential() {
        let times = arrivals(Law::Poisson, 3);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap > 0.0));
        for mean_multiple in [0.1, 1.0, 3.0f64] {
            let longer = gaps.iter().filter(|gap| **gap > 0.2 * mean_multiple).count() as f64 / gaps.len() as f64;
            assert!((longer - (-mean_multiple).exp()).abs() < 0.012, "{mean_multiple}: {longer}");
        }
    }

    #[test]
    fn constant_arrivals_do_not_drift() {
        let times = arrivals(Law::Constant, 1);
        assert!(times.iter().zip(0..).all(|(at, k)| (at - f64::from(k) * 0.2).abs() < 1e-8));
    }

    #[test]
    fn a_burst_is_a_group_at_once() {
        let times = arrivals(Law::Burst, 1);
        for (k, group) in times.chunks(4).enumerate() {
            assert!(group.iter().all(|at| (at - k as f64 * 0.8).abs() < 1e-8), "{k}: {group:?}");
        }
    }

    #[test]
    fn the_seed_decides_the_schedule() {
        assert_eq!(arrivals(Law::Poisson, 1), arrivals(Law::Poisson, 1));
        assert_ne!(arrivals(Law::Poisson, 1), arrivals(Law::Poisson, 2));
    }

    #[test]
    fn no_two_draws_share_a_number() {
        let mut all: Vec<u64> =
            [Draw::Interval, Draw::Role, Draw::Point, Draw::Class, Draw::Replica, Draw::OtherReplica]
                .into_iter()
                .flat_map(|what| (0..3).map(move |number| draw(7, number, what).to_bits()))
                .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 18);
    }
}
