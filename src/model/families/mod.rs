//! One folder or file for each architecture, in the order of its paper, and what several share. See `model::FAMILIES`.

pub mod gated_pixel_cnn;
pub mod image_transformer;
pub mod pixel_cnn_pp;
pub mod pixel_rnn;
mod raster;
pub mod torchscript;
pub mod toy;
