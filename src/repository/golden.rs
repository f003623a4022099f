//! The known answers of a package, asked of the model that was just built.

use crate::error::Violations;
use crate::head::Tuning;
use crate::image::{Canvas, codec};
use crate::model::manifest::{Golden, GoldenSample, GoldenScore};
use crate::model::{Condition, ModelError, ParamRows, PixelModel, ScoreRow, Slot, StepRow};
use crate::noise;

/// How far a likelihood may be from the known one, in nats per image.
const TOLERANCE: f64 = 1e-3;

/// Checks every known answer.
///
/// # Errors
/// Every answer that differs, and the failure of the model if there is one.
pub(super) fn check(model: &mut dyn PixelModel, golden: &Golden) -> Result<(), Violations> {
    let mut violations = Violations::new();
    for (index, known) in golden.scores.iter().enumerate() {
        match score(model, known) {
            Ok(nats) if (nats - known.nats).abs() <= TOLERANCE => {}
            Ok(nats) => violations
                .add(format!("golden.score[{index}].nats"), format!("says {}, the model gives {nats}", known.nats)),
            Err(why) => violations.add(format!("golden.score[{index}]"), why),
        }
    }
    for (index, known) in golden.samples.iter().enumerate() {
        match sample(model, known) {
            Ok(crc32c) if crc32c == known.crc32c => {}
            Ok(crc32c) => violations.add(
                format!("golden.sample[{index}].crc32c"),
                format!("says {}, the model samples {crc32c}", known.crc32c),
            ),
            Err(why) => violations.add(format!("golden.sample[{index}]"), why),
        }
    }
    violations.into_result(())
}

/// Negative log-likelihood of the image in nats.
fn score(model: &mut dyn PixelModel, known: &GoldenScore) -> Result<f64, String> {
    let spec = model.spec().clone();
    let canvas = Canvas::from_raster(spec.shape, spec.order, &known.values).ok_or("the values do not fit the shape")?;
    let condition = Condition { class: known.class, low: known.low.clone() };
    let row = ScoreRow { canvas: &canvas, condition: &condition };
    let mut out = ParamRows::new(spec.head.width(spec.shape));
    let (mut nats, mut from) = (0.0, 0);
    while from < spec.shape.values() {
        let reached = model.score(&[row], from, u32::MAX, &mut out).map_err(|error| error.to_string())?;
        if reached <= from {
            return Err(format!("scoring stands still at rank {from}"));
        }
        let per_step = spec.values_per_step().max(1);
        for rank in from..reached.min(spec.shape.values()) {
            let row = out.row(((rank - from) / per_step) as usize);
            nats -= spec.head.log_prob(row, &canvas, rank).map_err(|error| error.to_string())?;
        }
        from = reached;
    }
    Ok(nats)
}

/// CRC-32C of the image sampled in slot 0.
fn sample(model: &mut dyn PixelModel, known: &GoldenSample) -> Result<u32, String> {
    let describe = |error: ModelError| error.to_string();
    let spec = model.spec().clone();
    let slot = Slot(0);
    let mut canvas = Canvas::empty(spec.shape);
    let mut out = ParamRows::new(spec.head.width(spec.shape));
    model.open(slot, &Condition { class: known.class, low: known.low.clone() }).map_err(describe)?;
    while !canvas.is_complete() {
        model.step(&[StepRow { slot, canvas: &canvas }], &mut out).map_err(describe)?;
        for _ in 0..spec.values_per_step() {
            let u = noise::uniform(known.seed, known.image, canvas.known());
            let drawn = spec.head.draw(out.row(0), &canvas, &Tuning::default(), u);
            canvas.push(drawn.map_err(|error| error.to_string())?.value);
        }
    }
    model.close(slot);
    Ok(crc32c::crc32c(&codec::values_to_raw(&canvas.to_raster(spec.order), spec.shape)))
}
