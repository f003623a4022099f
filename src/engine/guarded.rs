//! The model behind a guard: no panic of its gets out, and a fault that comes back at once is taken for the end.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::image::{Canvas, Rank};
use crate::model::{Condition, ModelError, ParamRows, PixelModel, ScoreRow, Slot, StepRow};

/// A model whose panics are [`ModelError::Step`] and whose second failed call in a row is [`ModelError::Fatal`].
///
/// Opening and absorbing do not clear the suspicion, only a step does: otherwise a model whose every step fails would
/// go on for ever, one admission at a time. Scoring is suspected apart, because a pass too large for the device must not
/// end a model that samples well; a step clears that as well.
pub(super) struct Guarded {
    model: Box<dyn PixelModel>,
    sampling_failed: bool,
    scoring_failed: bool,
}

impl Guarded {
    pub(super) fn new(model: Box<dyn PixelModel>) -> Self {
        Self { model, sampling_failed: false, scoring_failed: false }
    }

    pub(super) fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError> {
        let result = call(&mut self.model, |model| model.open(slot, condition));
        escalate(result, &mut self.sampling_failed)
    }

    pub(super) fn absorb(
        &mut self,
        slot: Slot,
        canvas: &Canvas,
        known: Range<Rank>,
        out: &mut ParamRows,
    ) -> Result<(), ModelError> {
        let result = call(&mut self.model, |model| model.absorb(slot, canvas, known, out));
        escalate(result, &mut self.sampling_failed)
    }

    pub(super) fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        let result = call(&mut self.model, |model| model.step(rows, out));
        if result.is_ok() {
            self.sampling_failed = false;
            self.scoring_failed = false;
        }
        escalate(result, &mut self.sampling_failed)
    }

    pub(super) fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        let result = call(&mut self.model, |model| model.score(rows, from, rows_wanted, out));
        if result.is_ok() {
            self.scoring_failed = false;
        }
        escalate(result, &mut self.scoring_failed)
    }

    pub(super) fn close(&mut self, slot: Slot) -> Result<(), ModelError> {
        let result = call(&mut self.model, |model| {
            model.close(slot);
            Ok(())
        });
        escalate(result, &mut self.sampling_failed)
    }
}

/// One call into the model.
///
/// `AssertUnwindSafe` holds because nothing the call could have left half done is relied on afterwards: canvases are
/// lent read-only, rows of parameters are read only after a success, and a panic counts as a failed step, so that every
/// slot in the call is taken to be spoilt and is opened anew before it is used.
fn call<T>(
    model: &mut Box<dyn PixelModel>,
    work: impl FnOnce(&mut dyn PixelModel) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    match catch_unwind(AssertUnwindSafe(|| work(model.as_mut()))) {
        Ok(result) => result,
        Err(payload) => Err(ModelError::Step(format!("panicked: {}", message(payload.as_ref())))),
    }
}

/// A failed call makes the model suspect; if it was already, it cannot go on.
fn escalate<T>(result: Result<T, ModelError>, suspect: &mut bool) -> Result<T, ModelError> {
    match result {
        Err(ModelError::Step(why)) if std::mem::replace(suspect, true) => {
            Err(ModelError::Fatal(format!("failed twice in a row: {why}")))
        }
        other => other,
    }
}

/// What a panic said.
pub(super) fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
