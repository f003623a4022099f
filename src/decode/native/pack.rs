//! Weights in the layouts that the kernels read, in either precision.

use tch::{TchError, Tensor};

use super::kernels::{Group, HalfLanes, LANES, Lanes, NARROW, PairLanes, PanelRow, WIDE, round_bf16};
use super::stride;
use crate::decode::program::numbers;

/// How matrices and remembered numbers are held.
pub(super) trait Format: Send + Sync + 'static {
    type Wide: PanelRow<WIDE> + Send + Sync;
    type Narrow: PanelRow<NARROW> + Send + Sync;
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

/// A matrix in panels.
pub(super) struct Matrix<F: Format> {
    pub(super) inputs: usize,
    pub(super) wide: Vec<F::Wide>,
    pub(super) narrow: Vec<F::Narrow>,
}

impl<F: Format> Matrix<F> {
    /// Packs `weight` [outputs, inputs].
    pub(super) fn pack(weight: &Tensor) -> Result<Self, TchError> {
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
        let (wide_panels, narrow_panels) = (groups / WIDE, groups % WIDE / NARROW);
        let mut matrix = Self {
            inputs,
            wide: Vec::with_capacity(wide_panels * inputs),
            narrow: Vec::with_capacity(narrow_panels * inputs),
        };
        for panel in 0..wide_panels {
            let row = |input| std::array::from_fn(|group| lanes((panel * WIDE + group) * LANES, input));
            matrix.wide.extend((0..inputs).map(|input| F::wide(row(input))));
        }
        for panel in 0..narrow_panels {
            let first = wide_panels * WIDE + panel * NARROW;
            let row = |input| std::array::from_fn(|group| lanes((first + group) * LANES, input));
            matrix.narrow.extend((0..inputs).map(|input| F::narrow(row(input))));
        }
        Ok(matrix)
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
