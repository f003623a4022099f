//! Attention of one row over the places it sees.

#![allow(clippy::indexing_slicing, reason = "arrays of constant length, and slices cut to the length of the loop")]

use std::ops::Range;

use super::kernels::{Group, Kernel, LANES, Lanes, accumulate, map2, sum};
use super::pointwise::exponentials;

/// Chains that a weighted sum of values is split over; they are added up in pairs.
const CHAINS: usize = 4;

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
