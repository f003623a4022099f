//! The seam between the engine and the families: what a model must be able to do.

pub mod families;
pub(crate) mod fields;
pub mod manifest;
mod registry;
#[cfg(test)]
pub(crate) mod scripted;
mod weights;

use std::ops::Range;
use std::sync::Arc;

pub use families::FAMILIES;
pub use registry::{Build, Family, Placement};
pub use weights::{MAX_HEADER, TensorSpec, WeightsFile, WeightsFormat, WeightsStream, safetensors_header};

use crate::image::{Canvas, Rank, Shape};
use crate::spec::{ConditionSpec, ModelSpec};

/// Place of one image's decode state inside a model, 0..`spec().slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// What an image is conditioned on, already checked against the spec. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Class label.
    pub class: Option<u32>,
    /// Values of the low-resolution image in raster order; there exactly if the spec has its shape.
    pub low: Option<Arc<[u16]>>,
}

impl Condition {
    /// The least that a model of `spec` takes: class 0 and a low-resolution image of zeros, where it needs them.
    #[must_use]
    pub fn least(spec: &ConditionSpec) -> Self {
        let zeros = |shape: Shape| vec![0; shape.values() as usize].into();
        Self { class: spec.class_required.then_some(0), low: spec.low.map(zeros) }
    }
}

/// One image's part in a step: the row at `canvas.known()` is wanted.
#[derive(Clone, Copy, Debug)]
pub struct StepRow<'a> {
    /// Where its state lies.
    pub slot: Slot,
    /// Its values so far; the step predicts the next.
    pub canvas: &'a Canvas,
}

/// One image of a scoring pass.
#[derive(Clone, Copy, Debug)]
pub struct ScoreRow<'a> {
    /// The complete image.
    pub canvas: &'a Canvas,
    /// Its conditioning.
    pub condition: &'a Condition,
}

/// Rows of head parameters in host memory, reused from step to step.
#[derive(Clone, Debug)]
pub struct ParamRows {
    width: usize,
    data: Vec<f32>,
}

impl ParamRows {
    /// No rows yet, each `width` parameters long when they come.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self { width, data: Vec::new() }
    }

    /// Makes room for `rows` rows and hands them out as one slice, row after row; what they held before is unspecified.
    pub fn resize(&mut self, rows: usize) -> &mut [f32] {
        self.data.resize(rows * self.width, 0.0);
        &mut self.data
    }

    /// Row `index`, empty if there is none.
    #[must_use]
    pub fn row(&self, index: usize) -> &[f32] {
        self.data.get(index * self.width..(index + 1) * self.width).unwrap_or_default()
    }

    /// Length of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.len().checked_div(self.width).unwrap_or(0)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

/// How far a fault reaches.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// These slots are spoilt; the others are as they should be.
    #[error("slots {0:?} failed")]
    Slots(Vec<Slot>),
    /// There was no memory for this call. If it was a step, its slots are as they were, but for what the same step would write
    /// anyway, so it may be made again, or in parts; otherwise the state of every slot in it is unknown.
    #[error("out of memory: {0}")]
    Memory(String),
    /// This call failed and the state of every slot in it is unknown; the model itself may go on.
    #[error("{0}")]
    Step(String),
    /// The model cannot go on.
    #[error("{0}")]
    Fatal(String),
}

/// A loaded model with its decode state. Owned by one engine thread: `Send`, not `Sync`.
///
/// A slot's life is `open`, any mix of `absorb` and `step` in rank order, `close`. State is that of the slot alone: what
/// other slots hold never changes a slot's parameters (for which bits, see each family's notes on batch invariance).
pub trait PixelModel: Send {
    /// What it promises.
    fn spec(&self) -> &ModelSpec;

    /// Readies `slot` for a new image: clears what it held and takes in the conditioning, which is computed once.
    ///
    /// # Errors
    /// A [`ModelError`] if the device fails.
    fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError>;

    /// Takes in the values of `canvas` at ranks `known`, in parallel, and puts the parameter rows that predicted them
    /// into `out`, one for each step (`known.len() / values_per_step`). `known` starts where the slot stands.
    ///
    /// # Errors
    /// A [`ModelError`] if the device fails.
    fn absorb(
        &mut self,
        slot: Slot,
        canvas: &Canvas,
        known: Range<Rank>,
        out: &mut ParamRows,
    ) -> Result<(), ModelError>;

    /// Predicts the next values of every row, in one evaluation; row i of `out` belongs to `rows[i]`. Rows may stand at
    /// different ranks. Slots are distinct.
    ///
    /// # Errors
    /// A [`ModelError`] if the device fails.
    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError>;

    /// One slice of a teacher-forced pass over complete images, independent of every slot. Starts a pass if `from` is 0,
    /// otherwise goes on with the same `rows` where the last slice ended. Returns the rank reached, above `from` and at
    /// most N; a family that scores in one go returns N at once. `rows_wanted` says how many rows (images x ranks) the
    /// caller would like a slice to be. Rows of `out`: image by image, ranks `from..reached` within.
    ///
    /// # Errors
    /// A [`ModelError`] if the device fails.
    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError>;

    /// Ends the image in `slot`.
    fn close(&mut self, slot: Slot);

    /// Another model of the same weights, which are shared, with `slots` slots of its own (at least 1), all closed, and a
    /// scoring pass of its own. It gives the same bits.
    ///
    /// # Errors
    /// A [`ModelError`] if there is no memory for its state, or the device fails.
    fn shard(&self, slots: u32) -> Result<Box<dyn PixelModel>, ModelError>;
}
