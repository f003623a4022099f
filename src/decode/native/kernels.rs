//! The arithmetic of the native backend, in safe code: loops over groups of sixteen numbers that a compiler turns into
//! vector instructions once [`isa`](super::isa) says which there are.
//!
//! Every number a row gets is the end of one chain of operations whose order depends on the shapes of the program and on
//! the places the row sees, never on how many rows there are or which; rows therefore have the same bits alone and in any
//! batch. `FUSED` says whether a product and a sum are rounded once (with the instruction for it) or twice (without), which
//! is the one way in which the bits of two machines may differ.

#![allow(clippy::indexing_slicing, reason = "arrays of constant length, and slices cut to the length of the loop")]

use bytemuck::{Pod, Zeroable};

use super::isa::prefetch;

/// Numbers handled together.
pub(super) const LANES: usize = 16;
/// Columns of a wide panel of weights, as groups of lanes.
pub(super) const WIDE: usize = 4;
/// Columns of a narrow panel of weights, as groups of lanes.
pub(super) const NARROW: usize = 2;
/// Rows that share one pass over a panel: as many as leave their sums in registers.
pub(super) const ROWS: usize = 6;

/// Bytes of a line of the caches.
const LINE: usize = 64;
/// How far ahead of what is multiplied weights are asked for, in bytes. The processor asks by itself while they are only
/// read, and falls behind where rows are multiplied meanwhile; 2,048 does less, 8,192 the same.
const AHEAD: usize = 4096;

/// Sixteen numbers, aligned so that a group never straddles two cache lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Lanes(pub(super) [f32; LANES]);

/// Sixteen bfloat16 numbers: the upper halves of as many f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C, align(32))]
pub(super) struct HalfLanes(pub(super) [u16; LANES]);

/// Two groups of sixteen bfloat16 numbers: lane i holds number i of the first in its lower half, of the second in its
/// upper half, which makes taking them apart cheaper than widening sixteen in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct PairLanes(pub(super) [u32; LANES]);

/// What a model remembers in: sixteen numbers of some precision.
pub(super) trait Group: Pod + Default + Send + Sync {
    fn widen(&self) -> Lanes;
    fn set(&mut self, lane: usize, number: f32);
}

impl Group for Lanes {
    #[inline(always)]
    fn widen(&self) -> Lanes {
        *self
    }

    #[inline(always)]
    fn set(&mut self, lane: usize, number: f32) {
        self.0[lane] = number;
    }
}

impl Group for HalfLanes {
    #[inline(always)]
    fn widen(&self) -> Lanes {
        let mut wide = Lanes::default();
        for lane in 0..LANES {
            wide.0[lane] = f32::from_bits(u32::from(self.0[lane]) << 16);
        }
        wide
    }

    #[inline(always)]
    fn set(&mut self, lane: usize, number: f32) {
        self.0[lane] = (round_bf16(number).to_bits() >> 16) as u16;
    }
}

/// The nearest bfloat16, the even one of two that are equally near; what is not a number stays none.
#[inline(always)]
pub(super) fn round_bf16(number: f32) -> f32 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(if number.is_nan() { bits | 0x0040_0000 } else { rounded })
}

/// The weights that one input meets in a panel of `P` groups of columns.
pub(super) trait PanelRow<const P: usize>: Copy {
    fn widen(&self) -> [Lanes; P];
}

impl<const P: usize> PanelRow<P> for [Lanes; P] {
    #[inline(always)]
    fn widen(&self) -> [Lanes; P] {
        *self
    }
}

impl PanelRow<WIDE> for [PairLanes; WIDE / 2] {
    #[inline(always)]
    fn widen(&self) -> [Lanes; WIDE] {
        let [[a, b], [c, d]] = [halves(&self[0]), halves(&self[1])];
        [a, b, c, d]
    }
}

impl PanelRow<NARROW> for [PairLanes; NARROW / 2] {
    #[inline(always)]
    fn widen(&self) -> [Lanes; NARROW] {
        halves(&self[0])
    }
}

#[inline(always)]
fn halves(pair: &PairLanes) -> [Lanes; 2] {
    let [mut low, mut high] = [Lanes::default(); 2];
    for lane in 0..LANES {
        low.0[lane] = f32::from_bits(pair.0[lane] << 16);
        high.0[lane] = f32::from_bits(pair.0[lane] & 0xffff_0000);
    }
    [low, high]
}

#[inline(always)]
pub(super) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// sum + scale x group, lane by lane.
#[inline(always)]
pub(super) fn accumulate<const FUSED: bool>(sum: &mut Lanes, scale: f32, group: &Lanes) {
    for lane in 0..LANES {
        sum.0[lane] = multiply_add::<FUSED>(scale, group.0[lane], sum.0[lane]);
    }
}

#[inline(always)]
pub(super) fn map2(a: &Lanes, b: &Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut result = Lanes::default();
    for lane in 0..LANES {
        result.0[lane] = f(a.0[lane], b.0[lane]);
    }
    result
}

/// The lanes added up as a tree.
#[inline(always)]
pub(super) fn sum(group: &Lanes) -> f32 {
    let mut lanes = group.0;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Work that is compiled once for each instruction set; see [`isa`](super::isa). Implementations, and all that they call
/// in their loops, are `#[inline(always)]`, or they would not be.
pub(super) trait Kernel {
    fn run<const FUSED: bool>(self);
}

/// to = residual + relu(from x weights + bias), row by row.
///
/// Weights are panels of [`WIDE`] groups of columns and then of [`NARROW`] ones, input after input. Rows of `from` and
/// `to` are `from_stride` and `to_stride` groups long; the panels fill a row of `to`, padding included.
pub(super) struct Linear<'a, W, N> {
    pub(super) inputs: usize,
    pub(super) wide: &'a [W],
    pub(super) narrow: &'a [N],
    pub(super) bias: Option<&'a [Lanes]>,
    pub(super) relu: bool,
    pub(super) from: &'a [Lanes],
    pub(super) from_stride: usize,
    pub(super) residual: Option<&'a [Lanes]>,
    pub(super) to: &'a mut [Lanes],
    pub(super) to_stride: usize,
}

impl<W: PanelRow<WIDE>, N: PanelRow<NARROW>> Kernel for Linear<'_, W, N> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { inputs, wide, narrow, bias, relu, from, from_stride, residual, to, to_stride } = self;
        let mut rows = Rows { from, from_stride, to, to_stride, residual, bias, relu, at: 0 };
        for panel in wide.chunks_exact(inputs) {
            multiply::<FUSED, WIDE, W>(panel, &mut rows);
            rows.at += WIDE;
        }
        for panel in narrow.chunks_exact(inputs) {
            multiply::<FUSED, NARROW, N>(panel, &mut rows);
            rows.at += NARROW;
        }
    }
}

/// The rows that meet a panel, and what becomes of the products; `at` is where the panel's columns begin, in groups.
struct Rows<'a> {
    from: &'a [Lanes],
    from_stride: usize,
    to: &'a mut [Lanes],
    to_stride: usize,
    residual: Option<&'a [Lanes]>,
    bias: Option<&'a [Lanes]>,
    relu: bool,
    at: usize,
}

impl Rows<'_> {
    /// Adds to the products of row `row` with the panel what comes after them.
    #[inline(always)]
    fn finish<const P: usize>(&mut self, row: usize) {
        let place = row * self.to_stride + self.at;
        for group in 0..P {
            let mut result = self.to[place + group];
            if let Some(bias) = self.bias {
                result = map2(&result, &bias[self.at + group], |sum, bias| sum + bias);
            }
            if self.relu {
                // Written so that what is not a number stays none.
                result = map2(&result, &result, |sum, _| if sum < 0.0 { 0.0 } else { sum });
            }
            if let Some(residual) = self.residual {
                result = map2(&result, &residual[place + group], |sum, residual| residual + sum);
            }
            self.to[place + group] = result;
        }
    }
}

#[inline(always)]
fn multiply<const FUSED: bool, const P: usize, R: PanelRow<P>>(panel: &[R], rows: &mut Rows<'_>) {
    let count = rows.to.len() / rows.to_stride;
    let mut first = 0;
    while first < count {
        first += match count - first {
            1 => multiply_rows::<FUSED, P, R, 1>(panel, rows, first),
            2 => multiply_rows::<FUSED, P, R, 2>(panel, rows, first),
            3 => multiply_rows::<FUSED, P, R, 3>(panel, rows, first),
            4 => multiply_rows::<FUSED, P, R, 4>(panel, rows, first),
            5 => multiply_rows::<FUSED, P, R, 5>(panel, rows, first),
            _ => multiply_rows::<FUSED, P, R, ROWS>(panel, rows, first),
        };
    }
}

/// `M` rows from `first` on; every sum is one chain over the inputs in order. Returns `M`.
#[inline(always)]
fn multiply_rows<const FUSED: bool, const P: usize, R: PanelRow<P>, const M: usize>(
    panel: &[R],
    rows: &mut Rows<'_>,
    first: usize,
) -> usize {
    let numbers: &[f32] = bytemuck::cast_slice(rows.from);
    let stride = rows.from_stride * LANES;
    let inputs: [&[f32]; M] = std::array::from_fn(|row| &numbers[(first + row) * stride..][..panel.len()]);
    let mut sums = [[Lanes::default(); P]; M];
    for (input, weights) in panel.iter().enumerate() {
        let ahead = std::ptr::from_ref(weights).wrapping_byte_add(AHEAD);
        for line in 0..size_of::<R>() / LINE {
            prefetch(ahead.wrapping_byte_add(line * LINE));
        }
        let weights = weights.widen();
        for row in 0..M {
            for group in 0..P {
                accumulate::<FUSED>(&mut sums[row][group], inputs[row][input], &weights[group]);
            }
        }
    }
    // First nothing but this: what else is to be done with the sums in the same loop would keep them in memory all along.
    for (row, sums) in sums.iter().enumerate() {
        let place = (first + row) * rows.to_stride + rows.at;
        rows.to[place..place + P].copy_from_slice(sums);
    }
    for row in first..first + M {
        rows.finish::<P>(row);
    }
    M
}

/// Layer normalisation of rows of `width` numbers: scale (x - mean) / sqrt(variance + epsilon) + shift. Without a shift, zero
/// stands for the mean.
pub(super) struct Normalise<'a> {
    pub(super) width: usize,
    pub(super) stride: usize,
    pub(super) scale: &'a [Lanes],
    pub(super) shift: Option<&'a [Lanes]>,
    pub(super) epsilon: f32,
    pub(super) from: &'a [Lanes],
    pub(super) to: &'a mut [Lanes],
}

impl Kernel for Normalise<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { width, stride, scale, shift, epsilon, from, to } = self;
        for (from, to) in from.chunks_exact(stride).zip(to.chunks_exact_mut(stride)) {
            let mean = shift.map_or(0.0, |_| total(from, width, |number| number) / width as f32);
            let variance = total(from, width, |number| (number - mean) * (number - mean)) / width as f32;
            let factor = 1.0 / (variance + epsilon).sqrt();
            for (((from, to), scale), group) in from.iter().zip(to).zip(scale).zip(0..) {
                let scaled = map2(from, scale, |number, scale| (number - mean) * factor * scale);
                *to = shift.map_or(scaled, |shift| map2(&scaled, &shift[group], |number, shift| number + shift));
            }
        }
    }
}

/// The sum of f over the first `width` numbers of a row.
#[inline(always)]
fn total(row: &[Lanes], width: usize, f: impl Fn(f32) -> f32) -> f32 {
    let mut totals = Lanes::default();
    for group in &row[..width / LANES] {
        totals = map2(&totals, group, |total, number| total + f(number));
    }
    if let Some(last) = row.get(width / LANES) {
        for lane in 0..width % LANES {
            totals.0[lane] += f(last.0[lane]);
        }
    }
    sum(&totals)
}

/// to += row.
pub(super) fn add(to: &mut [Lanes], row: &[Lanes]) {
    for (to, row) in to.iter_mut().zip(row) {
        *to = map2(to, row, |a, b| a + b);
    }
}

/// Reads a buffer from front to back, as a step reads its weights.
pub(super) struct Read<'a> {
    pub(super) buffer: &'a [Lanes],
    pub(super) sum: &'a mut f32,
}

impl Kernel for Read<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let mut sums = [Lanes::default(); 8];
        for groups in self.buffer.chunks_exact(8) {
            for (total, group) in sums.iter_mut().zip(groups) {
                *total = map2(total, group, |total, group| total + group);
            }
        }
        *self.sum = sums.iter().map(sum).sum();
    }
}
