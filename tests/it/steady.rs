//! A model in closed form that the tests can hold still, count and break.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use pixeld::head::Head;
use pixeld::image::{Canvas, Order, Palette, Rank, Shape};
use pixeld::model::{Condition, ModelError, ParamRows, PixelModel, ScoreRow, Slot, StepRow};
use pixeld::spec::{Backend, ConditionSpec, Execution, ModelSpec};

/// How far a logit falls for each level away from the centre.
const SHARPNESS: f32 = 0.25;
/// A test that waits longer for anything has found a bug.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a test decides while the model runs.
#[derive(Debug, Default)]
struct Script {
    /// Steps it may still take; `None` is no limit.
    steps: Option<u64>,
    /// Steps that stand at the gate now.
    blocked: bool,
    /// Every call from now on fails for good.
    broken: bool,
    /// What befalls the next step of so many images.
    trouble: Option<(usize, Trouble)>,
}

/// What goes wrong in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    /// The parameters of this image.
    NotFinite(usize),
    /// The state of this image.
    SpoiltSlot(usize),
    /// All of it.
    Failed,
    /// All of it, and loudly.
    Panic,
    /// There is no memory for it, so many times; after the first it is asked for in smaller parts.
    NoMemory(u32),
}

/// Holds the model's steps back, or lets them go. Opens when it is dropped: a failed test must not leave an engine behind
/// that nobody can stop.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shared: Shared,
}

type Shared = Arc<(Mutex<Script>, Condvar)>;

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.0.lock().unwrap());
        self.shared.1.notify_all();
    }

    /// Lets this many more steps through, and no more.
    pub(crate) fn allow(&self, steps: u64) {
        self.change(|script| script.steps = Some(steps));
    }

    /// Lets everything through.
    pub(crate) fn open(&self) {
        self.change(|script| script.steps = None);
    }

    /// Lets the next step of `images` images go wrong.
    pub(crate) fn trouble(&self, images: usize, trouble: Trouble) {
        self.change(|script| script.trouble = Some((images, trouble)));
    }

    /// Makes every later step fail beyond repair.
    pub(crate) fn break_model(&self) {
        self.change(|script| script.broken = true);
    }

    /// Resolves when a step stands at the closed gate.
    pub(crate) async fn blocked(&self) {
        let shared = Arc::clone(&self.shared);
        let waiting = tokio::task::spawn_blocking(move || {
            let (script, changed) = &*shared;
            let script = script.lock().unwrap();
            let (_script, late) = changed.wait_timeout_while(script, PATIENCE, |script| !script.blocked).unwrap();
            assert!(!late.timed_out(), "no step came to the gate");
        });
        waiting.await.unwrap();
    }
}

/// Called by a step of `images` images; says what befalls it.
fn pass((script, changed): &(Mutex<Script>, Condvar), images: usize) -> Result<Option<Trouble>, ModelError> {
    let mut script = script.lock().unwrap();
    if script.broken {
        return Err(ModelError::Fatal("broken by the test".into()));
    }
    if script.steps == Some(0) {
        script.blocked = true;
        changed.notify_all();
        script = changed.wait_while(script, |script| script.steps == Some(0)).unwrap();
        script.blocked = false;
    }
    if let Some(steps) = &mut script.steps {
        *steps -= 1;
    }
    let trouble = script.trouble.take_if(|(wanted, _)| *wanted == images).map(|(_, trouble)| trouble);
    match trouble {
        Some(Trouble::Failed) => Err(ModelError::Step("failed by the test".into())),
        Some(Trouble::Panic) => {
            drop(script);
            panic!("by the test");
        }
        Some(Trouble::NoMemory(times)) => {
            // The first half is asked for next.
            let half = (images / 2, Trouble::NoMemory(times - 1));
            script.trouble = Some(half).filter(|_| times > 1);
            Err(ModelError::Memory("by the test".into()))
        }
        other => Ok(other),
    }
}

/// The model: the weight of value v falls with its distance from the value before, shifted by the class.
pub(crate) struct Steady {
    spec: ModelSpec,
    gate: Shared,
    slots: Vec<Condition>,
    /// Added to every level that is likely.
    shift: u32,
}

impl Steady {
    /// A model called `name` with two classes and `slots` slots.
    pub(crate) fn new(name: &str, shape: Shape, slots: u32, gate: &Gate) -> Self {
        let spec = ModelSpec {
            name: name.into(),
            revision: "0123456789abcdef".into(),
            description: "for tests".into(),
            family: "toy",
            shape,
            palette: None,
            order: Order::Raster,
            head: Head::Categorical,
            condition: ConditionSpec { classes: 2, class_required: false, low: None },
            low_model: None,
            slots,
            bytes_per_slot: 8,
            held_out_bits_per_dim: None,
            execution: Execution::default(),
        };
        Self { spec, gate: Arc::clone(&gate.shared), slots: vec![Condition::default(); slots as usize], shift: 0 }
    }

    /// The same as another revision, whose likely levels are `shift` higher.
    pub(crate) fn revised(mut self, revision: &str, shift: u32) -> Self {
        self.spec.revision = revision.into();
        self.shift = shift;
        self
    }

    /// The same with so many bytes of weights, in libtorch.
    pub(crate) fn weighing(mut self, weight_bytes: u64) -> Self {
        self.spec.execution = Execution { backend: Backend::Torch, weight_bytes, ..self.spec.execution };
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// The same, taking a class label below `classes`, or needing one.
    pub(crate) fn of_classes(mut self, classes: u32, class_required: bool) -> Self {
        self.spec.condition = ConditionSpec { classes, class_required, ..self.spec.condition };
        self
    }

    /// The same, whose levels are the colours of `palette`.
    pub(crate) fn coloured(mut self, palette: Palette) -> Self {
        self.spec.palette = Some(palette.into());
        self
    }

    /// The same, making images from low-resolution ones, which `model` draws.
    pub(crate) fn enlarging(mut self, low: Shape, model: &str) -> Self {
        self.spec.condition.low = Some(low);
        self.spec.low_model = Some(model.into());
        self
    }

    fn logits(&self, condition: &Condition, values: &[u16], rank: Rank, row: &mut [f32]) {
        let before = if rank == 0 { 0 } else { u32::from(values[rank as usize - 1]) };
        let centre = (before + self.shift + condition.class.map_or(0, |class| class + 1)) % row.len() as u32;
        for (level, logit) in (0..).zip(row) {
            *logit = -SHARPNESS * centre.abs_diff(level) as f32;
        }
    }
}

impl PixelModel for Steady {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError> {
        self.slots[slot.0 as usize] = condition.clone();
        Ok(())
    }

    fn absorb(
        &mut self,
        slot: Slot,
        canvas: &Canvas,
        known: Range<Rank>,
        out: &mut ParamRows,
    ) -> Result<(), ModelError> {
        let (condition, width) = (&self.slots[slot.0 as usize], out.width());
        for (rank, row) in known.clone().zip(out.resize(known.len()).chunks_exact_mut(width)) {
            self.logits(condition, canvas.values(), rank, row);
        }
        Ok(())
    }

    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        let trouble = pass(&self.gate, rows.len())?;
        let width = out.width();
        for (StepRow { slot, canvas }, row) in rows.iter().zip(out.resize(rows.len()).chunks_exact_mut(width)) {
            self.logits(&self.slots[slot.0 as usize], canvas.values(), canvas.known(), row);
        }
        match trouble {
            Some(Trouble::NotFinite(image)) => out.resize(rows.len())[image * width] = f32::NAN,
            Some(Trouble::SpoiltSlot(image)) => return Err(ModelError::Slots(vec![rows[image].slot])),
            _ => {}
        }
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        _rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        let (values, width) = (self.spec.shape.values(), out.width());
        let all = rows.iter().flat_map(|row| (from..values).map(move |rank| (row, rank)));
        let room = out.resize(rows.len() * (values - from) as usize);
        for ((image, rank), row) in all.zip(room.chunks_exact_mut(width)) {
            self.logits(image.condition, image.canvas.values(), rank, row);
        }
        Ok(values)
    }

    fn close(&mut self, _slot: Slot) {}

    fn shard(&self, slots: u32) -> Result<Box<dyn PixelModel>, ModelError> {
        Ok(Box::new(Self {
            spec: ModelSpec { slots, ..self.spec.clone() },
            gate: Arc::clone(&self.gate),
            slots: vec![Condition::default(); slots as usize],
            shift: self.shift,
        }))
    }
}
