//! The Row LSTM layer (section 3.1): a whole row of states follows from the row above and from the input along the row.

use tch::{TchError, Tensor};

use super::super::raster::Opening;
use super::super::raster::features::Features;
use super::super::raster::grid::{Edge, Grid};
use super::super::raster::masked::{After, Masked, More, Shelf, Value, Window};
use super::config::Config;
use super::{class, rows};
use crate::decode::{Network, Part, Register};
use crate::torch::weights::Weights;

/// Rows of state: the one above and the one in the making. What is learned stands above the image.
fn grid(config: &Config, learned: bool) -> Grid {
    let rows = rows(config, 2);
    if learned { Grid { above: Edge::Place(rows.places()), ..rows } } else { rows }
}

/// The hidden state h of `layer`, from its input `z` and the state above.
pub(super) fn layer<'c>(
    masked: &mut Masked<'_>,
    config: &'c Config,
    layer: u32,
    kernel: u32,
    learned: bool,
    z: Register,
) -> Result<Value<'c>, TchError> {
    let name = |part: &str| format!("layers.{layer}.{part}");
    let (hidden, grid, reach) = (&config.hidden, grid(config, learned), (kernel / 2) as i32);
    let states = masked.memory(&name("hidden"), hidden.count(), grid.places());
    let z = masked.value(&name("given"), z, &config.wide, Some(rows(config, 1)))?;

    let weight = masked.weight(&name("state_to_state"))?;
    let blocks = (0..kernel).map(|column| masked.block(&weight, hidden.gates(4), Some(hidden), (0, column)));
    let blocks = Tensor::f_cat(&blocks.collect::<Result<Vec<_>, _>>()?, 1)?;
    let above: Vec<_> = (-reach..=reach).map(|right| (-1, right)).collect();
    let taps = masked.taps(grid, &above);
    let state = Part::Memory { memory: states, taps, column: 0, width: hidden.count() };
    let after = After { activation: None, residual: class(masked, config, &format!("layers.{layer}"), 4)? };
    let more = More::one(state, blocks).and(masked.low(&name("condition"), hidden.gates(4), (0, 0))?);
    let window = Window::left(kernel / 2);
    let gates = masked.convolve(&name("input_to_state"), hidden.gates(4), &z, &window, more, after)?;
    cell(masked, &format!("layers.{layer}"), hidden, grid, (-1, 0), gates)
}

/// Lets the cell at the node follow from `gates` and from the cell state at offset `from`; both its states are remembered
/// as `name`.cell and `name`.hidden on `grid`. Gives the hidden one.
pub(super) fn cell<'f>(
    masked: &mut Masked<'_>,
    name: &str,
    hidden: &'f Features,
    grid: Grid,
    from: (i32, i32),
    gates: Register,
) -> Result<Value<'f>, TchError> {
    let [cells, states] =
        ["cell", "hidden"].map(|part| masked.memory(&format!("{name}.{part}"), hidden.count(), grid.places()));
    let (first, end) = masked.columns(hidden);
    let width = end - first;
    let taps = masked.taps(grid, &[from]);
    let carried = masked.program.gather(vec![Part::Memory { memory: cells, taps, column: first, width }])?;
    let cell = masked.program.cell(gates, carried)?;
    let place = masked.taps(grid, &[(0, 0)]);
    for (memory, column) in [(cells, 0), (states, width)] {
        let part = masked.program.gather(vec![Part::Register { register: cell, column, width }])?;
        masked.program.remember(part, memory, place, first)?;
    }
    Ok(masked.remembered(cell, width, hidden, states, grid))
}

/// Puts the learned initial states above the image.
pub(super) fn opening(
    network: &mut Network,
    shelf: &mut Shelf,
    weights: &Weights,
    config: &Config,
) -> Result<Opening, TchError> {
    let grid = grid(config, true);
    let mut program = network.program();
    let place = program.taps(1, grid.places());
    for layer in 0..config.layers {
        for part in ["cell", "hidden"] {
            let learned = config.hidden.arrange(weights.get(&format!("layers.{layer}.initial_{part}"))?)?;
            let memory =
                shelf.memory(&mut program, &format!("layers.{layer}.{part}"), config.hidden.count(), grid.places());
            let learned = program.embed(learned.f_unsqueeze(0)?)?;
            program.remember(learned, memory, place, 0)?;
        }
    }
    let rows = vec![(0, rows(config, 2).places())];
    Ok(Opening { program: program.finish(None)?, rows })
}
