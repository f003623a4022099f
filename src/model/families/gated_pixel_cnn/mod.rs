//! Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328): a vertical stack that sees the rows above, a horizontal one
//! that sees the row's past and is told of the vertical one, both through gates.
//!
//! The vertical stack sees its own row too, and what the horizontal one hears of it is a row older. So it goes through a row
//! when that is complete, for all columns together.

mod config;

use tch::{TchError, Tensor};

use self::config::Config;
use super::raster::features::Features;
use super::raster::grid::Grid;
use super::raster::masked::{self, After, Masked, Shelf, Stage, Window};
use super::raster::{self, Phase, Schedule};
use crate::decode::{Linear, Memory, Network, Part, Passing, Register};
use crate::error::Violations;
use crate::model::manifest::Manifest;
use crate::model::{Family, PixelModel, Placement, WeightsFile};
use crate::torch::weights::Weights;

/// The family.
pub const FAMILY: Family = Family {
    name: "gated_pixel_cnn",
    summary: "Gated PixelCNN, categorical head (arXiv 1606.05328)",
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
        network(&config, weights, placement)
    })
}

fn network(config: &Config, weights: &Weights, placement: Placement) -> Result<(Network, Schedule), TchError> {
    let channels = config.shape.channels();
    let (mut network, mut shelf) = (Network::new(placement.precision, placement.device), Shelf::new(config.low));
    let mut phase = |stage, build: fn(Masked<'_>, &Config) -> Result<Phase, TchError>| {
        build(Masked::new(&mut network, weights, &mut shelf, stage, channels), config)
    };
    let before_row = vec![phase(Stage::Whole, vertical)?];
    let (steps, whole) = masked::pixel(channels, |stage| phase(stage, horizontal))?;
    let upsample = config.low.map(|low| low.upsample(&mut network, &mut shelf, weights)).transpose()?;
    let schedule = Schedule {
        grids: shelf.grids,
        scaling: config.scaling,
        opening: Vec::new(),
        upsample,
        before_row,
        steps,
        whole,
        after_row: Vec::new(),
        together: true,
    };
    Ok((network, schedule))
}

/// The latest `kept` rows of a map of the image.
fn rows(config: &Config, kept: u32) -> Grid {
    Grid::of(config.shape, 1, kept)
}

/// What is told of the vertical stack at a pixel: both halves of the gates of `layer`.
fn link_name(layer: u32) -> String {
    format!("layers.{layer}.link")
}

/// The vertical stack at the row above a node (section 2.2); what the node's own row hears of it is remembered there.
fn vertical(mut masked: Masked<'_>, config: &Config) -> Result<Phase, TchError> {
    let stack = &config.stack;
    let kept = rows(config, config.kernel / 2 + 1);
    let channels = Features::by_channel(1, config.shape.channels());
    let mut below: Option<Memory> = None;
    for layer in 0..config.layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let size = if layer == 0 { config.input_kernel } else { config.kernel };
        let reach = (size / 2) as i32;
        // Rows down to the one above the node, and where in the kernel each lies.
        let offsets: Vec<_> =
            (-reach..=0).flat_map(|down| (-reach..=reach).map(move |right| (down - 1, right))).collect();
        let index = |(down, right): (i32, i32)| ((down + 1 + reach) as u32, (right + reach) as u32);
        let weight = masked.weight(&name("vertical"))?;
        let (from, inputs) = match below {
            None => (masked.pixels(offsets.clone(), 0)?, &channels),
            Some(memory) => {
                let taps = masked.taps(kept, &offsets);
                let around = Part::Memory { memory, taps, column: 0, width: stack.count() };
                (masked.side_by_side(vec![around])?, stack)
            }
        };
        let columns: Vec<Tensor> = offsets
            .iter()
            .map(|&offset| masked.block(&weight, stack.gates(2), Some(inputs), index(offset)))
            .collect::<Result<_, TchError>>()?;
        let weight = Tensor::f_cat(&columns, 1)?;
        let seen = masked.linear(&name("vertical"), stack.gates(2), from, weight, After::default())?;

        // [2 x stack, 2 x stack, 1, 1], both sides in the order of the features.
        let link = stack.arrange_halves(&masked.weight(&name("link"))?.f_flatten(1, 3)?.f_tr()?)?.f_tr()?;
        let weight = masked.select(&link, stack.gates(2))?;
        let told = masked.program.linear(seen, Linear { weight, ..Linear::default() })?;
        let memory = masked.memory(&link_name(layer), 2 * stack.count(), rows(config, 1).places());
        let place = masked.taps(rows(config, 1), &[(0, 0)]);
        masked.program.remember(told, memory, place, 0)?;

        if layer + 1 < config.layers {
            let mut gates = seen;
            if config.classes > 0 {
                let class = masked.class(&name("vertical_condition.classes.weight"), stack.gates(2))?;
                gates = masked.program.add(gates, class)?;
            }
            let gates = masked.add_low(&name("vertical_condition"), stack.gates(2), (-1, 0), gates)?;
            let gated = masked.program.gate(gates, Passing::Tanh, None)?;
            let memory = masked.memory(&name("vertical"), stack.count(), kept.places());
            let place = masked.taps(kept, &[(-1, 0)]);
            masked.program.remember(gated, memory, place, 0)?;
            below = Some(memory);
        }
    }
    // Before the second row there is nothing to tell, and what is not remembered is zero.
    Ok(Phase { from_row: 1, ..masked.finish(None)? })
}

/// The horizontal stack and the head as far as the program's stage goes.
fn horizontal(mut masked: Masked<'_>, config: &Config) -> Result<Phase, TchError> {
    let stack = &config.stack;
    let mut below: Option<Register> = None;
    for layer in 0..config.layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let mut told = told(&mut masked, config, layer)?;
        if config.classes > 0 {
            let class = masked.class(&name("horizontal_condition.classes.weight"), stack.gates(2))?;
            told = masked.program.add(told, class)?;
        }
        let low = masked.low(&name("horizontal_condition"), stack.gates(2), (0, 0))?;
        let after = After { activation: None, residual: Some(told) };
        let gates = match below {
            None => {
                let window = Window::left(config.input_kernel / 2);
                masked.look_at_pixels(&name("horizontal"), stack.gates(2), &window, low, after)?
            }
            Some(below) => {
                let given = masked.value(&name("given"), below, stack, Some(rows(config, 1)))?;
                let window = Window::left(config.kernel / 2);
                masked.convolve(&name("horizontal"), stack.gates(2), &given, &window, low, after)?
            }
        };
        let gated = masked.program.gate(gates, Passing::Tanh, None)?;
        let gated = masked.value(&name("gated"), gated, stack, None)?;
        // The first layer has no residual: its input would show the pixel itself.
        let after = After { activation: None, residual: below };
        below = Some(masked.pointwise(&name("output"), stack, &gated, after)?);
    }
    let Some(last) = below else { return Err(TchError::Shape("no layers".to_owned())) };
    let widths = config.head_widths.iter().map(|&width| Features::new(width, config.shape.channels(), config.scheme));
    let maps: Vec<Features> = std::iter::once(stack.clone()).chain(widths).collect();
    masked.head(last, &maps, config.shape.levels())
}

/// What the program's stage is told of the vertical stack by `layer`.
fn told(masked: &mut Masked<'_>, config: &Config, layer: u32) -> Result<Register, TchError> {
    let stack = &config.stack;
    let memory = masked.memory(&link_name(layer), 2 * stack.count(), rows(config, 1).places());
    let taps = masked.taps(rows(config, 1), &[(0, 0)]);
    let (first, end) = masked.columns(stack);
    let half = |start: u32| Part::Memory { memory, taps, column: start + first, width: end - first };
    masked.program.gather(vec![half(0), half(stack.count())])
}
