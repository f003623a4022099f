//! `pixeld bench compare`: whether two sets of measurements differ by more than chance.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::record::{self, Key, Record};
use crate::cli::failure::Failure;
use crate::cli::output;
use crate::noise;

/// Resamples of a bootstrap.
const RESAMPLES: u32 = 10_000;
/// Of all bootstraps: the same files give the same answer.
const SEED: u64 = 1;
/// With fewer repeats the interval is too narrow: of two equal sets of three, one pair in ten would seem to differ.
const ENOUGH_REPEATS: usize = 5;
/// Seconds of a run, likewise.
const ENOUGH_SECONDS: usize = 10;

const AFTER_HELP: &str = "\
Each file holds what `pixeld bench load --json` or `pixeld bench step` printed, any number of lines. Lines that measured
the same are repeats; endpoint and seed may differ. If the files differ in one parameter throughout (two rates, two
backends), that is what is compared, and it is named.

For each figure: the median of A, the median of B, their ratio B/A and its 95 % interval, from a bootstrap over the
repeats. If there is one run on each side, the interval of images/s and values/s comes from the seconds of the runs
instead, and speaks of these two runs only: what changes from run to run is not in it. A difference is beyond noise if the
interval leaves out 1; of fewer than 5 repeats or 10 seconds a side that is not said. One figure in twenty is beyond noise
when nothing has changed.

Examples:
  pixeld bench compare before.json after.json
  pixeld bench compare --json native.json torch.json";

/// Flags of `pixeld bench compare`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Flags {
    /// Measurements to compare with
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// Measurements to compare
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// One JSON object a line, one for each figure
    #[arg(long)]
    json: bool,
}

/// What an interval was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Over {
    Repeats,
    Seconds,
}

/// One figure of one measurement, on both sides.
#[derive(Clone, Debug, Serialize)]
struct Comparison {
    figure: String,
    a: f64,
    b: f64,
    ratio: Option<f64>,
    /// Of the ratio, at 95 %.
    interval: Option<[f64; 2]>,
    over: Option<Over>,
    /// `None` if there is too little to say.
    beyond_noise: Option<bool>,
}

#[derive(Serialize)]
struct Line<'a> {
    measurement: &'a Key,
    differing: &'a BTreeMap<String, [String; 2]>,
    repeats: [usize; 2],
    #[serde(flatten)]
    comparison: &'a Comparison,
}

type Groups = BTreeMap<Key, Vec<Record>>;

impl Flags {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (mut a, mut b) = (read(&self.a)?, read(&self.b)?);
        let differing = set_apart(&mut a, &mut b);
        let mut compared = 0;
        for (key, a) in &a {
            let Some(b) = b.get(key) else { continue };
            compared += 1;
            let (comparisons, repeats) = (compare(a, b), [a.len(), b.len()]);
            if self.json {
                for comparison in &comparisons {
                    output::json(&Line { measurement: key, differing: &differing, repeats, comparison })?;
                }
            } else {
                tell(key, &differing, repeats, &comparisons)?;
            }
        }
        let (only_a, only_b) = (a.len() - compared, b.len() - compared);
        if compared == 0 {
            let (a, b) = (self.a.display(), self.b.display());
            return Err(Failure::Usage(format!("{a} and {b} measured nothing in common")));
        }
        if only_a + only_b > 0 && !self.json {
            output::line(&format!(
                "\nnot compared: {only_a} measurements of A and {only_b} of B that the other lacks"
            ))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Groups, Failure> {
    let mut groups = Groups::new();
    for record in record::read(path)? {
        groups.entry(record.key()).or_default().push(record);
    }
    Ok(groups)
}

/// Takes the parameters out of the keys that have one value throughout A and another throughout B: those are what the user
/// wants to see the effect of.
fn set_apart(a: &mut Groups, b: &mut Groups) -> BTreeMap<String, [String; 2]> {
    let names: BTreeSet<String> = a.keys().chain(b.keys()).flat_map(|key| key.keys().cloned()).collect();
    let value = |groups: &Groups, name: &str| {
        let values: BTreeSet<_> = groups.keys().map(|key| key.get(name).map_or("none", String::as_str)).collect();
        values.first().filter(|_| values.len() == 1).map(|value| (*value).to_owned())
    };
    let mut differing = BTreeMap::new();
    for name in names.into_iter().filter(|name| name != "kind") {
        if let (Some(in_a), Some(in_b)) = (value(a, &name), value(b, &name))
            && in_a != in_b
        {
            differing.insert(name, [in_a, in_b]);
        }
    }
    let strip = |groups: &mut Groups| {
        let stripped = std::mem::take(groups).into_iter().map(|(mut key, records)| {
            key.retain(|name, _| !differing.contains_key(name));
            (key, records)
        });
        *groups = stripped.collect();
    };
    strip(a);
    strip(b);
    differing
}

/// Every figure that all the records have.
fn compare(a: &[Record], b: &[Record]) -> Vec<Comparison> {
    let figures = |records: &[Record]| records.iter().map(Record::figures).collect::<Vec<_>>();
    let (in_a, in_b) = (figures(a), figures(b));
    let of = |name: &str, side: &[BTreeMap<String, f64>]| {
        side.iter().map(|figures| figures.get(name).copied()).collect::<Option<Vec<f64>>>()
    };
    let names = in_a.first().into_iter().flat_map(BTreeMap::keys);
    let both = names.filter_map(|name| Some((name, of(name, &in_a)?, of(name, &in_b)?)));
    let compared = both.map(|(name, x, y)| {
        let (over, interval, enough) = match (a, b) {
            ([a], [b]) => match (a.per_second(name), b.per_second(name)) {
                (Some(x), Some(y)) => {
                    let [x, y] = [x, y].map(|side| side.iter().map(|&count| count as f64).collect::<Vec<_>>());
                    let enough = x.len().min(y.len()) >= ENOUGH_SECONDS;
                    (Some(Over::Seconds), bootstrap(&x, &y, mean), enough)
                }
                _ => (None, None, false),
            },
            ([_, _, ..], [_, _, ..]) => {
                let enough = x.len().min(y.len()) >= ENOUGH_REPEATS;
                (Some(Over::Repeats), bootstrap(&x, &y, median), enough)
            }
            _ => (None, None, false),
        };
        let (a, b) = (median(&mut x.clone()), median(&mut y.clone()));
        let beyond_noise = interval.filter(|_| enough).map(|[low, high]| low > 1.0 || high < 1.0);
        let over = over.filter(|_| interval.is_some());
        let ratio = Some(b / a).filter(|ratio| ratio.is_finite());
        Comparison { figure: name.clone(), a, b, ratio, interval, over, beyond_noise }
    });
    compared.collect()
}

fn mean(sample: &mut [f64]) -> f64 {
    sample.iter().sum::<f64>() / sample.len() as f64
}

fn median(sample: &mut [f64]) -> f64 {
    sample.sort_unstable_by(f64::total_cmp);
    let at = |index: usize| sample.get(index).copied().unwrap_or(f64::NAN);
    (at(sample.len().saturating_sub(1) / 2) + at(sample.len() / 2)) / 2.0
}

/// The 95 % percentile interval of the ratio of `statistic` of `b` to that of `a`, both drawn again with replacement. None
/// if there is nothing to draw from, or a ratio has no value.
fn bootstrap(a: &[f64], b: &[f64], statistic: fn(&mut [f64]) -> f64) -> Option<[f64; 2]> {
    // The sides must not be drawn in step, so each has its own key.
    let draw = |side: &[f64], key: u64, resample: u32| {
        let index = |k: u32| (noise::uniform(key, resample, k) * side.len() as f64) as usize;
        let mut drawn: Vec<f64> = (0..side.len() as u32).filter_map(|k| side.get(index(k)).copied()).collect();
        statistic(&mut drawn)
    };
    let mut ratios: Vec<f64> =
        (0..RESAMPLES).map(|resample| draw(b, SEED + 1, resample) / draw(a, SEED, resample)).collect();
    if ratios.iter().any(|ratio| !ratio.is_finite()) {
        return None;
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let tail = RESAMPLES as usize / 40;
    Some([*ratios.get(tail)?, *ratios.get(ratios.len().checked_sub(tail + 1)?)?])
}

fn tell(
    key: &Key,
    differing: &BTreeMap<String, [String; 2]>,
    repeats: [usize; 2],
    comparisons: &[Comparison],
) -> Result<(), Failure> {
    let key: Vec<_> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
    output::line(&format!("\n{}", key.join(" ")))?;
    for (name, [a, b]) in differing {
        output::line(&format!("differing: {name} is {a} in A and {b} in B"))?;
    }
    let [a, b] = repeats;
    let over = match (a, b) {
        (1, 1) => "one run each: intervals over the seconds of these runs, where there are any",
        (1, _) | (_, 1) => "one run alone on a side has no interval",
        _ => "intervals over the repeats",
    };
    output::line(&format!("{a} runs in A, {b} in B; {over}"))?;
    let line = |cells: [&str; 6]| {
        let [figure, a, b, ratio, interval, verdict] = cells;
        let text = format!("{figure:<22} {a:>12} {b:>12} {ratio:>7} {interval:>16}  {verdict}");
        output::line(text.trim_end())
    };
    line(["figure", "A", "B", "B/A", "95 % of B/A", ""])?;
    for Comparison { figure, a, b, ratio, interval, beyond_noise, .. } in comparisons {
        let [a, b] = [a, b].map(|value| if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.3}") });
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
        let verdict = match (interval, beyond_noise) {
            (None, _) => "",
            (Some(_), None) => "too few to tell",
            (Some(_), Some(true)) => "beyond noise",
            (Some(_), Some(false)) => "within noise",
        };
        let interval = interval.map_or_else(|| "-".to_owned(), |[low, high]| format!("{low:.3} .. {high:.3}"));
        line([figure, &a, &b, &ratio, &interval, verdict])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(backend: &str, batch: u32, images_per_s: f64) -> Record {
        let line = serde_json::json!({
            "kind": "step", "model": "m", "backend": backend, "precision": "f32", "threads": 1, "batch": batch,
            "repeat": 0, "steps": 10, "step_us": {"mean": 1.0, "median": 1000.0 / images_per_s, "min": 1.0, "max": 9.0},
            "images_per_s": images_per_s, "floor_us": null, "eta": null,
        });
        serde_json::from_value(line).unwrap()
    }

    fn groups(records: Vec<Record>) -> Groups {
        let mut groups = Groups::new();
        records.into_iter().for_each(|record| groups.entry(record.key()).or_default().push(record));
        groups
    }

    /// Repeats around a centre, without any pattern.
    fn repeats(count: u32, centre: f64, key: u64) -> Vec<f64> {
        (0..count).map(|k| centre * (0.95 + 0.1 * noise::uniform(key, 0, k))).collect()
    }

    #[test]
    fn equal_sets_are_within_noise_and_shifted_ones_beyond_it() {
        let wrong = (0..30u64).filter(|trial| {
            let (a, b) = (repeats(8, 50.0, 2 * trial), repeats(8, 50.0, 2 * trial + 1));
            let [low, high] = bootstrap(&a, &b, median).unwrap();
            low > 1.0 || high < 1.0
        });
        let wrong = wrong.count();
        assert!(wrong <= 4, "{wrong} of 30 pairs of equal sets seem to differ");
        let (a, b) = (repeats(8, 50.0, 1), repeats(8, 60.0, 2));
        let [low, high] = bootstrap(&a, &b, median).unwrap();
        assert!(low > 1.1 && high < 1.3, "{low} {high}");
    }

    #[test]
    fn an_interval_is_the_same_every_time_and_about_the_true_ratio() {
        let (a, b) = (repeats(10, 5.0, 3), repeats(10, 10.0, 4));
        let first = bootstrap(&a, &b, mean).unwrap();
        assert_eq!(bootstrap(&a, &b, mean), Some(first));
        assert!(first[0] < 2.0 && 2.0 < first[1], "{first:?}");
        // Standard error of a mean of ten, of each side: 0.9 %. So 95 % are 2 * 1.96 * 0.9 % * sqrt(2) wide.
        assert!((first[1] - first[0] - 0.1).abs() < 0.04, "{first:?}");
    }

    #[test]
    fn sides_are_drawn_apart() {
        let sample = [1.0, 2.0, 3.0, 4.0, 5.0];
        let [low, high] = bootstrap(&sample, &sample, mean).unwrap();
        assert!(low < 0.8 && high > 1.25, "{low} {high}");
    }

    #[test]
    fn what_cannot_be_divided_has_no_interval() {
        assert_eq!(bootstrap(&[0.0, 1.0], &[1.0, 2.0], median), None);
        assert_eq!(bootstrap(&[], &[], mean), None);
    }

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn a_parameter_that_tells_the_files_apart_is_what_is_compared() {
        let mut a = groups(vec![step("torch", 1, 5.0), step("torch", 4, 5.0), step("torch", 4, 6.0)]);
        let mut b = groups(vec![step("native", 1, 9.0), step("native", 4, 9.0), step("native", 16, 9.0)]);
        let differing = set_apart(&mut a, &mut b);
        assert_eq!(differing, BTreeMap::from([("backend".to_owned(), ["torch".to_owned(), "native".to_owned()])]));
        let common: Vec<_> =
            a.iter().filter(|(key, _)| b.contains_key(*key)).map(|(key, a)| (&key["batch"], a.len())).collect();
        assert_eq!(common, [(&"1".to_owned(), 1), (&"4".to_owned(), 2)]);
    }

    #[test]
    fn repeats_give_intervals_and_enough_of_them_a_verdict() {
        let side = |count: u32, centre: f64, key: u64| -> Vec<Record> {
            repeats(count, centre, key).into_iter().map(|rate| step("torch", 1, rate)).collect()
        };
        let find = |comparisons: Vec<Comparison>, name: &str| {
            comparisons.into_iter().find(|comparison| comparison.figure == name).unwrap()
        };
        let enough = find(compare(&side(5, 50.0, 1), &side(5, 100.0, 2)), "images_per_s");
        assert_eq!((enough.over, enough.beyond_noise), (Some(Over::Repeats), Some(true)));
        assert!((enough.ratio.unwrap() - 2.0).abs() < 0.2);
        let few = find(compare(&side(4, 50.0, 1), &side(5, 100.0, 2)), "step_us.median");
        assert!(few.interval.is_some() && few.beyond_noise.is_none());
        let one = find(compare(&side(1, 50.0, 1), &side(5, 100.0, 2)), "images_per_s");
        assert!(one.interval.is_none() && one.beyond_noise.is_none());
    }

    #[test]
    fn one_run_each_is_compared_second_by_second() {
        let load = |images: &[u64]| -> Record {
            let line = serde_json::json!({
                "kind": "load", "version": "0", "revision": "r", "parameters": {}, "outcomes": {},
                "figures": {"images_per_s": images.iter().sum::<u64>() as f64 / images.len() as f64, "image_us": {"p50": 5}},
                "per_second": {"images": images, "values": []},
            });
            serde_json::from_value(line).unwrap()
        };
        let slow = load(&[9, 10, 11, 10, 9, 10, 11, 12, 8, 10]);
        let fast = load(&[13, 14, 15, 14, 13, 14, 15, 16, 12, 14]);
        let found = compare(std::slice::from_ref(&slow), std::slice::from_ref(&fast));
        let [image, images] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((image.interval, image.beyond_noise), (None, None), "there are no seconds of it");
        assert_eq!((images.over, images.beyond_noise), (Some(Over::Seconds), Some(true)));
        assert!((images.ratio.unwrap() - 1.4).abs() < 1e-9);
        let short = compare(&[load(&[9, 10])], &[load(&[19, 20])]).remove(1);
        assert!(short.interval.is_some() && short.beyond_noise.is_none());
    }
}
