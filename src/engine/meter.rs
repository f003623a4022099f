//! What the engine counts for whoever exports it: handles of a shard, and gauges of all models, read when they are asked for.

use std::time::Duration;

use metrics::{Counter, Histogram};

use super::catalogue::{Catalogue, State};
use crate::metric;

/// Handles of one shard, taken once: looking one up by its labels costs as much as a step of a small model.
pub(super) struct Meter {
    steps: Histogram,
    images: Counter,
    values: Counter,
    slices: Histogram,
    scored: Counter,
    sampled_images: Counter,
    scored_images: Counter,
}

impl Meter {
    /// Of a shard of `model`; shards share their model's metrics.
    pub(super) fn new(model: &str) -> Self {
        let label = || [("model", model.to_owned())];
        let finished = |work| metrics::counter!(metric::FINISHED.name, "model" => model.to_owned(), "work" => work);
        Self {
            steps: metrics::histogram!(metric::STEP_SECONDS.name, &label()),
            images: metrics::counter!(metric::STEPPED.name, &label()),
            values: metrics::counter!(metric::VALUES.name, &label()),
            slices: metrics::histogram!(metric::SCORE_SECONDS.name, &label()),
            scored: metrics::counter!(metric::SCORED.name, &label()),
            sampled_images: finished("sample"),
            scored_images: finished("score"),
        }
    }

    /// A step of `images` images took `took` and decided `values` values.
    pub(super) fn stepped(&self, took: Duration, images: u32, values: u32) {
        self.steps.record(took);
        self.images.increment(images.into());
        self.values.increment(values.into());
    }

    /// An image was drawn to its end.
    pub(super) fn image_sampled(&self) {
        self.sampled_images.increment(1);
    }

    /// An image was scored.
    pub(super) fn image_scored(&self) {
        self.scored_images.increment(1);
    }

    /// A slice of scoring took `took` for `values` values.
    pub(super) fn scored(&self, took: Duration, values: u32) {
        self.slices.record(took);
        self.scored.increment(values.into());
    }
}

/// Sets the gauges of every model of `catalogue` to what they are now.
pub fn observe(catalogue: &Catalogue) {
    for (name, state) in catalogue.list() {
        let set = |metric: metric::Metric, value: f64| {
            metrics::gauge!(metric.name, "model" => name.clone()).set(value);
        };
        let State::Serving { handle, .. } = state else {
            set(metric::READY, 0.0);
            continue;
        };
        let load = handle.load();
        set(metric::READY, f64::from(u8::from(!catalogue.is_draining())));
        set(metric::SLOTS, load.slots.into());
        set(metric::RUNNING, load.running.into());
        set(metric::QUEUED, load.queued.into());
        set(metric::SCORING, load.scoring.into());
        set(metric::PROGRESS_AGE, load.since_progress.unwrap_or_default().as_secs_f64());
    }
}
