//! The arithmetic of the native backend, in safe code: loops over groups of sixteen numbers that a compiler turns into
//! vector instructions once [`isa`](super::isa) says which there are.
//!
//! Every number a row gets is the end of one chain of operations whose order depends on the shapes of the program and on
//! the places the row sees, never on how many rows there are or which; rows therefore have the same bits alone and in any
//! batch. `FUSED` says whether a product and a sum are rounded once (with the instruction for it) or twice (without), which
//! is the one way in which the bits of two machines may differ.

#![allow(clippy::indexing_slicing, reason = "arrays of constant length, and slices cut to the length of the loop")]

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// Numbers handled together.
pub(super) const LANES: usize = 16;
/// Columns of a wide panel of weights, as groups of lanes.
pub(super) const WIDE: usize = 4;
/// Columns of a narrow panel of weights, as groups of lanes.
pub(super) const NARROW: usize = 2;
/// Rows that share one pass over a panel: as many as leave their sums in registers.
pub(super) const ROWS: usize = 6;
/// Chains that a weighted sum of values is split over; they are added up in pairs.
const CHAINS: usize = 4;

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
pub(super) trait Group: Copy + Default + Send + Sync + 'static {
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
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// sum + scale x group, lane by lane.
#[inline(always)]
fn accumulate<const FUSED: bool>(sum: &mut Lanes, scale: f32, group: &Lanes) {
    for lane in 0..LANES {
        sum.0[lane] = multiply_add::<FUSED>(scale, group.0[lane], sum.0[lane]);
    }
}

#[inline(always)]
fn map2(a: &Lanes, b: &Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut result = Lanes::default();
    for lane in 0..LANES {
        result.0[lane] = f(a.0[lane], b.0[lane]);
    }
    result
}

/// The lanes added up as a tree.
#[inline(always)]
fn sum(group: &Lanes) -> f32 {
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
        let weights = weights.widen();
        for row in 0..M {
            for group in 0..P {
                accumulate::<FUSED>(&mut sums[row][group], inputs[row][input], &weights[group]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let place = (first + row) * rows.to_stride + rows.at;
        for (group, sum) in sums.iter().enumerate() {
            let mut result = *sum;
            if let Some(bias) = rows.bias {
                result = map2(&result, &bias[rows.at + group], |sum, bias| sum + bias);
            }
            if rows.relu {
                // Written so that what is not a number stays none.
                result = map2(&result, &result, |sum, _| if sum < 0.0 { 0.0 } else { sum });
            }
            if let Some(residual) = rows.residual {
                result = map2(&result, &residual[place + group], |sum, residual| residual + sum);
            }
            rows.to[place + group] = result;
        }
    }
    M
}

/// Layer normalisation of rows of `width` numbers: scale (x - mean) / sqrt(variance + epsilon) + shift.
pub(super) struct Normalise<'a> {
    pub(super) width: usize,
    pub(super) stride: usize,
    pub(super) scale: &'a [Lanes],
    pub(super) shift: &'a [Lanes],
    pub(super) epsilon: f32,
    pub(super) from: &'a [Lanes],
    pub(super) to: &'a mut [Lanes],
}

impl Kernel for Normalise<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { width, stride, scale, shift, epsilon, from, to } = self;
        for (from, to) in from.chunks_exact(stride).zip(to.chunks_exact_mut(stride)) {
            let mean = total(from, width, |number| number) / width as f32;
            let variance = total(from, width, |number| (number - mean) * (number - mean)) / width as f32;
            let factor = 1.0 / (variance + epsilon).sqrt();
            for (((from, to), scale), shift) in from.iter().zip(to).zip(scale).zip(shift) {
                let centred = map2(from, scale, |number, scale| (number - mean) * factor * scale);
                *to = map2(&centred, shift, |number, shift| number + shift);
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

/// Which places a row sees: runs of whole groups in ascending order, and which lanes of some of those groups count.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    runs: Vec<Range<usize>>,
    partial: Vec<(usize, u16)>,
}

impl Places {
    /// Sees exactly the places of `ranges`, which are ascending and disjoint.
    pub(super) fn set(&mut self, ranges: impl Iterator<Item = Range<u32>>) {
        self.runs.clear();
        self.partial.clear();
        for Range { start, end } in ranges.map(|range| range.start as usize..range.end as usize) {
            let groups = start / LANES..end.div_ceil(LANES);
            for group in [groups.start, groups.end - 1] {
                let lanes = |place: usize| place.clamp(group * LANES, (group + 1) * LANES) - group * LANES;
                let mask = (((1u32 << lanes(end)) - 1) & !((1u32 << lanes(start)) - 1)) as u16;
                match self.partial.last_mut() {
                    Some((last, known)) if *last == group => *known |= mask,
                    _ if mask == u16::MAX => {}
                    _ => self.partial.push((group, mask)),
                }
            }
            match self.runs.last_mut() {
                Some(last) if last.end >= groups.start => last.end = groups.end,
                _ => self.runs.push(groups),
            }
        }
    }
}

/// Every head of one row: softmax(query x keys) x values over the places the row sees.
///
/// `keys`: for each head and each sixteen places, one group for every feature. `values`: for each head and place
/// `value_groups` groups. A row of `from` starts with the queries of all heads.
pub(super) struct Attend<'a, G> {
    pub(super) heads: usize,
    pub(super) head_key: usize,
    pub(super) head_value: usize,
    /// Groups of places.
    pub(super) place_groups: usize,
    pub(super) keys: &'a [G],
    pub(super) values: &'a [G],
    pub(super) seen: &'a Places,
    pub(super) scores: &'a mut [Lanes],
    pub(super) query: &'a [Lanes],
    pub(super) to: &'a mut [Lanes],
}

impl<G: Group> Kernel for Attend<'_, G> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let queries: &[f32] = bytemuck::cast_slice(self.query);
        let to: &mut [f32] = bytemuck::cast_slice_mut(self.to);
        let value_groups = self.head_value.div_ceil(LANES);
        let keys = self.keys.chunks_exact(self.place_groups * self.head_key);
        let values = self.values.chunks_exact(self.place_groups * LANES * value_groups);
        let heads = queries.chunks_exact(self.head_key).zip(to.chunks_exact_mut(self.head_value));
        for ((query, to), (keys, values)) in heads.zip(keys.zip(values)).take(self.heads) {
            let scale = weigh::<FUSED, G>(query, keys, self.seen, self.scores);
            let mut column = 0;
            while column < value_groups {
                let to = &mut to[column * LANES..];
                column += match value_groups - column {
                    1 => mix::<FUSED, G, 1>(self.scores, values, self.seen, value_groups, column, scale, to),
                    2 | 3 => mix::<FUSED, G, 2>(self.scores, values, self.seen, value_groups, column, scale, to),
                    _ => mix::<FUSED, G, 4>(self.scores, values, self.seen, value_groups, column, scale, to),
                };
            }
        }
    }
}

/// exp(query x key - the highest of these) for every place of the groups seen, zero for those not seen, in `scores`; and
/// one over their sum.
#[inline(always)]
fn weigh<const FUSED: bool, G: Group>(query: &[f32], keys: &[G], seen: &Places, scores: &mut [Lanes]) -> f32 {
    for run in &seen.runs {
        let mut group = run.start;
        while group < run.end {
            let keys = &keys[group * query.len()..];
            let scores = &mut scores[group..run.end];
            group += match scores.len() {
                1..4 => products::<FUSED, G, 1>(query, keys, scores),
                _ => products::<FUSED, G, 4>(query, keys, scores),
            };
        }
    }
    for &(group, seen) in &seen.partial {
        for lane in 0..LANES {
            if seen & (1 << lane) == 0 {
                scores[group].0[lane] = f32::NEG_INFINITY;
            }
        }
    }
    let mut highest = Lanes([f32::NEG_INFINITY; LANES]);
    for score in seen.runs.iter().flat_map(|run| &scores[run.clone()]) {
        highest = map2(&highest, score, |a, b| if b > a { b } else { a });
    }
    let highest = highest.0.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let mut totals = Lanes::default();
    for run in &seen.runs {
        for score in &mut scores[run.clone()] {
            *score = exponentials::<FUSED>(score, highest);
            totals = map2(&totals, score, |total, score| total + score);
        }
    }
    1.0 / sum(&totals)
}
/// Scores of the first `N` groups of places. Returns `N`.
#[inline(always)]
fn products<const FUSED: bool, G: Group, const N: usize>(query: &[f32], keys: &[G], scores: &mut [Lanes]) -> usize {
    let width = query.len();
    let keys: [&[G]; N] = std::array::from_fn(|group| &keys[group * width..][..width]);
    let mut sums = [Lanes::default(); N];
    for (feature, &number) in query.iter().enumerate() {
        for group in 0..N {
            accumulate::<FUSED>(&mut sums[group], number, &keys[group][feature].widen());
        }
    }
    scores[..N].copy_from_slice(&sums);
    N
}

/// The sums over the places seen of weight x value x scale, for `N` groups of columns from `column` on. Returns `N`.
///
/// Place p belongs to chain p mod [`CHAINS`], whatever else is seen.
#[inline(always)]
fn mix<const FUSED: bool, G: Group, const N: usize>(
    weights: &[Lanes],
    values: &[G],
    seen: &Places,
    width: usize,
    column: usize,
    scale: f32,
    to: &mut [f32],
) -> usize {
    let mut sums = [[Lanes::default(); N]; CHAINS];
    for run in &seen.runs {
        let values = values[run.start * LANES * width..run.end * LANES * width].chunks_exact(LANES * width);
        // Whole groups: the weights of places that are not seen are zero, and what lies there is finite.
        for (weights, values) in weights[run.clone()].iter().zip(values) {
            for place in 0..LANES {
                let values = &values[place * width + column..][..N];
                for group in 0..N {
                    accumulate::<FUSED>(&mut sums[place % CHAINS][group], weights.0[place], &values[group].widen());
                }
            }
        }
    }
    let [a, b, c, d] = sums;
    for group in 0..N {
        let left = map2(&a[group], &b[group], |a, b| a + b);
        let right = map2(&c[group], &d[group], |c, d| c + d);
        let mixed = map2(&left, &right, |left, right| (left + right) * scale);
        for (to, mixed) in to.iter_mut().skip(group * LANES).zip(mixed.0) {
            *to = mixed;
        }
    }
    N
}

/// exp(score - highest), lane by lane; zero where that is below exp(-87), the smallest normal number.
///
/// 2^n exp(r) with |r| <= ln(2) / 2 and a polynomial of degree 6, after Cody and Waite ("Software manual for the elementary
/// functions", 1980); within 2 units in the last place.
#[inline(always)]
fn exponentials<const FUSED: bool>(scores: &Lanes, highest: f32) -> Lanes {
    /// Added to a number below 2^22 it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// Few enough digits that n times it is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const LOWEST: f32 = -87.0;
    let mut result = Lanes::default();
    for lane in 0..LANES {
        let x = scores.0[lane] - highest;
        let hidden = x < LOWEST;
        let x = if hidden { LOWEST } else { x };
        let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = multiply_add::<FUSED>(-n, LN_2_LOW, multiply_add::<FUSED>(-n, LN_2_HIGH, x));
        let mut p = 1.0 / 720.0;
        for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = multiply_add::<FUSED>(p, r, coefficient);
        }
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
        result.0[lane] = if hidden { 0.0 } else { p * power };
    }
    result
}

/// 1 / (1 + exp(-x)), lane by lane, and tanh; both through exp(-|x|), which cannot overflow.
#[inline(always)]
fn sigmoid<const FUSED: bool>(x: &Lanes) -> Lanes {
    let e = exponentials::<FUSED>(&map2(x, x, |x, _| -x.abs()), 0.0);
    map2(x, &e, |x, e| (if x < 0.0 { e } else { 1.0 }) / (1.0 + e))
}

#[inline(always)]
fn tanh<const FUSED: bool>(x: &Lanes) -> Lanes {
    let e = exponentials::<FUSED>(&map2(x, x, |x, _| -2.0 * x.abs()), 0.0);
    map2(x, &e, |x, e| ((1.0 - e) / (1.0 + e)).copysign(x))
}

/// x above 0, exp(x) - 1 below.
#[inline(always)]
fn elu<const FUSED: bool>(x: &Lanes) -> Lanes {
    let e = exponentials::<FUSED>(&map2(x, x, |x, _| if x > 0.0 { 0.0 } else { x }), 0.0);
    map2(x, &e, |x, e| if x > 0.0 { x } else { e - 1.0 })
}

/// Up to sixteen numbers of `row` from `at` on; the rest is zero.
#[inline(always)]
fn load(row: &[f32], at: usize) -> Lanes {
    let mut lanes = Lanes::default();
    match row[at..].first_chunk() {
        Some(whole) => lanes.0 = *whole,
        None => lanes.0.iter_mut().zip(&row[at..]).for_each(|(lane, &number)| *lane = number),
    }
    lanes
}

/// Writes `lanes` to `row` from `at` on, as far as it goes.
#[inline(always)]
fn save(lanes: &Lanes, row: &mut [f32], at: usize) {
    match row[at..].first_chunk_mut() {
        Some(whole) => *whole = lanes.0,
        None => row[at..].iter_mut().zip(&lanes.0).for_each(|(number, &lane)| *number = lane),
    }
}

/// Rows of `stride` groups as numbers.
#[inline(always)]
fn rows_of(buffer: &[Lanes], stride: usize) -> impl Iterator<Item = &[f32]> {
    bytemuck::cast_slice::<_, f32>(buffer).chunks_exact(stride * LANES)
}

/// Rows of `stride` groups as numbers, to write to.
#[inline(always)]
fn rows_of_mut(buffer: &mut [Lanes], stride: usize) -> impl Iterator<Item = &mut [f32]> {
    bytemuck::cast_slice_mut::<_, f32>(buffer).chunks_exact_mut(stride * LANES)
}

/// relu(x), or elu(x) and then elu(-x), of rows of `width` numbers.
pub(super) struct Activate<'a> {
    pub(super) width: usize,
    pub(super) concat_elu: bool,
    pub(super) from: &'a [Lanes],
    pub(super) from_stride: usize,
    pub(super) to: &'a mut [Lanes],
    pub(super) to_stride: usize,
}

impl Kernel for Activate<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { width, concat_elu, from, from_stride, to, to_stride } = self;
        for (from, to) in rows_of(from, from_stride).zip(rows_of_mut(to, to_stride)) {
            let from = &from[..width];
            for at in (0..width).step_by(LANES) {
                let x = load(from, at);
                if concat_elu {
                    save(&elu::<FUSED>(&x), &mut to[..width], at);
                    save(&elu::<FUSED>(&map2(&x, &x, |x, _| -x)), &mut to[width..2 * width], at);
                } else {
                    save(&map2(&x, &x, |x, _| if x < 0.0 { 0.0 } else { x }), &mut to[..width], at);
                }
            }
        }
    }
}

/// residual + a x sigmoid(b) of rows of `width` numbers a and as many b, with tanh(a) for a if so said.
pub(super) struct Gate<'a> {
    pub(super) width: usize,
    pub(super) tanh: bool,
    pub(super) from: &'a [Lanes],
    pub(super) from_stride: usize,
    /// Rows as long as those of `to`.
    pub(super) residual: Option<&'a [Lanes]>,
    pub(super) to: &'a mut [Lanes],
    pub(super) to_stride: usize,
}

impl Kernel for Gate<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { width, tanh: through_tanh, from, from_stride, residual, to, to_stride } = self;
        for (row, (from, to)) in rows_of(from, from_stride).zip(rows_of_mut(to, to_stride)).enumerate() {
            let (passing, gate) = (&from[..width], &from[width..2 * width]);
            for at in (0..width).step_by(LANES) {
                let mut passed = load(passing, at);
                if through_tanh {
                    passed = tanh::<FUSED>(&passed);
                }
                let gate = sigmoid::<FUSED>(&load(gate, at));
                let mut result = map2(&passed, &gate, |a, b| a * b);
                if let Some(residual) = residual {
                    result = map2(&residual[row * to_stride + at / LANES], &result, |residual, a| residual + a);
                }
                save(&result, &mut to[..width], at);
            }
        }
    }
}

/// One step of a long short-term memory, rows of 4 x `width` gates (o, f, i, g) and `width` carried numbers c: c' and then
/// h, with c' = sigmoid(f) c + sigmoid(i) tanh(g) and h = sigmoid(o) tanh(c').
pub(super) struct Cell<'a> {
    pub(super) width: usize,
    pub(super) gates: &'a [Lanes],
    pub(super) gates_stride: usize,
    pub(super) carried: &'a [Lanes],
    pub(super) carried_stride: usize,
    pub(super) to: &'a mut [Lanes],
    pub(super) to_stride: usize,
}

impl Kernel for Cell<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { width, gates, gates_stride, carried, carried_stride, to, to_stride } = self;
        let rows = rows_of(gates, gates_stride).zip(rows_of(carried, carried_stride));
        for ((gates, carried), to) in rows.zip(rows_of_mut(to, to_stride)) {
            let part = |index: usize| &gates[index * width..(index + 1) * width];
            let (next, hidden) = to[..2 * width].split_at_mut(width);
            for at in (0..width).step_by(LANES) {
                let [o, f, i] = [0, 1, 2].map(|index| sigmoid::<FUSED>(&load(part(index), at)));
                let g = tanh::<FUSED>(&load(part(3), at));
                let new = map2(&i, &g, |i, g| i * g);
                let kept = map2(&f, &load(&carried[..width], at), |f, c| f * c);
                let c = map2(&kept, &new, |kept, new| kept + new);
                save(&map2(&o, &tanh::<FUSED>(&c), |o, c| o * c), hidden, at);
                save(&c, next, at);
            }
        }
    }
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
