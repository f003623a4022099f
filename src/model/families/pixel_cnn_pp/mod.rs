//! PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517): two streams of gated residual blocks over whole pixels, at three
//! scales, and a mixture of logistics for each pixel.

mod config;
mod network;

use self::config::Config;
use super::raster::{Raster, refusal};
use crate::error::Violations;
use crate::model::manifest::Manifest;
use crate::model::{Family, PixelModel, Placement, WeightsFile};
use crate::torch::weights::Weights;

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
    let Some(file) = file else { return Err(refusal("weights", "are required")) };
    let weights = Weights::load(file, &config.tensors())?;
    let spec = manifest.spec(FAMILY.name, placement, 0);
    let fault = |error: String| refusal("architecture", error);
    let (network, schedule) = network::network(&config, &weights, placement.precision, network::KEPT)
        .map_err(|error| fault(error.to_string()))?;
    Ok(Box::new(Raster::new(spec, &network, schedule, placement).map_err(|error| fault(error.to_string()))?))
}

#[cfg(test)]
mod tests;
