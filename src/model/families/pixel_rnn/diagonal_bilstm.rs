//! The Diagonal BiLSTM layer (section 3.2), unskewed: one cell comes from above and from the left, the other from above
//! and from the right; the second one's map is moved down a row before both are added.
//!
//! The cell from the right at row i needs all of row i, so it goes through a row once that is complete, in every layer at
//! once: each layer's input of that row is known by then.

use tch::{TchError, Tensor};

use super::super::raster::grid::{Edge, Grid};
use super::super::raster::masked::{After, Mask, Masked, Shelf, Value};
use super::super::raster::{Opening, Phase};
use super::config::{Config, Pad};
use super::{class, row_lstm, rows};
use crate::decode::{Network, Part, Register};
use crate::torch::weights::Weights;

/// Which side a cell comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

impl Side {
    const BOTH: [Self; 2] = [Side::Left, Side::Right];

    fn name(self) -> &'static str {
        match self {
            Side::Left => "left",
            Side::Right => "right",
        }
    }

    /// Offsets of the two nodes a cell follows from: above, and beside.
    fn offsets(self) -> [(i32, i32); 2] {
        match self {
            Side::Left => [(-1, 0), (0, -1)],
            Side::Right => [(-1, 0), (0, 1)],
        }
    }

    /// Where its states are: of the left cell the row above too, since later channels of a pixel still ask for it. What is
    /// around the image comes after.
    fn grid(self, config: &Config, pad: Pad) -> Grid {
        let rows = rows(config, if self == Side::Left { 2 } else { 1 });
        let first = rows.places();
        let (above, beside) = match pad {
            Pad::Zero => (Edge::Zeros, Edge::Zeros),
            Pad::Learned => (Edge::Place(first), Edge::Place(first)),
            Pad::Evolve => (Edge::Zeros, Edge::Rows(first)),
        };
        let beside = match self {
            Side::Left => [beside, Edge::Zeros],
            Side::Right => [Edge::Zeros, beside],
        };
        Grid { above, beside, ..rows }
    }
}

/// hL(i, j) + hR(i - 1, j) of `layer`, from its input `z`.
pub(super) fn layer<'c>(
    masked: &mut Masked<'_>,
    config: &'c Config,
    layer: u32,
    pad: Pad,
    z: Register,
) -> Result<Value<'c>, TchError> {
    let name = |part: &str| format!("layers.{layer}.{part}");
    let hidden = &config.hidden;
    let z = masked.value(&name("given"), z, &config.wide, Some(rows(config, 1)))?;
    let own = masked.own(&z);
    let left = cell(masked, config, layer, pad, Side::Left, own)?;

    let (first, end) = masked.columns(hidden);
    let width = end - first;
    let memory = masked.memory(&name("right.hidden"), hidden.count(), Side::Right.grid(config, pad).places());
    // Above the image this one is zero, whatever the cells find there.
    let taps = masked.taps(rows(config, 1), &[(-1, 0)]);
    let right = masked.program.gather(vec![Part::Memory { memory, taps, column: first, width }])?;
    let left = masked.program.gather(vec![Part::Register { register: left.register, column: left.column, width }])?;
    let sum = masked.program.add(left, right)?;
    masked.value(&name("states"), sum, hidden, None)
}

/// The cell from the right of every layer, at one node of a row that is complete.
pub(super) fn scan(mut masked: Masked<'_>, config: &Config, pad: Pad) -> Result<Phase, TchError> {
    let grid = rows(config, 1);
    for layer in 0..config.layers {
        let width = config.wide.count();
        let memory = masked.memory(&format!("layers.{layer}.given"), width, grid.places());
        let taps = masked.taps(grid, &[(0, 0)]);
        cell(&mut masked, config, layer, pad, Side::Right, vec![Part::Memory { memory, taps, column: 0, width }])?;
    }
    masked.finish(None)
}

/// The hidden state of the cell from `side`, from `own` features of the layer's input at the node.
fn cell<'c>(
    masked: &mut Masked<'_>,
    config: &'c Config,
    layer: u32,
    pad: Pad,
    side: Side,
    own: Vec<Part>,
) -> Result<Value<'c>, TchError> {
    let name = format!("layers.{layer}.{}", side.name());
    let (hidden, grid) = (&config.hidden, side.grid(config, pad));
    let states = masked.memory(&format!("{name}.hidden"), hidden.count(), grid.places());
    let recurrent = masked.weight(&format!("{name}.state_to_state"))?;
    let blocks = [0, 1].map(|row| masked.block(&recurrent, hidden.gates(4), Some(hidden), (row, 0)));
    let [above, beside] = blocks;
    let weight = masked.weight(&format!("{name}.input_to_state"))?;
    let input = masked.masked(&weight, hidden.gates(4), &config.wide, (0, 0), Mask::B)?;
    let taps = masked.taps(grid, &side.offsets());
    let mut parts = vec![Part::Memory { memory: states, taps, column: 0, width: hidden.count() }];
    let after = After { activation: None, residual: class(masked, config, &name, 4)? };
    let mut columns = vec![above?, beside?];
    masked.low(&format!("{name}.condition"), hidden.gates(4), (0, 0))?.append(&mut parts, &mut columns);
    parts.extend(own);
    columns.push(input);
    let gates = masked.affine(&format!("{name}.input_to_state"), hidden.gates(4), parts, &columns, after)?;
    let [_, beside] = side.offsets();
    row_lstm::cell(masked, &name, hidden, grid, beside, gates)
}

/// Puts what lies around the image where it is looked for.
pub(super) fn openings(
    network: &mut Network,
    shelf: &mut Shelf,
    weights: &Weights,
    config: &Config,
    pad: Pad,
) -> Result<Vec<Opening>, TchError> {
    let sides: &[Side] = if pad == Pad::Zero { &[] } else { &Side::BOTH };
    let mut openings = Vec::new();
    for side in sides {
        let grid = side.grid(config, pad);
        let mut program = network.program();
        let place = program.taps(1, grid.places());
        let mut count = 0;
        for layer in 0..config.layers {
            let name = format!("layers.{layer}.{}", side.name());
            let [hidden, cell] = match pad {
                Pad::Evolve => evolve(weights, &name, config.shape.height())?,
                _ => {
                    let learned = |part: &str| weights.get(&format!("{name}.initial_{part}"))?.f_unsqueeze(0);
                    [learned("hidden")?, learned("cell")?]
                }
            };
            for (part, table) in [("hidden", hidden), ("cell", cell)] {
                let table = config.hidden.arrange(&table.f_tr()?)?.f_tr()?.f_contiguous()?;
                count = table.size2()?.0;
                let memory =
                    shelf.memory(&mut program, &format!("{name}.{part}"), config.hidden.count(), grid.places());
                let state = program.embed(table)?;
                program.remember(state, memory, place, 0)?;
            }
        }
        let first = grid.places() - count as u32;
        let rows = (0..count as u32).map(|row| (row, first + row)).collect();
        openings.push(Opening { program: program.finish(None)?, rows });
    }
    Ok(openings)
}

/// The states (h, c) beside each of `rows` rows, [rows, h] both: none at the first, then what the cell makes of its bias and
/// of the state beside the row above, which is its neighbour on both sides.
fn evolve(weights: &Weights, name: &str, rows: u32) -> Result<[Tensor; 2], TchError> {
    let bias = weights.get(&format!("{name}.input_to_state.bias"))?;
    let weight = weights.get(&format!("{name}.state_to_state.weight"))?;
    let both = weight.f_sum_dim_intlist([2i64, 3].as_slice(), false, None)?;
    let width = both.size2()?.1;
    let none = bias.f_narrow(0, 0, width)?.f_zeros_like()?;
    let (mut hiddens, mut cells) = (vec![none.shallow_clone()], vec![none]);
    for _ in 1..rows {
        let (Some(hidden), Some(cell)) = (hiddens.last(), cells.last()) else { break };
        let gates = both.f_mv(hidden)?.f_add(bias)?;
        let gate = |index: i64| gates.f_narrow(0, index * width, width);
        let new = gate(2)?.f_sigmoid()?.f_mul(&gate(3)?.f_tanh()?)?;
        let next = gate(1)?.f_sigmoid()?.f_mul(cell)?.f_add(&new)?;
        hiddens.push(gate(0)?.f_sigmoid()?.f_mul(&next.f_tanh()?)?);
        cells.push(next);
    }
    Ok([Tensor::f_stack(&hiddens, 0)?, Tensor::f_stack(&cells, 0)?])
}
