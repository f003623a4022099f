//! Programs in libtorch.
//!
//! Shapes are fixed by how many images and ranks an evaluation covers; places and what is seen travel as tensors. An
//! evaluation takes either one rank of any slots (a step), or as many consecutive ranks of each of some consecutive slots.
//!
//! Batch invariance of steps: libtorch's matrix products give bit-identical rows only from some number of rows on, since
//! fewer are multiplied by code that sums in another order. A step therefore runs over the slots 0..n for the least allowed
//! n, wanted or not; slots nobody wants write to a spare place that nobody sees. Which n are allowed is found by trying.

use std::fmt;

use tch::{Device, Kind, TchError, Tensor};

use super::program::{Activation, Attention, Linear, Normalisation, Op, Program};
use super::{Decoder, RowView, Rows, Shape};
use crate::model::{ModelError, Slot};
use crate::spec::Precision;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Steps are tried at multiples of this many slots. Below four rows, libtorch multiplies matrices by other code.
const BUCKET: usize = 4;

/// A program's tensors. Each decoder has handles of its own, which share the numbers.
struct Compiled {
    ops: Vec<Op>,
    /// For each operation, the registers that nothing reads after it.
    last_reads: Vec<Vec<usize>>,
    places: u32,
    table_rows: u32,
    width: usize,
    precision: Precision,
}

/// Keys and values of every slot, for one attention; one place more than the program has, which nobody sees.
struct State {
    /// [slots, heads, places + 1, head_key]
    keys: Tensor,
    /// [slots, heads, places + 1, head_value]
    values: Tensor,
}

/// Which images and ranks an evaluation covers.
struct Window {
    first: i64,
    /// Images B, consecutive from `first` on.
    images: i64,
    /// Ranks T of each.
    ranks: i64,
    write: Write,
    /// Added to the attention scores: 0 or minus infinity, [B, T, places + 1].
    mask: Tensor,
}

/// Where new keys and values go.
enum Write {
    /// Row by row: the place of each of B images. T is 1.
    Each(Vec<i64>),
    /// Consecutive places from this one on, the same in every image.
    Span(i64),
}

/// A program and the state of its slots.
pub struct Torch {
    compiled: Compiled,
    states: Vec<State>,
    slots: u32,
    /// Slots rounded up to whole buckets.
    rows: usize,
    smallest_bucket: usize,
}

impl fmt::Debug for Torch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Torch").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl Torch {
    /// A decoder of `program` for `slots` images.
    ///
    /// # Errors
    /// There is no memory for its state.
    pub fn new(program: &Program, slots: u32) -> Result<Self, ModelError> {
        let _guard = tch::no_grad_guard();
        let ops = program.ops.iter().map(share).collect();
        let last_reads = program.last_reads();
        let compiled = Compiled {
            ops,
            last_reads: last_reads.iter().map(|done| done.iter().map(|register| register.0).collect()).collect(),
            places: program.places,
            table_rows: program.table_rows,
            width: program.width() as usize,
            precision: program.precision,
        };
        let mut decoder = Self::with_state(compiled, slots)?;
        decoder.smallest_bucket = decoder.find_smallest_bucket()?;
        Ok(decoder)
    }

    fn with_state(compiled: Compiled, slots: u32) -> Result<Self, ModelError> {
        let rows = (slots as usize).max(1).next_multiple_of(BUCKET);
        let state = |attention: &Attention| {
            let zeros = |width: u32| {
                let shape = [rows as i64, i64::from(attention.heads), i64::from(compiled.places) + 1, i64::from(width)];
                Tensor::f_zeros(shape, FLOAT)
            };
            Ok(State { keys: zeros(attention.head_key)?, values: zeros(attention.head_value)? })
        };
        let attentions = compiled.ops.iter().filter_map(|op| match op {
            Op::Attend { attention, .. } => Some(state(attention)),
            _ => None,
        });
        let states = attentions.collect::<Result<_, TchError>>()?;
        Ok(Self { states, compiled, slots, rows, smallest_bucket: rows })
    }

    /// The least number of slots from which on all give the same bits in every row, for rows that hold the same.
    fn find_smallest_bucket(&mut self) -> Result<usize, ModelError> {
        self.fill()?;
        let (width, spare) = (self.compiled.width, i64::from(self.compiled.places));
        let (mut smallest, mut reference) = (self.rows, None);
        for bucket in (BUCKET..=self.rows).rev().step_by(BUCKET) {
            let window = Window {
                first: 0,
                images: bucket as i64,
                ranks: 1,
                write: Write::Each(vec![spare; bucket]),
                mask: Tensor::f_zeros([bucket as i64, 1, spare + 1], FLOAT)?,
            };
            let mut out = vec![0f32; bucket * width];
            // The first row of the table, for every image.
            self.evaluate(&vec![0; bucket], 1, &window)?.f_copy_data(&mut out, bucket * width)?;
            let first: Vec<u32> = out.iter().take(width).map(|number| number.to_bits()).collect();
            let reference = reference.get_or_insert(first);
            let mut rows = out.chunks_exact(width.max(1));
            if !rows.all(|row| row.iter().map(|number| number.to_bits()).eq(reference.iter().copied())) {
                break;
            }
            smallest = bucket;
        }
        self.forget(0, self.rows as i64)?;
        Ok(smallest)
    }

    /// Fills every image with the same made-up keys and values.
    fn fill(&mut self) -> Result<(), TchError> {
        for tensor in self.states.iter_mut().flat_map(|state| [&mut state.keys, &mut state.values]) {
            let one = tensor.f_narrow(0, 0, 1)?;
            let length = i64::try_from(one.numel()).unwrap_or(i64::MAX);
            let pattern = Tensor::f_arange(length, FLOAT)?.f_mul_scalar(0.7)?.f_cos()?.f_view(one.size().as_slice())?;
            tensor.f_copy_(&pattern.f_expand_as(&*tensor)?)?;
        }
        Ok(())
    }

    fn forget(&mut self, first: i64, images: i64) -> Result<(), TchError> {
        for tensor in self.states.iter_mut().flat_map(|state| [&mut state.keys, &mut state.values]) {
            let _ = tensor.f_narrow(0, first, images)?.f_zero_()?;
        }
        Ok(())
    }

    /// One rank of each of `rows`, whose slots are distinct.
    fn step(&mut self, rows: &[RowView<'_>], out: &mut [f32]) -> Result<(), ModelError> {
        let highest = rows.iter().map(|row| row.slot as usize).max().unwrap_or(0);
        let bucket = (highest + 1).next_multiple_of(BUCKET).max(self.smallest_bucket);
        let each = rows.first().map_or(0, |row| row.inputs.len());
        let (ring, spare) = (self.compiled.places as usize + 1, self.compiled.places);
        let mut inputs = vec![0i64; bucket * each];
        let mut places = vec![i64::from(spare); bucket];
        let mut mask = vec![f32::NEG_INFINITY; bucket * ring];
        // What nobody wants sees the spare place alone.
        mask.iter_mut().skip(spare as usize).step_by(ring).for_each(|seen| *seen = 0.0);
        for row in rows {
            let slot = row.slot as usize;
            if let Some(place) = places.get_mut(slot) {
                *place = i64::from(row.place);
            }
            inputs.iter_mut().skip(slot * each).zip(row.inputs).for_each(|(to, &input)| *to = i64::from(input));
            if let Some(mask) = mask.get_mut(slot * ring..(slot + 1) * ring) {
                show(row, mask);
                mask.iter_mut().skip(spare as usize).for_each(|seen| *seen = f32::NEG_INFINITY);
            }
        }
        let window = Window {
            first: 0,
            images: bucket as i64,
            ranks: 1,
            write: Write::Each(places),
            mask: Tensor::f_from_slice(&mask)?.f_view([bucket as i64, 1, ring as i64])?,
        };
        let wanted: Vec<i64> = rows.iter().map(|row| i64::from(row.slot)).collect();
        let result = self.evaluate(&inputs, each, &window)?.f_index_select(0, &Tensor::f_from_slice(&wanted)?)?;
        Ok(result.f_copy_data(out, out.len())?)
    }

    /// Consecutive ranks of each of some consecutive slots.
    fn span(&mut self, rows: &[RowView<'_>], out: &mut [f32]) -> Result<(), ModelError> {
        let unfit = || ModelError::Step("rows are neither one a slot nor spans of equal length".to_owned());
        let first = rows.first().ok_or_else(unfit)?;
        let ranks = rows.iter().take_while(|row| row.slot == first.slot).count();
        let (images, ring) = (rows.len() / ranks.max(1), self.compiled.places as usize + 1);
        let fits = rows.iter().enumerate().all(|(index, row)| {
            row.slot as usize == first.slot as usize + index / ranks
                && row.place as usize == first.place as usize + index % ranks
                && row.inputs.len() == first.inputs.len()
        });
        if !fits || images * ranks != rows.len() {
            return Err(unfit());
        }
        let inputs: Vec<i64> = rows.iter().flat_map(|row| row.inputs).map(|&input| i64::from(input)).collect();
        // Images differ in nothing that decides what is seen.
        let mut mask = vec![f32::NEG_INFINITY; ranks * ring];
        rows.iter().zip(mask.chunks_exact_mut(ring)).for_each(|(row, mask)| show(row, mask));
        let window = Window {
            first: i64::from(first.slot),
            images: images as i64,
            ranks: ranks as i64,
            write: Write::Span(i64::from(first.place)),
            mask: Tensor::f_from_slice(&mask)?.f_view([1, ranks as i64, ring as i64])?,
        };
        Ok(self.evaluate(&inputs, first.inputs.len(), &window)?.f_copy_data(out, out.len())?)
    }

    /// The output [B * T, width] of a window whose rows start from the sums of `each` rows of the table.
    fn evaluate(&mut self, inputs: &[i64], each: usize, window: &Window) -> Result<Tensor, TchError> {
        let Compiled { ops, last_reads, precision, .. } = &self.compiled;
        let mut states = self.states.iter_mut();
        let mut registers: Vec<Option<Tensor>> = Vec::with_capacity(ops.len());
        for (op, done) in ops.iter().zip(last_reads) {
            let register = |index: usize| {
                let found = registers.get(index).and_then(Option::as_ref);
                found.ok_or_else(|| TchError::Shape(format!("register {index} holds nothing")))
            };
            let result = match op {
                Op::Embed { table } => table
                    .f_index_select(0, &Tensor::f_from_slice(inputs)?)?
                    .f_view([window.images * window.ranks, each as i64, -1])?
                    .f_sum_dim_intlist([1i64].as_slice(), false, None)?,
                Op::Linear { from, linear } => {
                    let mut result = register(from.0)?.f_linear(&linear.weight, linear.bias.as_ref())?;
                    if linear.activation == Some(Activation::Relu) {
                        result = result.f_relu_()?;
                    }
                    match linear.residual {
                        Some(residual) => result.f_add_(register(residual.0)?)?,
                        None => result,
                    }
                }
                Op::Normalise { from, normalisation } => {
                    let Normalisation { scale, shift, epsilon } = normalisation;
                    register(from.0)?.f_layer_norm(scale.size(), Some(scale), Some(shift), *epsilon, false)?
                }
                Op::Attend { from, attention } => {
                    let state = states.next().ok_or_else(|| TchError::Shape("no state".to_owned()))?;
                    attend(register(from.0)?, attention, state, window, *precision)?
                }
            };
            for &register in done {
                if let Some(register) = registers.get_mut(register) {
                    *register = None;
                }
            }
            registers.push(Some(result));
        }
        registers.pop().flatten().ok_or_else(|| TchError::Shape("an empty program".to_owned()))
    }
}

/// The same operation with handles of its own on the same tensors.
fn share(op: &Op) -> Op {
    match op {
        Op::Embed { table } => Op::Embed { table: table.shallow_clone() },
        Op::Linear { from, linear } => {
            let Linear { weight, bias, activation, residual } = linear;
            let bias = bias.as_ref().map(Tensor::shallow_clone);
            let linear = Linear { weight: weight.shallow_clone(), bias, activation: *activation, residual: *residual };
            Op::Linear { from: *from, linear }
        }
        Op::Normalise { from, normalisation } => {
            let Normalisation { scale, shift, epsilon } = normalisation;
            let (scale, shift) = (scale.shallow_clone(), shift.shallow_clone());
            Op::Normalise { from: *from, normalisation: Normalisation { scale, shift, epsilon: *epsilon } }
        }
        Op::Attend { from, attention } => Op::Attend { from: *from, attention: *attention },
    }
}

/// Sets `mask` to 0 for every place that `row` sees.
fn show(row: &RowView<'_>, mask: &mut [f32]) {
    for range in row.seen {
        let seen = mask.get_mut(range.start as usize..range.end as usize).unwrap_or_default();
        seen.fill(0.0);
    }
}

/// Writes the keys and values in `from` [B * T, queries, keys and values of all heads] and attends: [B * T, values].
fn attend(
    from: &Tensor,
    attention: &Attention,
    state: &mut State,
    window: &Window,
    precision: Precision,
) -> Result<Tensor, TchError> {
    let [heads, head_key, head_value] = [attention.heads, attention.head_key, attention.head_value].map(i64::from);
    let (key_width, value_width) = (heads * head_key, heads * head_value);
    let &Window { first, images, ranks, .. } = window;
    let batch = images * heads;
    let new_keys = from.f_narrow(1, key_width, key_width)?;
    let new_values = from.f_narrow(1, 2 * key_width, value_width)?;
    for (new, to, width) in [(new_keys, &state.keys, head_key), (new_values, &state.values, head_value)] {
        let new = match precision {
            Precision::F32 => new,
            Precision::Bf16 => new.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?,
        };
        remember(&new.f_reshape([images, ranks, heads, width])?.f_transpose(1, 2)?, to, window)?;
    }
    let query = from
        .f_narrow(1, 0, key_width)?
        .f_view([images, ranks, heads, head_key])?
        .f_transpose(1, 2)?
        .f_reshape([batch, ranks, head_key])?;
    // [B * heads, places + 1, head_key] and [.., head_value]: views of the state.
    let keys = state.keys.f_narrow(0, first, images)?.f_flatten(0, 1)?;
    let values = state.values.f_narrow(0, first, images)?.f_flatten(0, 1)?;
    // One mask for all heads of an image; for all images too where they see the same.
    let mask = match window.write {
        Write::Span(_) => window.mask.shallow_clone(),
        Write::Each(_) => window.mask.f_repeat_interleave_self_int(heads, 0, batch)?,
    };
    mask.f_baddbmm(&query, &keys.f_transpose(1, 2)?, 1.0, 1.0)?
        .f_softmax(-1, None)?
        .f_bmm(&values)?
        .f_view([images, heads, ranks, head_value])?
        .f_transpose(1, 2)?
        .f_reshape([images * ranks, value_width])
}

/// Writes `rows` [B, heads, T, width] into `state` [slots, heads, places + 1, width].
fn remember(rows: &Tensor, state: &Tensor, window: &Window) -> Result<(), TchError> {
    let to = state.f_narrow(0, window.first, window.images)?;
    match &window.write {
        Write::Each(places) => {
            let size = to.size();
            let (heads, ring, width) = match *size.as_slice() {
                [_, heads, ring, width] => (heads, ring, width),
                _ => return Err(TchError::Shape(format!("state of shape {size:?}"))),
            };
            let rows_of =
                |(image, &place): (i64, &i64)| (0..heads).map(move |head| (image * heads + head) * ring + place);
            let at: Vec<i64> = (0..).zip(places).flat_map(rows_of).collect();
            let rows = rows.f_reshape([window.images * heads, width])?;
            let _ = to.f_view([-1, width])?.f_index_copy_(0, &Tensor::f_from_slice(&at)?, &rows)?;
        }
        Write::Span(start) => to.f_narrow(2, *start, window.ranks)?.f_copy_(rows)?,
    }
    Ok(())
}

impl Decoder for Torch {
    fn clear(&mut self, slot: Slot) -> Result<(), ModelError> {
        if slot.0 >= self.slots {
            return Err(ModelError::Step(format!("there is no {slot:?}")));
        }
        let _guard = tch::no_grad_guard();
        Ok(self.forget(i64::from(slot.0), 1)?)
    }

    fn run(&mut self, rows: &Rows, out: &mut [f32]) -> Result<(), ModelError> {
        let Compiled { places, table_rows, width, .. } = self.compiled;
        rows.check(Shape { slots: self.slots, places, table_rows, width }, out.len())?;
        if rows.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let all: Vec<_> = rows.iter().collect();
        let mut seen = vec![false; self.slots as usize];
        let distinct =
            all.iter().all(|row| seen.get_mut(row.slot as usize).is_some_and(|seen| !std::mem::replace(seen, true)));
        if distinct { self.step(&all, out) } else { self.span(&all, out) }
    }

    fn rows_are_invariant(&self) -> bool {
        false
    }

    fn another(&self, slots: u32) -> Result<Box<dyn Decoder>, ModelError> {
        let _guard = tch::no_grad_guard();
        let Compiled { ops, last_reads, places, table_rows, width, precision } = &self.compiled;
        let compiled = Compiled {
            ops: ops.iter().map(share).collect(),
            last_reads: last_reads.clone(),
            places: *places,
            table_rows: *table_rows,
            width: *width,
            precision: *precision,
        };
        let mut another = Self::with_state(compiled, slots)?;
        // Which buckets agree depends on the largest.
        another.smallest_bucket =
            if slots == self.slots { self.smallest_bucket } else { another.find_smallest_bucket()? };
        Ok(Box::new(another))
    }
}
