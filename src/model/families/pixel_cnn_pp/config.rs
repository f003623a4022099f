//! Sizes of one model, the stages it passes through, and the tensors they ask for.

use super::super::raster::settings::{self, tensor};
use crate::error::Violations;
use crate::head::{Head, Layout};
use crate::image::Shape;
use crate::model::TensorSpec;
use crate::model::manifest::Manifest;

const MAX_WIDTH: u32 = 1 << 12;
const MAX_BLOCKS: u32 = 64;
/// The coarsest stage has one node for so many rows and columns of pixels.
const COARSEST: u32 = 4;

/// A checked configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) shape: Shape,
    pub(super) classes: u32,
    /// K of the mixture.
    pub(super) components: u32,
    /// In which order the file holds what the head gives.
    pub(super) layout: Layout,
    /// F, features of both streams.
    pub(super) width: u32,
    /// R, residual blocks of a stage on the way up.
    pub(super) blocks: u32,
}

/// Up is towards the coarser stages (section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// Residual blocks at one scale, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) way: Way,
    /// Its number on this way.
    pub(super) index: u32,
    /// Rows and columns of pixels for each node.
    pub(super) scale: u32,
    pub(super) blocks: u32,
    /// Number of the map that enters it; each of its blocks makes the next.
    pub(super) first: u32,
    /// On the way down, the map of the way up that its first block takes; each later one takes the map before.
    pub(super) skips: Option<u32>,
}

impl Stage {
    /// What its tensors are called by.
    pub(super) fn name(&self) -> String {
        let way = if self.way == Way::Up { "up" } else { "down" };
        format!("{way}.{}", self.index)
    }
}

impl Config {
    /// Reads the `architecture` table of `manifest`.
    ///
    /// # Errors
    /// Every fault, under its key.
    pub(super) fn read(manifest: &Manifest) -> Result<Self, Violations> {
        let read = settings::read(manifest, "logistic_mixture", |fields| {
            let (width, blocks) =
                (fields.number("stream_width", 1..=MAX_WIDTH), fields.number("blocks", 1..=MAX_BLOCKS));
            let Head::LogisticMixture { components } = manifest.head else { return None };
            Some(Self {
                shape: manifest.shape,
                classes: manifest.condition.classes,
                components,
                layout: manifest.layout,
                width: width?,
                blocks: blocks?,
            })
        });
        let (config, mut violations) = match read {
            Ok(config) => (Some(config), Violations::new()),
            Err(violations) => (None, violations),
        };
        if manifest.condition.low.is_some() {
            violations.add("condition.low_height", "is not for this family, which takes no low-resolution image");
        }
        for (key, length) in [("image.height", manifest.shape.height()), ("image.width", manifest.shape.width())] {
            if !length.is_multiple_of(COARSEST) {
                violations.add(key, format!("must be a multiple of {COARSEST} in this family, got {length}"));
            }
        }
        match config {
            Some(config) => violations.into_result(config),
            None => Err(violations),
        }
    }

    /// Every stage in the order in which they are passed. The last one up and the first one down share a map.
    pub(super) fn stages(&self) -> [Stage; 6] {
        let mut first = 0;
        [(Way::Up, 0), (Way::Up, 1), (Way::Up, 2), (Way::Down, 0), (Way::Down, 1), (Way::Down, 2)].map(
            |(way, index)| {
                let stage = match way {
                    Way::Up => Stage { way, index, scale: 1 << index, blocks: self.blocks, first, skips: None },
                    Way::Down => {
                        let blocks = self.blocks + u32::from(index > 0);
                        let skips = Some((2 - index) * (self.blocks + 1) + blocks - 1);
                        Stage { way, index, scale: COARSEST >> index, blocks, first, skips }
                    }
                };
                first += stage.blocks + u32::from((way, index) != (Way::Up, 2));
                stage
            },
        )
    }

    /// Parameters of a pixel.
    pub(super) fn parameters(&self) -> usize {
        Head::LogisticMixture { components: self.components }.width(self.shape)
    }

    /// Every tensor of the weights file.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        let mut convolution = |name: &str, shape: [u32; 4]| {
            tensors.push(tensor(format!("{name}.weight"), &shape));
            tensors.push(tensor(format!("{name}.bias"), &shape[..1]));
        };
        let (f, inputs) = (self.width, self.shape.channels() + 1);
        convolution("input.u", [f, inputs, 2, 3]);
        convolution("input.above", [f, inputs, 1, 3]);
        convolution("input.left", [f, inputs, 2, 1]);
        convolution("head", [self.parameters() as u32, f, 1, 1]);
        for (stream, columns) in [("u", 3), ("ul", 2)] {
            for index in 0..2 {
                convolution(&format!("shrink.{index}.{stream}"), [f, f, 2, columns]);
                convolution(&format!("grow.{index}.{stream}"), [f, f, 2, columns]);
            }
            for stage in self.stages() {
                let skips = u32::from(stream == "ul") + u32::from(stage.way == Way::Down);
                for block in 0..stage.blocks {
                    let name = |part: &str| format!("{}.{block}.{stream}.{part}", stage.name());
                    convolution(&name("first"), [f, 2 * f, 2, columns]);
                    convolution(&name("second"), [2 * f, 2 * f, 2, columns]);
                    if skips > 0 {
                        convolution(&name("skip"), [f, 2 * f * skips, 1, 1]);
                    }
                }
            }
        }
        if self.classes > 0 {
            for stage in self.stages() {
                for (block, stream) in (0..stage.blocks).flat_map(|block| [(block, "u"), (block, "ul")]) {
                    let name = format!("{}.{block}.{stream}.classes.weight", stage.name());
                    tensors.push(tensor(name, &[self.classes, 2 * f]));
                }
            }
        }
        tensors
    }
}
