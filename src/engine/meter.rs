//! What the engine counts for whoever exports it: handles of a shard, and gauges of all models, read when they are asked for.

use std::collections::BTreeSet;
use std::time::Duration;

use metrics::{Counter, Histogram};

use super::Handle;
use super::catalogue::{Catalogue, State};
use crate::job::Class;
use crate::metric;

/// Handles of one shard, taken once: looking one up by its labels costs as much as a step of a small model.
pub(super) struct Meter {
    between_values: Histogram,
    phases: [Histogram; 3],
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
            between_values: metrics::histogram!(metric::INTER_VALUE_SECONDS.name, &label()),
            phases: ["join", "network", "draw"].map(
                |phase| metrics::histogram!(metric::STEP_SECONDS.name, "model" => model.to_owned(), "phase" => phase),
            ),
            images: metrics::counter!(metric::STEPPED.name, &label()),
            values: metrics::counter!(metric::VALUES.name, &label()),
            slices: metrics::histogram!(metric::SCORE_SECONDS.name, &label()),
            scored: metrics::counter!(metric::SCORED.name, &label()),
            sampled_images: finished("sample"),
            scored_images: finished("score"),
        }
    }

    /// A step of `images` images decided `values` values, `pace` after the one before it; its `phases` took so long, in the order
    /// of their names.
    pub(super) fn stepped(&self, pace: Duration, phases: [Duration; 3], images: u32, values: u32) {
        self.between_values.record(pace);
        self.phases.iter().zip(phases).for_each(|(phase, took)| phase.record(took));
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

/// Sets the gauges of every model of `catalogue` to what they are now, and of those that `seen` has and that are gone to zero.
/// A gauge cannot be taken back.
pub fn observe(catalogue: &Catalogue, seen: &mut BTreeSet<String>) {
    let models = catalogue.list();
    let gone = seen.iter().filter(|name| !models.contains_key(*name)).cloned().collect::<Vec<_>>();
    seen.extend(models.keys().cloned());
    let all = models.into_iter().map(|(name, state)| (name, Some(state)));
    for (name, state) in all.chain(gone.into_iter().map(|name| (name, None))) {
        let set = |metric: metric::Metric, value: f64| {
            metrics::gauge!(metric.name, "model" => name.clone()).set(value);
        };
        let ready = matches!(state, Some(State::Serving { .. })) && !catalogue.is_draining();
        set(metric::READY, f64::from(u8::from(ready)));
        let load = state.as_ref().and_then(State::handle).map(Handle::load).unwrap_or_default();
        set(metric::SLOTS, load.slots.into());
        set(metric::RUNNING, load.running.into());
        let used = if load.slots > 0 { f64::from(load.running) / f64::from(load.slots) } else { 0.0 };
        set(metric::SLOTS_USED, used);
        let batch = load.queued_batch.min(load.queued);
        for (class, queued) in [(Class::Interactive, load.queued - batch), (Class::Batch, batch)] {
            metrics::gauge!(metric::QUEUED.name, "model" => name.clone(), "class" => class.name())
                .set(f64::from(queued));
        }
        set(metric::SCORING, load.scoring.into());
        let memory = state.as_ref().and_then(State::handle).map(Handle::footprint).unwrap_or_default();
        for (kind, bytes) in [("weights", memory.weights), ("slots", memory.slots), ("scoring", memory.scoring)] {
            metrics::gauge!(metric::DEVICE_MEMORY.name, "model" => name.clone(), "kind" => kind).set(bytes as f64);
        }
        set(metric::PROGRESS_AGE, load.since_progress.unwrap_or_default().as_secs_f64());
    }
}
