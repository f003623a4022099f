//! The residual block of PixelCNN (section 3.5, figure 5): 1 x 1 down, k x k, and then up again.

use tch::TchError;

use super::super::raster::masked::{After, Masked, Value, before};
use super::config::Config;
use super::{pointwise, rows};
use crate::decode::{Activation, Register};

/// relu(spatial(relu(down(relu(z)))) + class).
pub(super) fn layer<'c>(
    masked: &mut Masked<'_>,
    config: &'c Config,
    layer: u32,
    kernel: u32,
    z: &Value<'c>,
    class: Option<Register>,
) -> Result<Value<'c>, TchError> {
    let name = |part: &str| format!("layers.{layer}.{part}");
    let hidden = &config.hidden;
    let given = masked.activate(&name("given"), z, Activation::Relu, None)?;
    let after = After { activation: Some(Activation::Relu), residual: None };
    let down = pointwise(masked, &name("down"), hidden, &given, after)?;
    let down = masked.value(&name("down"), down, hidden, Some(rows(config, kernel / 2 + 1)))?;
    let after = After { activation: None, residual: class };
    let spatial = masked.convolve(&name("spatial"), hidden, 1, &down, &before(kernel), None, after)?;
    let spatial = masked.plain(spatial, hidden);
    masked.activate(&name("spatial"), &spatial, Activation::Relu, None)
}
