//! Tests of the mixture of logistics: against the formulas written out naively, and where those would break down.

use super::*;
use crate::noise;

const K: u32 = 3;

fn shape(channels: u32, levels: u32) -> Shape {
    Shape::new(1, 1, channels, levels).unwrap()
}

/// Numbers from -`spread` to `spread`.
fn row(channels: u32, spread: f64, seed: u64) -> Vec<f32> {
    (0..width(K, channels) as u32).map(|i| ((noise::uniform(seed, 0, i) - 0.5) * 2.0 * spread) as f32).collect()
}

fn pixel(shape: Shape, seed: u64) -> Vec<u16> {
    (0..shape.channels()).map(|c| (noise::uniform(seed, 1, c) * f64::from(shape.levels())) as u16).collect()
}

/// The joint probability of a pixel, summed over components as it stands in the paper.
fn naive(row: &[f32], shape: Shape, pixel: &[u16]) -> f64 {
    let k = K as usize;
    let (channels, steps) = (shape.channels() as usize, f64::from(shape.levels() - 1));
    let at = |kind_and_channel: usize, component: usize| f64::from(row[kind_and_channel * k + component]);
    let sigma = |z: f64| 1.0 / (1.0 + (-z).exp());
    let total: f64 = (0..k).map(|j| at(0, j).exp()).sum();
    let mut sum = 0.0;
    for j in 0..k {
        let mut product = at(0, j).exp() / total;
        let mut coefficient = 1 + 2 * channels;
        for c in 0..channels {
            let mut mean = at(1 + c, j);
            for &before in &pixel[..c] {
                mean += at(coefficient, j).tanh() * (2.0 * f64::from(before) / steps - 1.0);
                coefficient += 1;
            }
            let scale = at(1 + channels + c, j).max(-7.0).exp();
            let y = 2.0 * f64::from(pixel[c]) / steps - 1.0;
            let upper = if f64::from(pixel[c]) == steps { 1.0 } else { sigma((y + 1.0 / steps - mean) / scale) };
            let lower = if pixel[c] == 0 { 0.0 } else { sigma((y - 1.0 / steps - mean) / scale) };
            product *= upper - lower;
        }
        sum += product;
    }
    sum
}

#[test]
fn the_conditionals_of_a_pixel_multiply_to_its_joint_probability() {
    for (channels, levels) in [(1, 2), (1, 256), (2, 5), (3, 17), (3, 256), (4, 9)] {
        let shape = shape(channels, levels);
        for seed in 0..20 {
            let (row, pixel) = (row(channels, 1.5, seed), pixel(shape, seed));
            let conditional = |c: usize| log_prob(&row, K, shape, &pixel[..c], pixel[c]).unwrap();
            let total: f64 = (0..pixel.len()).map(conditional).sum();
            let joint = naive(&row, shape, &pixel).ln();
            assert!((total - joint).abs() < 1e-9, "{shape:?}: {total} against {joint}");
        }
    }
}

/// Scales far below the floor, scales that leave every level the same mass, means far outside.
#[test]
fn the_levels_of_every_channel_sum_to_one_however_wild_the_parameters() {
    for (channels, levels) in [(1, 2), (1, 65_536), (2, 3), (3, 256), (4, 16)] {
        let shape = shape(channels, levels);
        for (seed, spread) in (0..).zip([0.0, 1.0, 8.0, 30.0, 1e3, 1e6, 1e30, f64::from(f32::MAX) * 0.999]) {
            let (row, pixel) = (row(channels, spread, seed), pixel(shape, seed));
            for channel in 0..channels as usize {
                let one = |value: u32| log_prob(&row, K, shape, &pixel[..channel], value as u16).unwrap();
                assert!((0..levels).all(|value| one(value).is_finite()), "{shape:?} {spread}");
                let total: f64 = (0..levels).map(|value| one(value).exp()).sum();
                assert!((total - 1.0).abs() < 1e-9, "{shape:?}, channel {channel}, up to {spread}: {total}");
            }
        }
    }
}

#[test]
fn the_lowest_and_the_highest_level_own_everything_beyond() {
    let sigma = |z: f64| 1.0 / (1.0 + (-z).exp());
    let close = |row: &[f32], levels: u32, expected: &[f64]| {
        for (value, expected) in (0..).zip(expected) {
            let found = log_prob(row, 1, shape(1, levels), &[], value).unwrap().exp();
            assert!((found - expected).abs() < 1e-14, "level {value} of {levels}: {found} against {expected}");
        }
    };
    close(&[0.3, 0.0, 0.0], 2, &[0.5, 0.5]);
    close(&[0.3, 0.0, 0.0], 3, &[sigma(-0.5), sigma(0.5) - sigma(-0.5), sigma(-0.5)]);
    close(&[0.3, 1e9, 0.0], 3, &[0.0, 0.0, 1.0]);
    close(&[0.3, -1e9, 0.0], 3, &[1.0, 0.0, 0.0]);
}

#[test]
fn a_log_scale_below_the_floor_counts_as_the_floor() {
    let at = |log_scale: f32| log_prob(&[0.0, 0.1, log_scale], 1, shape(1, 256), &[], 140).unwrap();
    assert_eq!(at(-7.0), at(-7.001));
    assert_eq!(at(-7.0), at(-1e30));
    assert_ne!(at(-7.0), at(-6.999));
}

/// With prior weights instead of posterior ones the green channel would be a mixture of both components.
#[test]
fn a_channel_weighs_the_components_by_what_the_channels_before_it_say() {
    // Components at opposite ends, alike in both channels; no coupling.
    let row = [0.0, 0.0, -0.8, 0.8, -0.8, 0.8, -3.0, -3.0, -3.0, -3.0, 0.0, 0.0];
    let shape = shape(2, 11);
    let low = |red: u16| log_prob(&row, 2, shape, &[red], 1).unwrap().exp();
    assert!(low(1) > 0.5 && low(9) < 1e-6, "{} {}", low(1), low(9));
}

#[test]
fn the_searched_draw_is_the_draw_from_the_table() {
    for (channels, levels) in [(1, 2), (3, 17), (2, 300)] {
        let shape = shape(channels, levels);
        for seed in 0..200 {
            let (row, pixel) = (row(channels, 4.0, seed), pixel(shape, seed));
            let earlier = &pixel[..channels as usize - 1];
            let u = noise::uniform(seed, 2, 0);
            let drawn = draw(&row, K, shape, earlier, &Tuning::default(), u).unwrap();
            assert_eq!(drawn.log_prob, log_prob(&row, K, shape, earlier, drawn.value).unwrap());
            let mut weights: Vec<f64> =
                (0..levels).map(|value| log_prob(&row, K, shape, earlier, value as u16).unwrap().exp()).collect();
            let below: f64 = weights.iter().take(usize::from(drawn.value)).sum();
            let border = (u - below).min(below + weights[usize::from(drawn.value)] - u);
            assert!(border > -1e-12, "{u} lies outside the drawn level by {border}");
            if border > 1e-12 {
                assert_eq!(table::draw(&mut weights, &Tuning::default(), u), usize::from(drawn.value));
            }
        }
    }
}

#[test]
fn tuning_narrows_the_choice_but_not_the_log_probability() {
    let shape = shape(3, 32);
    let (row, earlier) = (row(3, 2.0, 5), [3, 30]);
    let one = |value: u16| log_prob(&row, K, shape, &earlier, value).unwrap();
    let mut likeliest: Vec<u16> = (0..32).collect();
    likeliest.sort_by(|&a, &b| one(b).total_cmp(&one(a)));
    for step in 0..50 {
        let u = (f64::from(step) + 0.5) / 50.0;
        let with = |temperature, top_k, top_p| {
            let drawn = draw(&row, K, shape, &earlier, &Tuning::new(temperature, top_k, top_p).unwrap(), u).unwrap();
            assert_eq!(drawn.log_prob, one(drawn.value));
            drawn.value
        };
        assert_eq!(with(Some(0.0), None, None), likeliest[0]);
        assert_eq!(with(None, Some(1), None), likeliest[0]);
        assert_eq!(with(None, None, Some(1e-6)), likeliest[0]);
        assert!(likeliest[..3].contains(&with(None, Some(3), None)));
        // Nearly uniform: the level is where u is.
        assert!((f64::from(with(Some(100.0), None, None)) - u * 32.0).abs() < 4.0);
    }
}

#[test]
fn what_is_not_a_row_of_this_pixel_is_refused() {
    let shape = shape(2, 4);
    let row = row(2, 1.0, 1);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in 0..row.len() {
            let mut row = row.clone();
            row[place] = bad;
            assert_eq!(log_prob(&row, K, shape, &[], 0), Err(NotFinite), "{bad} at {place}");
            assert_eq!(draw(&row, K, shape, &[], &Tuning::default(), 0.5), Err(NotFinite));
        }
    }
    assert_eq!(log_prob(&row, K, shape, &[], 4), Err(NotFinite), "no such level");
    assert_eq!(log_prob(&row, K, shape, &[0, 0], 0), Err(NotFinite), "no such channel");
    assert_eq!(log_prob(&row[1..], K, shape, &[], 0), Err(NotFinite), "too short");
    assert_eq!(log_prob(&[], 0, shape, &[], 0), Err(NotFinite), "no components");
    let many = MAX_COMPONENTS + 1;
    assert_eq!(log_prob(&vec![0.0; width(many, 2)], many, shape, &[], 0), Err(NotFinite), "too many components");
}

#[test]
fn extreme_uniforms_stay_within_the_levels() {
    for log_scale in [-7.0, 0.0, 50.0] {
        let row = [0.0, 0.0, log_scale];
        for (u, least, most) in [(1e-300, 0, 127), (1.0 - f64::EPSILON / 2.0, 128, 255)] {
            let value = draw(&row, 1, shape(1, 256), &[], &Tuning::default(), u).unwrap().value;
            assert!((least..=most).contains(&value), "{value} at {u} with log-scale {log_scale}");
        }
    }
}
