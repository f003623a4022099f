//! Networks in kernels of our own, on the CPU: weights packed once, state in place, bits that no other row and no other slot
//! can change.
//!
//! Layouts. Weights: panels of 64 (then 32) columns, input after input, so that a step reads them from front to back.
//! Keys: for each slot, head and sixteen places, feature after feature, so that a query meets sixteen keys at once. Values:
//! for each slot, head and place, the features, padded to whole groups. Memories: for each slot and place, the numbers.

mod attend;
mod isa;
mod kernels;
mod pack;
mod pages;
mod pointwise;
pub mod probe;
mod state;

use std::fmt;
use std::sync::Arc;

pub use isa::Isa;

use self::attend::{Attend, Places};
use self::kernels::{LANES, Lanes, Linear, Normalise, add};
use self::pack::{Bf16, F32, Format, Matrix, Weights, vector};
use self::pointwise::{Activate, Cell, Gate};
use self::state::{Heads, Slots, store};
use super::op::{Activation, Op, Part, Passing, Sight};
use super::program::{NOWHERE, Needs, Network, Program, ProgramId, Register, Taps};
use super::{Decoder, Row, Rows, check_memory};
use crate::model::{ModelError, Slot};
use crate::spec::Precision;

/// Rows evaluated together where they are independent; more are taken in turn. Enough to read the weights of a long prefix
/// seldom, few enough for the registers to stay in the cache.
const MOST_ROWS: usize = 48;

/// A decoder of `network` for `slots` images with the instructions `isa`.
///
/// # Errors
/// There is no memory for weights or state.
pub fn decoder(network: &Network, slots: u32, isa: Isa) -> Result<Box<dyn Decoder>, ModelError> {
    Ok(match network.precision() {
        Precision::F32 => Box::new(Native::<F32>::new(Arc::new(Compiled::new(network)?), slots, isa)?),
        Precision::Bf16 => Box::new(Native::<Bf16>::new(Arc::new(Compiled::new(network)?), slots, isa)?),
    })
}

/// A network with its weights packed; shared by every decoder of it.
struct Compiled<F: Format> {
    programs: Vec<Code>,
    weights: Weights<F>,
    /// Width and places of each memory.
    memories: Vec<(usize, usize)>,
    rings: Vec<Heads>,
    state_bytes: u64,
}

/// A program.
struct Code {
    ops: Vec<Packed>,
    /// Groups of a row of each buffer.
    strides: Vec<usize>,
    /// The buffer of what a row gives.
    output: Option<usize>,
    needs: Needs,
}

/// An operation and the buffers it works on.
struct Packed {
    kind: Kind,
    from: usize,
    /// The second register it reads.
    other: Option<usize>,
    to: usize,
}

enum Kind {
    Embed { table: Vec<Lanes> },
    Input,
    Linear { weight: Matrix, bias: Option<Vec<Lanes>>, relu: bool },
    Normalise { width: usize, scale: Vec<Lanes>, shift: Option<Vec<Lanes>>, epsilon: f32 },
    Activate { width: usize, activation: Activation },
    Add,
    Gate { width: usize, passing: Passing },
    Cell { width: usize },
    Gather { parts: Vec<Piece> },
    Remember { memory: usize, tap: usize, column: usize, width: usize },
    Store { ring: usize },
    Look { ring: usize, sight: Sight },
}

/// A part of what is gathered.
enum Piece {
    Buffer { buffer: usize, column: usize, width: usize },
    Memory { memory: usize, taps: Taps, column: usize, width: usize },
}

/// Groups that hold a row of `width` numbers: whole panels.
fn stride(width: u32) -> usize {
    (width as usize).div_ceil(LANES * kernels::NARROW) * kernels::NARROW
}

impl<F: Format> Compiled<F> {
    fn new(network: &Network) -> Result<Self, ModelError> {
        let linears = network.programs.iter().flat_map(|program| &program.ops).filter_map(|op| match op {
            Op::Linear { linear, .. } => Some(&linear.weight),
            _ => None,
        });
        let mut weights = Weights::new(linears.map(|weight| {
            let [outputs, inputs] = [0, 1].map(|dim| weight.size().get(dim).map_or(0, |&n| n.unsigned_abs() as usize));
            (outputs, inputs)
        }))?;
        let programs = network.programs.iter().map(|program| Code::new(program, &mut weights));
        Ok(Self {
            programs: programs.collect::<Result<_, _>>()?,
            weights,
            memories: network.memories.iter().map(|&(width, places)| (width as usize, places as usize)).collect(),
            rings: network.rings.iter().map(|(attention, places)| Heads::new(attention, *places)).collect(),
            state_bytes: network.state_bytes(),
        })
    }
}

impl Code {
    fn new<F: Format>(program: &Program, weights: &mut Weights<F>) -> Result<Self, ModelError> {
        let buffers = Buffers::assign(program);
        let buffer = |register: Register| buffers.of.get(register.0).copied().unwrap_or_default();
        let width = |register: Register| program.widths.get(register.0).map_or(0, |&width| width as usize);
        let mut ops = Vec::with_capacity(program.ops.len());
        for (index, op) in program.ops.iter().enumerate() {
            let reads = op.reads();
            let to = Register(index);
            let kind = match op {
                Op::Embed { table } => Kind::Embed { table: pack::rows(table)? },
                Op::Input => Kind::Input,
                Op::Linear { linear, .. } => Kind::Linear {
                    weight: weights.pack(&linear.weight)?,
                    bias: linear.bias.as_ref().map(vector).transpose()?,
                    relu: linear.activation == Some(Activation::Relu),
                },
                Op::Normalise { normalisation, .. } => Kind::Normalise {
                    width: width(to),
                    scale: vector(&normalisation.scale)?,
                    shift: normalisation.shift.as_ref().map(vector).transpose()?,
                    epsilon: normalisation.epsilon as f32,
                },
                Op::Activate { from, activation } => Kind::Activate { width: width(*from), activation: *activation },
                Op::Add { .. } => Kind::Add,
                Op::Gate { passing, .. } => Kind::Gate { width: width(to), passing: *passing },
                Op::Cell { carried, .. } => Kind::Cell { width: width(*carried) },
                Op::Gather { parts } => {
                    let piece = |part: &Part| match *part {
                        Part::Register { register, column, width } => {
                            Piece::Buffer { buffer: buffer(register), column: column as usize, width: width as usize }
                        }

                        Part::Memory { memory, taps, column, width } => {
                            Piece::Memory { memory: memory.0, taps, column: column as usize, width: width as usize }
                        }
                    };
                    Kind::Gather { parts: parts.iter().map(piece).collect() }
                }
                Op::Remember { from, memory, taps, column } => {
                    Kind::Remember { memory: memory.0, tap: taps.first, column: *column as usize, width: width(*from) }
                }
                Op::Store { ring, .. } => Kind::Store { ring: ring.0 },
                Op::Look { ring, sight, .. } => Kind::Look { ring: ring.0, sight: *sight },
            };
            ops.push(Packed {
                kind,
                from: reads.first().copied().map(buffer).unwrap_or_default(),
                other: reads.get(1).copied().map(buffer),
                to: buffer(to),
            });
        }
        Ok(Self { ops, strides: buffers.strides, output: program.output.map(buffer), needs: program.needs.clone() })
    }

    fn stride(&self, buffer: usize) -> usize {
        self.strides.get(buffer).copied().unwrap_or(1)
    }

    /// Whether what a row gets may be written by a later row of the same image.
    fn reads_ahead(&self) -> bool {
        let stores = |ring: usize| self.ops.iter().any(|op| matches!(op.kind, Kind::Store { ring: to } if to == ring));
        self.ops.iter().any(|op| match op.kind {
            Kind::Gather { .. } => true,
            Kind::Look { ring, sight: Sight::All } => stores(ring),
            _ => false,
        })
    }
}

/// Which buffer each register lives in: one whose last reader has gone is used again.
struct Buffers {
    of: Vec<usize>,
    strides: Vec<usize>,
}

impl Buffers {
    fn assign(program: &Program) -> Self {
        let (mut of, mut strides, mut free) = (Vec::<usize>::new(), Vec::<usize>::new(), Vec::<usize>::new());
        for (&width, done) in program.widths.iter().zip(program.last_reads()) {
            let wanted = stride(width);
            // Rows of a buffer keep one stride, so it serves registers of one width.
            let found = free.iter().position(|&buffer| strides.get(buffer) == Some(&wanted));
            let buffer = found.map(|found| free.swap_remove(found)).unwrap_or_else(|| {
                strides.push(wanted);
                strides.len() - 1
            });
            of.push(buffer);
            free.extend(done.iter().filter_map(|register| of.get(register.0)));
        }
        Self { of, strides }
    }
}

/// A network, the state of its slots, and room to work in.
struct Native<F: Format> {
    compiled: Arc<Compiled<F>>,
    isa: Isa,
    slots: u32,
    /// A part for each ring.
    rings: Slots<F::Group>,
    /// A part for each memory, place after place.
    memories: Slots<f32>,
    work: Work,
}

/// Room to work in, kept from one evaluation to the next.
#[derive(Default)]
struct Work {
    buffers: Vec<Vec<Lanes>>,
    /// Of each row.
    seen: Vec<Places>,
    /// Every place of a ring.
    all: Places,
    scores: Vec<Lanes>,
}

impl Work {
    fn buffer(&self, index: usize) -> &[Lanes] {
        self.buffers.get(index).map(Vec::as_slice).unwrap_or_default()
    }

    fn numbers(&self, index: usize) -> &[f32] {
        bytemuck::cast_slice(self.buffer(index))
    }
}

impl<F: Format> fmt::Debug for Native<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native").field("isa", &self.isa).field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl<F: Format> Native<F> {
    fn new(compiled: Arc<Compiled<F>>, slots: u32, isa: Isa) -> Result<Self, ModelError> {
        check_memory(compiled.state_bytes, slots)?;
        let memories = compiled.memories.iter().map(|&(width, places)| width.checked_mul(places));
        let most_places = compiled.rings.iter().map(|ring| ring.place_groups()).max().unwrap_or(0);
        Ok(Self {
            rings: Slots::new(compiled.rings.iter().map(|ring| ring.groups()), slots as usize)?,
            memories: Slots::new(memories, slots as usize)?,
            isa,
            slots,
            work: Work { scores: vec![Lanes::default(); most_places], ..Work::default() },
            compiled,
        })
    }

    /// Evaluates `rows` together; their output goes to `out`.
    fn evaluate(&mut self, code: &Code, rows: &[Row<'_>], out: &mut [f32]) {
        let work = &mut self.work;
        work.buffers.resize_with(work.buffers.len().max(code.strides.len()), Vec::new);
        for (buffer, &stride) in work.buffers.iter_mut().zip(&code.strides) {
            buffer.resize(rows.len() * stride, Lanes::default());
        }
        if code.needs.looks {
            work.seen.resize_with(rows.len().max(work.seen.len()), Places::default);
            for (seen, row) in work.seen.iter_mut().zip(rows) {
                seen.set(row.seen.iter().cloned());
            }
        }
        for op in &code.ops {
            // Taken out while it is written; nothing an operation reads lies in the buffer it writes.
            let Some(mut to) = self.work.buffers.get_mut(op.to).map(std::mem::take) else { continue };
            self.perform(op, code, rows, &mut to);
            if let Some(buffer) = self.work.buffers.get_mut(op.to) {
                *buffer = to;
            }
        }
        let Some(output) = code.output else { return };
        let numbers = self.work.numbers(output);
        let width = code.needs.width;
        for (out, row) in out.chunks_exact_mut(width.max(1)).zip(numbers.chunks_exact(code.stride(output) * LANES)) {
            out.copy_from_slice(row.get(..width).unwrap_or_default());
        }
    }

    fn perform(&mut self, op: &Packed, code: &Code, rows: &[Row<'_>], to: &mut [Lanes]) {
        let Self { work, isa, memories, rings, compiled, .. } = self;
        let [from_stride, to_stride] = [code.stride(op.from), code.stride(op.to)];
        match &op.kind {
            Kind::Embed { table } => {
                for (to, row) in to.chunks_exact_mut(to_stride).zip(rows) {
                    to.fill(Lanes::default());
                    for &input in row.inputs {
                        let first = input as usize * to_stride;
                        add(to, table.get(first..first + to_stride).unwrap_or_default());
                    }
                }
            }
            Kind::Input => {
                let to: &mut [f32] = bytemuck::cast_slice_mut(to);
                for (to, row) in to.chunks_exact_mut(to_stride * LANES).zip(rows) {
                    to.iter_mut().zip(row.numbers).for_each(|(to, &number)| *to = number);
                }
            }
            Kind::Linear { weight, bias, relu } => {
                let (wide, narrow) = compiled.weights.panels(weight);
                isa.run(Linear {
                    inputs: weight.inputs,
                    wide,
                    narrow,
                    bias: bias.as_deref(),
                    relu: *relu,
                    from: work.buffer(op.from),
                    from_stride,
                    residual: op.other.map(|residual| work.buffer(residual)),
                    to,
                    to_stride,
                });
            }
            Kind::Normalise { width, scale, shift, epsilon } => isa.run(Normalise {
                width: *width,
                stride: to_stride,
                scale,
                shift: shift.as_deref(),
                epsilon: *epsilon,
                from: work.buffer(op.from),
                to,
            }),
            Kind::Activate { width, activation } => isa.run(Activate {
                width: *width,
                activation: *activation,
                from: work.buffer(op.from),
                from_stride,
                to,
                to_stride,
            }),
            Kind::Add => {
                to.copy_from_slice(work.buffer(op.from));
                add(to, op.other.map(|other| work.buffer(other)).unwrap_or_default());
            }
            Kind::Gate { width, passing } => isa.run(Gate {
                width: *width,
                tanh: *passing == Passing::Tanh,
                from: work.buffer(op.from),
                from_stride,
                residual: op.other.map(|residual| work.buffer(residual)),
                to,
                to_stride,
            }),
            Kind::Cell { width } => {
                let carried = op.other.unwrap_or_default();
                isa.run(Cell {
                    width: *width,
                    gates: work.buffer(op.from),
                    gates_stride: from_stride,
                    carried: work.buffer(carried),
                    carried_stride: code.stride(carried),
                    to,
                    to_stride,
                });
            }
            Kind::Gather { parts } => {
                let to: &mut [f32] = bytemuck::cast_slice_mut(to);
                for ((index, row), mut to) in rows.iter().enumerate().zip(to.chunks_exact_mut(to_stride * LANES)) {
                    for part in parts {
                        to = gather(part, code, compiled, work, memories, index, row, to);
                    }
                }
            }
            Kind::Remember { memory, tap, column, width } => {
                let &(each, _) = compiled.memories.get(*memory).unwrap_or(&(0, 0));
                let from = work.numbers(op.from).chunks_exact(from_stride * LANES);
                for (from, row) in from.zip(rows) {
                    let Some(&place) = row.places.get(*tap).filter(|&&place| place != NOWHERE) else { continue };
                    let first = place as usize * each + column;
                    let numbers = memories.part_mut(row.slot as usize, *memory);
                    let to = numbers.get_mut(first..first + width).unwrap_or_default();
                    to.iter_mut().zip(from).for_each(|(to, &number)| *to = number);
                }
            }
            Kind::Store { ring } => {
                let Some(&shape) = compiled.rings.get(*ring) else { return };
                for (from, row) in work.buffer(op.from).chunks_exact(from_stride).zip(rows) {
                    store(shape, from, row.place as usize, rings.part_mut(row.slot as usize, *ring));
                }
            }
            Kind::Look { ring, sight } => {
                let Some(&shape) = compiled.rings.get(*ring) else { return };
                let Work { buffers, seen, all, scores } = work;
                if *sight == Sight::All {
                    all.set(std::iter::once(0..shape.places as u32));
                }
                let from = buffers.get(op.from).map(Vec::as_slice).unwrap_or_default();
                let each = from.chunks_exact(from_stride).zip(to.chunks_exact_mut(to_stride));
                for ((index, row), (from, to)) in rows.iter().enumerate().zip(each) {
                    let ring = rings.part(row.slot as usize, *ring);
                    let Some((keys, values)) = ring.split_at_checked(shape.key_groups()) else { return };
                    let Some(seen) = (if *sight == Sight::All { Some(&*all) } else { seen.get(index) }) else { return };
                    isa.run(Attend {
                        heads: shape.heads,
                        head_key: shape.head_key,
                        head_value: shape.head_value,
                        place_groups: shape.place_groups(),
                        keys,
                        values,
                        seen,
                        scores,
                        query: from,
                        to,
                    });
                }
            }
        }
    }
}

/// Copies `part` of row `index` to the front of `to` and gives what is left of it.
#[allow(clippy::too_many_arguments, reason = "the loop over rows and parts, cut out where it would nest too deep")]
fn gather<'t, F: Format>(
    part: &Piece,
    code: &Code,
    compiled: &Compiled<F>,
    work: &Work,
    memories: &Slots<f32>,
    index: usize,
    row: &Row<'_>,
    mut to: &'t mut [f32],
) -> &'t mut [f32] {
    match part {
        Piece::Buffer { buffer, column, width } => {
            let first = index * code.stride(*buffer) * LANES + column;
            put(work.numbers(*buffer).get(first..first + width), *width, to)
        }
        Piece::Memory { memory, taps, column, width } => {
            let numbers = memories.part(row.slot as usize, *memory);
            let &(each, _) = compiled.memories.get(*memory).unwrap_or(&(0, 0));
            for &place in row.places.iter().skip(taps.first).take(taps.count) {
                let first = place as usize * each + column;
                let found = if place == NOWHERE { None } else { numbers.get(first..first + width) };
                to = put(found, *width, to);
            }
            to
        }
    }
}

/// Copies `from`, or as many zeros, to the front of `to`, and gives what is left of it.
fn put<'t>(from: Option<&[f32]>, width: usize, to: &'t mut [f32]) -> &'t mut [f32] {
    let Some((to, rest)) = to.split_at_mut_checked(width) else { return &mut [] };
    match from {
        Some(from) => to.copy_from_slice(from),
        None => to.fill(0.0),
    }
    rest
}

impl<F: Format> Decoder for Native<F> {
    fn clear(&mut self, slot: Slot) -> Result<(), ModelError> {
        if slot.0 >= self.slots {
            return Err(ModelError::Step(format!("there is no {slot:?}")));
        }
        self.rings.clear(slot.0 as usize);
        self.memories.clear(slot.0 as usize);
        Ok(())
    }

    fn run(&mut self, program: ProgramId, rows: &Rows, out: &mut [f32]) -> Result<(), ModelError> {
        let compiled = Arc::clone(&self.compiled);
        let code = compiled.programs.get(program.0);
        rows.check(code.map(|code| &code.needs), self.slots, out.len())?;
        let Some(code) = code else { return Ok(()) };
        let all: Vec<_> = rows.iter().collect();
        let (mut rest, mut out) = (all.as_slice(), out);
        while let Some(last) = rest.len().checked_sub(1) {
            let mut count = MOST_ROWS.min(last + 1);
            if code.reads_ahead() {
                // Rows of one image stay together.
                let slot = |index: usize| rest.get(index).map(|row| row.slot);
                count += rest.iter().skip(count).take_while(|row| Some(row.slot) == slot(count - 1)).count();
            }
            let (rows, later) = rest.split_at(count);
            let (now, remaining) = out.split_at_mut(count * code.needs.width);
            self.evaluate(code, rows, now);
            (rest, out) = (later, remaining);
        }
        Ok(())
    }

    fn rows_are_invariant(&self) -> bool {
        true
    }

    fn another(&self, slots: u32) -> Result<Box<dyn Decoder>, ModelError> {
        Ok(Box::new(Self::new(Arc::clone(&self.compiled), slots, self.isa)?))
    }
}

#[cfg(test)]
mod tests;
