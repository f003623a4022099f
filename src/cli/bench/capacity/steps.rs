//! What a step takes: by how many images are in it, and how many shards of the machine step at the same time.

use std::collections::BTreeMap;
use std::time::Duration;

/// Microseconds of a step, by the images in it.
type ByImages = BTreeMap<u32, f64>;

/// Recorded step times. Between two that were recorded, times lie on the line between them; a step of fewer images than any that
/// was recorded takes as long as the smallest.
#[derive(Clone, Debug)]
pub(super) struct StepTimes {
    by_shards: BTreeMap<u32, ByImages>,
    /// Steps that an image takes.
    pub(super) of_an_image: u32,
}

impl StepTimes {
    /// From measurements (shards that stepped at once, images of each step, microseconds of a step in the mean); several of the
    /// same count with their mean. `None` if there are none.
    pub(super) fn new(measured: &[(u32, u32, f64)], of_an_image: u32) -> Option<Self> {
        let mut all: BTreeMap<u32, BTreeMap<u32, Vec<f64>>> = BTreeMap::new();
        for &(shards, images, micros) in measured {
            all.entry(shards).or_default().entry(images).or_default().push(micros);
        }
        let mean = |times: Vec<f64>| times.iter().sum::<f64>() / times.len() as f64;
        let by_images = |times: BTreeMap<u32, Vec<f64>>| times.into_iter().map(|(n, times)| (n, mean(times))).collect();
        let by_shards: BTreeMap<_, _> = all.into_iter().map(|(shards, times)| (shards, by_images(times))).collect();
        (!by_shards.is_empty()).then_some(Self { by_shards, of_an_image })
    }

    /// Whether everything was recorded that `shards` shards of a machine, each of `slots` slots, can come to.
    ///
    /// # Errors
    /// What has to be measured as well.
    pub(super) fn cover(&self, shards: u32, slots: u32) -> Result<(), String> {
        let most = self.by_shards.keys().next_back().copied().unwrap_or_default();
        if most < shards {
            return Err(format!("no step was timed beside as many as {shards} shards of a machine, at most {most}"));
        }
        for (shards, by_images) in &self.by_shards {
            let most = by_images.keys().next_back().copied().unwrap_or_default();
            if most < slots {
                let beside = if *shards == u32::MAX { String::new() } else { format!(" with {shards} shards") };
                return Err(format!("no step of as many as {slots} images was timed{beside}, at most {most}"));
            }
        }
        Ok(())
    }

    /// A step of `images` images while `shards` shards of the machine, this one among them, are stepping.
    pub(super) fn step(&self, shards: u32, images: u32) -> Duration {
        let micros = between(&self.by_shards, shards, |by_images| between(by_images, images, |micros| *micros));
        Duration::from_nanos((micros * 1e3).round() as u64)
    }
}

/// The value at `key`, on the line between its neighbours; beyond the first or the last key, theirs.
fn between<T>(known: &BTreeMap<u32, T>, key: u32, value: impl Fn(&T) -> f64) -> f64 {
    let below = known.range(..=key).next_back();
    let above = known.range(key..).next();
    match (below, above) {
        (Some((low, a)), Some((high, b))) if low < high => {
            let share = f64::from(key - low) / f64::from(high - low);
            value(a) * (1.0 - share) + value(b) * share
        }
        (Some((_, known)), _) | (None, Some((_, known))) => value(known),
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_between_those_recorded_and_repeats_count_with_their_mean() {
        let measured = [(1, 1, 90.0), (1, 1, 110.0), (1, 5, 300.0), (3, 1, 300.0), (3, 5, 700.0)];
        let times = StepTimes::new(&measured, 64).unwrap();
        let micros = |shards, images| times.step(shards, images).as_nanos() as f64 / 1e3;
        assert_eq!([micros(1, 1), micros(1, 2), micros(1, 5)], [100.0, 150.0, 300.0]);
        assert_eq!([micros(2, 1), micros(2, 3), micros(3, 5)], [200.0, 350.0, 700.0]);
        assert!(times.cover(3, 5).is_ok() && StepTimes::new(&[], 1).is_none());
    }

    #[test]
    fn what_was_not_recorded_is_named() {
        let times = StepTimes::new(&[(1, 4, 1.0), (2, 16, 1.0)], 64).unwrap();
        assert!(times.cover(3, 4).unwrap_err().contains("as many as 3 shards of a machine, at most 2"));
        assert!(times.cover(2, 16).unwrap_err().contains("as many as 16 images was timed with 1 shards, at most 4"));
    }
}
