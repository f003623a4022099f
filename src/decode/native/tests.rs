//! Kernels against plain loops in f64. No libtorch is called, so that an interpreter can run these (`make miri`).

use super::attend::{Attend, Places};
use super::isa::Isa;
use super::kernels::{LANES, Lanes, Linear, NARROW, WIDE};
use super::pack::{F32, Format};
use super::pointwise::{Activate, Cell, Gate};
use crate::decode::op::Activation;

/// Numbers of about -1 to 1, others for every kind.
fn numbers(kind: u32, count: usize) -> Vec<f32> {
    (0..count as u32).map(|index| (crate::noise::uniform(7, kind, index) * 2.0 - 1.0) as f32).collect()
}

/// Rows of `width` numbers as groups, padded to `stride` groups.
fn groups(rows: &[f32], width: usize, stride: usize) -> Vec<Lanes> {
    let mut groups = vec![Lanes::default(); rows.len() / width * stride];
    let to: &mut [f32] = bytemuck::cast_slice_mut(&mut groups);
    for (to, row) in to.chunks_exact_mut(stride * LANES).zip(rows.chunks_exact(width)) {
        to[..width].copy_from_slice(row);
    }
    groups
}

fn row(groups: &[Lanes], stride: usize, index: usize) -> &[f32] {
    &bytemuck::cast_slice(groups)[index * stride * LANES..][..stride * LANES]
}

fn assert_close(a: f32, b: f64, isa: Isa) {
    assert!((f64::from(a) - b).abs() < 1e-5, "{}: {a} against {b}", isa.name());
}

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

/// The distribution function of the normal law: half and the density times the sum of x^(2k + 1) / (1 x 3 x ... x (2k + 1)).
fn phi(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum) = (x, 0.0);
    for k in 1..300 {
        sum += term;
        term *= x * x / f64::from(2 * k + 1);
    }
    0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

#[test]
fn products_are_sums_over_the_inputs_whatever_the_number_of_rows() {
    let (inputs, groups_out, rows) = (5, WIDE + NARROW, 7);
    let outputs = groups_out * LANES;
    let weight = numbers(0, outputs * inputs);
    let panel = |first: usize, input: usize, group: usize| {
        Lanes(std::array::from_fn(|lane| weight[(first + group * LANES + lane) * inputs + input]))
    };
    let wide: Vec<_> = (0..inputs).map(|i| F32::wide(std::array::from_fn(|group| panel(0, i, group)))).collect();
    let narrow: Vec<_> =
        (0..inputs).map(|i| F32::narrow(std::array::from_fn(|group| panel(WIDE * LANES, i, group)))).collect();
    let (from, bias, residual) = (numbers(1, rows * inputs), numbers(2, outputs), numbers(3, rows * outputs));
    let (packed_bias, packed_residual) = (groups(&bias, outputs, groups_out), groups(&residual, outputs, groups_out));
    for isa in Isa::available() {
        let mut to = vec![Lanes::default(); rows * groups_out];
        isa.run(Linear {
            inputs,
            wide: &wide,
            narrow: &narrow,
            bias: Some(&packed_bias),
            relu: true,
            from: &groups(&from, inputs, 1),
            from_stride: 1,
            residual: Some(&packed_residual),
            to: &mut to,
            to_stride: groups_out,
        });
        for index in 0..rows {
            for (output, &got) in row(&to, groups_out, index).iter().enumerate() {
                let product =
                    |input| f64::from(weight[output * inputs + input]) * f64::from(from[index * inputs + input]);
                let sum = (0..inputs).map(product).sum::<f64>() + f64::from(bias[output]);
                assert_close(got, sum.max(0.0) + f64::from(residual[index * outputs + output]), isa);
            }
        }
    }
}

#[test]
fn attention_mixes_the_values_of_the_places_seen_by_their_keys() {
    let (heads, head_key, head_value, places) = (2, 3, 17, 20);
    let (place_groups, value_groups) = (2, 2);
    let (keys, values) = (numbers(4, heads * places * head_key), numbers(5, heads * places * head_value));
    let query = numbers(6, heads * head_key);
    let mut packed_keys = vec![Lanes::default(); heads * place_groups * head_key];
    let mut packed_values = vec![Lanes::default(); heads * place_groups * LANES * value_groups];
    for head in 0..heads {
        for place in 0..places {
            for feature in 0..head_key {
                let group = (head * place_groups + place / LANES) * head_key + feature;
                packed_keys[group].0[place % LANES] = keys[(head * places + place) * head_key + feature];
            }
            for feature in 0..head_value {
                let group = (head * place_groups * LANES + place) * value_groups + feature / LANES;
                packed_values[group].0[feature % LANES] = values[(head * places + place) * head_value + feature];
            }
        }
    }
    let mut seen = Places::default();
    seen.set([1..4, 15..18].into_iter());
    let visible: Vec<usize> = (1..4).chain(15..18).collect();
    for isa in Isa::available() {
        let mut to = vec![Lanes::default(); 3];
        isa.run(Attend {
            heads,
            head_key,
            head_value,
            place_groups,
            keys: &packed_keys,
            values: &packed_values,
            seen: &seen,
            scores: &mut [Lanes::default(); 2],
            query: &groups(&query, heads * head_key, 1),
            to: &mut to,
        });
        for head in 0..heads {
            let score = |place: usize| {
                let key = &keys[(head * places + place) * head_key..][..head_key];
                let query = &query[head * head_key..][..head_key];
                key.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().exp()
            };
            let total: f64 = visible.iter().map(|&place| score(place)).sum();
            for feature in 0..head_value {
                let value = |place: usize| f64::from(values[(head * places + place) * head_value + feature]);
                let mixed: f64 = visible.iter().map(|&place| score(place) * value(place)).sum();
                assert_close(row(&to, 3, 0)[head * head_value + feature], mixed / total, isa);
            }
        }
    }
}

#[test]
fn gates_cells_and_activations_are_what_their_formulas_say_far_from_zero_too() {
    let width = 19;
    let numbers: Vec<f32> = numbers(8, 4 * width).into_iter().map(|number| number.powi(3) * 100.0).collect();
    let carried = self::numbers(9, width);
    for isa in Isa::available() {
        let (mut gated, mut cell) = (vec![Lanes::default(); 2], vec![Lanes::default(); 4]);
        isa.run(Gate {
            width,
            tanh: true,
            from: &groups(&numbers, 4 * width, 6),
            from_stride: 6,
            residual: Some(&groups(&carried, width, 2)),
            to: &mut gated,
            to_stride: 2,
        });
        isa.run(Cell {
            width,
            gates: &groups(&numbers, 4 * width, 6),
            gates_stride: 6,
            carried: &groups(&carried, width, 2),
            carried_stride: 2,
            to: &mut cell,
            to_stride: 4,
        });
        let mut elus = vec![Lanes::default(); 4];
        isa.run(Activate {
            width,
            activation: Activation::ConcatElu,
            from: &groups(&numbers, 4 * width, 6),
            from_stride: 6,
            to: &mut elus,
            to_stride: 4,
        });
        for at in 0..width {
            let [o, f, i, g] = [0, 1, 2, 3].map(|gate| numbers[gate * width + at]);
            let before = f64::from(carried[at]);
            assert_close(row(&gated, 2, 0)[at], before + f64::from(o).tanh() * sigmoid(f), isa);
            let next = sigmoid(f) * before + sigmoid(i) * f64::from(g).tanh();
            assert_close(row(&cell, 4, 0)[at], next, isa);
            assert_close(row(&cell, 4, 0)[width + at], sigmoid(o) * next.tanh(), isa);
            let elu = |x: f64| if x > 0.0 { x } else { x.exp() - 1.0 };
            assert_close(row(&elus, 4, 0)[at], elu(f64::from(o)), isa);
            assert_close(row(&elus, 4, 0)[width + at], elu(-f64::from(o)), isa);
        }
    }
}

#[test]
fn each_kind_of_gelu_is_what_its_formula_says_near_zero_and_far_from_it() {
    let width = 119;
    let numbers: Vec<f32> = numbers(10, width).into_iter().map(|number| number.powi(3) * 15.0).collect();
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let tanh = |x: f64| x * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh()) / 2.0;
    let kinds: [(Activation, &dyn Fn(f64) -> f64); 3] = [
        (Activation::Gelu, &|x| x * phi(x)),
        (Activation::GeluTanh, &tanh),
        (Activation::GeluSigmoid, &|x| x / (1.0 + (-1.702 * x).exp())),
    ];
    for (isa, (activation, formula)) in Isa::available().into_iter().flat_map(|isa| kinds.map(|kind| (isa, kind))) {
        let mut to = vec![Lanes::default(); 8];
        let from = groups(&numbers, width, 8);
        isa.run(Activate { width, activation, from: &from, from_stride: 8, to: &mut to, to_stride: 8 });
        for (&x, &got) in numbers.iter().zip(row(&to, 8, 0)) {
            let expected = formula(f64::from(x));
            let within = 4e-7 * (1.0 + f64::from(x).abs());
            assert!((f64::from(got) - expected).abs() < within, "{activation:?} {}: {x}: {got}", isa.name());
        }
    }
}
