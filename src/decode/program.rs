//! Programs: operations over registers, built by a family from its weights, over state that programs of a network share.

use tch::{Kind, TchError, Tensor};

use super::op::{Activation, Attention, Linear, Normalisation, Op, Part, Passing, Sight};
use crate::spec::{Device, Precision, StepCost};
use crate::torch;

/// Stands in [`Rows`](super::Rows) for a place outside the image: what is taken from there is zero.
pub const NOWHERE: u32 = u32::MAX;

/// Names what an operation gives: one vector for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub(super) usize);

/// Names a memory of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory(pub(super) usize);

/// Names the keys and values of one attention of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring(pub(super) usize);

/// Names a program of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramId(pub(super) usize);

/// Names some of the places that each row of a program brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taps {
    pub(super) first: usize,
    pub(super) count: usize,
    /// Every place is below it.
    places: u32,
}

/// A straight line of operations: operation i writes register i.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) ops: Vec<Op>,
    /// Of each register; 0 for operations that only write state.
    pub(super) widths: Vec<u32>,
    /// What a row of it gives.
    pub(super) output: Option<Register>,
    pub(super) needs: Needs,
}

/// What every row of a program must bring, and may name.
#[derive(Clone, Debug)]
pub(super) struct Needs {
    /// Rows of the smallest table.
    pub(super) table_rows: u32,
    /// Numbers for [`Op::Input`].
    pub(super) numbers: u32,
    /// One more than the highest place, for each place of the row.
    pub(super) places: Vec<u32>,
    /// Places of the rings that the row's place lies in; 0 if it is not asked for one.
    pub(super) ring: u32,
    /// Whether it looks at what it sees.
    pub(super) looks: bool,
    /// Numbers of the output.
    pub(super) width: usize,
}

impl Program {
    /// For each operation, the registers that nothing reads after it; the output is never among them.
    pub(super) fn last_reads(&self) -> Vec<Vec<Register>> {
        let mut last = vec![Vec::new(); self.ops.len()];
        for register in (0..self.ops.len()).map(Register).filter(|register| Some(*register) != self.output) {
            let reader = self.ops.iter().rposition(|op| op.reads().contains(&register));
            // What nothing ever reads goes with the operation that made it.
            if let Some(registers) = last.get_mut(reader.unwrap_or(register.0)) {
                registers.push(register);
            }
        }
        last
    }

    /// Numbers of a row of `register`.
    pub(super) fn width(&self, register: Register) -> Option<u32> {
        self.widths.get(register.0).copied()
    }

    /// Whether it works on memories rather than on rings.
    pub(super) fn has_memory(&self) -> bool {
        !self.needs.places.is_empty()
    }
}

/// Programs, and the shape of the state they share: what one image remembers.
#[derive(Debug)]
pub struct Network {
    pub(super) programs: Vec<Program>,
    /// Width and places of each memory.
    pub(super) memories: Vec<(u32, u32)>,
    /// Shape and places of each ring.
    pub(super) rings: Vec<(Attention, u32)>,
    pub(super) precision: Precision,
    /// Where its tensors are.
    pub(super) device: tch::Device,
}

impl Network {
    /// No programs and no state yet. Matrices, and what rings hold, will be held in `precision`, on `device`.
    #[must_use]
    pub fn new(precision: Precision, device: Device) -> Self {
        let device = torch::place(device);
        Self { programs: Vec::new(), memories: Vec::new(), rings: Vec::new(), precision, device }
    }

    /// A memory of `places` vectors of `width` numbers.
    pub fn memory(&mut self, width: u32, places: u32) -> Memory {
        self.memories.push((width, places));
        Memory(self.memories.len() - 1)
    }

    /// Every memory with its width and places.
    #[cfg(test)]
    pub(crate) fn memories(&self) -> impl Iterator<Item = (Memory, u32, u32)> {
        self.memories.iter().enumerate().map(|(index, &(width, places))| (Memory(index), width, places))
    }

    /// Keys and values of `places` places.
    pub fn ring(&mut self, attention: Attention, places: u32) -> Ring {
        self.rings.push((attention, places));
        Ring(self.rings.len() - 1)
    }

    /// Begins a program.
    pub fn program(&mut self) -> Builder<'_> {
        let needs = Needs { table_rows: u32::MAX, numbers: 0, places: Vec::new(), ring: 0, looks: false, width: 0 };
        Builder { network: self, program: Program { ops: Vec::new(), widths: Vec::new(), output: None, needs } }
    }

    /// The precision weights and rings are held in.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether a program advances a long short-term memory, whose state it may write where it read it.
    #[must_use]
    pub fn has_cells(&self) -> bool {
        self.programs.iter().flat_map(|program| &program.ops).any(|op| matches!(op, Op::Cell { .. }))
    }

    /// Bytes of all matrices.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        let programs = (0..self.programs.len()).map(ProgramId);
        programs.map(|program| self.cost(program, 0.0).resident).sum::<u64>() * self.precision.bytes()
    }

    /// Numbers of the widest register.
    #[must_use]
    pub fn widest(&self) -> u32 {
        self.programs.iter().flat_map(|program| &program.widths).copied().max().unwrap_or(0)
    }

    /// Bytes of one image's state.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        super::state_bytes(&self.memories, &self.rings, self.precision)
    }

    /// What one evaluation of `program` costs at least, for rows that see `places` places in the mean.
    #[must_use]
    pub fn cost(&self, program: ProgramId, places: f64) -> StepCost {
        let mut cost = StepCost { bytes_per_number: self.precision.bytes(), ..StepCost::default() };
        for op in self.programs.get(program.0).map(|program| program.ops.as_slice()).unwrap_or_default() {
            match op {
                Op::Linear { linear, .. } => cost.resident += linear.weight.numel() as u64,
                Op::Look { ring, sight, .. } => {
                    if let Some((attention, all)) = self.rings.get(ring.0) {
                        let seen = if *sight == Sight::All { f64::from(*all) } else { places };
                        cost.remembered += f64::from(attention.place_width()) * seen;
                    }
                }
                _ => {}
            }
        }
        let numbers = cost.resident as f64;
        StepCost { weights: numbers, products: numbers, ..cost }
    }
}

/// Puts a program together, operation by operation.
#[derive(Debug)]
pub struct Builder<'n> {
    network: &'n mut Network,
    program: Program,
}

impl Builder<'_> {
    /// See [`Network::memory`].
    pub fn memory(&mut self, width: u32, places: u32) -> Memory {
        self.network.memory(width, places)
    }

    /// Every row will bring `count` places below `places`, or [`NOWHERE`]. Taps follow each other in a row in the order in
    /// which they were asked for.
    pub fn taps(&mut self, count: usize, places: u32) -> Taps {
        let taps = Taps { first: self.program.needs.places.len(), count, places };
        self.program.needs.places.resize(taps.first + count, places);
        taps
    }

    /// The sum of the rows of `table`, `[rows, width]`, that are a row's inputs.
    ///
    /// # Errors
    /// `table` is not a matrix.
    pub fn embed(&mut self, table: Tensor) -> Result<Register, TchError> {
        let (rows, width) = table.size2()?;
        self.program.needs.table_rows = self.program.needs.table_rows.min(dimension(rows)?);
        Ok(self.push(dimension(width)?, Op::Embed { table: table.f_to_device(self.network.device)? }))
    }

    /// The numbers that a row brings, `width` of them; a program can have one such operation.
    ///
    /// # Errors
    /// It has one already.
    pub fn input(&mut self, width: u32) -> Result<Register, TchError> {
        fits("numbers of a row", i64::from(self.program.needs.numbers), 0)?;
        self.program.needs.numbers = width;
        Ok(self.push(width, Op::Input))
    }

    /// See [`Linear`].
    ///
    /// # Errors
    /// Shapes that do not fit each other, or an activation that cannot follow.
    pub fn linear(&mut self, from: Register, mut linear: Linear) -> Result<Register, TchError> {
        let (outputs, inputs) = linear.weight.size2()?;
        let outputs = dimension(outputs)?;
        fits("weight", inputs, self.width(from)?)?;
        if let Some(bias) = &linear.bias {
            fits("bias", bias.size1()?, outputs)?;
        }
        if let Some(residual) = linear.residual {
            fits("residual", i64::from(self.width(residual)?), outputs)?;
        }
        if let Some(activation) = linear.activation.filter(|activation| *activation != Activation::Relu) {
            return Err(TchError::Shape(format!("{activation:?} cannot follow a linear map")));
        }
        if self.network.precision == Precision::Bf16 {
            linear.weight = linear.weight.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?;
        }
        // Output beside output in memory, which is how libtorch multiplies few rows best.
        linear.weight = linear.weight.f_tr()?.f_contiguous()?.f_to_device(self.network.device)?.f_tr()?;
        linear.bias = linear.bias.map(|bias| bias.f_to_device(self.network.device)).transpose()?;
        Ok(self.push(outputs, Op::Linear { from, linear }))
    }

    /// See [`Normalisation`].
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn normalise(&mut self, from: Register, mut normalisation: Normalisation) -> Result<Register, TchError> {
        let width = self.width(from)?;
        fits("scale", normalisation.scale.size1()?, width)?;
        if let Some(shift) = &normalisation.shift {
            fits("shift", shift.size1()?, width)?;
        }
        let Normalisation { scale, shift, .. } = &mut normalisation;
        for tensor in [Some(scale), shift.as_mut()].into_iter().flatten() {
            *tensor = tensor.f_to_device(self.network.device)?;
        }
        Ok(self.push(width, Op::Normalise { from, normalisation }))
    }

    /// activation(from), element by element.
    ///
    /// # Errors
    /// There is no such register.
    pub fn activate(&mut self, from: Register, activation: Activation) -> Result<Register, TchError> {
        let width = self.width(from)? * activation.widens();
        Ok(self.push(width, Op::Activate { from, activation }))
    }

    /// first + second.
    ///
    /// # Errors
    /// They are not of one width.
    pub fn add(&mut self, first: Register, second: Register) -> Result<Register, TchError> {
        let width = self.width(first)?;
        fits("second", i64::from(self.width(second)?), width)?;
        Ok(self.push(width, Op::Add { first, second }))
    }

    /// residual + passing(first half of `from`) x sigmoid(second half).
    ///
    /// # Errors
    /// `from` has no halves, or `residual` is not as wide as one.
    pub fn gate(&mut self, from: Register, passing: Passing, residual: Option<Register>) -> Result<Register, TchError> {
        let width = self.width(from)?;
        fits("halves", i64::from(width % 2), 0)?;
        if let Some(residual) = residual {
            fits("residual", i64::from(self.width(residual)?), width / 2)?;
        }
        Ok(self.push(width / 2, Op::Gate { from, passing, residual }))
    }

    /// With `gates` = o, f, i, g and `carried` = c: c' = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c'). Gives
    /// c' and then h (PixelRNN, section 3.1).
    ///
    /// # Errors
    /// `gates` is not four times as wide as `carried`.
    pub fn cell(&mut self, gates: Register, carried: Register) -> Result<Register, TchError> {
        let width = self.width(carried)?;
        fits("gates", i64::from(self.width(gates)?), 4 * width)?;
        Ok(self.push(2 * width, Op::Cell { gates, carried }))
    }

    /// `parts` side by side.
    ///
    /// # Errors
    /// A part names what is not there.
    pub fn gather(&mut self, parts: Vec<Part>) -> Result<Register, TchError> {
        let mut width = 0;
        for part in &parts {
            width += match *part {
                Part::Register { register, column, width } => {
                    if column + width > self.width(register)? {
                        return Err(TchError::Shape(format!("{part:?} reaches beyond the register")));
                    }
                    width
                }
                Part::Memory { memory, taps, column, width } => {
                    self.check_taps(memory, taps, column + width)?;
                    width * taps.count as u32
                }
            };
        }
        Ok(self.push(width, Op::Gather { parts }))
    }

    /// Writes `from` to the place of `taps` in `memory`, from column `column` on. One that is several times as wide as the
    /// memory goes to as many neighbouring places.
    ///
    /// # Errors
    /// It does not fit.
    pub fn remember(&mut self, from: Register, memory: Memory, taps: Taps, column: u32) -> Result<(), TchError> {
        let (width, places) = self.memory_shape(memory)?;
        let given = self.width(from)?;
        fits("places of what is remembered", taps.count as i64, 1)?;
        if given > width && given % width.max(1) == 0 && column == 0 {
            fits("places", i64::from(taps.places + given / width - 1), places)?;
        } else {
            self.check_taps(memory, taps, column + given)?;
        }
        self.push(0, Op::Remember { from, memory, taps, column });
        Ok(())
    }

    /// Writes keys and values of all heads, which `from` holds one after the other, to the row's place of `ring`.
    ///
    /// # Errors
    /// `from` is not as wide as they are.
    pub fn store(&mut self, from: Register, ring: Ring) -> Result<(), TchError> {
        let (attention, places) = self.ring_shape(ring)?;
        fits("keys and values", i64::from(self.width(from)?), attention.place_width())?;
        self.use_ring(places)?;
        self.push(0, Op::Store { from, ring });
        Ok(())
    }

    /// Attention: each head's query in `from` is compared with the keys of the places of `ring` in `sight`, whose values
    /// are mixed accordingly.
    ///
    /// # Errors
    /// `from` is not as wide as the queries.
    pub fn look(&mut self, from: Register, ring: Ring, sight: Sight) -> Result<Register, TchError> {
        let (attention, places) = self.ring_shape(ring)?;
        fits("queries", i64::from(self.width(from)?), attention.query_width())?;
        if sight == Sight::Seen {
            self.program.needs.looks = true;
            self.use_ring(places)?;
        }
        Ok(self.push(attention.value_width(), Op::Look { from, ring, sight }))
    }

    /// Ends the program; a row of it gives `output`.
    ///
    /// # Errors
    /// There is no such register, or it works on memories and rings both, which no backend can do.
    pub fn finish(mut self, output: Option<Register>) -> Result<ProgramId, TchError> {
        if let Some(output) = output {
            self.program.needs.width = self.width(output)? as usize;
        }
        let has_rings = self.program.ops.iter().any(|op| matches!(op, Op::Store { .. } | Op::Look { .. }));
        fits("rings beside memories", i64::from(has_rings && self.program.has_memory()), 0)?;
        fits("rings that rows do not stand in", i64::from(has_rings && self.program.needs.ring == 0), 0)?;
        self.program.output = output;
        self.network.programs.push(self.program);
        Ok(ProgramId(self.network.programs.len() - 1))
    }

    /// How wide `register` is.
    ///
    /// # Errors
    /// There is no such register.
    pub fn width(&self, register: Register) -> Result<u32, TchError> {
        self.program.widths.get(register.0).copied().ok_or_else(|| TchError::Shape(format!("there is no {register:?}")))
    }

    fn memory_shape(&self, memory: Memory) -> Result<(u32, u32), TchError> {
        let found = self.network.memories.get(memory.0).copied();
        found.ok_or_else(|| TchError::Shape(format!("there is no {memory:?}")))
    }

    fn ring_shape(&self, ring: Ring) -> Result<(Attention, u32), TchError> {
        let found = self.network.rings.get(ring.0).copied();
        found.ok_or_else(|| TchError::Shape(format!("there is no {ring:?}")))
    }

    /// The row's place is one for all rings that it writes to or looks at.
    fn use_ring(&mut self, places: u32) -> Result<(), TchError> {
        let needs = &mut self.program.needs;
        if needs.ring != 0 {
            fits("ring", i64::from(places), needs.ring)?;
        }
        needs.ring = places;
        Ok(())
    }

    /// Refuses taps that lead beyond `memory`, or columns up to `end` that it does not have.
    fn check_taps(&self, memory: Memory, taps: Taps, end: u32) -> Result<(), TchError> {
        let (width, places) = self.memory_shape(memory)?;
        if taps.places > places || end > width {
            return Err(TchError::Shape(format!("{taps:?} up to column {end} of {places} places {width} wide")));
        }
        Ok(())
    }

    fn push(&mut self, width: u32, op: Op) -> Register {
        self.program.ops.push(op);
        self.program.widths.push(width);
        Register(self.program.ops.len() - 1)
    }
}

fn dimension(length: i64) -> Result<u32, TchError> {
    u32::try_from(length).map_err(|_| TchError::Shape(format!("a dimension of {length}")))
}

fn fits(what: &str, length: i64, wanted: u32) -> Result<(), TchError> {
    if length == i64::from(wanted) {
        return Ok(());
    }
    Err(TchError::Shape(format!("{what} must be {wanted} wide, got {length}")))
}

/// The numbers of `tensor` in memory order of a contiguous tensor.
pub(super) fn numbers(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let mut numbers = vec![0f32; tensor.numel()];
    tensor.f_to_kind(Kind::Float)?.f_contiguous()?.f_copy_data(&mut numbers, tensor.numel())?;
    Ok(numbers)
}
