//! Products of matrices, with an eye to the bits of each row.

use tch::{Device, Kind, TchError, Tensor};

use crate::decode::op::Linear;

/// Rows that are multiplied together where memories are worked on. Whole pieces also keep every row out of the tail of an
/// element-wise operation, which libtorch computes by other code: two vectors of 512 bits at most.
pub(super) const PIECE: usize = 32;

/// How a linear map is computed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    /// All rows at once.
    Whole,
    /// [`PIECE`] rows at a time.
    Pieces,
    /// The same, as sums of products element by element: slow, but each row for itself.
    Sums,
}

/// weight x from + bias.
pub(super) fn multiply(from: &Tensor, linear: &Linear, product: Product) -> Result<Tensor, TchError> {
    let (rows, _) = from.size2()?;
    let piece = |from: &Tensor| match product {
        Product::Whole | Product::Pieces => from.f_linear(&linear.weight, linear.bias.as_ref()),
        Product::Sums => {
            let products = from.f_unsqueeze(1)?.f_mul(&linear.weight)?;
            let sums = products.f_sum_dim_intlist([2i64].as_slice(), false, None)?;
            linear.bias.as_ref().map_or(Ok(sums.shallow_clone()), |bias| sums.f_add(bias))
        }
    };
    if product == Product::Whole || rows <= PIECE as i64 {
        return piece(from);
    }
    let pieces: Vec<Tensor> = (0..rows)
        .step_by(PIECE)
        .map(|first| piece(&from.f_narrow(0, first, PIECE as i64)?))
        .collect::<Result<_, TchError>>()?;
    Tensor::f_cat(&pieces, 0)
}

/// Whether a row of a piece has the same bits wherever in it the row stands, as far as some trials tell.
pub(super) fn is_steady(linear: &Linear) -> Result<bool, TchError> {
    const TRIALS: i64 = 8;
    let (_, inputs) = linear.weight.size2()?;
    for trial in 0..TRIALS {
        let row = Tensor::f_arange(inputs, (Kind::Float, Device::Cpu))?
            .f_add_scalar(trial * inputs)?
            .f_mul_scalar(0.7)?
            .f_cos()?;
        let rows = row.f_unsqueeze(0)?.f_repeat([PIECE as i64, 1])?;
        let result = multiply(&rows, linear, Product::Pieces)?;
        if !result.f_equal(&result.f_narrow(0, 0, 1)?.f_expand_as(&result)?)? {
            return Ok(false);
        }
    }
    Ok(true)
}
