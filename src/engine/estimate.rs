//! How long things will take, from what they took lately: when to come back, and which deadlines cannot be met.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::core::SCORE_IMAGES;
use super::gauges::Gauges;
use super::shared::{Kind, Places, Shared};
use crate::image::Rank;
use crate::job::Class;

/// What is added to the estimate of a request that has to wait, as a share of it. Under a lasting overload the queue fills up
/// to the longest wait that is let in; were that all the time there is, every image would be late by the error of the estimate.
const MARGIN: f64 = 0.25;

impl Shared {
    pub(super) fn places(&self, kind: Kind) -> &Places {
        match kind {
            Kind::Sampling => &self.sampling,
            Kind::Scoring => &self.scoring,
        }
    }

    /// What `missing` places take to come free at the latest pace: every slot of every shard gives one back after as many
    /// steps as an image has; each shard's scoring gives one back for every image's worth of values. `None`: nothing has been
    /// measured.
    pub(super) fn until_free(&self, kind: Kind, missing: u32) -> Option<Duration> {
        let (pace, together) = match kind {
            Kind::Sampling => {
                (self.mean(Gauges::step).as_secs_f64() * self.steps(0), f64::from(self.spec.slots.max(1)))
            }
            Kind::Scoring => (self.mean(Gauges::scored_value).as_secs_f64() * self.values(), self.shard_count()),
        };
        duration(pace * f64::from(missing) / together)
    }

    /// What `images` more images of `class`, of which `known` values are there, take until the last of them is done. `None`:
    /// nothing has been measured.
    ///
    /// Where they need not wait, that is what they take at the best pace there ever was, which no deadline is refused for that
    /// could be met. Where they wait, the latest pace counts, and a margin.
    pub(super) fn until_done(&self, kind: Kind, images: u32, class: Class, known: Rank) -> Option<Duration> {
        let outstanding: u32 = self.shards.iter().map(|shard| shard.outstanding(kind).load(Relaxed)).sum();
        // Work that can wait is passed by.
        let ahead = match class {
            Class::Interactive => outstanding.saturating_sub(self.places(kind).taken_by_batch()),
            Class::Batch => outstanding,
        };
        let together = match kind {
            Kind::Sampling => self.spec.slots,
            Kind::Scoring => SCORE_IMAGES.saturating_mul(self.shards.len() as u32),
        };
        let waiting = f64::from(ahead.saturating_add(images).saturating_sub(together));
        let (best, lately, each, own) = match kind {
            Kind::Sampling => {
                let rounds = waiting / f64::from(together.max(1));
                (self.mean(Gauges::shortest_step), self.mean(Gauges::step), rounds * self.steps(0), self.steps(known))
            }
            // Values are measured one by one here, so images side by side take their sum.
            Kind::Scoring => {
                let (best, lately) = (self.mean(Gauges::shortest_scored_value), self.mean(Gauges::scored_value));
                let of_a_shard = |images: f64| images / self.shard_count() * self.values();
                (best, lately, of_a_shard(waiting), of_a_shard(f64::from(images)).max(self.values()))
            }
        };
        let seconds = match waiting > 0.0 {
            true => lately.as_secs_f64() * (each + own) * (1.0 + MARGIN),
            false => best.as_secs_f64() * own,
        };
        duration(seconds)
    }

    /// Steps of an image of which `known` values are there.
    fn steps(&self, known: Rank) -> f64 {
        let rest = self.spec.shape.values().saturating_sub(known);
        f64::from(rest.div_ceil(self.spec.values_per_step().max(1)))
    }

    fn values(&self) -> f64 {
        f64::from(self.spec.shape.values())
    }

    fn shard_count(&self) -> f64 {
        self.shards.len().max(1) as f64
    }
}

/// No estimate if it is zero; more than a duration holds is as good as for ever.
fn duration(seconds: f64) -> Option<Duration> {
    (seconds > 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}
