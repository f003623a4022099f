//! Sizes and choices that the PixelRNN family shares, and the tensors they ask for.

use super::super::raster::grid::Scaling;
use super::super::raster::masked::{Features, GroupScheme};
use crate::error::Violations;
use crate::image::Shape;
use crate::model::TensorSpec;
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;

const MAX_LAYERS: u32 = 1024;
const MAX_WIDTH: u32 = 1 << 14;
const MAX_KERNEL: u32 = 63;
const MAX_HEAD_LAYERS: usize = 16;

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
        let mut violations = Violations::new();
        let mut fields = Fields::new("architecture", manifest.architecture.clone(), &mut violations);
        let config = Self::read_fields(manifest, &mut fields, read_cell);
        fields.finish();
        match config {
            Some(config) => violations.into_result(config),
            None => Err(violations),
        }
    }

    fn read_fields(manifest: &Manifest, fields: &mut Fields<'_>, read_cell: ReadCell) -> Option<Self> {
        let channels = manifest.shape.channels();
        let layers = fields.number("layers", 1..=MAX_LAYERS);
        // Below, some channel would have no feature.
        let hidden_width = fields.number("hidden_width", channels..=MAX_WIDTH);
        let input_kernel = kernel(fields, "input_kernel");
        let head_widths = head_widths(fields, channels);
        let scheme = fields.word("group_scheme", &[("mod", GroupScheme::Mod), ("contiguous", GroupScheme::Contiguous)]);
        let scaling = fields.word("input_scaling", &[("symmetric", Scaling::Symmetric), ("unit", Scaling::Unit)]);
        let [residual, skip] = ["residual", "skip"].map(|key| fields.required(key));
        let cell = read_cell(fields);
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
            hidden: Features::new(hidden_width, channels, scheme),
            wide: Features::new(2 * hidden_width, channels, scheme),
        })
    }

    /// Every tensor of the weights file.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u32]| {
            tensors.push(TensorSpec { name, shape: shape.iter().map(|&n| u64::from(n)).collect() });
        };
        let mut convolution = |name: &str, [outputs, inputs, rows, columns]: [u32; 4]| {
            add(format!("{name}.weight"), &[outputs, inputs, rows, columns]);
            add(format!("{name}.bias"), &[outputs]);
        };
        let (channels, levels) = (self.shape.channels(), self.shape.levels());
        let (h, wide) = (self.hidden.count(), self.wide.count());
        convolution("input", [wide, channels, self.input_kernel, self.input_kernel]);
        let mut width = wide;
        for (index, &next) in self.head_widths.iter().enumerate() {
            convolution(&format!("hidden.{index}"), [next, width, 1, 1]);
            width = next;
        }
        convolution("head", [channels * levels, width, 1, 1]);
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
            }
        }
        for layer in 0..self.layers {
            let name = |part: &str| format!("layers.{layer}.{part}");
            let mut gates = 1;
            if let Cell::RowLstm { kernel, learned } = self.cell {
                gates = 4;
                add(name("state_to_state.weight"), &[4 * h, h, 1, kernel]);
                if learned {
                    add(name("initial_hidden"), &[h]);
                    add(name("initial_cell"), &[h]);
                }
            }
            if self.classes > 0 {
                add(name("condition.classes.weight"), &[self.classes, gates * h]);
            }
        }
        tensors
    }
}

/// An odd kernel size at `key`.
pub(super) fn kernel(fields: &mut Fields<'_>, key: &str) -> Option<u32> {
    let size = fields.number(key, 1..=MAX_KERNEL)?;
    if size % 2 == 0 {
        fields.refuse(key, format!("must be odd, got {size}"));
        return None;
    }
    Some(size)
}

fn head_widths(fields: &mut Fields<'_>, channels: u32) -> Option<Vec<u32>> {
    let widths: Vec<u32> = fields.required("head_widths")?;
    let fits = |width: &u32| (channels..=MAX_WIDTH).contains(width);
    if widths.len() > MAX_HEAD_LAYERS || !widths.iter().all(fits) {
        let rule = format!("must be at most {MAX_HEAD_LAYERS} numbers of {channels}..={MAX_WIDTH}, got {widths:?}");
        fields.refuse("head_widths", rule);
        return None;
    }
    Some(widths)
}
