//! Sizes and choices that the PixelRNN family shares, and the tensors they ask for.

use super::super::raster::features::{Features, GroupScheme};
use super::super::raster::grid::Scaling;
use super::super::raster::low::Low;
use super::super::raster::settings::{self, MAX_LAYERS, MAX_WIDTH};
use crate::error::Violations;
use crate::image::Shape;
use crate::model::TensorSpec;
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;

/// What a layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// Section 3.5.
    Convolution {
        /// Rows and columns of the kernel.
        kernel: u32,
    },
    /// Section 3.1.
    RowLstm {
        /// Columns of both kernels.
        kernel: u32,
        /// Whether the state above the image is learned.
        learned: bool,
    },
    /// Section 3.2.
    DiagonalBiLstm {
        /// The state outside the image.
        pad: Pad,
    },
}

/// The state outside the image of a Diagonal BiLSTM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pad {
    /// Zero.
    Zero,
    /// One learned vector.
    Learned,
    /// What the cell makes of nothing but its bias, in the cells that skewing leaves beside each row.
    Evolve,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) shape: Shape,
    pub(super) classes: u32,
    pub(super) layers: u32,
    pub(super) input_kernel: u32,
    pub(super) head_widths: Vec<u32>,
    pub(super) scheme: GroupScheme,
    pub(super) scaling: Scaling,
    pub(super) residual: bool,
    pub(super) skip: bool,
    pub(super) cell: Cell,
    pub(super) low: Option<Low>,
    /// h features of a layer.
    pub(super) hidden: Features,
    /// 2h features between layers.
    pub(super) wide: Features,
}

/// Reads what the `architecture` table says of the cell.
pub(super) type ReadCell = fn(&mut Fields<'_>) -> Option<Cell>;

impl Config {
    /// Reads the `architecture` table of `manifest`.
    ///
    /// # Errors
    /// Every fault, under its key.
    pub(super) fn read(manifest: &Manifest, read_cell: ReadCell) -> Result<Self, Violations> {
        settings::read(manifest, "categorical", |fields| Self::read_fields(manifest, fields, read_cell))
    }

    fn read_fields(manifest: &Manifest, fields: &mut Fields<'_>, read_cell: ReadCell) -> Option<Self> {
        let channels = manifest.shape.channels();
        let layers = fields.number("layers", 1..=MAX_LAYERS);
        // Below, some channel would have no feature.
        let hidden_width = fields.number("hidden_width", channels..=MAX_WIDTH);
        let input_kernel = settings::kernel(fields, "input_kernel");
        let head_widths = settings::head_widths(fields, channels);
        let (scheme, scaling) = (settings::scheme(fields), settings::scaling(fields));
        let [residual, skip] = ["residual", "skip"].map(|key| fields.required(key));
        let (cell, low) = (read_cell(fields), Low::read(manifest, fields));
        let (hidden_width, scheme) = (hidden_width?, scheme?);
        Some(Self {
            shape: manifest.shape,
            classes: manifest.condition.classes,
            layers: layers?,
            input_kernel: input_kernel?,
            head_widths: head_widths?,
            scheme,
            scaling: scaling?,
            residual: residual?,
            skip: skip?,
            cell: cell?,
            low: low?,
            hidden: Features::new(hidden_width, channels, scheme),
            wide: Features::new(2 * hidden_width, channels, scheme),
        })
    }

    /// Every tensor of the weights file.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let (h, wide) = (self.hidden.count(), self.wide.count());
        let mut tensors = settings::head_tensors(self.shape, wide, &self.head_widths);
        tensors.extend(self.low.into_iter().flat_map(Low::tensors));
        let mut add = |name: String, shape: &[u32]| tensors.push(settings::tensor(name, shape));
        let mut convolution = |name: &str, [outputs, inputs, rows, columns]: [u32; 4]| {
            add(format!("{name}.weight"), &[outputs, inputs, rows, columns]);
            add(format!("{name}.bias"), &[outputs]);
        };
        convolution("input", [wide, self.shape.channels(), self.input_kernel, self.input_kernel]);
        for layer in 0..self.layers {
            let name = |part: &str| format!("layers.{layer}.{part}");
            convolution(&name("up"), [wide, h, 1, 1]);
            if self.skip {
                convolution(&name("skip"), [wide, h, 1, 1]);
            }
            match self.cell {
                Cell::Convolution { kernel } => {
                    convolution(&name("down"), [h, wide, 1, 1]);
                    convolution(&name("spatial"), [h, h, kernel, kernel]);
                }
                Cell::RowLstm { kernel, .. } => convolution(&name("input_to_state"), [4 * h, wide, 1, kernel]),
                Cell::DiagonalBiLstm { .. } => {
                    convolution(&name("left.input_to_state"), [4 * h, wide, 1, 1]);
                    convolution(&name("right.input_to_state"), [4 * h, wide, 1, 1]);
                }
            }
        }
        for layer in 0..self.layers {
            let (cells, gates, kernel, learned): (&[&str], _, _, _) = match self.cell {
                Cell::Convolution { .. } => (&[""], 1, None, false),
                Cell::RowLstm { kernel, learned } => (&[""], 4, Some([1, kernel]), learned),
                Cell::DiagonalBiLstm { pad } => (&[".left", ".right"], 4, Some([2, 1]), pad == Pad::Learned),
            };
            for cell in cells {
                let name = |part: &str| format!("layers.{layer}{cell}.{part}");
                if let Some([rows, columns]) = kernel {
                    add(name("state_to_state.weight"), &[4 * h, h, rows, columns]);
                }
                if learned {
                    add(name("initial_hidden"), &[h]);
                    add(name("initial_cell"), &[h]);
                }
                if self.classes > 0 {
                    add(name("condition.classes.weight"), &[self.classes, gates * h]);
                }
                if let Some(low) = self.low {
                    add(name("condition.low.weight"), &[gates * h, low.maps(), 1, 1]);
                }
            }
        }
        tensors
    }
}
