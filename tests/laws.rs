//! The noise and drawing laws against answers that the Python reference computed.

#![allow(clippy::expect_used, reason = "known answers that cannot be read fail the test")]

use pixeld::head::{Head, Tuning};
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

fn answers<T: for<'de> Deserialize<'de>>(text: &str) -> Vec<T> {
    let answers: Vec<T> = serde_json::from_str(text).expect("known answers");
    assert!(answers.len() >= 10);
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
        let drawn = Head::Categorical.draw(&logits, &tuning, u).expect("finite logits");
        assert_eq!(drawn.value, value, "{logits:?} at {u} under {tuning:?}");
        assert!((drawn.log_prob - log_prob).abs() < 1e-6, "{} against {log_prob}", drawn.log_prob);
    }
}
