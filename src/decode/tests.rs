//! Programs of random shapes: every backend and instruction set gives the same, whatever rows are evaluated together.

#![allow(clippy::single_range_in_vec_init, reason = "a row that sees one range of places")]

use std::ops::Range;

use proptest::prelude::*;
use tch::Tensor;

use super::native::{self, Isa};
use super::torch::Torch;
use super::{
    Activation, Attention, Builder, Decoder, Linear, NOWHERE, Network, Normalisation, Part, Passing, ProgramId,
    Register, Row, Rows, Sight, check_memory, decoder,
};
use crate::model::Slot;
use crate::spec::{Backend, Device, Precision};

/// Sizes of a program over rings, with every operation it can have.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    width: u32,
    hidden: u32,
    outputs: u32,
    attention: Attention,
    places: u32,
    precision: Precision,
}

const TABLE_ROWS: u32 = 7;
/// More than libtorch is padded to.
const SLOTS: u32 = 5;

fn sizes() -> impl Strategy<Value = Sizes> {
    let heads = (1..3u32, 1..20u32, 1..70u32);
    (1..70u32, 1..80u32, 1..150u32, heads, 1..40u32, any::<bool>()).prop_map(
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

fn linear(seed: u64, outputs: u32, inputs: u32) -> Linear {
    let [outputs, inputs] = [outputs, inputs].map(i64::from);
    Linear {
        weight: random(seed, &[outputs, inputs], inputs),
        bias: Some(random(seed, &[outputs], 4)),
        ..Linear::default()
    }
}

/// Two programs over two rings: one that fills the second, as an encoder does, and one that looks at both.
fn ring_network(sizes: Sizes, seed: u64) -> (Network, [ProgramId; 2]) {
    let Sizes { width, hidden, outputs, attention, places, precision } = sizes;
    let mut network = Network::new(precision, Device::Cpu);
    let [own, other] = [places, 3].map(|places| network.ring(attention, places));

    let mut program = network.program();
    let x = program.input(2).unwrap();
    let stored = program.linear(x, linear(seed, attention.place_width(), 2)).unwrap();
    program.store(stored, other).unwrap();
    let fill = program.finish(None).unwrap();

    let mut program = network.program();
    let x = program.embed(random(seed, &[i64::from(TABLE_ROWS), i64::from(width)], 1)).unwrap();
    let vector = |seed| random(seed, &[i64::from(width)], 1);
    let normalisation = Normalisation { scale: vector(seed), shift: Some(vector(seed + 1)), epsilon: 1e-6 };
    let normal = program.normalise(x, normalisation).unwrap();
    let stored = program.linear(normal, linear(seed, attention.place_width(), width)).unwrap();
    program.store(stored, own).unwrap();
    let query = program.linear(normal, linear(seed, attention.query_width(), width)).unwrap();
    let own = program.look(query, own, Sight::Seen).unwrap();
    let other = program.look(query, other, Sight::All).unwrap();
    let attended = program.add(own, other).unwrap();
    let back = Linear { residual: Some(x), ..linear(seed, width, attention.value_width()) };
    let y = program.linear(attended, back).unwrap();
    let up = Linear { activation: Some(Activation::Relu), ..linear(seed, hidden, width) };
    let hidden_ = program.linear(y, up).unwrap();
    let z = program.linear(hidden_, Linear { residual: Some(y), ..linear(seed, width, hidden) }).unwrap();
    // Where `z` is near zero, its rounding comes out up to 1 / sqrt(epsilon) times as large: 10 times, with this one.
    let rooted = program.normalise(z, Normalisation { scale: vector(seed + 2), shift: None, epsilon: 0.01 }).unwrap();
    let kinds = [Activation::Gelu, Activation::GeluTanh, Activation::GeluSigmoid];
    let [a, b, c] = kinds.map(|kind| program.activate(rooted, kind).unwrap());
    let sum = program.add(a, b).unwrap();
    let sum = program.add(sum, c).unwrap();
    let output = program.linear(sum, linear(seed, outputs, width)).unwrap();
    let step = program.finish(Some(output)).unwrap();
    (network, [fill, step])
}

/// One row of the second program: its slot, its inputs, its place, what it sees.
type RingRow = (u32, [u32; 2], u32, Vec<Range<u32>>);

/// Rows that fill the places of every slot in order; each sees some earlier places and itself.
fn history(sizes: Sizes, seed: u64) -> Vec<RingRow> {
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
fn run(
    decoder: &mut dyn Decoder,
    [fill, step]: [ProgramId; 2],
    width: usize,
    rows: &[RingRow],
    together: usize,
) -> Vec<Vec<f32>> {
    for slot in 0..SLOTS {
        decoder.clear(Slot(slot)).unwrap();
        let mut batch = Rows::default();
        for place in 0..3 {
            let numbers = [slot as f32, place as f32 - 1.0];
            batch.push(Row { slot, numbers: &numbers, place, ..Row::default() });
        }
        decoder.run(fill, &batch, &mut []).unwrap();
    }
    let mut outputs = Vec::new();
    for chunk in rows.chunks(together) {
        let mut batch = Rows::default();
        for (slot, inputs, place, seen) in chunk {
            batch.push(Row { slot: *slot, inputs, place: *place, seen, ..Row::default() });
        }
        let mut out = vec![f32::NAN; width * chunk.len()];
        decoder.run(step, &batch, &mut out).unwrap();
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

/// Few, as each builds networks, unless `PROPTEST_CASES` asks for other than its usual number (`make fuzz`).
fn cases() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let usual = asked.cases == 256;
    ProptestConfig { cases: if usual { 16 } else { asked.cases }, ..asked }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn backends_and_instruction_sets_agree_and_rows_do_not_depend_on_their_neighbours(
        sizes in sizes(), seed in 0..1_000_000u64, together in 2..70usize,
    ) {
        let (network, programs) = ring_network(sizes, seed);
        let (width, rows) = (sizes.outputs as usize, history(sizes, seed));
        // A remembered number that rounds to the other of two bfloat16 moves the result by more than f32 does.
        let within = if sizes.precision == Precision::Bf16 { 2e-2 } else { 1e-4 };
        let mut torch = decoder(&network, Backend::Torch, SLOTS).unwrap();
        let expected = run(&mut *torch, programs, width, &rows, 1);
        // In one evaluation, slots are distinct there.
        let crowded = run(&mut *torch, programs, width, &rows, together.min(SLOTS as usize));
        assert_eq!(bits(&expected), bits(&crowded), "torch, together");
        let mut shard = torch.another(SLOTS).unwrap();
        assert_eq!(bits(&expected), bits(&run(&mut *shard, programs, width, &rows, 1)), "torch, another");
        let mut all = Torch::new(&network, SLOTS).unwrap().all_looking();
        for together in [1, SLOTS as usize] {
            let all = run(&mut all, programs, width, &rows, together);
            assert_eq!(bits(&expected), bits(&all), "torch, all looking, {together} together");
        }
        let mut fused: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut native = native::decoder(&network, SLOTS, isa).unwrap();
            let mut run = |decoder: Option<&mut dyn Decoder>, together| {
                run(decoder.unwrap_or(&mut *native), programs, width, &rows, together)
            };
            let alone = run(None, 1);
            assert_close(&expected, &alone, within, isa.name());
            assert_eq!(bits(&alone), bits(&run(None, together)), "{}: {together} together", isa.name());
            let mut another = native::decoder(&network, SLOTS, isa).unwrap().another(SLOTS + 3).unwrap();
            assert_eq!(bits(&alone), bits(&run(Some(&mut *another), together)), "another");
            if isa != Isa::Portable {
                assert_eq!(*fused.get_or_insert(bits(&alone)), bits(&alone), "{}", isa.name());
            }
        }
    }

    #[test]
    fn backends_agree_on_memories_and_rows_do_not_depend_on_their_neighbours(
        sizes in memory_sizes(), seed in 0..1_000_000u64,
    ) {
        let (network, programs) = memory_network(sizes, seed);
        let mut torch = decoder(&network, Backend::Torch, SLOTS).unwrap();
        let expected = walk(&mut *torch, programs, sizes, seed, false);
        assert_eq!(bits(&expected), bits(&walk(&mut *torch, programs, sizes, seed, true)), "torch, together");
        let mut parallel = Torch::parallel(&network, SLOTS).unwrap();
        assert_close(&expected, &walk(&mut parallel, programs, sizes, seed, true), 1e-4, "parallel");
        let mut fused: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut native = native::decoder(&network, SLOTS, isa).unwrap();
            let alone = walk(&mut *native, programs, sizes, seed, false);
            assert_close(&expected, &alone, 1e-4, isa.name());
            assert_eq!(bits(&alone), bits(&walk(&mut *native, programs, sizes, seed, true)), "{}", isa.name());
            assert_eq!(bits(&alone), bits(&walk(&mut *native.another(SLOTS + 3).unwrap(), programs, sizes, seed, true)), "another");
            if isa != Isa::Portable {
                assert_eq!(*fused.get_or_insert(bits(&alone)), bits(&alone), "{}", isa.name());
            }
        }
    }
}

/// Sizes of two programs over memories, with every operation they can have.
#[derive(Clone, Copy, Debug)]
struct MemorySizes {
    width: u32,
    neighbours: u32,
    columns: u32,
    taps: usize,
    places: u32,
    outputs: u32,
    passing: Passing,
    precision: Precision,
}

fn memory_sizes() -> impl Strategy<Value = MemorySizes> {
    (1..40u32, 1..4u32, 1..40u32, 0..6usize, 4..60u32, 1..70u32, any::<bool>(), any::<bool>()).prop_map(
        |(width, neighbours, columns, taps, places, outputs, tanh, half)| MemorySizes {
            width,
            neighbours,
            columns: columns.min(width),
            taps,
            places,
            outputs,
            passing: if tanh { Passing::Tanh } else { Passing::Identity },
            precision: if half { Precision::Bf16 } else { Precision::F32 },
        },
    )
}

/// A program that writes some neighbouring places of a memory, and one that reads them and what it wrote before itself.
fn memory_network(sizes: MemorySizes, seed: u64) -> (Network, [ProgramId; 2]) {
    let MemorySizes { width, neighbours, columns, taps, places, outputs, passing, precision } = sizes;
    let mut network = Network::new(precision, Device::Cpu);
    let written = network.memory(width, places);
    let own = network.memory(2 * width, places);

    let mut program = network.program();
    let place = program.taps(1, places + 1 - neighbours);
    let x = program.input(3).unwrap();
    let x = program.linear(x, linear(seed, neighbours * width, 3)).unwrap();
    program.remember(x, written, place, 0).unwrap();
    let first = program.finish(None).unwrap();

    let mut program = network.program();
    let [place, past] = [1, taps].map(|count| program.taps(count, places));
    let embedded = program.embed(random(seed, &[i64::from(TABLE_ROWS), i64::from(width)], 1)).unwrap();
    let from = |memory, taps, column, width| Part::Memory { memory, taps, column, width };
    let parts = vec![
        from(written, past, width - columns, columns),
        Part::Register { register: embedded, column: width - columns, width: columns },
        Part::Register { register: embedded, column: 0, width },
        from(own, past, 0, width),
        from(own, past, width, width),
    ];
    let gathered = program.gather(parts).unwrap();
    let inputs = program.width(gathered).unwrap();
    let gates = program.linear(gathered, linear(seed, 4 * width, inputs)).unwrap();
    let carried = program.gather(vec![from(written, place, 0, width)]).unwrap();
    let cell = program.cell(gates, carried).unwrap();
    program.remember(cell, own, place, 0).unwrap();
    let gated = program.gate(cell, passing, Some(embedded)).unwrap();
    let sum = program.add(gated, carried).unwrap();
    let plain = program.activate(sum, Activation::Relu).unwrap();
    let wide = program.activate(plain, Activation::ConcatElu).unwrap();
    let output = program.linear(wide, linear(seed, outputs, 2 * width)).unwrap();
    let second = program.finish(Some(output)).unwrap();
    (network, [first, second])
}

/// The outputs of the second program, place by place, after the first has written every place. `together`: all slots at
/// once, and all places where they do not depend on each other.
fn walk(
    decoder: &mut dyn Decoder,
    [first, second]: [ProgramId; 2],
    sizes: MemorySizes,
    seed: u64,
    together: bool,
) -> Vec<Vec<f32>> {
    (0..SLOTS).for_each(|slot| decoder.clear(Slot(slot)).unwrap());
    let pick = |kind: u32, rank: u32, below: u32| (crate::noise::uniform(seed, kind, rank) * f64::from(below)) as u32;
    let mut batch = Rows::default();
    for index in 0..sizes.places * SLOTS {
        let (slot, place) = (index / sizes.places, index % sizes.places / sizes.neighbours * sizes.neighbours);
        let place = if place + sizes.neighbours > sizes.places { NOWHERE } else { place };
        let numbers = [slot, place % 100, index].map(|number| number as f32 / 100.0);
        // The first of the places that are written together, so that none is written twice with different numbers.
        if place == index % sizes.places {
            batch.push(Row { slot, numbers: &numbers, places: &[place], ..Row::default() });
        }
        if !together || index + 1 == sizes.places * SLOTS {
            decoder.run(first, &batch, &mut []).unwrap();
            batch.clear();
        }
    }
    let mut outputs = Vec::new();
    let width = sizes.outputs as usize;
    for place in 0..sizes.places {
        for slot in 0..SLOTS {
            let index = slot * sizes.places + place;
            let inputs = [pick(0, index, TABLE_ROWS), pick(1, index, TABLE_ROWS)];
            let tap = |tap: usize| match pick(2 + tap as u32, index, place + 1) {
                0 => NOWHERE,
                past => past - 1,
            };
            let places: Vec<u32> = std::iter::once(place).chain((0..sizes.taps).map(tap)).collect();
            batch.push(Row { slot, inputs: &inputs, places: &places, ..Row::default() });
            if !together || slot + 1 == SLOTS {
                let mut out = vec![f32::NAN; width * batch.len()];
                decoder.run(second, &batch, &mut out).unwrap();
                outputs.extend(out.chunks(width).map(<[f32]>::to_vec));
                batch.clear();
            }
        }
    }
    outputs
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
    let (network, [_, step]) = ring_network(SMALL, 1);
    for backend in [Backend::Native, Backend::Torch] {
        let mut decoder = decoder(&network, backend, SLOTS).unwrap();
        let mut refused = |slot, input, place, seen: &[Range<u32>], room| {
            let mut rows = Rows::default();
            rows.push(Row { slot, inputs: &[input], place, seen, ..Row::default() });
            decoder.run(step, &rows, &mut vec![0.0; room]).is_err()
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
fn a_row_that_names_places_of_memories_that_are_not_there_is_refused_by_every_backend() {
    let sizes = MemorySizes {
        width: 3,
        neighbours: 2,
        columns: 2,
        taps: 1,
        places: 4,
        outputs: 5,
        passing: Passing::Tanh,
        precision: Precision::F32,
    };
    let (network, [first, second]) = memory_network(sizes, 1);
    for backend in [Backend::Native, Backend::Torch] {
        let mut decoder = decoder(&network, backend, SLOTS).unwrap();
        let mut refused = |program, row: Row<'_>, room| {
            let mut rows = Rows::default();
            rows.push(row);
            decoder.run(program, &rows, &mut vec![0.0; room]).is_err()
        };
        let numbers = [0.0; 3];
        assert!(!refused(first, Row { numbers: &numbers, places: &[2], ..Row::default() }, 0));
        assert!(!refused(first, Row { numbers: &numbers, places: &[NOWHERE], ..Row::default() }, 0));
        assert!(refused(first, Row { numbers: &numbers, places: &[3], ..Row::default() }, 0), "its neighbour");
        assert!(refused(first, Row { numbers: &numbers, ..Row::default() }, 0), "no place");
        assert!(refused(first, Row { numbers: &numbers[..2], places: &[2], ..Row::default() }, 0), "too few numbers");
        assert!(!refused(second, Row { inputs: &[0], places: &[3, NOWHERE], ..Row::default() }, 5));
        assert!(refused(second, Row { inputs: &[0], places: &[3, 4], ..Row::default() }, 5), "tap");
        assert!(refused(ProgramId(2), Row::default(), 0), "program");
    }
}

#[test]
fn programs_whose_parts_do_not_fit_are_refused() {
    let mut network = Network::new(Precision::F32, Device::Cpu);
    let memory = network.memory(4, 10);
    let attention = Attention { heads: 1, head_key: 2, head_value: 2 };
    let [ring, longer] = [5, 6].map(|places| network.ring(attention, places));
    let refuses = |network: &mut Network, build: &dyn Fn(&mut Builder<'_>, Register) -> bool| {
        let mut program = network.program();
        let x = program.input(4).unwrap();
        build(&mut program, x)
    };
    let linear = |outputs, inputs| linear(1, outputs, inputs);
    assert!(refuses(&mut network, &|p, x| p.linear(x, linear(3, 5)).is_err()));
    assert!(refuses(&mut network, &|p, x| p.linear(x, Linear { residual: Some(x), ..linear(3, 4) }).is_err()));
    for alone in [Activation::ConcatElu, Activation::Gelu, Activation::GeluTanh, Activation::GeluSigmoid] {
        let activation = Some(alone);
        assert!(refuses(&mut network, &|p, x| p.linear(x, Linear { activation, ..linear(3, 4) }).is_err()));
    }
    assert!(refuses(&mut network, &|p, _| p.input(4).is_err()));
    assert!(refuses(&mut network, &|p, x| p.cell(x, x).is_err()));
    assert!(refuses(&mut network, &|p, x| p.gate(x, Passing::Tanh, Some(x)).is_err()));
    assert!(refuses(&mut network, &|p, x| {
        let beyond = p.taps(1, 11);
        p.remember(x, memory, beyond, 0).is_err()
    }));
    assert!(refuses(&mut network, &|p, x| {
        let place = p.taps(1, 10);
        p.remember(x, memory, place, 1).is_err()
    }));
    assert!(refuses(&mut network, &|p, _| {
        let taps = p.taps(2, 10);
        p.gather(vec![Part::Memory { memory, taps, column: 3, width: 2 }]).is_err()
    }));
    assert!(refuses(&mut network, &|p, x| p.store(x, ring).is_ok() && p.store(x, longer).is_err()));
    assert!(refuses(&mut network, &|p, x| p.look(x, ring, Sight::Seen).is_err()));
    assert!(refuses(&mut network, &|p, x| p.linear(Register(x.0 + 1), linear(3, 4)).is_err()));
    let mut both = network.program();
    let x = both.input(4).unwrap();
    let place = both.taps(1, 10);
    both.remember(x, memory, place, 0).unwrap();
    both.store(x, ring).unwrap();
    assert!(both.finish(None).is_err(), "a memory beside a ring");
    let mut elsewhere = network.program();
    let x = elsewhere.input(2).unwrap();
    elsewhere.look(x, ring, Sight::All).unwrap();
    assert!(elsewhere.finish(None).is_err(), "a ring that rows do not stand in");
}

#[test]
fn what_is_not_a_number_shows_in_its_own_row_and_is_forgotten_with_its_slot() {
    let attention = SMALL.attention;
    let numbers: Vec<f32> = (0..TABLE_ROWS).flat_map(|row| [if row == 6 { f32::NAN } else { 0.1 }; 5]).collect();
    let mut network = Network::new(Precision::F32, Device::Cpu);
    let ring = network.ring(attention, 20);
    let mut program = network.program();
    let x = program.embed(Tensor::from_slice(&numbers).view([i64::from(TABLE_ROWS), 5])).unwrap();
    let relu = |outputs| Linear { activation: Some(Activation::Relu), ..linear(1, outputs, 5) };
    let stored = program.linear(x, relu(attention.place_width())).unwrap();
    program.store(stored, ring).unwrap();
    let query = program.linear(x, relu(attention.query_width())).unwrap();
    let attended = program.look(query, ring, Sight::Seen).unwrap();
    let output = program.linear(attended, linear(2, 4, 8)).unwrap();
    let step = program.finish(Some(output)).unwrap();
    for backend in [Backend::Native, Backend::Torch] {
        let mut decoder = decoder(&network, backend, SLOTS).unwrap();
        let mut run = |rows: &[(u32, u32, u32)]| {
            let mut batch = Rows::default();
            for &(slot, input, place) in rows {
                batch.push(Row { slot, inputs: &[input], place, seen: &[place..place + 1], ..Row::default() });
            }
            let mut out = vec![0.0; 4 * rows.len()];
            decoder.run(step, &batch, &mut out).unwrap();
            (0..SLOTS).for_each(|slot| decoder.clear(Slot(slot)).unwrap());
            out
        };
        let out = run(&[(0, 6, 0), (1, 0, 0)]);
        assert!(out[..4].iter().all(|number| number.is_nan()), "{}", backend.name());
        assert!(out[4..].iter().all(|number| number.is_finite()), "{}", backend.name());
        // The place beside the poisoned one: what it does not see must not reach it once the slot was cleared.
        assert!(run(&[(0, 0, 1)]).iter().all(|number| number.is_finite()), "{}", backend.name());
    }
}

#[test]
fn state_that_no_machine_has_room_for_is_refused() {
    assert!(check_memory(1 << 40, 1 << 20).unwrap_err().to_string().contains("are free"));
    assert!(check_memory(u64::MAX, 2).is_err());
    assert_eq!(check_memory(8, 1), Ok(()));
}
