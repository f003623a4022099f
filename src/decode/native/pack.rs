//! Weights in the layouts that the kernels read, in either precision.

use bytemuck::Pod;
use tch::{TchError, Tensor};

use super::kernels::{Group, HalfLanes, LANES, Lanes, NARROW, PairLanes, PanelRow, WIDE, round_bf16};
use super::pages::Pages;
use super::stride;
use crate::decode::program::numbers;
use crate::model::ModelError;

/// How matrices and remembered numbers are held.
pub(super) trait Format: Send + Sync + 'static {
    type Wide: PanelRow<WIDE> + Pod + Send + Sync;
    type Narrow: PanelRow<NARROW> + Pod + Send + Sync;
    type Group: Group;

    fn wide(row: [Lanes; WIDE]) -> Self::Wide;
    fn narrow(row: [Lanes; NARROW]) -> Self::Narrow;
}

/// 32 bits.
pub(super) struct F32;

impl Format for F32 {
    type Wide = [Lanes; WIDE];
    type Narrow = [Lanes; NARROW];
    type Group = Lanes;

    fn wide(row: [Lanes; WIDE]) -> Self::Wide {
        row
    }

    fn narrow(row: [Lanes; NARROW]) -> Self::Narrow {
        row
    }
}

/// The upper 16 bits, rounded to nearest.
pub(super) struct Bf16;

impl Format for Bf16 {
    type Wide = [PairLanes; WIDE / 2];
    type Narrow = [PairLanes; NARROW / 2];
    type Group = HalfLanes;

    fn wide([a, b, c, d]: [Lanes; WIDE]) -> Self::Wide {
        [pair(a, b), pair(c, d)]
    }

    fn narrow([a, b]: [Lanes; NARROW]) -> Self::Narrow {
        [pair(a, b)]
    }
}

fn pair(low: Lanes, high: Lanes) -> PairLanes {
    let mut pair = PairLanes::default();
    for (pair, (low, high)) in pair.0.iter_mut().zip(low.0.into_iter().zip(high.0)) {
        *pair = (round_bf16(low).to_bits() >> 16) | round_bf16(high).to_bits();
    }
    pair
}

/// A matrix in panels, which lie among the [`Weights`] it was packed into.
pub(super) struct Matrix {
    pub(super) inputs: usize,
    /// Where the wide panels begin, where they end and the narrow ones begin, and where those end.
    bounds: [usize; 3],
}

/// The matrices of a network, one after the other as they are read. Counted in rows of narrow panels, of which a row of a
/// wide one takes two.
pub(super) struct Weights<F: Format> {
    pages: Pages<F::Narrow>,
    packed: usize,
}

impl<F: Format> Weights<F> {
    /// Room for matrices of these [outputs, inputs].
    pub(super) fn new(shapes: impl Iterator<Item = (usize, usize)>) -> Result<Self, ModelError> {
        let rows = |(outputs, inputs): (usize, usize)| outputs.div_ceil(LANES * NARROW).checked_mul(inputs);
        let total = shapes.map(rows).try_fold(0_usize, |total, rows| total.checked_add(rows?));
        Ok(Self { pages: Pages::zeros(total)?, packed: 0 })
    }

    /// Packs `weight` [outputs, inputs] behind what there is.
    pub(super) fn pack(&mut self, weight: &Tensor) -> Result<Matrix, TchError> {
        let (outputs, inputs) = weight.size2()?;
        let [outputs, inputs] = [outputs, inputs].map(|n| usize::try_from(n).unwrap_or_default());
        let numbers = numbers(weight)?;
        let lanes = |output: usize, input: usize| {
            let mut lanes = Lanes::default();
            for (lane, number) in lanes.0.iter_mut().enumerate().take(outputs.saturating_sub(output)) {
                *number = numbers.get((output + lane) * inputs + input).copied().unwrap_or_default();
            }
            lanes
        };
        let groups = stride(u32::try_from(outputs).unwrap_or(u32::MAX));
        let wide = groups / WIDE * inputs * (WIDE / NARROW);
        let bounds = [0, wide, groups / NARROW * inputs].map(|rows| self.packed + rows);
        self.packed += groups / NARROW * inputs;
        let matrix = Matrix { inputs, bounds };
        let [first, middle, end] = bounds;
        let wide: &mut [F::Wide] = bytemuck::cast_slice_mut(self.pages.get_mut(first..middle).unwrap_or_default());
        for (index, row) in wide.iter_mut().enumerate() {
            let (panel, input) = (index / inputs, index % inputs);
            *row = F::wide(std::array::from_fn(|group| lanes((panel * WIDE + group) * LANES, input)));
        }
        let narrow = self.pages.get_mut(middle..end).unwrap_or_default();
        for (input, row) in narrow.iter_mut().enumerate() {
            *row = F::narrow(std::array::from_fn(|group| lanes((groups - NARROW + group) * LANES, input)));
        }
        Ok(matrix)
    }

    /// The wide panels of `matrix`, and the narrow ones.
    pub(super) fn panels(&self, matrix: &Matrix) -> (&[F::Wide], &[F::Narrow]) {
        let [first, middle, end] = matrix.bounds;
        let wide = self.pages.get(first..middle).unwrap_or_default();
        (bytemuck::cast_slice(wide), self.pages.get(middle..end).unwrap_or_default())
    }
}

/// `tensor` [width] as one row, padded with zeros.
pub(super) fn vector(tensor: &Tensor) -> Result<Vec<Lanes>, TchError> {
    rows(&tensor.f_unsqueeze(0)?)
}

/// `tensor` [rows, width], each row padded with zeros.
pub(super) fn rows(tensor: &Tensor) -> Result<Vec<Lanes>, TchError> {
    let (_, width) = tensor.size2()?;
    let width = u32::try_from(width).unwrap_or(u32::MAX);
    let numbers = numbers(tensor)?;
    let mut packed = Vec::with_capacity(numbers.len() / (width as usize).max(1) * stride(width));
    for row in numbers.chunks_exact((width as usize).max(1)) {
        for group in 0..stride(width) {
            let mut lanes = Lanes::default();
            for (lane, &number) in lanes.0.iter_mut().zip(row.iter().skip(group * LANES)) {
                *lane = number;
            }
            packed.push(lanes);
        }
    }
    Ok(packed)
}
