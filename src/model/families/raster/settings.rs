//! Keys of the `architecture` table, and tensors, that several families have.

use super::features::GroupScheme;
use super::grid::Scaling;
use crate::error::Violations;
use crate::head::Head;
use crate::image::{Order, Shape};
use crate::model::TensorSpec;
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;

pub(in crate::model::families) const MAX_LAYERS: u32 = 1024;
pub(in crate::model::families) const MAX_WIDTH: u32 = 1 << 14;
const MAX_KERNEL: u32 = 63;
const MAX_HEAD_LAYERS: usize = 16;

/// Reads the `architecture` table of `manifest` with `read`, which gives `None` where it noted a fault. The family goes
/// through images in raster order and has the output law `law`.
///
/// # Errors
/// Every fault, under its key.
pub(in crate::model::families) fn read<T>(
    manifest: &Manifest,
    law: &str,
    read: impl FnOnce(&mut Fields<'_>) -> Option<T>,
) -> Result<T, Violations> {
    let mut violations = Violations::new();
    let mut fields = Fields::new("architecture", manifest.architecture.clone(), &mut violations);
    let config = read(&mut fields);
    fields.finish();
    let given = match manifest.head {
        Head::Categorical => "categorical",
        Head::FactorisedCategorical => "factorised_categorical",
        Head::LogisticMixture { .. } => "logistic_mixture",
    };
    if given != law {
        violations.add("head.kind", format!("must be {law:?} in this family, got {given:?}"));
    }
    if manifest.order != Order::Raster {
        violations.add("image.order", "must be \"raster\" in this family");
    }
    match config {
        Some(config) => violations.into_result(config),
        None => Err(violations),
    }
}

/// An odd kernel size at `key`.
pub(in crate::model::families) fn kernel(fields: &mut Fields<'_>, key: &str) -> Option<u32> {
    let size = fields.number(key, 1..=MAX_KERNEL)?;
    if size % 2 == 0 {
        fields.refuse(key, format!("must be odd, got {size}"));
        return None;
    }
    Some(size)
}

/// Widths of the head's hidden maps; below one feature for each channel, some channel would have none.
pub(in crate::model::families) fn head_widths(fields: &mut Fields<'_>, channels: u32) -> Option<Vec<u32>> {
    let widths: Vec<u32> = fields.required("head_widths")?;
    let fits = |width: &u32| (channels..=MAX_WIDTH).contains(width);
    if widths.len() > MAX_HEAD_LAYERS || !widths.iter().all(fits) {
        let rule = format!("must be at most {MAX_HEAD_LAYERS} numbers of {channels}..={MAX_WIDTH}, got {widths:?}");
        fields.refuse("head_widths", rule);
        return None;
    }
    Some(widths)
}

pub(in crate::model::families) fn scheme(fields: &mut Fields<'_>) -> Option<GroupScheme> {
    fields.word("group_scheme", &[("mod", GroupScheme::Mod), ("contiguous", GroupScheme::Contiguous)])
}

pub(in crate::model::families) fn scaling(fields: &mut Fields<'_>) -> Option<Scaling> {
    fields.word("input_scaling", &[("symmetric", Scaling::Symmetric), ("unit", Scaling::Unit)])
}

pub(in crate::model::families) fn tensor(name: String, shape: &[u32]) -> TensorSpec {
    TensorSpec { name, shape: shape.iter().map(|&n| u64::from(n)).collect() }
}

/// The tensors of [`Masked::head`](super::masked::Masked::head) over `width` features.
pub(in crate::model::families) fn head_tensors(shape: Shape, mut width: u32, head_widths: &[u32]) -> Vec<TensorSpec> {
    let logits = shape.channels().saturating_mul(shape.levels());
    let names = (0..head_widths.len()).map(|index| format!("hidden.{index}")).chain(std::iter::once("head".to_owned()));
    let widths = head_widths.iter().copied().chain(std::iter::once(logits));
    let mut tensors = Vec::new();
    for (name, next) in names.zip(widths) {
        tensors.push(tensor(format!("{name}.weight"), &[next, width, 1, 1]));
        tensors.push(tensor(format!("{name}.bias"), &[next]));
        width = next;
    }
    tensors
}
