//! Functions of numbers one by one: activations, gates, the cell of a long short-term memory.

#![allow(clippy::indexing_slicing, reason = "arrays of constant length, and slices cut to the length of the loop")]

use super::kernels::{Kernel, LANES, Lanes, map2, multiply_add};
use crate::decode::op::Activation;

/// exp(score - highest), lane by lane; zero where that is below exp(-87), the smallest normal number.
///
/// 2^n exp(r) with |r| <= ln(2) / 2 and a polynomial of degree 6, after Cody and Waite ("Software manual for the elementary
/// functions", 1980); within 2 units in the last place.
#[inline(always)]
pub(super) fn exponentials<const FUSED: bool>(scores: &Lanes, highest: f32) -> Lanes {
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

/// x Phi(x), with Phi(-|x|) = t exp(P(t) - x^2 / 2) and t = 1 / (1 + 0.4 |x|).
///
/// P was fitted to the logarithm of what is left of Phi, at 400 Chebyshev nodes of |x| up to 13.2, by least squares; its error
/// there is below 1e-7, and beyond them Phi(-|x|) is below the smallest normal number.
#[inline(always)]
fn gelu<const FUSED: bool>(x: &Lanes) -> Lanes {
    /// Of P, the highest power first.
    const COEFFICIENTS: [f32; 9] = [
        0.192_626_42,
        -0.985_667_65,
        1.968_876_4,
        -1.774_099_5,
        0.557_384_8,
        -0.187_693_1,
        0.373_638_8,
        0.996_894_9,
        -1.835_108_2,
    ];
    let t = map2(x, x, |x, _| 1.0 / (1.0 + 0.4 * x.abs()));
    let exponent = map2(x, &t, |x, t| {
        let p = COEFFICIENTS.iter().fold(0.0, |p, &coefficient| multiply_add::<FUSED>(p, t, coefficient));
        multiply_add::<FUSED>(-0.5 * x, x, p)
    });
    let below = map2(&t, &exponentials::<FUSED>(&exponent, 0.0), |t, e| t * e);
    map2(x, &below, |x, below| x * if x < 0.0 { below } else { 1.0 - below })
}

/// x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), which has no difference of near numbers in it as one with tanh has.
#[inline(always)]
fn gelu_tanh<const FUSED: bool>(x: &Lanes) -> Lanes {
    const TWICE_ROOT: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
    let inner = map2(x, x, |x, _| TWICE_ROOT * x * multiply_add::<FUSED>(0.044_715 * x, x, 1.0));
    map2(x, &sigmoid::<FUSED>(&inner), |x, share| x * share)
}

/// x sigmoid(1.702 x).
#[inline(always)]
fn gelu_sigmoid<const FUSED: bool>(x: &Lanes) -> Lanes {
    map2(x, &sigmoid::<FUSED>(&map2(x, x, |x, _| 1.702 * x)), |x, share| x * share)
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

/// `activation` of rows of `width` numbers.
pub(super) struct Activate<'a> {
    pub(super) width: usize,
    pub(super) activation: Activation,
    pub(super) from: &'a [Lanes],
    pub(super) from_stride: usize,
    pub(super) to: &'a mut [Lanes],
    pub(super) to_stride: usize,
}

impl Kernel for Activate<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { width, activation, from, from_stride, to, to_stride } = self;
        for (from, to) in rows_of(from, from_stride).zip(rows_of_mut(to, to_stride)) {
            let from = &from[..width];
            for at in (0..width).step_by(LANES) {
                let x = load(from, at);
                let result = match activation {
                    Activation::Relu => map2(&x, &x, |x, _| if x < 0.0 { 0.0 } else { x }),
                    Activation::ConcatElu => {
                        save(&elu::<FUSED>(&map2(&x, &x, |x, _| -x)), &mut to[width..2 * width], at);
                        elu::<FUSED>(&x)
                    }
                    Activation::Gelu => gelu::<FUSED>(&x),
                    Activation::GeluTanh => gelu_tanh::<FUSED>(&x),
                    Activation::GeluSigmoid => gelu_sigmoid::<FUSED>(&x),
                };
                save(&result, &mut to[..width], at);
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
            let (next, hidden) = to[..2 * width].split_at_mut(width);
            for at in (0..width).step_by(LANES) {
                // In a loop, as the function that `map` calls would not be compiled for the instructions.
                let mut parts = [Lanes::default(); 4];
                for (part, gates) in parts.iter_mut().zip(gates.chunks_exact(width)) {
                    *part = load(gates, at);
                }
                let [o, f, i, g] = parts;
                let [o, f, i, g] =
                    [sigmoid::<FUSED>(&o), sigmoid::<FUSED>(&f), sigmoid::<FUSED>(&i), tanh::<FUSED>(&g)];
                let new = map2(&i, &g, |i, g| i * g);
                let kept = map2(&f, &load(&carried[..width], at), |f, c| f * c);
                let c = map2(&kept, &new, |kept, new| kept + new);
                save(&map2(&o, &tanh::<FUSED>(&c), |o, c| o * c), hidden, at);
                save(&c, next, at);
            }
        }
    }
}
