//! How many images a shard should have in the making at once.

use crate::machine::Cache;
use crate::spec::{Device, ModelSpec};

/// Images of a cohort whose weights come from memory anyway: the more there are, the more share the reading of them. From
/// about here on the multiplications take as long, and more would only wait longer.
const MOST: u32 = 16;

/// The same on a GPU, whose caches hold no images to speak of. Not measured: by the figures of such machines a step of fewer takes
/// as long.
const MOST_ON_A_GPU: u32 = 64;

/// The part of the cache that is counted on. A step reads everything once and in the same order, which is the worst that can
/// happen to a cache that is too small, and others use it too. One image too few costs little; one too many, half of the pace.
const USABLE: u64 = 2;

/// Slots of each of `shards` shards of a model: as many as have their state in the cache beside the weights, since an image
/// whose state has to come from memory costs more than another in the step saves. `spec` says what both take.
#[must_use]
pub fn slots(spec: &ModelSpec, shards: u32, cache: Cache) -> u32 {
    if spec.execution.device != Device::Cpu {
        return MOST_ON_A_GPU;
    }
    let Some(room) = (cache.bytes / USABLE).checked_sub(spec.execution.weight_bytes) else { return MOST };
    let sharing = u64::from(shards.min(cache.cores).max(1));
    let each = spec.bytes_per_slot.saturating_mul(sharing);
    room.checked_div(each).map_or(MOST, |slots| slots.clamp(1, u64::from(MOST)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PixelModel;
    use crate::model::scripted::Scripted;
    use crate::spec::Execution;

    /// `usable`: bytes of the cache that are counted on.
    fn of(weights: u64, bytes_per_slot: u64, shards: u32, usable: u64) -> u32 {
        let execution = Execution { weight_bytes: weights, ..Execution::default() };
        let spec = ModelSpec { bytes_per_slot, execution, ..Scripted::new(1).0.spec().clone() };
        slots(&spec, shards, Cache { bytes: 2 * usable, cores: 8 })
    }

    #[test]
    fn a_cohort_is_what_fits_into_a_cores_share_of_the_cache_beside_the_weights() {
        assert_eq!(of(4, 2, 1, 32), 14);
        assert_eq!(of(4, 2, 2, 32), 7);
        assert_eq!(of(4, 2, 3, 32), 4);
        assert_eq!(of(8, 3, 8, 32), 1);
        assert_eq!(of(8, 3, 64, 32), 1, "only so many cores share one cache");
        assert_eq!(of(8, 1, 64, 32), 3);
    }

    #[test]
    fn a_cohort_has_bounds_and_weights_that_do_not_fit_are_shared_by_many() {
        assert_eq!(of(4, 1, 1, 1 << 20), 16, "no more than serve each other");
        assert_eq!(of(32, 1, 1, 32), 1, "at least one");
        assert_eq!(of(36, 1, 1, 32), 16);
        assert_eq!(of(0, 0, 4, 32), 16, "a model without state");
        let execution = Execution { device: Device::Cuda(0), ..Execution::default() };
        let spec = ModelSpec { execution, ..Scripted::new(1).0.spec().clone() };
        assert_eq!(slots(&spec, 1, Cache { bytes: 1, cores: 1 }), 64, "a GPU has no such cache");
    }
}
