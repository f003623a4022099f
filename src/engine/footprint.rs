//! What a model takes of memory.

use super::SCORE_IMAGES;
use crate::spec::{Backend, ModelSpec, Precision};

/// Bytes of a model: an estimate. Activations come and go on top, and a module of the family `torchscript` does not say what it
/// remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Its weights, which the native backend packs beside the tensors that scoring uses.
    pub weights: u64,
    /// The decode state of the slots of all shards.
    pub slots: u64,
    /// That of a scoring pass of each shard, which is in 32 bits.
    pub scoring: u64,
}

impl Footprint {
    /// Of a model with `slots` slots on each of `shards` shards.
    #[must_use]
    pub fn of(spec: &ModelSpec, slots: u32, shards: u32) -> Self {
        let execution = &spec.execution;
        let in_full = |bytes: u64| bytes.saturating_mul(Precision::F32.bytes() / execution.precision.bytes());
        let packed = if execution.backend == Backend::Native { execution.weight_bytes } else { 0 };
        let of_all = |images: u32| u64::from(images).saturating_mul(shards.into());
        Self {
            weights: packed.saturating_add(in_full(execution.weight_bytes)),
            slots: spec.bytes_per_slot.saturating_mul(of_all(slots)),
            scoring: in_full(spec.bytes_per_slot).saturating_mul(of_all(SCORE_IMAGES)),
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.slots).saturating_add(self.scoring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PixelModel;
    use crate::model::scripted::Scripted;
    use crate::spec::Execution;

    #[test]
    fn shards_share_weights_and_each_has_its_slots_and_a_scoring_pass() {
        let of = |backend, precision, slots, shards| {
            let execution = Execution { backend, precision, weight_bytes: 1000, ..Execution::default() };
            let spec = ModelSpec { bytes_per_slot: 10, execution, ..Scripted::new(1).0.spec().clone() };
            let Footprint { weights, slots, scoring } = Footprint::of(&spec, slots, shards);
            [weights, slots, scoring]
        };
        assert_eq!(of(Backend::Torch, Precision::F32, 3, 1), [1000, 3 * 10, 16 * 10]);
        assert_eq!(of(Backend::Torch, Precision::F32, 3, 2), [1000, 2 * 3 * 10, 2 * 16 * 10]);
        assert_eq!(of(Backend::Native, Precision::F32, 3, 1), [1000 + 1000, 3 * 10, 16 * 10]);
        assert_eq!(of(Backend::Native, Precision::Bf16, 3, 1), [1000 + 2000, 3 * 10, 16 * 20]);
    }
}
