//! Image Transformer (Parmar et al. 2018, arXiv 1802.05751): 1-D and 2-D local attention, embedded or ordinal input,
//! categorical or mixture head, with an encoder of a low-resolution image or without.
//!
//! One program of decode operations serves all three passes: a step takes one cell of many slots, taking a prefix in takes
//! many cells of one slot, scoring takes as many cells of many images; each over rings that hold the keys and values of what
//! may still be seen (section 3.3). Cells of one evaluation never cross the end of a run, so what a cell sees is never
//! overwritten by another of the same evaluation. An encoder is evaluated when an image begins.

mod config;
mod grid;
mod network;
mod scoring;

use std::ops::Range;

use self::config::Config;
use self::network::Programs;
use self::scoring::{Batch, Scoring};
use crate::decode::{self, Decoder};
use crate::error::Violations;
use crate::image::{Canvas, Rank};
use crate::model::manifest::Manifest;
use crate::model::{
    Condition, Family, ModelError, ParamRows, PixelModel, Placement, ScoreRow, Slot, StepRow, WeightsFile,
};
use crate::spec::{Execution, ModelSpec};
use crate::torch::weights::Weights;

/// The family.
pub const FAMILY: Family = Family {
    name: "image_transformer",
    summary: "Image Transformer: 1-D or 2-D local attention, optional encoder (arXiv 1802.05751)",
    tensors: |manifest| Ok(Config::read(manifest)?.tensors()),
    build: |manifest, file, placement| Ok(Box::new(ImageTransformer::new(manifest, file, placement)?)),
};

#[derive(Debug)]
struct ImageTransformer {
    spec: ModelSpec,
    config: Config,
    decoder: Box<dyn Decoder>,
    programs: Programs,
    /// What the image in each slot is conditioned on.
    classes: Vec<Option<u32>>,
    scoring: Scoring,
    batch: Batch,
}

impl ImageTransformer {
    fn new(manifest: &Manifest, file: Option<WeightsFile<'_>>, placement: Placement) -> Result<Self, Violations> {
        let config = Config::read(manifest)?;
        let Some(file) = file else { return Err(Violations::one("weights", "are required")) };
        let mut weights = Weights::load(file, &config.tensors())?;
        let spec = manifest.spec(FAMILY.name, placement, 0);
        Self::assemble(spec, config, &mut weights, placement)
            .map_err(|error| Violations::one("architecture", error.to_string()))
    }

    fn assemble(
        mut spec: ModelSpec,
        config: Config,
        weights: &mut Weights,
        placement: Placement,
    ) -> Result<Self, ModelError> {
        let _guard = tch::no_grad_guard();
        let (network, programs) = network::network(weights, &config, placement)?;
        let decoder = decode::decoder(&network, placement.backend, placement.slots)?;
        spec.bytes_per_slot = network.state_bytes();
        spec.execution = Execution {
            carries_state: false,
            recomputes: false,
            backend: placement.backend,
            device: placement.device,
            precision: placement.precision,
            absorbs_exactly: decoder.rows_are_invariant(),
            cost: network.cost(programs.step, config.grid.mean_seen()),
            weight_bytes: network.weight_bytes(),
        };
        Ok(Self {
            scoring: Scoring::new(&network, programs, placement.score_images)?,
            classes: vec![None; placement.slots as usize],
            batch: Batch::default(),
            spec,
            config,
            decoder,
            programs,
        })
    }

    fn class(&self, slot: Slot) -> Result<Option<u32>, ModelError> {
        self.classes.get(slot.0 as usize).copied().ok_or_else(|| ModelError::Step(format!("there is no {slot:?}")))
    }
}

impl PixelModel for ImageTransformer {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError> {
        self.batch.open(&mut *self.decoder, self.programs, &self.config, slot, condition)?;
        if let Some(class) = self.classes.get_mut(slot.0 as usize) {
            *class = condition.class;
        }
        Ok(())
    }

    fn absorb(
        &mut self,
        slot: Slot,
        canvas: &Canvas,
        known: Range<Rank>,
        out: &mut ParamRows,
    ) -> Result<(), ModelError> {
        let class = self.class(slot)?;
        let each = self.config.cell_values();
        if known.end > canvas.known() || !known.start.is_multiple_of(each) || !known.end.is_multiple_of(each) {
            return Err(ModelError::Step(format!("ranks {known:?} of {} are to be taken in", canvas.known())));
        }
        let (mut from, end) = (known.start / each, known.end / each);
        let width = out.width();
        let mut rest = out.resize((end.max(from) - from) as usize);
        while from < end {
            let upto = scoring::piece_end(&self.config, 1, from, u32::MAX).min(end);
            let (piece, remaining) = rest.split_at_mut((upto - from) as usize * width);
            self.batch.rows.clear();
            self.batch.push(&self.config, slot, canvas.values(), class, from..upto);
            self.decoder.run(self.programs.step, &self.batch.rows, piece)?;
            (rest, from) = (remaining, upto);
        }
        Ok(())
    }

    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        let each = self.config.cell_values();
        self.batch.rows.clear();
        for StepRow { slot, canvas } in rows {
            if canvas.is_complete() || !canvas.known().is_multiple_of(each) {
                return Err(ModelError::Step(format!("the image in {slot:?} stands at {}", canvas.known())));
            }
            let (class, cell) = (self.class(*slot)?, canvas.known() / each);
            self.batch.push(&self.config, *slot, canvas.values(), class, cell..cell + 1);
        }
        self.decoder.run(self.programs.step, &self.batch.rows, out.resize(rows.len()))
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        self.scoring.slice(&self.config, rows, from, rows_wanted, out)
    }

    fn close(&mut self, _slot: Slot) {}

    fn shard(&self, slots: u32) -> Result<Box<dyn PixelModel>, ModelError> {
        Ok(Box::new(Self {
            spec: ModelSpec { slots, ..self.spec.clone() },
            config: self.config,
            decoder: self.decoder.another(slots)?,
            programs: self.programs,
            classes: vec![None; slots as usize],
            scoring: self.scoring.another()?,
            batch: Batch::default(),
        }))
    }
}

#[cfg(test)]
mod tests;
