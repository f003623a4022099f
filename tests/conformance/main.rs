//! What every family must keep, whatever its architecture: this walks the registry, so a family is tested by being listed.

// Helpers of tests may panic as tests do.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod enlarge;
mod field;
mod golden;
mod package;
mod shards;
mod stages;
mod traced;

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;

use package::{Init, Package, Variant, image_transformer, modules, package, packages};
use pixeld::head::{Head, Tuning};
use pixeld::image::{Canvas, Rank, Shape};
use pixeld::model::{Condition, FAMILIES, ParamRows, PixelModel, ScoreRow, Slot, StepRow};
use pixeld::noise;
use pixeld::spec::Precision;

/// Rows of parameters, one for each step.
type Rows = Vec<Vec<f32>>;

/// Nats of one value by which f32 results may differ where other numbers of rows are multiplied by other code.
const ROUNDING: f64 = 1e-5;

/// No class and two classes where the model takes them, each with a low-resolution image of its own where it takes one.
fn conditions(model: &dyn PixelModel) -> [Condition; 3] {
    [(None, 90), (Some(0), 91), (Some(1), 92)].map(|(class, seed)| {
        let value = |shape: Shape, place| (noise::uniform(seed, 0, place) * f64::from(shape.levels())) as u16;
        let low =
            model.spec().condition.low.map(|shape| (0..shape.values()).map(|place| value(shape, place)).collect());
        Condition { class: class.filter(|&class| class < model.spec().condition.classes), low }
    })
}

fn params(model: &dyn PixelModel) -> ParamRows {
    ParamRows::new(model.spec().head.width(model.spec().shape))
}

fn rows(out: &ParamRows) -> Rows {
    (0..out.len()).map(|index| out.row(index).to_vec()).collect()
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|number| number.to_bits()).collect()
}

/// An image of which nothing but chance is known.
fn any_image(model: &dyn PixelModel, seed: u64) -> Canvas {
    let shape = model.spec().shape;
    let value = |rank| (noise::uniform(seed, 0, rank) * f64::from(shape.levels())) as u16;
    Canvas::with_prefix(shape, (0..shape.values()).map(value).collect()).unwrap()
}

fn prefix(image: &Canvas, known: Rank) -> Canvas {
    Canvas::with_prefix(image.shape(), image.values()[..known as usize].to_vec()).unwrap()
}

/// The parameters of every step of every image, scored together in slices of about `rows_wanted`.
fn score(model: &mut dyn PixelModel, images: &[(Canvas, Condition)], rows_wanted: u32) -> Vec<Rows> {
    let batch: Vec<_> = images.iter().map(|(canvas, condition)| ScoreRow { canvas, condition }).collect();
    let mut out = params(model);
    let mut scored = vec![Rows::new(); images.len()];
    let mut from = 0;
    while from < model.spec().shape.values() {
        let reached = model.score(&batch, from, rows_wanted, &mut out).unwrap();
        assert!(reached > from);
        let (slice, steps) = (rows(&out), ((reached - from) / model.spec().values_per_step()) as usize);
        assert_eq!(slice.len(), images.len() * steps);
        for (image, rows) in scored.iter_mut().zip(slice.chunks(steps)) {
            image.extend_from_slice(rows);
        }
        from = reached;
    }
    scored
}

/// The parameters of ranks `ranks` of `image`, stepped through in `slot`, which stands at the first of them.
fn step(model: &mut dyn PixelModel, slot: Slot, image: &Canvas, ranks: Range<Rank>) -> Rows {
    let mut out = params(model);
    ranks
        .step_by(model.spec().values_per_step() as usize)
        .map(|rank| {
            model.step(&[StepRow { slot, canvas: &prefix(image, rank) }], &mut out).unwrap();
            assert_eq!(out.len(), 1);
            out.row(0).to_vec()
        })
        .collect()
}

fn log_prob(model: &dyn PixelModel, row: &[f32], image: &Canvas, rank: usize) -> f64 {
    model.spec().head.log_prob(row, image, rank as Rank).unwrap()
}

/// The largest difference between the two, in nats.
fn assert_close(
    label: &str,
    model: &dyn PixelModel,
    image: &Canvas,
    first: Rank,
    a: &Rows,
    b: &[Vec<f32>],
    within: f64,
) -> f64 {
    assert_eq!(a.len(), b.len(), "{label}");
    let per_step = model.spec().values_per_step() as usize;
    let mut largest = 0.0_f64;
    for rank in 0..a.len() * per_step {
        let [a, b] =
            [&a[rank / per_step], &b[rank / per_step]].map(|row| log_prob(model, row, image, first as usize + rank));
        assert!((a - b).abs() <= within, "{label}: rank {first} + {rank}: {a} against {b}");
        largest = largest.max((a - b).abs());
    }
    largest
}

/// Notes what was found of a law for the table of `scripts/conformance.py`, where that asks for it: the largest difference, or how
/// many comparisons held.
#[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
fn record(family: &str, law: &str, found: f64) {
    if let Some(path) = std::env::var_os("PIXELD_CONFORMANCE") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(format!("{family}\t{law}\t{found:e}\n").as_bytes()).unwrap();
    }
}

/// Images of three channels whose length no block of the packages divides, and what modules of somebody else's have.
fn small() -> Vec<Package> {
    let mut small = packages([4, 3, 3, 5], Init::Random(1));
    small.extend(modules());
    small
}

#[test]
fn a_step_gives_what_the_teacher_forced_pass_gives_after_any_prefix() {
    for package in small() {
        let mut model = package.load(3, 1);
        let values = model.spec().shape.values();
        let per_step = model.spec().values_per_step();
        for (condition, seed) in conditions(&*model).into_iter().zip(10..) {
            let image = any_image(&*model, seed);
            let scored = score(&mut *model, &[(image.clone(), condition.clone())], u32::MAX).remove(0);
            // Blocks in a row, of two rows, and rows of blocks.
            let blocks =
                [3, 8, 6, 18].into_iter().flat_map(|block| [block - 1, block, block + 1, 2 * block, 2 * block + 1]);
            for known in blocks.chain([0, 1, values - 1, values]) {
                let known = known.min(values) / per_step * per_step;
                let slot = Slot(known % 3);
                let mut out = params(&*model);
                model.open(slot, &condition).unwrap();
                model.absorb(slot, &image, 0..known, &mut out).unwrap();
                let absorbed = rows(&out);
                let taken_in = assert_close(
                    &package.label,
                    &*model,
                    &image,
                    0,
                    &absorbed,
                    &scored[..(known / per_step) as usize],
                    1e-4,
                );
                let stepped = step(&mut *model, slot, &image, known..values);
                let sampled = assert_close(
                    &package.label,
                    &*model,
                    &image,
                    known,
                    &stepped,
                    &scored[(known / per_step) as usize..],
                    1e-4,
                );
                record(model.spec().family, "step", taken_in.max(sampled));
                model.close(slot);
            }
        }
    }
}

#[test]
fn a_prefix_may_be_taken_in_by_pieces_of_any_length() {
    for package in small() {
        let mut model = package.load(1, 1);
        let image = any_image(&*model, 20);
        let condition = conditions(&*model)[1].clone();
        let per_step = model.spec().values_per_step();
        let scored = score(&mut *model, &[(image.clone(), condition.clone())], u32::MAX).remove(0);
        let values = model.spec().shape.values();
        let last = 30.min(values - per_step) / per_step * per_step;
        for piece in [1, 2, 5, 30].map(|steps| steps * per_step) {
            model.open(Slot(0), &condition).unwrap();
            let (mut out, mut known) = (params(&*model), 0);
            while known < last {
                let upto = (known + piece).min(last);
                model.absorb(Slot(0), &prefix(&image, upto), known..upto, &mut out).unwrap();
                let expected = &scored[(known / per_step) as usize..(upto / per_step) as usize];
                assert_close(&package.label, &*model, &image, known, &rows(&out), expected, 1e-4);
                known = upto;
            }
            let stepped = step(&mut *model, Slot(0), &image, last..values);
            assert_close(&package.label, &*model, &image, last, &stepped, &scored[(last / per_step) as usize..], 1e-4);
        }
    }
}

#[test]
fn a_prefix_replayed_by_steps_leaves_the_bits_that_sampling_it_left() {
    for package in small() {
        let mut model = package.load(6, 1);
        let spec = model.spec().clone();
        let (mut canvas, mut sampled, mut out) = (Canvas::empty(spec.shape), Rows::new(), params(&*model));
        let condition = conditions(&*model)[2].clone();
        model.open(Slot(0), &condition).unwrap();
        while !canvas.is_complete() {
            model.step(&[StepRow { slot: Slot(0), canvas: &canvas }], &mut out).unwrap();
            for _ in 0..spec.values_per_step() {
                let u = noise::uniform(4, 0, canvas.known());
                let drawn = spec.head.draw(out.row(0), &canvas, &Tuning::default(), u).unwrap();
                canvas.push(drawn.value);
            }
            sampled.push(out.row(0).to_vec());
        }
        model.open(Slot(5), &condition).unwrap();
        let replayed = step(&mut *model, Slot(5), &canvas, 0..spec.shape.values());
        for (sampled, replayed) in sampled.iter().zip(&replayed) {
            assert_eq!(bits(sampled), bits(replayed), "{}", package.label);
        }
    }
}

/// What the engine does where there was no memory for a step, which may have been found out at its very end.
#[test]
fn a_step_that_is_made_again_in_halves_gives_the_same_bits() {
    for package in small() {
        let mut model = package.load(5, 1);
        // A module of somebody else's remembers a step only once all of it went well, so one that failed has left nothing.
        if model.spec().execution.carries_state || model.spec().family == "torchscript" {
            continue;
        }
        let images: Vec<_> = (50..55).map(|seed| any_image(&*model, seed)).collect();
        let condition = conditions(&*model)[1].clone();
        let (values, per_step) = (model.spec().shape.values(), model.spec().values_per_step());
        let mut out = params(&*model);
        let mut run = |again: bool| -> Rows {
            (0..5).for_each(|slot| model.open(Slot(slot), &condition).unwrap());
            let mut all = Rows::new();
            for rank in (0..values).step_by(per_step as usize) {
                let known: Vec<_> = images.iter().map(|image| prefix(image, rank)).collect();
                let batch: Vec<_> =
                    (0..).map(Slot).zip(&known).map(|(slot, canvas)| StepRow { slot, canvas }).collect();
                if again {
                    model.step(&batch, &mut out).unwrap();
                }
                for part in batch.chunks(if again { 2 } else { 5 }) {
                    model.step(part, &mut out).unwrap();
                    all.extend(rows(&out));
                }
            }
            all
        };
        let (once, again) = (run(false), run(true));
        assert_eq!(once.len(), again.len());
        for (once, again) in once.iter().zip(&again) {
            assert_eq!(bits(once), bits(again), "{}", package.label);
        }
    }
}

#[test]
fn a_prefix_taken_in_leaves_the_bits_that_sampling_it_left_where_that_is_promised() {
    let mut promised = 0;
    for package in small() {
        let mut model = package.load(2, 1);
        if !model.spec().execution.absorbs_exactly {
            continue;
        }
        promised += 1;
        let (image, values) = (any_image(&*model, 21), model.spec().shape.values());
        let (condition, per_step) = (conditions(&*model)[1].clone(), model.spec().values_per_step());
        model.open(Slot(0), &condition).unwrap();
        let stepped = step(&mut *model, Slot(0), &image, 0..values);
        for known in [1, 3, 8, 17, 20, values - 1].map(|known| known / per_step * per_step) {
            let mut out = params(&*model);
            model.open(Slot(1), &condition).unwrap();
            model.absorb(Slot(1), &image, 0..known, &mut out).unwrap();
            let mut continued = rows(&out);
            continued.extend(step(&mut *model, Slot(1), &image, known..values));
            for (stepped, continued) in stepped.iter().zip(&continued) {
                assert_eq!(bits(stepped), bits(continued), "{}: {known} known", package.label);
            }
        }
    }
    assert!(promised > 0);
}

/// Rounded weights are the same on both sides; a remembered number may round to either of two where f32 results differ.
#[test]
fn a_model_rounded_to_bfloat16_scores_what_it_samples_and_is_another_law() {
    for mut package in packages([4, 3, 3, 5], Init::Random(1)) {
        let mut exact = package.load(1, 1);
        package.precision = Precision::Bf16;
        let mut model = package.load(1, 1);
        if ["toy", "torchscript"].contains(&model.spec().family) {
            assert_eq!(model.spec().execution.precision, Precision::F32, "{} cannot be rounded", package.label);
            continue;
        }
        let image = any_image(&*model, 22);
        let condition = conditions(&*model)[1].clone();
        let scored = score(&mut *model, &[(image.clone(), condition.clone())], u32::MAX).remove(0);
        model.open(Slot(0), &condition).unwrap();
        let values = model.spec().shape.values();
        let stepped = step(&mut *model, Slot(0), &image, 0..values);
        assert_close(&package.label, &*model, &image, 0, &stepped, &scored, 5e-3);
        let unrounded = score(&mut *exact, &[(image, condition)], u32::MAX).remove(0);
        assert!(scored.iter().zip(&unrounded).any(|(a, b)| bits(a) != bits(b)), "{}", package.label);
    }
}

/// All images where they are few, otherwise all that differ in the last values alone.
#[test]
fn the_probabilities_of_all_images_sum_to_one() {
    for size in [[2, 2, 1, 2], [1, 2, 3, 2], [2, 1, 2, 3]] {
        for package in packages(size, Init::Random(2)) {
            let mut model = package.load(1, 16);
            let shape = model.spec().shape;
            let free = (1..=shape.values()).take_while(|&values| shape.levels().pow(values) <= 81).last().unwrap();
            let known = shape.values() - free;
            let start = prefix(&any_image(&*model, 23), known);
            let image = |index: u32| {
                let digit = |place| (index / shape.levels().pow(place) % shape.levels()) as u16;
                let values = start.values().iter().copied().chain((0..free).map(digit));
                Canvas::with_prefix(shape, values.collect()).unwrap()
            };
            let per_step = model.spec().values_per_step() as usize;
            for condition in conditions(&*model) {
                let images = (0..shape.levels().pow(free)).map(image);
                let all: Vec<_> = images.map(|image| (image, condition.clone())).collect();
                let mut total = 0.0;
                for some in all.chunks(16) {
                    for (rows, (image, _)) in score(&mut *model, some, u32::MAX).iter().zip(some) {
                        let value = |rank: usize| log_prob(&*model, &rows[rank / per_step], image, rank);
                        total += (known as usize..rows.len() * per_step).map(value).sum::<f64>().exp();
                    }
                }
                assert!((total - 1.0).abs() < 1e-5, "{}: {condition:?}: {total}", package.label);
                record(model.spec().family, "sum", (total - 1.0).abs());
            }
        }
    }
}

/// `image` with another value at `rank`.
fn perturbed(image: &Canvas, rank: usize) -> Canvas {
    let mut values = image.values().to_vec();
    values[rank] = (values[rank] + 1) % image.shape().levels() as u16;
    Canvas::with_prefix(image.shape(), values).unwrap()
}

#[test]
fn no_value_changes_a_bit_at_its_own_rank_or_before() {
    for package in small() {
        let mut model = package.load(1, 1);
        let image = any_image(&*model, 30);
        let condition = conditions(&*model)[0].clone();
        let per_step = model.spec().values_per_step() as usize;
        let before = score(&mut *model, &[(image.clone(), condition.clone())], u32::MAX).remove(0);
        for changed in 0..before.len() * per_step {
            let changed_image = (perturbed(&image, changed), condition.clone());
            let after = score(&mut *model, &[changed_image], u32::MAX).remove(0);
            for step in 0..=changed / per_step {
                assert_eq!(bits(&before[step]), bits(&after[step]), "{}: {changed} -> {step}", package.label);
            }
            record(model.spec().family, "causal", 1.0 + (changed / per_step) as f64);
        }
    }
}

#[test]
fn in_one_block_every_value_changes_every_later_rank() {
    let family = FAMILIES.iter().find(|family| family.name == "image_transformer").unwrap();
    for norm in ["post", "pre"] {
        let variant = Variant::plain(image_transformer(18, "learned", norm));
        let package = package(family, [3, 2, 3, 4], &variant, Init::Random(3));
        let mut model = package.load(1, 1);
        let image = any_image(&*model, 31);
        let before = score(&mut *model, &[(image.clone(), Condition::default())], u32::MAX).remove(0);
        for changed in 0..before.len() {
            let changed_image = (perturbed(&image, changed), Condition::default());
            let after = score(&mut *model, &[changed_image], u32::MAX).remove(0);
            for rank in changed + 1..before.len() {
                assert_ne!(bits(&before[rank]), bits(&after[rank]), "{}: {changed} -> {rank}", package.label);
            }
        }
    }
}

#[test]
fn every_value_of_the_low_resolution_image_changes_the_steps_that_see_it() {
    let mut tried = 0;
    for package in small() {
        let mut model = package.load(1, 1);
        let (image, condition) = (any_image(&*model, 32), conditions(&*model)[1].clone());
        let Some(low) = condition.low.clone() else { continue };
        tried += 1;
        let before = score(&mut *model, &[(image.clone(), condition.clone())], u32::MAX).remove(0);
        for changed in 0..low.len() {
            let mut low = low.to_vec();
            low[changed] = (low[changed] + 1) % model.spec().shape.levels() as u16;
            let condition = Condition { low: Some(low.into()), ..condition.clone() };
            let after = score(&mut *model, &[(image.clone(), condition)], u32::MAX).remove(0);
            let differ = before.iter().zip(&after).filter(|(before, after)| bits(before) != bits(after)).count();
            // An encoder shows all of it to every step, maps show what is near.
            let least = if model.spec().family == "image_transformer" { before.len() } else { 1 };
            assert!(differ >= least, "{}: value {changed} changes {differ} steps", package.label);
        }
    }
    assert!(tried > 0);
}

#[test]
fn a_model_that_knows_nothing_takes_exactly_the_log_of_its_levels() {
    for levels in [2, 5, 256, 1000] {
        for package in packages([2, 2, 3, levels], Init::Zero) {
            let mut model = package.load(1, 1);
            if matches!(model.spec().head, Head::LogisticMixture { .. }) {
                continue;
            }
            let image = any_image(&*model, 40);
            let condition = conditions(&*model)[1].clone();
            let each = model.spec().values_per_step() as usize;
            let scored = score(&mut *model, &[(image.clone(), condition)], 5).remove(0);
            for rank in 0..scored.len() * each {
                let row = &scored[rank / each];
                assert_eq!(log_prob(&*model, row, &image, rank), -f64::from(levels).ln(), "{}", package.label);
            }
        }
    }
}

/// Images join and leave at random in a model of nine slots; each must have the bits it has alone in slot 0.
#[test]
fn an_image_has_the_same_bits_alone_in_any_slot_and_in_any_crowd() {
    for package in small() {
        let mut model = package.load(9, 1);
        let values = model.spec().shape.values();
        let (conditions, per_step) = (conditions(&*model), model.spec().values_per_step());
        let images: Vec<(Canvas, Condition)> =
            (0..24).map(|index| (any_image(&*model, 50 + index), conditions[index as usize % 3].clone())).collect();
        let alone: Vec<Rows> = images
            .iter()
            .map(|(image, condition)| {
                model.open(Slot(0), condition).unwrap();
                step(&mut *model, Slot(0), image, 0..values)
            })
            .collect();

        let mut draws = 0;
        let mut chance = |below: f64| {
            draws += 1;
            noise::uniform(60, 0, draws) < below
        };
        let mut waiting: VecDeque<usize> = (0..images.len()).collect();
        let mut slots: [Option<(usize, Canvas)>; 9] = Default::default();
        let mut out = params(&*model);
        let mut largest = 0;
        while !waiting.is_empty() || slots.iter().any(Option::is_some) {
            for (index, place) in slots.iter_mut().enumerate() {
                let slot = Slot(index as u32);
                if place.is_none() && chance(0.1) {
                    // Somebody else's prefix passes through.
                    model.open(slot, &conditions[0]).unwrap();
                    model.absorb(slot, &images[index].0, 0..index as u32 * per_step, &mut out).unwrap();
                    model.close(slot);
                } else if place.is_none()
                    && chance(0.3)
                    && let Some(image) = waiting.pop_front()
                {
                    model.open(slot, &images[image].1).unwrap();
                    *place = Some((image, Canvas::empty(images[image].0.shape())));
                }
            }
            let mut batch: Vec<(Slot, usize, Canvas)> = Vec::new();
            for (index, place) in slots.iter().enumerate() {
                if let Some((image, canvas)) = place
                    && chance(0.8)
                {
                    batch.push((Slot(index as u32), *image, canvas.clone()));
                }
            }
            if chance(0.5) {
                batch.reverse();
            }
            largest = largest.max(batch.len());
            let rows: Vec<_> = batch.iter().map(|(slot, _, canvas)| StepRow { slot: *slot, canvas }).collect();
            model.step(&rows, &mut out).unwrap();
            for (index, (slot, image, canvas)) in batch.iter().enumerate() {
                let rank = canvas.known() as usize;
                let label = format!("{}: image {image} in {slot:?} at rank {rank}", package.label);
                assert_eq!(bits(out.row(index)), bits(&alone[*image][rank / per_step as usize]), "{label}");
                let place = &mut slots[slot.0 as usize];
                if let Some((_, canvas)) = place {
                    images[*image].0.values()[rank..][..per_step as usize]
                        .iter()
                        .for_each(|&value| _ = canvas.push(value));
                    if canvas.is_complete() {
                        model.close(*slot);
                        *place = None;
                    }
                }
            }
        }
        assert_eq!(largest, 9, "{}: never full", package.label);
        record(model.spec().family, "crowd", f64::from(values / per_step) * images.len() as f64);
    }
}

#[test]
fn slices_and_company_do_not_change_a_score() {
    for package in small() {
        let mut model = package.load(1, 3);
        let images: Vec<_> = (70..73).map(|seed| any_image(&*model, seed)).zip(conditions(&*model)).collect();
        let together = score(&mut *model, &images, u32::MAX);
        for rows_wanted in [0, 1, 2, 7, 12, 64] {
            for (index, image) in images.iter().enumerate() {
                let among = &score(&mut *model, &images, rows_wanted)[index];
                assert_close(&package.label, &*model, &image.0, 0, among, &together[index], ROUNDING);
                let alone = &score(&mut *model, std::slice::from_ref(image), rows_wanted)[0];
                assert_close(&package.label, &*model, &image.0, 0, alone, &together[index], ROUNDING);
            }
        }
    }
}

#[test]
fn scoring_leaves_the_slots_alone_and_a_broken_pass_starts_again() {
    for package in small() {
        let mut model = package.load(2, 2);
        let image = any_image(&*model, 80);
        let conditions = conditions(&*model);
        model.open(Slot(1), &conditions[1]).unwrap();
        let values = model.spec().shape.values();
        let undisturbed = step(&mut *model, Slot(1), &image, 0..values);
        model.open(Slot(1), &conditions[1]).unwrap();
        let mut disturbed = step(&mut *model, Slot(1), &image, 0..12);
        let other = any_image(&*model, 81);
        let whole = score(&mut *model, &[(other.clone(), conditions[2].clone())], 4);
        // A pass that is given up half way leaves nothing to the next.
        let batch = [ScoreRow { canvas: &image, condition: &conditions[0] }];
        model.score(&batch, 0, 4, &mut params(&*model)).unwrap();
        assert_eq!(whole, score(&mut *model, &[(other, conditions[2].clone())], 4), "{}", package.label);
        disturbed.extend(step(&mut *model, Slot(1), &image, 12..values));
        assert_eq!(undisturbed, disturbed, "{}", package.label);
    }
}
