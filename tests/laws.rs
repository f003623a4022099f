//! The noise and drawing laws against answers that the Python reference computed.

#![allow(clippy::expect_used, reason = "known answers that cannot be read fail the test")]

use pixeld::head::{Head, Tuning};
use pixeld::image::{Canvas, Shape};
use pixeld::noise;
use serde::Deserialize;

#[derive(Deserialize)]
struct Noise {
    seed: u64,
    image: u32,
    rank: u32,
    u: String,
}

#[derive(Deserialize)]
struct Draw {
    logits: Vec<f32>,
    u: f64,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    value: u16,
    log_prob: f64,
}

#[derive(Deserialize)]
struct Mixture {
    channels: u32,
    levels: u32,
    components: u32,
    parameters: Vec<f32>,
    values: Vec<Vec<u16>>,
    log_probs: Vec<Vec<f64>>,
    draws: Vec<ChannelDraw>,
}

#[derive(Deserialize)]
struct ChannelDraw {
    earlier: Vec<u16>,
    u: f64,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    value: u16,
    log_prob: f64,
}

fn answers<T: for<'de> Deserialize<'de>>(text: &str) -> Vec<T> {
    let answers: Vec<T> = serde_json::from_str(text).expect("known answers");
    assert!(answers.len() >= 8);
    answers
}

#[test]
fn uniforms_are_those_of_the_reference_to_the_bit() {
    for Noise { seed, image, rank, u } in answers(include_str!("golden/noise.json")) {
        let expected: f64 = u.parse().expect("a decimal");
        assert_eq!(noise::uniform(seed, image, rank), expected, "seed {seed}, image {image}, rank {rank}");
    }
}

#[test]
fn draws_are_those_of_the_reference_under_every_tuning() {
    for Draw { logits, u, temperature, top_k, top_p, value, log_prob } in answers(include_str!("golden/draw.json")) {
        let tuning = Tuning::new(temperature, top_k, top_p).expect("valid controls");
        let canvas = Canvas::empty(Shape::new(1, 1, 1, logits.len() as u32).expect("levels"));
        let drawn = Head::Categorical.draw(&logits, &canvas, &tuning, u).expect("finite logits");
        assert_eq!(drawn.value, value, "{logits:?} at {u} under {tuning:?}");
        assert!((drawn.log_prob - log_prob).abs() < 1e-6, "{} against {log_prob}", drawn.log_prob);
    }
}

#[test]
fn mixtures_of_logistics_are_those_of_the_reference_channel_by_channel() {
    for case in answers::<Mixture>(include_str!("golden/mixture.json")) {
        let Mixture { channels, levels, components, parameters, .. } = &case;
        let shape = Shape::new(1, 1, *channels, *levels).expect("a shape");
        let head = Head::LogisticMixture { components: *components };
        assert_eq!((head.width(shape), head.values_per_step(shape)), (parameters.len(), *channels));
        for (values, expected) in case.values.iter().zip(&case.log_probs) {
            let canvas = Canvas::with_prefix(shape, values.clone()).expect("values that fit");
            for (rank, expected) in (0..).zip(expected) {
                let found = head.log_prob(parameters, &canvas, rank).expect("finite parameters");
                let close = (found - expected).abs() < 1e-9 * expected.abs().max(1.0);
                assert!(close, "{shape:?} rank {rank} of {values:?}: {found} against {expected}");
            }
        }
        for ChannelDraw { earlier, u, temperature, top_k, top_p, value, log_prob } in case.draws {
            let tuning = Tuning::new(temperature, top_k, top_p).expect("valid controls");
            let canvas = Canvas::with_prefix(shape, earlier).expect("values that fit");
            let drawn = head.draw(&case.parameters, &canvas, &tuning, u).expect("finite parameters");
            assert_eq!(drawn.value, value, "{shape:?} after {:?} at {u} under {tuning:?}", canvas.values());
            assert!((drawn.log_prob - log_prob).abs() < 1e-9, "{} against {log_prob}", drawn.log_prob);
        }
    }
}
