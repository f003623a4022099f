//! One line of a benchmark's output, written by the commands that measure and read by `pixeld bench compare` and `capacity`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cli::failure::Failure;
use crate::cli::input;

/// Bytes of measurements read from one file: those of weeks.
const MAX_RECORDS: u64 = 1 << 30;

/// A measurement of either kind.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Record {
    Load(Load),
    Step(Step),
}

/// What `pixeld bench load` measured. Parameters and figures are open, so that a file of another version stays readable.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Load {
    /// Of the client.
    pub(super) version: String,
    pub(super) revision: String,
    /// Everything that decides what was asked of the daemon.
    pub(super) parameters: Map<String, Value>,
    /// What became of the streams.
    pub(super) outcomes: Value,
    pub(super) figures: Value,
    pub(super) per_second: PerSecond,
}

/// What arrived in each whole second of the measurement.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct PerSecond {
    pub(super) images: Vec<u64>,
    pub(super) values: Vec<u64>,
}

/// What `pixeld bench step` measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Step {
    pub(super) model: String,
    pub(super) backend: String,
    pub(super) precision: String,
    pub(super) threads: u32,
    pub(super) batch: u32,
    pub(super) repeat: u32,
    pub(super) steps: u64,
    pub(super) step_us: StepTime,
    pub(super) images_per_s: f64,
    /// Of one image.
    pub(super) multiply_adds: Option<f64>,
    pub(super) floor_us: Option<f64>,
    pub(super) eta: Option<f64>,
}

/// Microseconds of one step.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct StepTime {
    pub(super) mean: f64,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// What was measured, field by field; measurements of the same are repeats of each other.
pub(super) type Key = BTreeMap<String, String>;

/// Parameters of a load that repeats may differ in.
const NOT_IN_KEY: [&str; 2] = ["endpoint", "seed"];

impl Record {
    pub(super) fn key(&self) -> Key {
        let fields: Vec<(&str, Value)> = match self {
            Record::Load(load) => {
                let kept = load.parameters.iter().filter(|(name, _)| !NOT_IN_KEY.contains(&name.as_str()));
                let kept = kept.map(|(name, value)| (name.as_str(), value.clone()));
                kept.chain([("kind", "load".into())]).collect()
            }
            Record::Step(Step { model, backend, precision, threads, batch, .. }) => vec![
                ("kind", "step".into()),
                ("model", model.as_str().into()),
                ("backend", backend.as_str().into()),
                ("precision", precision.as_str().into()),
                ("threads", (*threads).into()),
                ("batch", (*batch).into()),
            ],
        };
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let set = fields.into_iter().filter(|(_, value)| !value.is_null());
        set.map(|(name, value)| (name.to_owned(), text(value))).collect()
    }

    /// Every number that was measured, under its path.
    pub(super) fn figures(&self) -> BTreeMap<String, f64> {
        let mut figures = BTreeMap::new();
        match self {
            Record::Load(load) => flatten("", &load.figures, &mut figures),
            Record::Step(Step { step_us, images_per_s, floor_us, eta, .. }) => {
                let StepTime { mean, median, min, max } = *step_us;
                let all =
                    [("step_us.mean", mean), ("step_us.median", median), ("step_us.min", min), ("step_us.max", max)];
                let all = all.into_iter().chain([("images_per_s", *images_per_s)]);
                let all = all.chain(floor_us.map(|us| ("floor_us", us))).chain(eta.map(|eta| ("eta", eta)));
                figures.extend(all.map(|(name, figure)| (name.to_owned(), figure)));
            }
        }
        figures
    }

    /// The figure second by second, where that was kept.
    pub(super) fn per_second(&self, figure: &str) -> Option<&[u64]> {
        match (self, figure) {
            (Record::Load(load), "images_per_s") => Some(&load.per_second.images),
            (Record::Load(load), "values_per_s") => Some(&load.per_second.values),
            _ => None,
        }
    }
}

/// The measurements in a file.
pub(super) fn read(path: &Path) -> Result<Vec<Record>, Failure> {
    let refuse = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
    let text = input::bytes(path, MAX_RECORDS).map_err(|error| refuse(error.to_string()))?;
    let text = text.ok_or_else(|| refuse(format!("must be at most {MAX_RECORDS} bytes long")))?;
    let records = serde_json::Deserializer::from_slice(&text).into_iter::<Record>();
    let records = records.collect::<Result<_, _>>();
    records.map_err(|error| refuse(format!("must hold lines of `pixeld bench --json`: {error}")))
}

fn flatten(path: &str, value: &Value, figures: &mut BTreeMap<String, f64>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, figures);
            }
        }
        value => figures.extend(value.as_f64().map(|figure| (path.to_owned(), figure))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_read_as_it_is_written() {
        let line = r#"{"kind":"step","model":"it-small","backend":"native","precision":"f32","threads":1,"batch":4,
            "repeat":0,"steps":512,"step_us":{"mean":3.75,"median":3.5,"min":3.0,"max":9.0},"images_per_s":10.5,
            "multiply_adds":8e5,"floor_us":2.0,"eta":0.57}"#;
        let record: Record = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_value(&record).unwrap(), serde_json::from_str::<Value>(line).unwrap());
        assert_eq!(record.key().len(), 6);
        let figures = record.figures();
        assert_eq!((figures["step_us.median"], figures["eta"], figures.len()), (3.5, 0.57, 7));
    }

    #[test]
    fn loads_of_the_same_are_repeats_wherever_they_ran_and_from_whatever_seed() {
        let load = |parameters: Value| {
            let line = serde_json::json!({
                "kind": "load", "version": "0", "revision": "r", "parameters": parameters, "outcomes": {},
                "figures": {"image_us": {"p50": 7, "p99": 9}, "gap_us": null, "images_per_s": 2.5},
                "per_second": {"images": [2, 3], "values": [20, 30]},
            });
            serde_json::from_value::<Record>(line).unwrap()
        };
        let record = load(serde_json::json!({"rate": 2, "endpoint": "a", "seed": 1, "class": null}));
        assert_eq!(record.key(), load(serde_json::json!({"rate": 2, "seed": 2})).key());
        assert_ne!(record.key(), load(serde_json::json!({"rate": 3})).key());
        let figures = record.figures();
        assert_eq!((figures["image_us.p99"], figures["images_per_s"], figures.len()), (9.0, 2.5, 3));
        assert_eq!(record.per_second("images_per_s"), Some([2, 3].as_slice()));
    }
}
