//! Sizes and choices of one Gated PixelCNN, and the tensors they ask for.

use super::super::raster::features::{Features, GroupScheme};
use super::super::raster::grid::Scaling;
use super::super::raster::low::Low;
use super::super::raster::settings::{self, MAX_LAYERS, MAX_WIDTH};
use crate::error::Violations;
use crate::image::Shape;
use crate::model::TensorSpec;
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) shape: Shape,
    pub(super) classes: u32,
    pub(super) layers: u32,
    pub(super) input_kernel: u32,
    pub(super) kernel: u32,
    pub(super) head_widths: Vec<u32>,
    pub(super) scheme: GroupScheme,
    pub(super) scaling: Scaling,
    pub(super) low: Option<Low>,
    /// The features of either stack.
    pub(super) stack: Features,
}

impl Config {
    /// Reads the `architecture` table of `manifest`.
    ///
    /// # Errors
    /// Every fault, under its key.
    pub(super) fn read(manifest: &Manifest) -> Result<Self, Violations> {
        settings::read(manifest, "categorical", |fields| Self::read_fields(manifest, fields))
    }

    fn read_fields(manifest: &Manifest, fields: &mut Fields<'_>) -> Option<Self> {
        let channels = manifest.shape.channels();
        let layers = fields.number("layers", 1..=MAX_LAYERS);
        // Below, some channel would have no feature.
        let width = fields.number("stack_width", channels..=MAX_WIDTH);
        let [input_kernel, kernel] = ["input_kernel", "kernel_size"].map(|key| settings::kernel(fields, key));
        let head_widths = settings::head_widths(fields, channels);
        let (scheme, scaling) = (settings::scheme(fields), settings::scaling(fields));
        let (scheme, low) = (scheme?, Low::read(manifest, fields)?);
        Some(Self {
            shape: manifest.shape,
            classes: manifest.condition.classes,
            layers: layers?,
            input_kernel: input_kernel?,
            kernel: kernel?,
            head_widths: head_widths?,
            scheme,
            scaling: scaling?,
            low,
            stack: Features::new(width?, channels, scheme),
        })
    }

    /// Every tensor of the weights file.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let (channels, p) = (self.shape.channels(), self.stack.count());
        let mut tensors = settings::head_tensors(self.shape, p, &self.head_widths);
        tensors.extend(self.low.into_iter().flat_map(Low::tensors));
        let mut add = |name: String, shape: &[u32]| tensors.push(settings::tensor(name, shape));
        for layer in 0..self.layers {
            let name = |part: &str| format!("layers.{layer}.{part}");
            let (inputs, size) = if layer == 0 { (channels, self.input_kernel) } else { (p, self.kernel) };
            let reach = size / 2 + 1;
            add(name("vertical.weight"), &[2 * p, inputs, reach, size]);
            add(name("vertical.bias"), &[2 * p]);
            add(name("link.weight"), &[2 * p, 2 * p, 1, 1]);
            add(name("horizontal.weight"), &[2 * p, inputs, 1, reach]);
            add(name("horizontal.bias"), &[2 * p]);
            add(name("output.weight"), &[p, p, 1, 1]);
            add(name("output.bias"), &[p]);
            if self.classes > 0 {
                add(name("vertical_condition.classes.weight"), &[self.classes, 2 * p]);
                add(name("horizontal_condition.classes.weight"), &[self.classes, 2 * p]);
            }
            if let Some(low) = self.low {
                add(name("vertical_condition.low.weight"), &[2 * p, low.maps(), 1, 1]);
                add(name("horizontal_condition.low.weight"), &[2 * p, low.maps(), 1, 1]);
            }
        }
        tensors
    }
}
