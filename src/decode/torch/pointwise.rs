//! Functions of numbers one by one.
//!
//! libtorch takes numbers that lie together in vectors, whatever rows they are of, and what is left over one by one, to which
//! most functions give other bits. Rows that lie apart it takes row by row, so that the bits of a row depend on its width
//! alone. So results of such functions, or what they are taken of, lie apart here: as columns of something wider. A
//! maximum, a sum or a product of two numbers needs no such care: it is rounded correctly, so that there is but one.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use tch::{Kind, TchError, Tensor};

use crate::decode::op::{Activation, Passing};

/// activation(from), [rows, width] or twice as wide.
pub(super) fn activate(from: &Tensor, activation: Activation) -> Result<Tensor, TchError> {
    let ((rows, width), float) = (from.size2()?, (Kind::Float, from.device()));
    let apart = || Tensor::f_empty([rows, width + 1], float)?.f_narrow(1, 0, width);
    match activation {
        Activation::Relu => from.f_relu(),
        Activation::ConcatElu => {
            let both = Tensor::f_empty([rows, 2 * width], float)?;
            let [plus, minus] = [both.f_narrow(1, 0, width)?, both.f_narrow(1, width, width)?];
            let _ = from.f_elu_out(&plus)?;
            let _ = from.f_neg_out(&minus)?.f_elu_()?;
            Ok(both)
        }
        // Written out, since libtorch's own fills what it is given as if its rows lay together.
        Activation::Gelu => {
            let erf = from.f_mul_scalar(FRAC_1_SQRT_2)?.f_erf_out(&apart()?)?;
            erf.f_add_scalar(1)?.f_mul_scalar(0.5)?.f_mul_(from)
        }
        Activation::GeluTanh => {
            let cube = from.f_mul(from)?.f_mul_(from)?.f_mul_scalar_(0.044_715)?;
            let tanh = cube.f_add(from)?.f_mul_scalar_(FRAC_2_SQRT_PI * FRAC_1_SQRT_2)?.f_tanh_out(&apart()?)?;
            tanh.f_add_scalar(1)?.f_mul_scalar(0.5)?.f_mul_(from)
        }
        Activation::GeluSigmoid => from.f_mul_scalar(1.702)?.f_sigmoid_out(&apart()?)?.f_mul(from),
    }
}

/// passing(first half of `from`) x sigmoid(second half).
pub(super) fn gate(from: &Tensor, passing: Passing) -> Result<Tensor, TchError> {
    let half = from.size2()?.1 / 2;
    let first = from.f_narrow(1, 0, half)?;
    let passed = match passing {
        Passing::Tanh => first.f_tanh()?,
        Passing::Identity => first,
    };
    from.f_narrow(1, half, half)?.f_sigmoid()?.f_mul_(&passed)
}

/// See [`Builder::cell`](crate::decode::Builder::cell).
pub(super) fn cell(gates: &Tensor, carried: &Tensor) -> Result<Tensor, TchError> {
    let (rows, width) = carried.size2()?;
    let open = gates.f_narrow(1, 0, 3 * width)?.f_sigmoid()?;
    let part = |index: i64| open.f_narrow(1, index * width, width);
    let [o, f, i] = [part(0)?, part(1)?, part(2)?];
    let both = Tensor::f_empty([rows, 2 * width], (Kind::Float, carried.device()))?;
    let [mut c, h] = [both.f_narrow(1, 0, width)?, both.f_narrow(1, width, width)?];
    let new = gates.f_narrow(1, 3 * width, width)?.f_tanh()?.f_mul_(&i)?;
    let _ = f.f_mul_out(&c, carried)?;
    let _ = c.f_add_(&new)?;
    let _ = c.f_tanh_out(&h)?.f_mul_(&o)?;
    Ok(both)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_row_has_the_same_bits_however_many_there_are() {
        for width in [1, 2, 3, 5, 8, 16, 31, 43, 100] {
            let numbers = |rows: i64, width: i64| {
                Tensor::arange(rows * width, (Kind::Float, Device::Cpu))
                    .g_mul_scalar(0.7)
                    .cos()
                    .g_mul_scalar(3.0)
                    .view([rows, width])
            };
            let (gates, carried) = (numbers(36, 4 * width), numbers(36, width));
            let all = |gates: &Tensor, carried: &Tensor| -> Vec<Tensor> {
                let kinds = [Activation::ConcatElu, Activation::Gelu, Activation::GeluTanh, Activation::GeluSigmoid];
                let activated = kinds.into_iter().map(|kind| activate(carried, kind).unwrap());
                let gated = [Passing::Tanh, Passing::Identity].map(|passing| gate(gates, passing).unwrap());
                activated.chain(gated).chain([cell(gates, carried).unwrap()]).collect()
            };
            let together = all(&gates, &carried);
            for (first, count) in [(0, 4), (4, 4), (32, 4), (12, 24)] {
                let alone = all(&gates.narrow(0, first, count), &carried.narrow(0, first, count));
                for (index, (alone, together)) in alone.iter().zip(&together).enumerate() {
                    assert!(alone.equal(&together.narrow(0, first, count)), "{index} of {width}: {count} from {first}");
                }
            }
        }
    }
}
