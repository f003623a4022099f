//! Which replica gets a request.

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::bench::arrivals::{Draw, draw};

/// How a proxy, or a client that balances itself, chooses among replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Balance {
    /// Any, whatever it has to do
    Random,
    /// One after the other, as gRPC's `round_robin` does
    RoundRobin,
    /// Of two at random the one with fewer requests, as Envoy's `LEAST_REQUEST` does
    TwoChoices,
    /// The one with the fewest requests, the next of those in turn, as HAProxy's `leastconn` does
    Least,
}

impl Balance {
    /// The replica for request `number`, of those that have `requests` requests each.
    pub(super) fn choose(self, requests: &[u32], seed: u64, number: u32) -> usize {
        let count = requests.len().max(1);
        let any = |what| ((draw(seed, number, what) * count as f64) as usize).min(count - 1);
        let turn = number as usize % count;
        match self {
            Balance::Random => any(Draw::Replica),
            Balance::RoundRobin => turn,
            Balance::TwoChoices => {
                let (first, second) = (any(Draw::Replica), any(Draw::OtherReplica));
                if requests.get(second) < requests.get(first) { second } else { first }
            }
            Balance::Least => {
                let (before, from) = requests.split_at_checked(turn).unwrap_or((requests, &[]));
                let in_turn = from.iter().zip(turn..).chain(before.iter().zip(0..));
                in_turn.min_by_key(|(requests, _)| **requests).map_or(0, |(_, replica)| replica)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(balance: Balance, requests: &[u32]) -> Vec<f64> {
        let mut counts = vec![0u32; requests.len()];
        (0..30_000).for_each(|number| counts[balance.choose(requests, 5, number)] += 1);
        counts.into_iter().map(|count| f64::from(count) / 30_000.0).collect()
    }

    #[test]
    fn every_balancer_keeps_its_law() {
        let near = |shares: Vec<f64>, law: [f64; 3]| shares.iter().zip(law).all(|(a, b)| (a - b).abs() < 0.01);
        let third = 1.0 / 3.0;
        for idle in [Balance::Random, Balance::RoundRobin, Balance::TwoChoices, Balance::Least] {
            assert!(near(shares(idle, &[2, 2, 2]), [third; 3]), "{idle:?}");
        }
        assert!(near(shares(Balance::Random, &[9, 0, 5]), [third; 3]));
        assert!(near(shares(Balance::RoundRobin, &[9, 0, 5]), [third; 3]));
        // The fullest only where it was drawn twice, the emptiest wherever it was drawn.
        assert!(near(shares(Balance::TwoChoices, &[9, 0, 5]), [1.0 / 9.0, 5.0 / 9.0, 3.0 / 9.0]));
        assert!(near(shares(Balance::Least, &[9, 0, 5]), [0.0, 1.0, 0.0]));
        assert!(near(shares(Balance::Least, &[9, 4, 4]), [0.0, 2.0 / 3.0, 1.0 / 3.0]), "the next in turn");
    }
}
