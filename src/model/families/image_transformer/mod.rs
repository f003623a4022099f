//! Image Transformer with 1-D local attention and a categorical head (Parmar et al. 2018, arXiv 1802.05751).
//!
//! One evaluation of the same layers serves all three passes: a step takes one rank of many slots, taking a prefix in takes
//! many ranks of one slot, scoring takes as many ranks of many images; each over rings that hold the keys and values of the
//! current and the previous block (section 3.3). Ranks of one evaluation never cross a block border, so the mask is never
//! larger than ranks x ring.
//!
//! Batch invariance: a step computes the slots 0..n for the least allowed n, wanted or not, so a slot's row of every tensor
//! is the slot's number. Which n are allowed is found by trying when the model is built: those from which on the bits of a
//! row depend neither on n nor on the row's place. The parallel passes agree with the step to rounding only.

mod config;
mod layer;
mod network;
mod scoring;

use std::ops::Range;

use tch::Tensor;

use self::config::Config;
use self::layer::{Window, Write};
use self::network::{Network, Rings};
use self::scoring::Scoring;
use crate::error::Violations;
use crate::image::{Canvas, Rank};
use crate::model::manifest::Manifest;
use crate::model::{
    Condition, Family, ModelError, ParamRows, PixelModel, Placement, ScoreRow, Slot, StepRow, WeightsFile,
};
use crate::spec::ModelSpec;
use crate::torch::weights::Weights;

/// The family.
pub const FAMILY: Family = Family {
    name: "image_transformer",
    summary: "Image Transformer, 1-D local attention, categorical head (arXiv 1802.05751)",
    tensors: |manifest| Ok(Config::read(manifest)?.tensors()),
    build: |manifest, file, placement| Ok(Box::new(ImageTransformer::new(manifest, file, placement)?)),
};

/// Steps are tried at multiples of this many slots. Below four rows, libtorch multiplies matrices by other code.
const BUCKET: usize = 4;
/// Floats that one intermediate tensor of a parallel pass may hold.
const MAX_FLOATS: u32 = 1 << 24;

struct ImageTransformer {
    spec: ModelSpec,
    network: Network,
    rings: Rings,
    /// As many as the rings hold: the slots promised, rounded up to a multiple of [`BUCKET`].
    slots: Vec<SlotState>,
    smallest_bucket: usize,
    scoring: Scoring,
    scratch: Scratch,
}

/// What a slot holds beside its rings.
#[derive(Clone, Copy, Default)]
struct SlotState {
    class: Option<u32>,
    /// Where its next keys and values go; whatever is there is written before it is read.
    next: Rank,
}

/// Host memory of a step, kept from one to the next.
#[derive(Default)]
struct Scratch {
    inputs: Vec<[i64; 4]>,
    ranks: Vec<Rank>,
    places: Vec<i64>,
    mask: Vec<f32>,
    wanted: Vec<i64>,
}

impl ImageTransformer {
    fn new(manifest: &Manifest, file: Option<WeightsFile<'_>>, placement: Placement) -> Result<Self, Violations> {
        let config = Config::read(manifest)?;
        let Some(file) = file else { return Err(refusal("weights", "are required")) };
        let mut weights = Weights::load(file, &config.tensors())?;
        let _guard = tch::no_grad_guard();
        let spec = manifest.spec(FAMILY.name, placement, config.state_bytes());
        Self::assemble(spec, config, &mut weights, placement)
            .map_err(|error| refusal("architecture", error.to_string()))
    }

    fn assemble(
        spec: ModelSpec,
        config: Config,
        weights: &mut Weights,
        placement: Placement,
    ) -> Result<Self, ModelError> {
        let slots = (placement.slots as usize).max(1).next_multiple_of(BUCKET);
        let mut model = Self {
            spec,
            network: Network::take(weights, config)?,
            rings: Rings::new(&config, slots as i64)?,
            slots: vec![SlotState::default(); slots],
            smallest_bucket: slots,
            scoring: Scoring::new(&config, placement.score_images)?,
            scratch: Scratch::default(),
        };
        model.smallest_bucket = model.find_smallest_bucket()?;
        Ok(model)
    }

    /// The least number of slots from which on all give the same bits in every row, for rows that hold the same.
    fn find_smallest_bucket(&mut self) -> Result<usize, ModelError> {
        self.rings.fill()?;
        let last = self.spec.shape.values() - 1;
        let width = self.spec.shape.levels() as usize;
        let (mut smallest, mut reference) = (self.slots.len(), None);
        for bucket in (BUCKET..=self.slots.len()).rev().step_by(BUCKET) {
            self.scratch.inputs.clear();
            self.scratch.inputs.resize(bucket, self.network.input(&[], last, None));
            self.scratch.ranks.clear();
            self.scratch.ranks.resize(bucket, last);
            let mut logits = vec![0f32; bucket * width];
            self.evaluate()?.f_copy_data(&mut logits, bucket * width)?;
            let first: Vec<u32> = logits.iter().take(width).map(|logit| logit.to_bits()).collect();
            let reference = reference.get_or_insert(first);
            let mut rows = logits.chunks_exact(width);
            if !rows.all(|row| row.iter().map(|logit| logit.to_bits()).eq(reference.iter().copied())) {
                break;
            }
            smallest = bucket;
        }
        self.rings.clear(0, self.slots.len() as i64)?;
        Ok(smallest)
    }

    /// One evaluation of the slots 0..n at the n `ranks` and `inputs` of the scratch: logits [n, levels].
    fn evaluate(&mut self) -> Result<Tensor, ModelError> {
        let Scratch { inputs, ranks, places, mask, .. } = &mut self.scratch;
        let config = self.network.config();
        let [slots, heads, ring] = [ranks.len() as i64, i64::from(config.heads), i64::from(config.places())];
        places.clear();
        mask.clear();
        for (slot, &rank) in (0..).zip(ranks.iter()) {
            let place = i64::from(config.place(rank));
            places.extend((0..heads).map(|head| (slot * heads + head) * ring + place));
            config.extend_mask(rank, mask);
        }
        let window = Window {
            first: 0,
            images: slots,
            ranks: 1,
            write: Write::Each(Tensor::f_from_slice(places)?),
            mask: Tensor::f_from_slice(mask)?
                .f_view([slots, 1, 1, ring])?
                .f_expand([slots, heads, 1, ring], false)?
                .f_reshape([slots * heads, 1, ring])?,
        };
        Ok(self.network.forward(inputs.as_flattened(), &mut self.rings, &window)?)
    }

    /// Sets the scratch to the slots 0..n that hold every one of `rows`; the others compute what nobody reads, into a
    /// place that is written again before it is read.
    fn gather(&mut self, rows: &[StepRow<'_>]) -> Result<(), ModelError> {
        let highest = rows.iter().map(|row| row.slot.0 as usize).max().unwrap_or(0);
        let bucket = (highest + 1).next_multiple_of(BUCKET).max(self.smallest_bucket);
        let values = self.spec.shape.values();
        let Scratch { inputs, ranks, wanted, .. } = &mut self.scratch;
        inputs.clear();
        inputs.resize(bucket, [0; 4]);
        ranks.clear();
        ranks.extend(self.slots.iter().take(bucket).map(|slot| slot.next.min(values - 1)));
        wanted.clear();
        for StepRow { slot, canvas } in rows {
            let place = slot.0 as usize;
            let (Some(state), Some(input), Some(rank)) =
                (self.slots.get_mut(place), inputs.get_mut(place), ranks.get_mut(place))
            else {
                return Err(ModelError::Step(format!("there is no {slot:?}")));
            };
            if canvas.is_complete() {
                return Err(ModelError::Step(format!("the image in {slot:?} is complete")));
            }
            *rank = canvas.known();
            *input = self.network.input(canvas.values(), *rank, state.class);
            state.next = *rank + 1;
            wanted.push(place as i64);
        }
        Ok(())
    }
}

impl PixelModel for ImageTransformer {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError> {
        let Some(state) = self.slots.get_mut(slot.0 as usize) else {
            return Err(ModelError::Step(format!("there is no {slot:?}")));
        };
        *state = SlotState { class: condition.class, next: 0 };
        let _guard = tch::no_grad_guard();
        Ok(self.rings.clear(i64::from(slot.0), 1)?)
    }

    fn absorb(
        &mut self,
        slot: Slot,
        canvas: &Canvas,
        known: Range<Rank>,
        out: &mut ParamRows,
    ) -> Result<(), ModelError> {
        let Some(state) = self.slots.get_mut(slot.0 as usize) else {
            return Err(ModelError::Step(format!("there is no {slot:?}")));
        };
        if known.end > canvas.known() {
            return Err(ModelError::Step(format!("ranks {known:?} of {} are to be taken in", canvas.known())));
        }
        let _guard = tch::no_grad_guard();
        let width = out.width();
        let mut rest = out.resize(known.len());
        let mut from = known.start;
        while from < known.end {
            let upto = scoring::piece_end(self.network.config(), 1, from, u32::MAX).min(known.end);
            let images = [(canvas.values(), state.class)];
            let logits = scoring::forward(&self.network, &mut self.rings, i64::from(slot.0), &images, from..upto)?;
            let (piece, remaining) = rest.split_at_mut((upto - from) as usize * width);
            logits.f_copy_data(piece, piece.len())?;
            (rest, from) = (remaining, upto);
        }
        state.next = known.end;
        Ok(())
    }

    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        let to = out.resize(rows.len());
        if rows.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        self.gather(rows)?;
        let logits = self.evaluate()?.f_index_select(0, &Tensor::f_from_slice(&self.scratch.wanted)?)?;
        Ok(logits.f_copy_data(to, to.len())?)
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        let _guard = tch::no_grad_guard();
        self.scoring.slice(&self.network, rows, from, rows_wanted, out)
    }

    fn close(&mut self, _slot: Slot) {}
}

fn refusal(field: &str, why: impl Into<String>) -> Violations {
    let mut violations = Violations::new();
    violations.add(field, why);
    violations
}

#[cfg(test)]
mod tests;
