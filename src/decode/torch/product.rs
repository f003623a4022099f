//! Linear maps whose bits do not depend on the other rows.

use tch::{Kind, TchError, Tensor};

use super::BUCKET;
use crate::decode::op::Linear;

/// Rows that are multiplied together at most where that is promised.
const PIECE: usize = 32;

/// A linear map, and how it is computed.
pub(super) struct Product {
    /// [inputs, outputs], output beside output: few rows are multiplied faster, and in the same order as many.
    weight: Tensor,
    bias: Option<Tensor>,
    means: Means,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// All rows at once.
    Whole,
    /// [`PIECE`] rows at a time.
    Pieces,
    /// The same, as sums of products element by element: slow, but each row for itself.
    Sums,
}

impl Product {
    /// `linear`, of all rows at once.
    pub(super) fn new(linear: &Linear) -> Result<Self, TchError> {
        let weight = linear.weight.f_tr()?;
        Ok(Self { weight, bias: linear.bias.as_ref().map(Tensor::shallow_clone), means: Means::Whole })
    }

    /// The same with handles of its own.
    pub(super) fn share(&self) -> Self {
        let bias = self.bias.as_ref().map(Tensor::shallow_clone);
        Self { weight: self.weight.shallow_clone(), bias, means: self.means }
    }

    /// weight x from + bias.
    pub(super) fn of(&self, from: &Tensor) -> Result<Tensor, TchError> {
        if self.means == Means::Whole {
            return self.multiply(from);
        }
        let (rows, _) = from.size2()?;
        let piece = PIECE as i64;
        if rows <= piece {
            return self.multiply(from);
        }
        let pieces: Vec<Tensor> = (0..rows)
            .step_by(PIECE)
            .map(|first| self.multiply(&from.f_narrow(0, first, piece.min(rows - first))?))
            .collect::<Result<_, TchError>>()?;
        Tensor::f_cat(&pieces, 0)
    }

    fn multiply(&self, from: &Tensor) -> Result<Tensor, TchError> {
        let Self { weight, bias, means } = self;
        match (means, bias) {
            (Means::Sums, _) => {
                // As sums along what lies together, which libtorch computes one by one.
                let products = from.f_unsqueeze(1)?.f_mul(&weight.f_tr()?.f_contiguous()?)?;
                let sums = products.f_sum_dim_intlist([2i64].as_slice(), false, None)?;
                bias.as_ref().map_or(Ok(sums.shallow_clone()), |bias| sums.f_add(bias))
            }
            (_, Some(bias)) => bias.f_addmm(from, weight),
            (_, None) => from.f_mm(weight),
        }
    }

    /// Finds out how a row has the same bits whatever rows it is multiplied with, as far as some trials tell. Gives what
    /// the number of rows must be a multiple of.
    pub(super) fn settle(&mut self) -> Result<usize, TchError> {
        const TRIALS: i64 = 4;
        self.means = Means::Pieces;
        let ((inputs, _), float) = (self.weight.size2()?, (Kind::Float, self.weight.device()));
        // For each number of rows, in units of BUCKET.
        let mut agrees = [true; PIECE / BUCKET];
        for trial in 0..TRIALS {
            let row = Tensor::f_arange(inputs, float)?.f_add_scalar(trial * inputs)?.f_mul_scalar(0.7)?.f_cos()?;
            let rows = row.f_unsqueeze(0)?.f_repeat([PIECE as i64, 1])?;
            let reference = self.multiply(&rows)?.f_narrow(0, 0, 1)?;
            for (agrees, count) in agrees.iter_mut().zip((BUCKET..).step_by(BUCKET)).filter(|(agrees, _)| **agrees) {
                let result = self.multiply(&rows.f_narrow(0, 0, count as i64)?)?;
                *agrees = result.f_equal(&reference.f_expand_as(&result)?)?;
            }
        }
        let multiples = |least: usize| agrees.iter().skip(least / BUCKET - 1).step_by(least / BUCKET);
        let leasts = std::iter::successors(Some(BUCKET), |least| Some(2 * least)).take_while(|&least| least <= PIECE);
        let found = leasts.into_iter().find(|&least| multiples(least).all(|&agrees| agrees));
        if found.is_none() {
            self.means = Means::Sums;
        }
        Ok(found.unwrap_or(BUCKET))
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_row_has_the_same_bits_whatever_rows_it_is_multiplied_with() {
        let numbers = |shape: [i64; 2]| {
            Tensor::arange(shape[0] * shape[1], (Kind::Float, Device::Cpu)).g_mul_scalar(0.7).cos().view(shape)
        };
        for (outputs, inputs) in [(1, 3), (1, 218), (4, 100), (3, 7), (43, 555), (172, 147), (320, 1280)] {
            for bias in [None, Some(numbers([1, outputs]).view(-1))] {
                let weight = numbers([inputs, outputs]).tr();
                let mut product = Product::new(&Linear { weight, bias, ..Linear::default() }).unwrap();
                let found = product.settle().unwrap() as i64;
                let rows = numbers([2 * PIECE as i64, inputs]);
                let mut expected = None;
                for (means, least) in [(product.means, found), (Means::Sums, BUCKET as i64)] {
                    product.means = means;
                    let all = product.of(&rows).unwrap();
                    for count in (least..2 * PIECE as i64).step_by(least as usize) {
                        for first in [0, least, 2 * PIECE as i64 - count] {
                            let count = count.min(2 * PIECE as i64 - first);
                            let some = product.of(&rows.narrow(0, first, count)).unwrap();
                            assert!(some.equal(&all.narrow(0, first, count)), "{outputs} {inputs} {means:?} {count}");
                        }
                    }
                    let expected = expected.get_or_insert_with(|| all.copy());
                    assert!(all.allclose(expected, 1e-4, 1e-4, false), "{outputs} {inputs} {means:?}");
                }
            }
        }
    }
}
