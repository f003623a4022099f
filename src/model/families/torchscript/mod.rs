//! Modules of somebody else's: whatever was scripted or traced, called as the manifest says. Such a module is code.
//!
//! `forward` gives the parameters of every step of an image at once; only what is before a step may matter to them. A module
//! that has `init_state` and `step` goes on from where it was:
//!
//! - `init_state(batch: int, ...) -> List[Tensor]`, each `[batch, ...]`; it takes what `forward` does beside the image.
//! - `step(state: List[Tensor], previous: Tensor, step: Tensor) -> Tuple[Tensor, List[Tensor]]`: int64 `[batch, values of
//!   a step]`, the values that were decided last (0 at first), and int64 `[batch]`, how many steps were taken; gives
//!   `[batch, parameters of a row]` as the head orders them (mixtures in the manifest's layout), and the state.
//!
//! Without them every step is a pass over the image, or over the rows of it that it depends on (`prefix = true`).

mod check;
mod config;
mod leak;
mod module;
mod pattern;
mod probe;
mod reading;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use tch::Tensor;

use crate::error::Violations;
use crate::image::{Canvas, Order, Rank};
use crate::model::manifest::Manifest;
use crate::model::{
    Condition, Family, ModelError, ParamRows, PixelModel, Placement, ScoreRow, Slot, StepRow, WeightsFile,
};
use crate::spec::{Backend, Execution, ModelSpec, Precision};
use crate::torch::{self, weights};
pub use config::entries;
pub use probe::{Found, Hints, probe};

use check::Buckets;
use config::Config;
use module::Module;

/// The family.
pub const FAMILY: Family = Family {
    name: "torchscript",
    summary: "any scripted or traced module, called as its manifest says",
    tensors: |manifest| Config::read(manifest).map(|_| Vec::new()),
    build: |manifest, file, placement| Ok(Box::new(TorchScript::new(manifest, file, placement)?)),
};

/// Where the image in a slot stands.
#[derive(Debug, Default)]
struct State {
    condition: Condition,
    /// What the module remembers of it, if it does.
    tensors: Vec<Tensor>,
}

struct TorchScript {
    spec: ModelSpec,
    module: Arc<Module>,
    buckets: Arc<Buckets>,
    /// By slot.
    states: Vec<State>,
    /// The parameters of the scoring pass under way, a tensor [images, steps, width] for each evaluation.
    pass: Vec<Tensor>,
}

impl TorchScript {
    fn new(manifest: &Manifest, file: Option<WeightsFile<'_>>, placement: Placement) -> Result<Self, Violations> {
        let config = Config::read(manifest)?;
        let Some(file) = file else {
            return Err(Violations::one("weights", "is required by family \"torchscript\""));
        };
        let _guard = tch::no_grad_guard();
        let device = torch::place(placement.device);
        let module = weights::module(file, device)?;
        let refused = |error: ModelError| Violations::one("architecture", error.to_string());
        let module = Module::new(Arc::new(module), config, device);
        // More images go one batch after another.
        let largest = placement.slots.max(placement.score_images).min(module.config.most_images());
        let buckets = check::check(&module, largest)?;
        let state = if module.config.incremental {
            module.init_state(&Condition::least(&manifest.condition)).map_err(refused)?
        } else {
            Vec::new()
        };
        let mut spec = manifest.spec(FAMILY.name, placement, state.iter().map(module::bytes).sum());
        spec.execution = Execution {
            backend: Backend::Torch,
            device: placement.device,
            precision: Precision::F32,
            // Without state nothing is left that could differ, but the last bits where fewer rows are another shape.
            absorbs_exactly: !module.config.incremental && !module.config.prefix,
            recomputes: !module.config.incremental,
            weight_bytes: module.bytes().map_err(|error| refused(error.into()))?,
            ..Execution::default()
        };
        Ok(Self {
            states: (0..spec.slots).map(|_| State::default()).collect(),
            spec,
            module: Arc::new(module),
            buckets: Arc::new(buckets),
            pass: Vec::new(),
        })
    }

    /// The rows of an image that its first `known` values and the one after them lie in.
    fn rows_for(&self, known: Rank) -> u32 {
        let Config { shape, order, prefix, .. } = self.module.config;
        if !prefix {
            return shape.height();
        }
        let row = |rank: Rank| order.position(shape, rank.min(shape.values() - 1)).row;
        let deepest = match order {
            Order::Raster => row(known),
            Order::BlockRaster(_) => (0..=known).map(row).max().unwrap_or(0),
        };
        deepest + 1
    }

    /// Where in the results of a pass the parameters of `rank` are.
    fn place(&self, rank: Rank) -> i64 {
        let Config { shape, order, .. } = self.module.config;
        i64::from(order.position(shape, rank).raster(shape) / self.spec.values_per_step().max(1))
    }

    fn state(&self, slot: Slot) -> Result<&State, ModelError> {
        self.states.get(slot.0 as usize).ok_or_else(|| ModelError::Step(format!("there is no {slot:?}")))
    }

    /// Every row by a pass over its image.
    fn recompute(&self, rows: &[StepRow<'_>], out: &mut [f32]) -> Result<(), ModelError> {
        let width = self.spec.head.width(self.spec.shape);
        let images: Vec<_> = rows
            .iter()
            .map(|row| Ok((row.canvas, &self.state(row.slot)?.condition)))
            .collect::<Result<_, ModelError>>()?;
        let mut out = out.chunks_exact_mut(width);
        for (start, count, padded) in self.buckets.split(images.len()) {
            let batch = pad(&images, start, count, padded);
            // All that go together have as many rows: only then is a bucket known to keep its bits.
            let depth = batch.iter().map(|(canvas, _)| self.rows_for(canvas.known())).max().unwrap_or(1);
            let parameters = self.module.pass(&batch, depth)?;
            for ((image, (canvas, _)), out) in (0..).zip(&batch).take(count).zip(&mut out) {
                parameters.f_get(image)?.f_get(self.place(canvas.known()))?.f_copy_data(out, width)?;
            }
        }
        Ok(())
    }

    /// Every row from what the module remembers of its image.
    fn go_on(&mut self, rows: &[StepRow<'_>], out: &mut [f32]) -> Result<(), ModelError> {
        let (width, per_step) = (self.spec.head.width(self.spec.shape), self.spec.values_per_step().max(1));
        let mut out = out.chunks_exact_mut(width);
        // Remembered once all have gone well: a step that finds no memory is made again.
        let mut remembered = Vec::with_capacity(rows.len());
        for (start, count, padded) in self.buckets.split(rows.len()) {
            let batch = pad(rows, start, count, padded);
            let (mut states, mut previous, mut steps) = (Vec::new(), Vec::new(), Vec::new());
            for row in &batch {
                states.push(self.state(row.slot)?.tensors.as_slice());
                let known = row.canvas.known() - row.canvas.known() % per_step;
                let last = known.saturating_sub(per_step) as usize..known as usize;
                let values = row.canvas.values().get(last).unwrap_or_default();
                previous.extend(values.iter().map(|&value| i64::from(value)));
                previous.resize(states.len() * per_step as usize, 0);
                steps.push(i64::from(known / per_step));
            }
            let (parameters, after) = self.module.step(&states, &previous, &steps)?;
            for (((image, row), tensors), out) in (0..).zip(&batch).zip(after).take(count).zip(&mut out) {
                parameters.f_get(image)?.f_copy_data(out, width)?;
                remembered.push((row.slot, tensors));
            }
        }
        for (slot, tensors) in remembered {
            if let Some(state) = self.states.get_mut(slot.0 as usize) {
                state.tensors = tensors;
            }
        }
        Ok(())
    }
}

/// `count` of `all` from `start` on, and the first of them again until there are `padded`.
fn pad<T: Copy>(all: &[T], start: usize, count: usize, padded: usize) -> Vec<T> {
    let some = all.get(start..start + count).unwrap_or_default();
    let again = some.first().into_iter().cycle();
    some.iter().chain(again).take(padded).copied().collect()
}

impl PixelModel for TorchScript {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError> {
        let _guard = tch::no_grad_guard();
        let incremental = self.module.config.incremental;
        let tensors = if incremental { self.module.init_state(condition)? } else { Vec::new() };
        self.state(slot)?;
        if let Some(state) = self.states.get_mut(slot.0 as usize) {
            *state = State { condition: condition.clone(), tensors };
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
        let _guard = tch::no_grad_guard();
        let (width, per_step) = (out.width(), self.spec.values_per_step().max(1));
        let ranks = || known.clone().step_by(per_step as usize);
        let rows = out.resize(ranks().count());
        if self.module.config.incremental {
            for (rank, row) in ranks().zip(rows.chunks_exact_mut(width)) {
                let before = canvas.values().get(..rank as usize).unwrap_or_default().to_vec();
                let Some(canvas) = Canvas::with_prefix(canvas.shape(), before) else { continue };
                self.go_on(&[StepRow { slot, canvas: &canvas }], row)?;
            }
            return Ok(());
        }
        let Some(last) = ranks().next_back() else { return Ok(()) };
        let image = (canvas, &self.state(slot)?.condition);
        for (_, _, padded) in self.buckets.split(1) {
            let parameters = self.module.pass(&pad(&[image], 0, 1, padded), self.rows_for(last))?.f_get(0)?;
            for (rank, row) in ranks().zip(rows.chunks_exact_mut(width)) {
                parameters.f_get(self.place(rank))?.f_copy_data(row, width)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        let _guard = tch::no_grad_guard();
        let out = out.resize(rows.len());
        if self.module.config.incremental { self.go_on(rows, out) } else { self.recompute(rows, out) }
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        let _guard = tch::no_grad_guard();
        if from == 0 {
            self.pass.clear();
            let images: Vec<_> = rows.iter().map(|row| (row.canvas, row.condition)).collect();
            for (start, count, padded) in self.buckets.split(images.len()) {
                let batch = pad(&images, start, count, padded);
                let parameters = self.module.pass(&batch, self.spec.shape.height())?;
                self.pass.push(parameters.f_narrow(0, 0, count as i64)?);
            }
        }
        let (values, per_step) = (self.spec.shape.values(), self.spec.values_per_step().max(1));
        let steps = (rows_wanted / (rows.len() as u32).max(1)).max(1);
        let reached = from.saturating_add(steps.saturating_mul(per_step)).min(values);
        let ranks = || (from..reached).step_by(per_step as usize);
        let width = out.width();
        let mut out = out.resize(rows.len() * ranks().count()).chunks_exact_mut(width);
        let places: Vec<i64> = ranks().map(|rank| self.place(rank)).collect();
        let places = Tensor::f_from_slice(&places)?;
        for parameters in &self.pass {
            let slice = parameters.f_index_select(1, &places)?.f_view([-1, width as i64])?;
            for (index, row) in (0..slice.size2()?.0).zip(&mut out) {
                slice.f_get(index)?.f_copy_data(row, width)?;
            }
        }
        if reached == values {
            self.pass.clear();
        }
        Ok(reached)
    }

    fn close(&mut self, slot: Slot) {
        if let Some(state) = self.states.get_mut(slot.0 as usize) {
            *state = State::default();
        }
    }

    fn shard(&self, slots: u32) -> Result<Box<dyn PixelModel>, ModelError> {
        Ok(Box::new(Self {
            spec: ModelSpec { slots, ..self.spec.clone() },
            module: Arc::clone(&self.module),
            buckets: Arc::clone(&self.buckets),
            states: (0..slots).map(|_| State::default()).collect(),
            pass: Vec::new(),
        }))
    }
}
