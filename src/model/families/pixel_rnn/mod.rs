//! The PixelRNN family (van den Oord et al. 2016, arXiv 1601.06759): a masked convolution over the pixels, residual layers
//! of a kind of cell, and a head of masked 1 x 1 convolutions.

mod config;
mod convolution;
mod diagonal_bilstm;
mod row_lstm;

use tch::TchError;

use self::config::{Cell, Config, Pad, ReadCell};
use super::raster::features::Features;
use super::raster::grid::Grid;
use super::raster::masked::{self, After, Masked, More, Shelf, Stage, Window};
use super::raster::settings::kernel;
use super::raster::{self, Phase, Schedule};
use crate::decode::{Network, Register};
use crate::error::Violations;
use crate::model::manifest::Manifest;
use crate::model::{Family, PixelModel, Placement, WeightsFile};
use crate::torch::weights::Weights;

/// PixelCNN (section 3.5).
pub const PIXEL_CNN: Family = Family {
    name: "pixel_cnn",
    summary: "PixelCNN of masked convolutions, categorical head (arXiv 1601.06759)",
    tensors: |manifest| Ok(Config::read(manifest, CONVOLUTION)?.tensors()),
    build: |manifest, file, placement| build(manifest, file, placement, CONVOLUTION, PIXEL_CNN.name),
};

/// Row LSTM (section 3.1).
pub const ROW_LSTM: Family = Family {
    name: "row_lstm",
    summary: "PixelRNN with Row LSTM layers, categorical head (arXiv 1601.06759)",
    tensors: |manifest| Ok(Config::read(manifest, ROW)?.tensors()),
    build: |manifest, file, placement| build(manifest, file, placement, ROW, ROW_LSTM.name),
};

/// Diagonal BiLSTM (section 3.2).
pub const DIAGONAL_BILSTM: Family = Family {
    name: "diagonal_bilstm",
    summary: "PixelRNN with Diagonal BiLSTM layers, categorical head (arXiv 1601.06759)",
    tensors: |manifest| Ok(Config::read(manifest, DIAGONAL)?.tensors()),
    build: |manifest, file, placement| build(manifest, file, placement, DIAGONAL, DIAGONAL_BILSTM.name),
};

const CONVOLUTION: ReadCell = |fields| Some(Cell::Convolution { kernel: kernel(fields, "kernel_size")? });
const ROW: ReadCell = |fields| {
    let kernel = kernel(fields, "kernel_width");
    let learned = fields.word("initial_state", &[("zero", false), ("learned", true)]);
    Some(Cell::RowLstm { kernel: kernel?, learned: learned? })
};
const DIAGONAL: ReadCell = |fields| {
    let pads = [("zero", Pad::Zero), ("learned", Pad::Learned), ("evolve", Pad::Evolve)];
    Some(Cell::DiagonalBiLstm { pad: fields.word("pad_state", &pads)? })
};

fn build(
    manifest: &Manifest,
    file: Option<WeightsFile<'_>>,
    placement: Placement,
    cell: ReadCell,
    family: &'static str,
) -> Result<Box<dyn PixelModel>, Violations> {
    let config = Config::read(manifest, cell)?;
    raster::build(family, manifest, file, placement, &config.tensors(), |weights| network(&config, weights, placement))
}

fn network(config: &Config, weights: &Weights, placement: Placement) -> Result<(Network, Schedule), TchError> {
    let channels = config.shape.channels();
    let (mut network, mut shelf) = (Network::new(placement.precision, placement.device), Shelf::new(config.low));
    let (steps, whole) = masked::pixel(channels, |stage| {
        phase(Masked::new(&mut network, weights, &mut shelf, stage, channels), config)
    })?;
    let (mut opening, mut after_row) = (Vec::new(), Vec::new());
    match config.cell {
        Cell::RowLstm { learned: true, .. } => {
            opening.push(row_lstm::opening(&mut network, &mut shelf, weights, config)?);
        }
        Cell::DiagonalBiLstm { pad } => {
            opening.extend(diagonal_bilstm::openings(&mut network, &mut shelf, weights, config, pad)?);
            let masked = Masked::new(&mut network, weights, &mut shelf, Stage::Whole, channels);
            after_row.push(diagonal_bilstm::scan(masked, config, pad)?);
        }
        _ => {}
    }
    let upsample = config.low.map(|low| low.upsample(&mut network, &mut shelf, weights)).transpose()?;
    let schedule = Schedule {
        grids: shelf.grids,
        scaling: config.scaling,
        opening,
        upsample,
        before_row: Vec::new(),
        steps,
        whole,
        after_row,
        together: !matches!(config.cell, Cell::DiagonalBiLstm { .. }),
    };
    Ok((network, schedule))
}

/// The network of section 3.3 as far as the program's stage goes.
fn phase(mut masked: Masked<'_>, config: &Config) -> Result<Phase, TchError> {
    let wide = &config.wide;
    let mut z = masked.look_at_pixels(
        "input",
        wide.gates(1),
        &Window::square(config.input_kernel),
        More::default(),
        After::default(),
    )?;
    let mut skips = None;
    for layer in 0..config.layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let features = match config.cell {
            Cell::Convolution { kernel } => convolution::layer(&mut masked, config, layer, kernel, z)?,
            Cell::RowLstm { kernel, learned } => row_lstm::layer(&mut masked, config, layer, kernel, learned, z)?,
            Cell::DiagonalBiLstm { pad } => diagonal_bilstm::layer(&mut masked, config, layer, pad, z)?,
        };
        let residual = config.residual.then_some(z);
        z = masked.pointwise(&name("up"), wide, &features, After { residual, ..After::default() })?;
        if config.skip {
            let after = After { residual: skips, ..After::default() };
            skips = Some(masked.pointwise(&name("skip"), wide, &features, after)?);
        }
    }
    if let Some(skips) = skips {
        z = masked.program.add(z, skips)?;
    }
    let widths = config.head_widths.iter().map(|&width| Features::new(width, config.shape.channels(), config.scheme));
    let maps: Vec<Features> = std::iter::once(wide.clone()).chain(widths).collect();
    masked.head(z, &maps, config.shape.levels())
}

/// The class's part of the `gates` pre-activations of a cell, if there are classes.
fn class(masked: &mut Masked<'_>, config: &Config, cell: &str, gates: u32) -> Result<Option<Register>, TchError> {
    let name = format!("{cell}.condition.classes.weight");
    (config.classes > 0).then(|| masked.class(&name, config.hidden.gates(gates))).transpose()
}

/// The latest `kept` rows of a map of the image.
fn rows(config: &Config, kept: u32) -> Grid {
    Grid::of(config.shape, 1, kept)
}
