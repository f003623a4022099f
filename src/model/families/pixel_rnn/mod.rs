//! The PixelRNN family (van den Oord et al. 2016, arXiv 1601.06759): a masked convolution over the pixels, residual layers
//! of a kind of cell, and a head of masked 1 x 1 convolutions.

mod config;
mod convolution;
mod row_lstm;

use tch::TchError;

use self::config::{Cell, Config, ReadCell, kernel};
use super::raster::grid::Grid;
use super::raster::masked::{After, Features, Masked, Shelf, Stage, Value, before};
use super::raster::{Opening, Raster, Schedule, refusal};
use crate::decode::{Activation, Network};
use crate::error::Violations;
use crate::model::manifest::Manifest;
use crate::model::{Family, PixelModel, Placement, WeightsFile};
use crate::spec::Precision;
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

const CONVOLUTION: ReadCell = |fields| Some(Cell::Convolution { kernel: kernel(fields, "kernel_size")? });
const ROW: ReadCell = |fields| {
    let kernel = kernel(fields, "kernel_width");
    let learned = fields.word("initial_state", &[("zero", false), ("learned", true)]);
    Some(Cell::RowLstm { kernel: kernel?, learned: learned? })
};

fn build(
    manifest: &Manifest,
    file: Option<WeightsFile<'_>>,
    placement: Placement,
    cell: ReadCell,
    family: &'static str,
) -> Result<Box<dyn PixelModel>, Violations> {
    let config = Config::read(manifest, cell)?;
    let Some(file) = file else { return Err(refusal("weights", "are required")) };
    let weights = Weights::load(file, &config.tensors())?;
    let spec = manifest.spec(family, placement, 0);
    let fault = |error: String| refusal("architecture", error);
    let (network, schedule) =
        network(&config, &weights, placement.precision).map_err(|error| fault(error.to_string()))?;
    Ok(Box::new(Raster::new(spec, &network, schedule, placement).map_err(|error| fault(error.to_string()))?))
}

fn network(config: &Config, weights: &Weights, precision: Precision) -> Result<(Network, Schedule), TchError> {
    let _guard = tch::no_grad_guard();
    let channels = config.shape.channels();
    let (mut network, mut shelf) = (Network::new(precision), Shelf::default());
    let mut phase = |network: &mut Network, stage| {
        let program = Masked::new(network, weights, &mut shelf, stage, channels);
        phase(program, config)
    };
    let (mut steps, mut whole) = (Vec::new(), Vec::new());
    if channels == 1 {
        steps.push(vec![phase(&mut network, Stage::Whole)?]);
    } else {
        for channel in 0..channels {
            steps.push(vec![phase(&mut network, Stage::Channel(channel))?]);
        }
        whole.push(phase(&mut network, Stage::Whole)?);
    }
    let mut opening: Vec<Opening> = Vec::new();
    if let Cell::RowLstm { learned: true, .. } = config.cell {
        opening.push(row_lstm::opening(&mut network, &mut shelf, weights, config)?);
    }
    let schedule = Schedule {
        grids: shelf.grids,
        scaling: config.scaling,
        opening,
        before_row: Vec::new(),
        steps,
        whole,
        after_row: Vec::new(),
        together: true,
    };
    Ok((network, schedule))
}

/// The network of section 3.3 as far as the program's stage goes.
fn phase(mut masked: Masked<'_>, config: &Config) -> Result<super::raster::Phase, TchError> {
    let Config { hidden, wide, .. } = config;
    let mut z = masked.look_at_pixels("input", wide, 1, &before(config.input_kernel), After::default(), None)?;
    let mut skips = None;
    for layer in 0..config.layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let class = match config.cell {
            _ if config.classes == 0 => None,
            Cell::Convolution { .. } => Some(masked.class(&name("condition.classes.weight"), hidden, 1)?),
            Cell::RowLstm { .. } => Some(masked.class(&name("condition.classes.weight"), hidden, 4)?),
        };
        let given = masked.plain(z, wide);
        let features = match config.cell {
            Cell::Convolution { kernel } => convolution::layer(&mut masked, config, layer, kernel, &given, class)?,
            Cell::RowLstm { kernel, learned } => {
                row_lstm::layer(&mut masked, config, layer, kernel, learned, z, class)?
            }
        };
        let residual = config.residual.then_some(z);
        z = pointwise(&mut masked, &name("up"), wide, &features, After { residual, ..After::default() })?;
        if config.skip {
            let after = After { residual: skips, ..After::default() };
            skips = Some(pointwise(&mut masked, &name("skip"), wide, &features, after)?);
        }
    }
    if let Some(skips) = skips {
        z = masked.program.add(z, skips)?;
    }
    let channels = config.shape.channels();
    let widths = config.head_widths.iter().map(|&width| Features::new(width, channels, config.scheme));
    let maps: Vec<Features> = std::iter::once(wide.clone()).chain(widths).collect();
    for (index, pair) in maps.windows(2).enumerate() {
        if let [from, to] = pair {
            let given = masked.plain(z, from);
            let given = masked.activate(&format!("hidden.{index}"), &given, Activation::Relu, None)?;
            z = pointwise(&mut masked, &format!("hidden.{index}"), to, &given, After::default())?;
        }
    }
    let last = masked.plain(z, maps.last().unwrap_or(wide));
    let last = masked.activate("head", &last, Activation::Relu, None)?;
    let logits = Features::by_channel(config.shape.levels(), channels);
    let logits = pointwise(&mut masked, "head", &logits, &last, After::default())?;
    masked.finish(Some(logits))
}

/// A 1 x 1 convolution with mask B.
fn pointwise(
    masked: &mut Masked<'_>,
    name: &str,
    outputs: &Features,
    from: &Value<'_>,
    after: After,
) -> Result<crate::decode::Register, TchError> {
    masked.convolve(name, outputs, 1, from, &[], None, after)
}

/// The latest `kept` rows of a map of the image.
fn rows(config: &Config, kept: u32) -> Grid {
    Grid::of(config.shape, 1, kept)
}
