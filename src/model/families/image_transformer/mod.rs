//! Image Transformer with 1-D local attention and a categorical head (Parmar et al. 2018, arXiv 1802.05751).
//!
//! One program of decode operations serves all three passes: a step takes one rank of many slots, taking a prefix in takes
//! many ranks of one slot, scoring takes as many ranks of many images; each over rings that hold the keys and values of the
//! current and the previous block (section 3.3). Ranks of one evaluation never cross a block border, so what a rank sees is
//! never overwritten by another of the same evaluation.

mod config;
mod network;
mod scoring;

use std::ops::Range;

use self::config::Config;
use self::scoring::Scoring;
use crate::decode::{self, Decoder, ProgramId, Rows};
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
    summary: "Image Transformer, 1-D local attention, categorical head (arXiv 1802.05751)",
    tensors: |manifest| Ok(Config::read(manifest)?.tensors()),
    build: |manifest, file, placement| Ok(Box::new(ImageTransformer::new(manifest, file, placement)?)),
};

#[derive(Debug)]
struct ImageTransformer {
    spec: ModelSpec,
    config: Config,
    decoder: Box<dyn Decoder>,
    program: ProgramId,
    /// What the image in each slot is conditioned on.
    classes: Vec<Option<u32>>,
    scoring: Scoring,
    rows: Rows,
}

impl ImageTransformer {
    fn new(manifest: &Manifest, file: Option<WeightsFile<'_>>, placement: Placement) -> Result<Self, Violations> {
        let config = Config::read(manifest)?;
        let Some(file) = file else { return Err(refusal("weights", "are required")) };
        let mut weights = Weights::load(file, &config.tensors())?;
        let spec = manifest.spec(FAMILY.name, placement, 0);
        Self::assemble(spec, config, &mut weights, placement)
            .map_err(|error| refusal("architecture", error.to_string()))
    }

    fn assemble(
        mut spec: ModelSpec,
        config: Config,
        weights: &mut Weights,
        placement: Placement,
    ) -> Result<Self, ModelError> {
        let _guard = tch::no_grad_guard();
        let (network, program) = network::network(weights, &config, placement.precision)?;
        let decoder = decode::decoder(&network, placement.backend, placement.slots)?;
        spec.bytes_per_slot = network.state_bytes();
        spec.execution = Execution {
            backend: placement.backend,
            precision: placement.precision,
            absorbs_exactly: decoder.rows_are_invariant(),
            cost: network.cost(program, config.mean_seen()),
            weight_bytes: network.weight_bytes(),
        };
        Ok(Self {
            scoring: Scoring::new(&network, program, placement.score_images)?,
            classes: vec![None; placement.slots as usize],
            rows: Rows::default(),
            spec,
            config,
            decoder,
            program,
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
        self.decoder.clear(slot)?;
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
        if known.end > canvas.known() {
            return Err(ModelError::Step(format!("ranks {known:?} of {} are to be taken in", canvas.known())));
        }
        let width = out.width();
        let mut rest = out.resize(known.len());
        let mut from = known.start;
        while from < known.end {
            let upto = scoring::piece_end(&self.config, 1, from, u32::MAX).min(known.end);
            let (piece, remaining) = rest.split_at_mut((upto - from) as usize * width);
            self.rows.clear();
            scoring::push(&mut self.rows, &self.config, slot, canvas.values(), class, from..upto);
            self.decoder.run(self.program, &self.rows, piece)?;
            (rest, from) = (remaining, upto);
        }
        Ok(())
    }

    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        self.rows.clear();
        for StepRow { slot, canvas } in rows {
            if canvas.is_complete() {
                return Err(ModelError::Step(format!("the image in {slot:?} is complete")));
            }
            let (class, rank) = (self.class(*slot)?, canvas.known());
            scoring::push(&mut self.rows, &self.config, *slot, canvas.values(), class, rank..rank + 1);
        }
        self.decoder.run(self.program, &self.rows, out.resize(rows.len()))
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
            program: self.program,
            classes: vec![None; slots as usize],
            scoring: self.scoring.another()?,
            rows: Rows::default(),
        }))
    }
}

fn refusal(field: &str, why: impl Into<String>) -> Violations {
    let mut violations = Violations::new();
    violations.add(field, why);
    violations
}

#[cfg(test)]
mod tests;
