//! The residual block of PixelCNN (section 3.5, figure 5): 1 x 1 down, k x k, and then up again.

use tch::TchError;

use super::super::raster::masked::{After, Masked, Value, Window};
use super::config::Config;
use super::{class, rows};
use crate::decode::{Activation, Register};

/// relu(spatial(relu(down(relu(z)))) + class).
pub(super) fn layer<'c>(
    masked: &mut Masked<'_>,
    config: &'c Config,
    layer: u32,
    kernel: u32,
    z: Register,
) -> Result<Value<'c>, TchError> {
    let name = |part: &str| format!("layers.{layer}.{part}");
    let hidden = &config.hidden;
    let z = masked.plain(z, &config.wide);
    let given = masked.activate(&name("given"), &z, Activation::Relu, None)?;
    let after = After { activation: Some(Activation::Relu), residual: None };
    let down = masked.pointwise(&name("down"), hidden, &given, after)?;
    let down = masked.value(&name("down"), down, hidden, Some(rows(config, kernel / 2 + 1)))?;
    let after = After { activation: None, residual: class(masked, config, &format!("layers.{layer}"), 1)? };
    let window = Window::square(kernel);
    let low = masked.low(&name("condition"), hidden.gates(1), (0, 0))?;
    let spatial = masked.convolve(&name("spatial"), hidden.gates(1), &down, &window, low, after)?;
    let spatial = masked.plain(spatial, hidden);
    masked.activate(&name("spatial"), &spatial, Activation::Relu, None)
}
