//! A model for tests: a closed form for its parameters, and a script of what goes wrong when.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::{Condition, ModelError, ParamRows, PixelModel, ScoreRow, Slot, StepRow};
use crate::head::Head;
use crate::image::{Canvas, Order, Rank, Shape};
use crate::spec::{ConditionSpec, Execution, ModelSpec};

/// Calls that can be scripted; each kind is counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Open,
    Absorb,
    Step,
    Score,
    Close,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Error(ModelError),
    Panic,
    /// NaN in this row of what the call gives.
    NotFinite(usize),
    /// A scoring slice that gets nowhere.
    Stuck,
}

#[derive(Debug, Default)]
struct State {
    calls: BTreeMap<Call, u64>,
    faults: BTreeMap<(Call, u64), Fault>,
    /// By open slot: ranks taken in so far.
    open: BTreeMap<Slot, Rank>,
    batches: Vec<usize>,
    /// Steps that may begin while the gate is shut; `None`: it is open.
    gate: Option<u64>,
    /// Whether one waits there.
    held: bool,
    /// Images that there is memory for in one step, if not for all.
    room: Option<usize>,
    violations: Vec<String>,
}

/// The other end of a scripted model, for the test to hold.
#[derive(Debug, Default)]
pub(crate) struct Script {
    state: Mutex<State>,
    changed: Condvar,
    shards: Mutex<Vec<Arc<Script>>>,
}

impl Script {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The scripts of the shards made of this model so far.
    pub(crate) fn shards(&self) -> Vec<Arc<Script>> {
        self.shards.lock().unwrap().clone()
    }

    /// Calls of this kind so far; a step held at the gate is not one yet.
    pub(crate) fn calls(&self, call: Call) -> u64 {
        self.state().calls.get(&call).copied().unwrap_or(0)
    }

    /// Lets the `later`-th call of this kind from now go wrong; 0 is the next.
    pub(crate) fn fail(&self, call: Call, later: u64, fault: Fault) {
        let at = self.calls(call) + later;
        self.state().faults.insert((call, at), fault);
    }

    /// Holds every step where it begins until it is let through.
    pub(crate) fn shut(&self) {
        self.state().gate = Some(0);
    }

    /// Lets that many more steps through a shut gate.
    pub(crate) fn let_through(&self, steps: u64) {
        let mut state = self.state();
        // What is let through is not held any more, even if its thread has not noticed yet.
        state.held = false;
        if let Some(gate) = &mut state.gate {
            *gate += steps;
        }
        self.changed.notify_all();
    }

    /// Lets all steps through.
    pub(crate) fn open_gate(&self) {
        self.state().gate = None;
        self.changed.notify_all();
    }

    /// Returns once the engine is held at the gate: everything before that step has been done.
    pub(crate) fn wait_until_held(&self) {
        drop(self.changed.wait_while(self.state(), |state| !state.held));
    }

    /// From now on there is memory for that many images in one step.
    pub(crate) fn leave_room_for(&self, images: usize) {
        self.state().room = Some(images);
    }

    /// Slots that are open.
    pub(crate) fn open_slots(&self) -> BTreeSet<Slot> {
        self.state().open.keys().copied().collect()
    }

    /// Images in each step so far.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.state().batches.clone()
    }

    /// How the engine has misused the model; must be empty.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    fn call(&self, call: Call) -> Result<Option<Fault>, ModelError> {
        let mut state = self.state();
        let count = state.calls.entry(call).or_default();
        let now = *count;
        *count += 1;
        match state.faults.remove(&(call, now)) {
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::Panic) => {
                drop(state);
                panic!("scripted")
            }
            other => Ok(other),
        }
    }

    /// A slot is brought from `from` to `upto` known values; it must stand at `from`, or less if a step decided the rest.
    fn take_in(&self, slot: Slot, canvas: &Canvas, upto: Rank, step: bool) {
        let mut state = self.state();
        let problem = match state.open.get(&slot) {
            None => Some("is not open".to_owned()),
            Some(&at) if step && at != upto && at + 1 != upto => Some(format!("stands at {at}, stepped at {upto}")),
            Some(&at) if !step && at >= upto => Some(format!("stands at {at}, absorbed to {upto}")),
            Some(_) if canvas.known() < upto => Some(format!("has {} values, absorbed to {upto}", canvas.known())),
            Some(_) => None,
        };
        if let Some(problem) = problem {
            state.violations.push(format!("{slot:?} {problem}"));
        }
        state.open.insert(slot, upto);
    }
}

/// The model. The logits of a value depend on its rank, on the value before it and on the condition.
pub(crate) struct Scripted {
    spec: ModelSpec,
    conditions: Vec<u32>,
    script: Arc<Script>,
}

/// A number for a condition.
fn number(condition: &Condition) -> u32 {
    let low = condition.low.iter().flat_map(|low| (1..).zip(low.iter()));
    condition.class.unwrap_or(0) + low.map(|(place, &value)| place * u32::from(value)).sum::<u32>()
}

/// The shape of every scripted model: 3 rows of 2 pixels with 2 channels, 5 levels; 12 values.
pub(crate) fn shape() -> Shape {
    Shape::new(3, 2, 2, 5).unwrap()
}

impl Scripted {
    /// A model of small images, and its script.
    pub(crate) fn new(slots: u32) -> (Self, Arc<Script>) {
        Self::with_shape(slots, shape())
    }

    /// A model of other images, and its script.
    pub(crate) fn with_shape(slots: u32, shape: Shape) -> (Self, Arc<Script>) {
        let script = Arc::new(Script::default());
        let spec = ModelSpec {
            name: "scripted".into(),
            revision: "test".into(),
            description: "closed form, for tests".into(),
            family: "scripted",
            shape,
            palette: None,
            order: Order::Raster,
            head: Head::Categorical,
            condition: ConditionSpec { classes: 3, class_required: false, low: None },
            low_model: None,
            slots,
            bytes_per_slot: 0,
            held_out_bits_per_dim: None,
            execution: Execution::default(),
        };
        (Self { spec, conditions: vec![0; slots as usize], script: Arc::clone(&script) }, script)
    }

    fn row(&self, canvas: &Canvas, rank: Rank, condition: u32, row: &mut [f32]) {
        let before = rank.checked_sub(1).map_or(0, |before| u32::from(canvas.values()[before as usize]) + 1);
        for (level, logit) in row.iter_mut().enumerate() {
            *logit = ((rank * 7 + before * 13 + condition * 17 + level as u32 * 29) % 31) as f32 / 10.0;
        }
    }

    /// Fills rows of parameters, image by image, and spoils one if asked to.
    fn fill(&self, wanted: &[(&Canvas, Range<Rank>, u32)], fault: Option<Fault>, out: &mut ParamRows) {
        let width = self.spec.shape.levels() as usize;
        let rows: usize = wanted.iter().map(|(_, ranks, _)| ranks.len()).sum();
        let mut rows = out.resize(rows).chunks_mut(width);
        for (canvas, ranks, condition) in wanted {
            for rank in ranks.clone() {
                self.row(canvas, rank, *condition, rows.next().unwrap());
            }
        }
        if let Some(Fault::NotFinite(row)) = fault {
            out.data[row * width] = f32::NAN;
        }
    }
}

impl PixelModel for Scripted {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError> {
        if self.script.state().open.insert(slot, 0).is_some() {
            self.script.state().violations.push(format!("{slot:?} opened twice"));
        }
        self.conditions[slot.0 as usize] = number(condition);
        self.script.call(Call::Open).map(drop)
    }

    fn absorb(
        &mut self,
        slot: Slot,
        canvas: &Canvas,
        known: Range<Rank>,
        out: &mut ParamRows,
    ) -> Result<(), ModelError> {
        let fault = self.script.call(Call::Absorb)?;
        self.script.take_in(slot, canvas, known.end, false);
        self.fill(&[(canvas, known, self.conditions[slot.0 as usize])], fault, out);
        Ok(())
    }

    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        let mut state = self.script.state();
        if state.gate == Some(0) {
            state.held = true;
            self.script.changed.notify_all();
            state = self.script.changed.wait_while(state, |state| state.gate == Some(0)).unwrap();
            state.held = false;
        }
        if let Some(gate) = &mut state.gate {
            *gate -= 1;
        }
        state.batches.push(rows.len());
        let room = state.room.unwrap_or(usize::MAX);
        drop(state);
        if rows.len() > room {
            // Found out in the middle of it.
            rows.iter().take(room).for_each(|row| self.script.take_in(row.slot, row.canvas, row.canvas.known(), true));
            return Err(ModelError::Memory("scripted".into()));
        }
        let called = self.script.call(Call::Step);
        for row in rows {
            self.script.take_in(row.slot, row.canvas, row.canvas.known(), true);
        }
        // Named slots are spoilt, but the rows of the others are there.
        let fault = match called {
            Err(ModelError::Slots(_)) | Ok(_) => called.as_ref().ok().cloned().flatten(),
            Err(error) => return Err(error),
        };
        let wanted: Vec<_> = rows
            .iter()
            .map(|row| (row.canvas, row.canvas.known()..row.canvas.known() + 1, self.conditions[row.slot.0 as usize]))
            .collect();
        self.fill(&wanted, fault, out);
        called.map(drop)
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        let fault = self.script.call(Call::Score)?;
        if let Some(Fault::Stuck) = fault {
            return Ok(from);
        }
        let most = (rows_wanted / rows.len() as u32).clamp(1, 4);
        let reached = self.spec.shape.values().min(from + most);
        let wanted: Vec<_> = rows.iter().map(|row| (row.canvas, from..reached, number(row.condition))).collect();
        self.fill(&wanted, fault, out);
        Ok(reached)
    }

    fn close(&mut self, slot: Slot) {
        let mut state = self.script.state();
        if state.open.remove(&slot).is_none() {
            state.violations.push(format!("{slot:?} closed, but not open"));
        }
        drop(state);
        // A script may make closing panic, but it has no error to give.
        let _ = self.script.call(Call::Close);
    }

    fn shard(&self, slots: u32) -> Result<Box<dyn PixelModel>, ModelError> {
        let (model, script) = Self::with_shape(slots, self.spec.shape);
        // A gate that is shut before there are shards is shut for all of them.
        script.state().gate = self.script.state().gate;
        self.script.shards.lock().unwrap().push(script);
        Ok(Box::new(model))
    }
}
