//! One file for each architecture, in the order of its paper. See `model::FAMILIES`.

pub mod image_transformer;
pub mod toy;
