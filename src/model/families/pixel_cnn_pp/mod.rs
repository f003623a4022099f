//! PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517): two streams of gated residual blocks over whole pixels, at three
//! scales, and a mixture of logistics for each pixel.

mod config;
mod network;

use self::config::Config;
use super::raster;
use crate::error::Violations;
use crate::model::manifest::Manifest;
use crate::model::{Family, PixelModel, Placement, WeightsFile};

/// PixelCNN++.
pub const FAMILY: Family = Family {
    name: "pixel_cnn_pp",
    summary: "PixelCNN++, discretised mixture of logistics (arXiv 1701.05517)",
    tensors: |manifest| Ok(Config::read(manifest)?.tensors()),
    build,
};

fn build(
    manifest: &Manifest,
    file: Option<WeightsFile<'_>>,
    placement: Placement,
) -> Result<Box<dyn PixelModel>, Violations> {
    let config = Config::read(manifest)?;
    raster::build(FAMILY.name, manifest, file, placement, &config.tensors(), |weights| {
        network::network(&config, weights, placement, network::KEPT)
    })
}

#[cfg(test)]
mod tests;
