//! Programs of random shapes: every backend and instruction set gives the same, whatever rows are evaluated together.

#![allow(clippy::single_range_in_vec_init, reason = "a row that sees one range of places")]

use std::ops::Range;

use proptest::prelude::*;
use tch::Tensor;

use super::native::{self, Isa};
use super::{Activation, Attention, Builder, Decoder, Linear, Normalisation, Program, Rows, decoder};
use crate::model::Slot;
use crate::spec::{Backend, Precision};

/// Sizes of a program with every operation in it.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    width: i64,
    hidden: i64,
    outputs: i64,
    attention: Attention,
    places: u32,
    precision: Precision,
}

const TABLE_ROWS: u32 = 7;
const SLOTS: u32 = 3;

fn sizes() -> impl Strategy<Value = Sizes> {
    let heads = (1..3u32, 1..20u32, 1..70u32);
    (1..70i64, 1..80i64, 1..150i64, heads, 1..40u32, any::<bool>()).prop_map(
        |(width, hidden, outputs, (heads, head_key, head_value), places, half)| Sizes {
            width,
            hidden,
            outputs,
            attention: Attention { heads, head_key, head_value },
            places,
            precision: if half { Precision::Bf16 } else { Precision::F32 },
        },
    )
}

/// Numbers around zero of variance 1 / `inputs`, others for every `seed` and shape.
fn random(seed: u64, shape: &[i64], inputs: i64) -> Tensor {
    let scale = (12.0 / inputs as f64).sqrt();
    let stream = shape.iter().fold(0, |stream, &length| stream * 1000 + length as u32);
    let number = |element| ((crate::noise::uniform(seed, stream, element) - 0.5) * scale) as f32;
    let numbers: Vec<f32> = (0..shape.iter().product::<i64>() as u32).map(number).collect();
    Tensor::from_slice(&numbers).view(shape)
}

fn program(sizes: Sizes, seed: u64) -> Program {
    let Sizes { width, hidden, outputs, attention, places, precision } = sizes;
    let mut program = Builder::new(places, precision);
    let linear = |outputs, inputs, activation, residual| Linear {
        weight: random(seed, &[outputs, inputs], inputs),
        bias: Some(random(seed, &[outputs], 4)),
        activation,
        residual,
    };
    let x = program.embed(random(seed, &[i64::from(TABLE_ROWS), width], 1)).unwrap();
    let normalisation =
        Normalisation { scale: random(seed, &[width], 1), shift: random(seed, &[width], 1), epsilon: 1e-6 };
    let normal = program.normalise(x, normalisation).unwrap();
    let project = linear(i64::from(attention.input_width()), width, None, None);
    let projected = program.linear(normal, project).unwrap();
    let attended = program.attend(projected, attention).unwrap();
    let value_width = i64::from(attention.heads * attention.head_value);
    let y = program.linear(attended, linear(width, value_width, None, Some(x))).unwrap();
    let hidden_ = program.linear(y, linear(hidden, width, Some(Activation::Relu), None)).unwrap();
    let z = program.linear(hidden_, linear(width, hidden, None, Some(y))).unwrap();
    program.linear(z, linear(outputs, width, None, None)).unwrap();
    program.finish()
}

/// One row: its slot, its inputs, its place, what it sees.
type Row = (u32, [u32; 2], u32, Vec<Range<u32>>);

/// Rows that fill the places of every slot in order; each sees some earlier places and itself.
fn history(sizes: Sizes, seed: u64) -> Vec<Row> {
    let pick = |kind: u32, rank: u32| crate::noise::uniform(seed, kind, rank);
    (0..sizes.places * SLOTS)
        .map(|index| {
            let (slot, place) = (index % SLOTS, index / SLOTS);
            let inputs = [0, 1].map(|kind| (pick(kind, index) * f64::from(TABLE_ROWS)) as u32);
            let gap = (pick(2, index) * f64::from(place + 1)) as u32;
            let end = (pick(3, index) * f64::from(gap + 1)) as u32;
            let start = (pick(4, index) * f64::from(end + 1)) as u32;
            let seen = if end < gap { vec![start..end, gap..place + 1] } else { vec![start..place + 1] };
            (slot, inputs, place, seen.into_iter().filter(|range| !range.is_empty()).collect())
        })
        .collect()
}

/// The outputs of `rows` taken `together` at a time.
fn run(decoder: &mut dyn Decoder, width: usize, rows: &[Row], together: usize) -> Vec<Vec<f32>> {
    (0..SLOTS).for_each(|slot| decoder.clear(Slot(slot)).unwrap());
    let mut outputs = Vec::new();
    for chunk in rows.chunks(together) {
        let mut batch = Rows::default();
        chunk.iter().for_each(|(slot, inputs, place, seen)| batch.push(Slot(*slot), inputs, *place, seen.clone()));
        let mut out = vec![f32::NAN; width * chunk.len()];
        decoder.run(&batch, &mut out).unwrap();
        outputs.extend(out.chunks(width).map(<[f32]>::to_vec));
    }
    outputs
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|number| number.to_bits()).collect()
}

fn assert_close(a: &[Vec<f32>], b: &[Vec<f32>], within: f32, label: &str) {
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= within * (1.0 + a.abs()), "{label}: row {index}: {a} against {b}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn backends_and_instruction_sets_agree_and_rows_do_not_depend_on_their_neighbours(
        sizes in sizes(), seed in 0..1_000_000u64, together in 2..70usize,
    ) {
        let program = program(sizes, seed);
        let (width, rows) = (program.width() as usize, history(sizes, seed));
        // A remembered number that rounds to the other of two bfloat16 moves the result by more than f32 does.
        let within = if sizes.precision == Precision::Bf16 { 2e-2 } else { 1e-4 };
        let mut torch = decoder(&program, Backend::Torch, SLOTS).unwrap();
        let expected = run(&mut *torch, width, &rows, 1);
        let mut fused: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut native = native::decoder(&program, SLOTS, isa).unwrap();
            let alone = run(&mut *native, width, &rows, 1);
            assert_close(&expected, &alone, within, isa.name());
            assert_eq!(bits(&alone), bits(&run(&mut *native, width, &rows, together)), "{}: {together} together", isa.name());
            assert_eq!(bits(&alone), bits(&run(&mut *native.another(SLOTS + 3).unwrap(), width, &rows, together)), "another");
            if isa != Isa::Portable {
                assert_eq!(*fused.get_or_insert(bits(&alone)), bits(&alone), "{}", isa.name());
            }
        }
    }
}

const SMALL: Sizes = Sizes {
    width: 5,
    hidden: 9,
    outputs: 4,
    attention: Attention { heads: 2, head_key: 3, head_value: 4 },
    places: 20,
    precision: Precision::F32,
};

#[test]
fn a_row_that_names_what_is_not_there_is_refused_by_every_backend() {
    let program = program(SMALL, 1);
    for backend in [Backend::Native, Backend::Torch] {
        let mut decoder = decoder(&program, backend, SLOTS).unwrap();
        let mut refused = |slot, input, place, seen: &[Range<u32>], room| {
            let mut rows = Rows::default();
            rows.push(Slot(slot), &[input], place, seen.iter().cloned());
            decoder.run(&rows, &mut vec![0.0; room]).is_err()
        };
        assert!(!refused(2, 6, 19, &[0..3, 5..20], 4));
        assert!(refused(SLOTS, 0, 0, &[0..1], 4), "slot");
        assert!(refused(0, TABLE_ROWS, 0, &[0..1], 4), "input");
        assert!(refused(0, 0, 20, &[0..1], 4), "place");
        assert!(refused(0, 0, 0, &[0..21], 4), "seen");
        assert!(refused(0, 0, 0, &[3..5, 0..1], 4), "order");
        assert!(refused(0, 0, 0, &[0..2, 1..3], 4), "overlap");
        assert!(refused(0, 0, 0, &[], 4), "nothing");
        assert!(refused(0, 0, 0, &[0..1], 5), "room");
        assert!(decoder.clear(Slot(SLOTS)).is_err());
    }
}

#[test]
fn what_is_not_a_number_shows_in_its_own_row_and_is_forgotten_with_its_slot() {
    let numbers: Vec<f32> = (0..TABLE_ROWS).flat_map(|row| [if row == 6 { f32::NAN } else { 0.1 }; 5]).collect();
    let table = Tensor::from_slice(&numbers).view([i64::from(TABLE_ROWS), 5]);
    let mut builder = Builder::new(20, Precision::F32);
    let x = builder.embed(table).unwrap();
    let weight = random(1, &[i64::from(SMALL.attention.input_width()), 5], 5);
    let linear = |weight, activation| Linear { weight, bias: None, activation, residual: None };
    let projected = builder.linear(x, linear(weight, Some(Activation::Relu))).unwrap();
    let attended = builder.attend(projected, SMALL.attention).unwrap();
    builder.linear(attended, linear(random(2, &[4, 8], 8), None)).unwrap();
    let program = builder.finish();
    for backend in [Backend::Native, Backend::Torch] {
        let mut decoder = decoder(&program, backend, SLOTS).unwrap();
        let rows: Vec<Row> = vec![(0, [6, 0], 0, vec![0..1]), (1, [0, 0], 0, vec![0..1])];
        let outputs = run(&mut *decoder, 4, &rows, 2);
        assert!(outputs[0].iter().all(|number| number.is_nan()), "{}", backend.name());
        assert!(outputs[1].iter().all(|number| number.is_finite()), "{}", backend.name());
        // The place beside the poisoned one: what it does not see must not reach it once the slot was cleared.
        let clean = run(&mut *decoder, 4, &[(0, [0, 0], 1, vec![1..2])], 1);
        assert!(clean[0].iter().all(|number| number.is_finite()), "{}", backend.name());
    }
}
