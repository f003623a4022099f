//! Programs in kernels of our own, on the CPU: weights packed once, keys and values in place, bits that no other row and no
//! other slot can change.
//!
//! Layouts. Weights: panels of 64 (then 32) columns, input after input, so that a step reads them from front to back.
//! Keys: for each slot, head and sixteen places, feature after feature, so that a query meets sixteen keys at once. Values:
//! for each slot, head and place, the features, padded to whole groups.

mod isa;
mod kernels;
mod pack;
pub mod probe;

use std::fmt;
use std::sync::Arc;

pub use isa::Isa;

use self::kernels::{Attend, Group, LANES, Lanes, Linear, Normalise, Sight, add};
use self::pack::{Bf16, F32, Format, Matrix, vector};
use super::program::{Activation, Attention, Op, Program, Register};
use super::{Decoder, Rows, Shape};
use crate::model::{ModelError, Slot};
use crate::spec::Precision;

/// Rows evaluated together; more are taken in turn. Enough to read the weights of a long prefix seldom, few enough for the
/// registers to stay in the cache.
const MOST_ROWS: usize = 48;

/// A decoder of `program` for `slots` images with the instructions `isa`.
///
/// # Errors
/// There is no memory for weights or state.
pub fn decoder(program: &Program, slots: u32, isa: Isa) -> Result<Box<dyn Decoder>, ModelError> {
    Ok(match program.precision() {
        Precision::F32 => Box::new(Native::<F32>::new(Arc::new(Compiled::new(program)?), slots, isa)?),
        Precision::Bf16 => Box::new(Native::<Bf16>::new(Arc::new(Compiled::new(program)?), slots, isa)?),
    })
}

/// A program with its weights packed; shared by every decoder of it.
struct Compiled<F: Format> {
    ops: Vec<Packed<F>>,
    /// Groups of a row of each buffer.
    strides: Vec<usize>,
    place_groups: usize,
    places: u32,
    table_rows: u32,
    width: usize,
}

/// An operation and the buffers it works on.
struct Packed<F: Format> {
    kind: Kind<F>,
    from: usize,
    residual: Option<usize>,
    to: usize,
}

enum Kind<F: Format> {
    Embed { table: Vec<Lanes> },
    Linear { weight: Matrix<F>, bias: Option<Vec<Lanes>>, relu: bool },
    Normalise { width: usize, scale: Vec<Lanes>, shift: Vec<Lanes>, epsilon: f32 },
    Attend { shape: Heads, state: usize },
}

/// Sizes of an attention.
#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    head_key: usize,
    head_value: usize,
}

impl Heads {
    fn new(attention: &Attention) -> Self {
        let [heads, head_key, head_value] =
            [attention.heads, attention.head_key, attention.head_value].map(|n| n as usize);
        Self { heads, head_key, head_value }
    }

    fn value_groups(self) -> usize {
        self.head_value.div_ceil(LANES)
    }

    /// Groups of one slot's keys, and of its values, for `place_groups` groups of places.
    fn groups(self, place_groups: usize) -> [usize; 2] {
        let places = self.heads * place_groups;
        [places * self.head_key, places * LANES * self.value_groups()]
    }
}

/// Groups that hold a row of `width` numbers: whole panels.
fn stride(width: u32) -> usize {
    (width as usize).div_ceil(LANES * kernels::NARROW) * kernels::NARROW
}

impl<F: Format> Compiled<F> {
    fn new(program: &Program) -> Result<Self, ModelError> {
        let buffers = Buffers::assign(program);
        let buffer = |register: Register| buffers.of.get(register.0).copied().unwrap_or_default();
        let mut states = 0;
        let mut ops = Vec::with_capacity(program.ops.len());
        for (index, op) in program.ops.iter().enumerate() {
            let reads: Vec<usize> = op.reads().map(buffer).collect();
            let kind = match op {
                Op::Embed { table } => Kind::Embed { table: pack::rows(table)? },
                Op::Linear { linear, .. } => Kind::Linear {
                    weight: Matrix::pack(&linear.weight)?,
                    bias: linear.bias.as_ref().map(vector).transpose()?,
                    relu: linear.activation == Some(Activation::Relu),
                },
                Op::Normalise { normalisation, .. } => Kind::Normalise {
                    width: program.widths.get(index).map_or(0, |&width| width as usize),
                    scale: vector(&normalisation.scale)?,
                    shift: vector(&normalisation.shift)?,
                    epsilon: normalisation.epsilon as f32,
                },
                Op::Attend { attention, .. } => {
                    states += 1;
                    Kind::Attend { shape: Heads::new(attention), state: states - 1 }
                }
            };
            ops.push(Packed {
                kind,
                from: reads.first().copied().unwrap_or_default(),
                residual: reads.get(1).copied(),
                to: buffer(Register(index)),
            });
        }
        Ok(Self {
            ops,
            strides: buffers.strides,
            place_groups: (program.places as usize).div_ceil(LANES),
            places: program.places,
            table_rows: program.table_rows,
            width: program.width() as usize,
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

/// Keys and values of every slot, for one attention.
struct State<G> {
    keys: Vec<G>,
    values: Vec<G>,
}

impl<G: Group> State<G> {
    fn new(shape: Heads, place_groups: usize, slots: usize) -> Result<Self, ModelError> {
        let [keys, values] = shape.groups(place_groups).map(|groups| zeros(groups.checked_mul(slots)));
        Ok(Self { keys: keys?, values: values? })
    }

    /// Keys and values of `slot`.
    fn of(&self, slot: usize, groups: [usize; 2]) -> (&[G], &[G]) {
        let [keys, values] = groups;
        (
            self.keys.get(slot * keys..(slot + 1) * keys).unwrap_or_default(),
            self.values.get(slot * values..(slot + 1) * values).unwrap_or_default(),
        )
    }

    fn of_mut(&mut self, slot: usize, groups: [usize; 2]) -> (&mut [G], &mut [G]) {
        let [keys, values] = groups;
        (
            self.keys.get_mut(slot * keys..(slot + 1) * keys).unwrap_or_default(),
            self.values.get_mut(slot * values..(slot + 1) * values).unwrap_or_default(),
        )
    }
}

/// Zeros, or a refusal where they do not fit into memory.
fn zeros<G: Group>(groups: Option<usize>) -> Result<Vec<G>, ModelError> {
    let mut memory = Vec::new();
    let reserved = groups.and_then(|groups| memory.try_reserve_exact(groups).ok().map(|()| groups));
    let Some(groups) = reserved else {
        return Err(ModelError::Step("there is no memory for the decode state".to_owned()));
    };
    memory.resize(groups, G::default());
    Ok(memory)
}

/// A program, the state of its slots, and room to work in.
struct Native<F: Format> {
    compiled: Arc<Compiled<F>>,
    isa: Isa,
    slots: u32,
    states: Vec<State<F::Group>>,
    buffers: Vec<Vec<Lanes>>,
    sights: Vec<Sight>,
    scores: Vec<Lanes>,
}

impl<F: Format> fmt::Debug for Native<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native").field("isa", &self.isa).field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl<F: Format> Native<F> {
    fn new(compiled: Arc<Compiled<F>>, slots: u32, isa: Isa) -> Result<Self, ModelError> {
        let shapes = compiled.ops.iter().filter_map(|op| match op.kind {
            Kind::Attend { shape, .. } => Some(shape),
            _ => None,
        });
        let states = shapes.map(|shape| State::new(shape, compiled.place_groups, slots as usize));
        Ok(Self {
            states: states.collect::<Result<_, _>>()?,
            isa,
            slots,
            buffers: vec![Vec::new(); compiled.strides.len()],
            sights: Vec::new(),
            scores: vec![Lanes::default(); compiled.place_groups],
            compiled,
        })
    }

    /// Evaluates at most [`MOST_ROWS`] rows, whose output goes to `out`.
    fn evaluate(&mut self, rows: &[super::RowView<'_>], out: &mut [f32]) {
        let compiled = Arc::clone(&self.compiled);
        for (buffer, &stride) in self.buffers.iter_mut().zip(&compiled.strides) {
            buffer.resize(rows.len() * stride, Lanes::default());
        }
        self.sights.resize_with(rows.len().max(self.sights.len()), Sight::default);
        for (sight, row) in self.sights.iter_mut().zip(rows) {
            sight.set(row.seen.iter().cloned());
        }
        for op in &compiled.ops {
            // Taken out while it is written; nothing an operation reads lies in the buffer it writes.
            let Some(mut to) = self.buffers.get_mut(op.to).map(std::mem::take) else { continue };
            self.perform(op, &compiled, rows, &mut to);
            if let Some(buffer) = self.buffers.get_mut(op.to) {
                *buffer = to;
            }
        }
        let Some(last) = compiled.ops.last() else { return };
        let (stride, buffer) = (compiled.stride(last.to), self.buffer(last.to));
        let numbers: &[f32] = bytemuck::cast_slice(buffer);
        for (out, row) in out.chunks_exact_mut(compiled.width).zip(numbers.chunks_exact(stride * LANES)) {
            out.copy_from_slice(row.get(..compiled.width).unwrap_or_default());
        }
    }

    fn buffer(&self, index: usize) -> &[Lanes] {
        self.buffers.get(index).map(Vec::as_slice).unwrap_or_default()
    }

    fn perform(&mut self, op: &Packed<F>, compiled: &Compiled<F>, rows: &[super::RowView<'_>], to: &mut [Lanes]) {
        let [from_stride, to_stride] = [compiled.stride(op.from), compiled.stride(op.to)];
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
            Kind::Linear { weight, bias, relu } => self.isa.run(Linear {
                inputs: weight.inputs,
                wide: &weight.wide,
                narrow: &weight.narrow,
                bias: bias.as_deref(),
                relu: *relu,
                from: self.buffer(op.from),
                from_stride,
                residual: op.residual.map(|residual| self.buffer(residual)),
                to,
                to_stride,
            }),
            Kind::Normalise { width, scale, shift, epsilon } => self.isa.run(Normalise {
                width: *width,
                stride: to_stride,
                scale,
                shift,
                epsilon: *epsilon,
                from: self.buffer(op.from),
                to,
            }),
            Kind::Attend { shape, state } => {
                let groups = shape.groups(compiled.place_groups);
                let Some(state) = self.states.get_mut(*state) else { return };
                let from = self.buffers.get(op.from).map(Vec::as_slice).unwrap_or_default();
                for (from, row) in from.chunks_exact(from_stride).zip(rows) {
                    let (keys, values) = state.of_mut(row.slot as usize, groups);
                    remember(*shape, compiled.place_groups, from, row.place as usize, keys, values);
                }
                let each = from.chunks_exact(from_stride).zip(to.chunks_exact_mut(to_stride));
                for ((from, to), (row, sight)) in each.zip(rows.iter().zip(&self.sights)) {
                    let (keys, values) = state.of(row.slot as usize, groups);
                    self.isa.run(Attend {
                        heads: shape.heads,
                        head_key: shape.head_key,
                        head_value: shape.head_value,
                        place_groups: compiled.place_groups,
                        keys,
                        values,
                        sight,
                        scores: &mut self.scores,
                        query: from,
                        to,
                    });
                }
            }
        }
    }
}

impl<F: Format> Compiled<F> {
    fn stride(&self, buffer: usize) -> usize {
        self.strides.get(buffer).copied().unwrap_or(1)
    }
}

/// Writes the keys and values of a row, which follow its queries, to `place` of its slot.
fn remember<G: Group>(
    shape: Heads,
    place_groups: usize,
    row: &[Lanes],
    place: usize,
    keys: &mut [G],
    values: &mut [G],
) {
    let numbers: &[f32] = bytemuck::cast_slice(row);
    let (key_width, value_groups) = (shape.heads * shape.head_key, shape.value_groups());
    let new_keys = numbers.get(key_width..2 * key_width).unwrap_or_default();
    let new_values = numbers.get(2 * key_width..).unwrap_or_default();
    let all = keys.chunks_exact_mut(place_groups * shape.head_key);
    for (keys, new) in all.zip(new_keys.chunks_exact(shape.head_key)) {
        let at = place / LANES * shape.head_key;
        for (group, &number) in keys.iter_mut().skip(at).zip(new) {
            group.set(place % LANES, number);
        }
    }
    let all = values.chunks_exact_mut(place_groups * LANES * value_groups);
    for (values, new) in all.zip(new_values.chunks_exact(shape.head_value)) {
        for (group, new) in values.iter_mut().skip(place * value_groups).zip(new.chunks(LANES)) {
            for (lane, &number) in new.iter().enumerate() {
                group.set(lane, number);
            }
        }
    }
}

impl<F: Format> Decoder for Native<F> {
    fn clear(&mut self, slot: Slot) -> Result<(), ModelError> {
        if slot.0 >= self.slots {
            return Err(ModelError::Step(format!("there is no {slot:?}")));
        }
        let compiled = Arc::clone(&self.compiled);
        for op in &compiled.ops {
            if let Kind::Attend { shape, state } = op.kind
                && let Some(state) = self.states.get_mut(state)
            {
                let (keys, values) = state.of_mut(slot.0 as usize, shape.groups(compiled.place_groups));
                keys.fill(F::Group::default());
                values.fill(F::Group::default());
            }
        }
        Ok(())
    }

    fn run(&mut self, rows: &Rows, out: &mut [f32]) -> Result<(), ModelError> {
        let Compiled { places, table_rows, width, .. } = *self.compiled;
        rows.check(Shape { slots: self.slots, places, table_rows, width }, out.len())?;
        let all: Vec<_> = rows.iter().collect();
        for (rows, out) in all.chunks(MOST_ROWS).zip(out.chunks_mut(MOST_ROWS * width)) {
            self.evaluate(rows, out);
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
