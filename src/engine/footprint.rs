//! What a model takes of memory.

use super::SCORE_IMAGES;
use crate::spec::{Backend, ModelSpec, Precision};

/// Bytes of a model with `slots` slots on each of `shards` shards: its weights, which the native backend packs beside the
/// tensors that scoring uses; for each shard the decode state of its slots, and that of a scoring pass, which is in 32 bits.
/// An estimate: activations come and go on top, and a module of the family `torchscript` does not say what it remembers.
#[must_use]
pub fn bytes(spec: &ModelSpec, slots: u32, shards: u32) -> u64 {
    let execution = &spec.execution;
    let in_full = |bytes: u64| bytes.saturating_mul(Precision::F32.bytes() / execution.precision.bytes());
    let packed = if execution.backend == Backend::Native { execution.weight_bytes } else { 0 };
    let weights = packed.saturating_add(in_full(execution.weight_bytes));
    let sampling = spec.bytes_per_slot.saturating_mul(slots.into());
    let scoring = in_full(spec.bytes_per_slot).saturating_mul(SCORE_IMAGES.into());
    weights.saturating_add(sampling.saturating_add(scoring).saturating_mul(shards.into()))
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
            bytes(&ModelSpec { bytes_per_slot: 10, execution, ..Scripted::new(1).0.spec().clone() }, slots, shards)
        };
        assert_eq!(of(Backend::Torch, Precision::F32, 3, 1), 1000 + 3 * 10 + 16 * 10);
        assert_eq!(of(Backend::Torch, Precision::F32, 3, 2), 1000 + 2 * (3 * 10 + 16 * 10));
        assert_eq!(of(Backend::Native, Precision::F32, 3, 1), 1000 + 1000 + 3 * 10 + 16 * 10);
        assert_eq!(of(Backend::Native, Precision::Bf16, 3, 1), 1000 + 2000 + 3 * 10 + 16 * 20);
    }
}
