//! Models that go through an image pixel by pixel, row by row, and look at what they computed for the pixels around: the
//! PixelRNN family, Gated PixelCNN, PixelCNN++.
//!
//! A family describes itself by a network of decode programs and a [`Schedule`] of when each of them runs. What a step does and
//! what a teacher-forced pass does follow from that: a step runs the programs that are due at one pixel; a pass runs the
//! same ones over a whole row of pixels at once, in libtorch, or pixel by pixel where the pixels of a row depend on each
//! other.

pub(super) mod features;
pub(super) mod grid;
pub(super) mod low;
pub(super) mod masked;
pub(super) mod settings;
mod sweep;

use std::ops::Range;
use std::sync::Arc;

use tch::TchError;

use self::grid::{Grid, Pixels, Scaling, Stencil};
use self::low::Upsample;
use self::sweep::Sweep;
use crate::decode::torch::Torch;
use crate::decode::{self, Network, ProgramId};
use crate::error::Violations;
use crate::image::{Canvas, Rank};
use crate::model::manifest::Manifest;
use crate::model::{
    Condition, ModelError, ParamRows, PixelModel, Placement, ScoreRow, Slot, StepRow, TensorSpec, WeightsFile,
};
use crate::spec::{Execution, ModelSpec, StepCost};
use crate::torch::weights::Weights;

/// Floats that the widest intermediate tensor of a parallel pass may hold, about.
const MAX_FLOATS: u32 = 1 << 24;

/// Floats that the widest register of what has to be evaluated at once may hold.
const MAX_FLOATS_TOGETHER: u64 = 1 << 26;

/// A program, and what each row of it brings.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) program: ProgramId,
    /// It runs at nodes whose row and column of pixels are multiples of this.
    pub(super) scale: u32,
    /// The first row of pixels at which it runs.
    pub(super) from_row: u32,
    /// Places it names, in order.
    pub(super) stencils: Vec<Stencil>,
    /// Pixels it looks at.
    pub(super) pixels: Pixels,
}

/// A program that runs once when an image is opened, for rows of these inputs and places.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) program: ProgramId,
    pub(super) rows: Vec<(u32, u32)>,
}

/// When the programs of a network run.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Which places the memories have.
    pub(super) grids: Vec<Grid>,
    pub(super) scaling: Scaling,
    /// Once for each image.
    pub(super) opening: Vec<Opening>,
    /// Once for each image, for models that take a low-resolution one.
    pub(super) upsample: Option<Upsample>,
    /// At the start of each row, for all its nodes together.
    pub(super) before_row: Vec<Phase>,
    /// For each step of a pixel in turn; the last phase gives the parameters.
    pub(super) steps: Vec<Vec<Phase>>,
    /// All steps of a pixel at once, where there are several; the last phase gives the parameters of all.
    pub(super) whole: Vec<Phase>,
    /// When a row is complete: for its nodes from right to left, one after the other.
    pub(super) after_row: Vec<Phase>,
    /// Whether pixels of a row whose values are known can be evaluated together.
    pub(super) together: bool,
}

impl Schedule {
    /// Nodes of one image, `width` pixels wide, that have to be evaluated at once.
    fn nodes_together(&self, width: u32) -> u32 {
        let row = if self.before_row.is_empty() { 1 } else { width };
        let low = self.upsample.as_ref().map_or(1, |upsample| upsample.shape().height() * upsample.shape().width());
        row.max(low)
    }

    /// What a step of an image `width` pixels wide costs at least, in the mean over the image.
    fn cost(&self, network: &Network, width: u32) -> StepCost {
        let mut cost = StepCost { bytes_per_number: network.precision().bytes(), ..StepCost::default() };
        let by_pixel = self.steps.iter().flatten().chain(&self.after_row);
        let phases = self.before_row.iter().map(|phase| (phase, width)).chain(by_pixel.map(|phase| (phase, 1)));
        for (phase, together) in phases {
            let numbers = network.cost(phase.program, 0.0).resident;
            let per_pixel = numbers as f64 / f64::from(phase.scale.pow(2) * self.steps.len().max(1) as u32);
            cost.products += per_pixel;
            cost.weights += per_pixel / f64::from((together / phase.scale).max(1));
            cost.resident += numbers;
        }
        cost
    }
}

/// Builds the model of `family` whose network and schedule `network` makes of weights that have `tensors`.
///
/// # Errors
/// Everything that is wrong with the weights file, or that there is no memory.
pub(super) fn build(
    family: &'static str,
    manifest: &Manifest,
    file: Option<WeightsFile<'_>>,
    placement: Placement,
    tensors: &[TensorSpec],
    network: impl FnOnce(&Weights) -> Result<(Network, Schedule), TchError>,
) -> Result<Box<dyn PixelModel>, Violations> {
    let Some(file) = file else { return Err(Violations::one("weights", "are required")) };
    let weights = Weights::load(file, tensors)?;
    let _guard = tch::no_grad_guard();
    let built = network(&weights).map_err(ModelError::from);
    let model = built.and_then(|(network, schedule)| {
        Raster::new(manifest.spec(family, placement, 0), &network, schedule, placement)
    });
    match model {
        Ok(model) => Ok(Box::new(model)),
        Err(error) => Err(Violations::one("architecture", error.to_string())),
    }
}

/// A network with its schedule and state.
#[derive(Debug)]
pub(super) struct Raster {
    spec: ModelSpec,
    steps: Sweep,
    /// State of a scoring pass.
    scoring: Sweep,
    /// Images a scoring pass takes at most.
    score_images: usize,
    /// Numbers of the widest vector that one row of a program holds.
    widest: u32,
    /// Images of the scoring pass under way, and the rank it has reached.
    pass: (usize, Rank),
}

impl Raster {
    pub(super) fn new(
        mut spec: ModelSpec,
        network: &Network,
        schedule: Schedule,
        placement: Placement,
    ) -> Result<Self, ModelError> {
        let widest = network.widest().max(1);
        check_together(schedule.nodes_together(spec.shape.width()), widest)?;
        let decoder = decode::decoder(network, placement.backend, placement.slots)?;
        let score_images = placement.score_images.max(1);
        let scoring = Box::new(Torch::parallel(network, score_images)?);
        spec.bytes_per_slot = network.state_bytes();
        spec.execution = Execution {
            carries_state: network.has_cells(),
            recomputes: false,
            backend: placement.backend,
            device: placement.device,
            precision: placement.precision,
            absorbs_exactly: decoder.rows_are_invariant(),
            cost: schedule.cost(network, spec.shape.width()),
            weight_bytes: network.weight_bytes(),
        };
        let schedule = Arc::new(schedule);
        Ok(Self {
            steps: Sweep::new(Arc::clone(&schedule), decoder, spec.shape, placement.slots),
            scoring: Sweep::new(schedule, scoring, spec.shape, score_images),
            score_images: score_images as usize,
            widest,
            pass: (0, 0),
            spec,
        })
    }

    fn check_pass(&self, rows: &[ScoreRow<'_>], from: Rank) -> Result<(), ModelError> {
        let fault = if rows.is_empty() || rows.len() > self.score_images {
            format!("a scoring pass takes 1 to {} images, got {}", self.score_images, rows.len())
        } else if from != 0 && (rows.len(), from) != self.pass {
            format!("no scoring pass of {} images stands at rank {from}", rows.len())
        } else if from >= self.spec.shape.values() || !rows.iter().all(|row| row.canvas.is_complete()) {
            "only complete images can be scored, and only once".to_owned()
        } else {
            return Ok(());
        };
        Err(ModelError::Step(fault))
    }
}

impl PixelModel for Raster {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError> {
        self.steps.open(slot, condition)
    }

    fn absorb(
        &mut self,
        slot: Slot,
        canvas: &Canvas,
        known: Range<Rank>,
        out: &mut ParamRows,
    ) -> Result<(), ModelError> {
        if known.end > canvas.known() {
            return Err(ModelError::Step(format!("ranks {known:?} of {} are to be taken in", canvas.known())));
        }
        let (width, per_step) = (out.width(), self.spec.values_per_step().max(1));
        let mut rest = out.resize(known.len() / per_step as usize);
        let mut from = known.start;
        while from < known.end {
            let upto = self.steps.piece_end(from, known.end, MAX_FLOATS / self.widest);
            let (piece, remaining) = rest.split_at_mut(((upto - from) / per_step) as usize * width);
            self.steps.take_in(&[(slot, canvas)], from..upto, width, piece)?;
            (rest, from) = (remaining, upto);
        }
        Ok(())
    }

    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        if let Some(row) = rows.iter().find(|row| row.canvas.is_complete()) {
            return Err(ModelError::Step(format!("the image in {:?} is complete", row.slot)));
        }
        let width = out.width();
        self.steps.step(rows, width, out.resize(rows.len()))
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        self.check_pass(rows, from)?;
        // Whatever fails from here on, the pass cannot go on.
        self.pass = (0, 0);
        if from == 0 {
            for (slot, row) in (0..).zip(rows) {
                self.scoring.open(Slot(slot), row.condition)?;
            }
        }
        let images: Vec<_> = (0..).zip(rows).map(|(slot, row)| (Slot(slot), row.canvas)).collect();
        let most = (MAX_FLOATS / self.widest).min(rows_wanted) / images.len().max(1) as u32;
        let upto = self.scoring.piece_end(from, self.spec.shape.values(), most.max(1));
        let (width, per_step) = (out.width(), self.spec.values_per_step().max(1));
        let slice = images.len() * ((upto - from) / per_step) as usize;
        self.scoring.take_in(&images, from..upto, width, out.resize(slice))?;
        self.pass = (images.len(), upto);
        Ok(upto)
    }

    fn close(&mut self, _slot: Slot) {}

    fn shard(&self, slots: u32) -> Result<Box<dyn PixelModel>, ModelError> {
        Ok(Box::new(Self {
            spec: ModelSpec { slots, ..self.spec.clone() },
            steps: self.steps.another(slots)?,
            scoring: self.scoring.another(self.score_images as u32)?,
            pass: (0, 0),
            ..*self
        }))
    }
}

/// Refuses so many `nodes` at once, of `widest` numbers at most, as would make registers larger than a machine may have.
fn check_together(nodes: u32, widest: u32) -> Result<(), ModelError> {
    let floats = u64::from(nodes) * u64::from(widest);
    if floats > MAX_FLOATS_TOGETHER {
        return Err(ModelError::Step(format!(
            "{nodes} pixels take {floats} numbers at once, at most {MAX_FLOATS_TOGETHER} are allowed"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_at_once_than_a_machine_should_be_asked_to_hold_is_refused() {
        assert!(check_together(64, 5760).is_ok());
        assert!(check_together(1 << 20, 64).is_ok());
        assert!(check_together(1 << 20, 65).is_err());
        assert!(check_together(u32::MAX, u32::MAX).is_err());
    }
}
