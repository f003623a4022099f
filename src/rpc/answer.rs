//! From what the engine and the catalogue know to what goes over the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::proto;
use super::status::cut;
use crate::engine::catalogue::State;
use crate::engine::{Score, Timing, Usage};
use crate::image::{Order, Palette, Shape, codec};
use crate::job::Reproducibility;
use crate::spec::{Backend, ModelSpec, Precision};

/// Characters of a package's own words that a listing repeats: room for every fault that is kept of an honest one, and
/// little enough that a page of the worst stays below the four mebibytes that clients accept by default.
pub(super) const MAX_WORDS: usize = 8 << 10;

/// Resource name of a model.
pub(super) fn model_name(name: &str) -> String {
    format!("models/{name}")
}

pub(super) fn shape(shape: Shape) -> proto::ImageShape {
    proto::ImageShape {
        height: shape.height(),
        width: shape.width(),
        channels: shape.channels(),
        levels: shape.levels(),
    }
}

pub(super) fn order(order: Order) -> proto::Order {
    match order {
        Order::Raster => proto::Order::Raster,
        Order::BlockRaster(_) => proto::Order::BlockRaster,
    }
}

pub(super) fn blocks(order: Order) -> Option<proto::Blocks> {
    match order {
        Order::Raster => None,
        Order::BlockRaster(blocks) => Some(proto::Blocks { height: blocks.height(), width: blocks.width() }),
    }
}

pub(super) fn reproducibility(promise: Reproducibility) -> proto::Reproducibility {
    match promise {
        Reproducibility::BatchInvariant => proto::Reproducibility::BatchInvariant,
        Reproducibility::BestEffort => proto::Reproducibility::BestEffort,
    }
}

/// Three bytes for each colour of a palette.
pub(super) fn palette(palette: Option<&Palette>) -> Bytes {
    palette.map(Palette::to_bytes).unwrap_or_default().into()
}

/// An image, given in raster order, in `encoding`.
///
/// # Errors
/// What the codec has against it.
pub(super) fn image(
    raster: &[u16],
    of: Shape,
    palette: Option<&Palette>,
    encoding: proto::ImageEncoding,
) -> Result<proto::Image, String> {
    let data = match encoding {
        proto::ImageEncoding::Png => codec::encode_png(raster, of, palette)?,
        _ => codec::values_to_raw(raster, of),
    };
    Ok(proto::Image { data: data.into(), encoding: encoding.into(), shape: Some(shape(of)) })
}

pub(super) fn score(item_id: String, score: Score, spec: &ModelSpec) -> proto::ImageScore {
    let nll = -score.log_likelihood;
    let values = spec.shape.values();
    proto::ImageScore {
        item_id,
        nll_nats: nll,
        bits_per_dim: nll / (f64::from(values) * std::f64::consts::LN_2),
        scored_values: values,
        value_nll_nats: score.log_probs.map_or_else(Vec::new, |log_probs| in_raster_order(&log_probs, spec)),
    }
}

/// Values given by rank, negated and put where the image has them.
fn in_raster_order(log_probs: &[f32], spec: &ModelSpec) -> Vec<f32> {
    let mut raster = vec![0.0; spec.shape.values() as usize];
    for (rank, log_prob) in (0..).zip(log_probs) {
        if let Some(place) = raster.get_mut(spec.order.position(spec.shape, rank).raster(spec.shape) as usize) {
            *place = -log_prob;
        }
    }
    raster
}

pub(super) fn usage(usage: Usage) -> proto::Usage {
    proto::Usage {
        sampled_values: usage.sampled_values,
        prefix_values: usage.prefix_values,
        peak_batch_size: usage.peak_batch,
    }
}

pub(super) fn timing(timing: Timing) -> proto::Timing {
    proto::Timing {
        queue_duration: duration(timing.queue),
        prefill_duration: duration(timing.prefill),
        first_value_duration: duration(timing.first_value),
        decode_duration: duration(timing.decode),
    }
}

pub(super) fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

pub(super) fn backend(backend: Backend) -> proto::Backend {
    match backend {
        Backend::Native => proto::Backend::Native,
        Backend::Torch => proto::Backend::Torch,
    }
}

pub(super) fn precision(precision: Precision) -> proto::Precision {
    match precision {
        Precision::F32 => proto::Precision::F32,
        Precision::Bf16 => proto::Precision::Bf16,
    }
}

/// The names in `aliases` that stand for `model`.
pub(super) fn aliases(aliases: &BTreeMap<String, String>, model: &str) -> Vec<String> {
    aliases.iter().filter(|(_, of)| *of == model).map(|(alias, _)| alias.clone()).collect()
}

/// A model as the catalogue lists it.
pub(super) fn model(name: &str, state: &State, draining: bool) -> proto::Model {
    let listed = |state: proto::ModelState| proto::Model {
        name: model_name(name),
        state: state.into(),
        ..proto::Model::default()
    };
    let (handle, since) = match state {
        State::Loading => return listed(proto::ModelState::Loading),
        State::Warming => return listed(proto::ModelState::Warming),
        State::Failed { why } => {
            return proto::Model { state_message: cut(why, MAX_WORDS), ..listed(proto::ModelState::Failed) };
        }
        State::Serving { handle, since } | State::Draining { handle, since } => (handle, *since),
    };
    let draining = draining || matches!(state, State::Draining { .. });
    let spec = handle.spec();
    proto::Model {
        revision: spec.revision.clone(),
        shape: Some(shape(spec.shape)),
        palette: palette(spec.palette.as_deref()),
        architecture: spec.family.to_owned(),
        class_count: spec.condition.classes,
        class_required: spec.condition.class_required,
        low_resolution_shape: spec.condition.low.map(shape),
        low_resolution_model: spec.low_model.as_deref().map(model_name).unwrap_or_default(),
        max_running_images: spec.slots,
        device_bytes_per_image: spec.bytes_per_slot,
        ready_time: Some(since.into()),
        description: cut(&spec.description, MAX_WORDS),
        order: order(spec.order).into(),
        blocks: blocks(spec.order),
        held_out_bits_per_dim: spec.held_out_bits_per_dim,
        recomputes: spec.execution.recomputes,
        backend: backend(spec.execution.backend).into(),
        precision: precision(spec.execution.precision).into(),
        device: spec.execution.device.to_string(),
        ..listed(if draining { proto::ModelState::Draining } else { proto::ModelState::Ready })
    }
}
