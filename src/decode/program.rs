//! Programs: operations over registers, built by a family from its weights.

use tch::{Kind, TchError, Tensor};

use crate::spec::{Precision, StepCost};

/// Names what an operation gives: one vector for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub(super) usize);

/// What follows a linear map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(0, x).
    Relu,
}

/// to = residual + activation(weight x + bias).
#[derive(Debug)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Tensor,
    /// One number for each output.
    pub bias: Option<Tensor>,
    /// What follows.
    pub activation: Option<Activation>,
    /// As wide as the outputs.
    pub residual: Option<Register>,
}

/// Layer normalisation over the features of a row.
#[derive(Debug)]
pub struct Normalisation {
    /// One number for each feature.
    pub scale: Tensor,
    /// One number for each feature.
    pub shift: Tensor,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Attention over what the image wrote before: the row's keys and values go to its place, then each head's query is
/// compared with the keys of the places the row sees. Queries carry their scale already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Heads.
    pub heads: u32,
    /// Features of one head's query and key.
    pub head_key: u32,
    /// Features of one head's value.
    pub head_value: u32,
}

impl Attention {
    /// Numbers a row brings: queries of all heads, their keys, their values.
    pub(super) fn input_width(&self) -> u32 {
        self.heads * (2 * self.head_key + self.head_value)
    }

    /// Numbers a place holds.
    pub(super) fn place_width(&self) -> u32 {
        self.heads * (self.head_key + self.head_value)
    }
}

#[derive(Debug)]
pub(super) enum Op {
    /// The sum of the table rows that are the row's inputs.
    Embed {
        table: Tensor,
    },
    Linear {
        from: Register,
        linear: Linear,
    },
    Normalise {
        from: Register,
        normalisation: Normalisation,
    },
    Attend {
        from: Register,
        attention: Attention,
    },
}

impl Op {
    /// The registers it reads.
    pub(super) fn reads(&self) -> impl Iterator<Item = Register> + use<> {
        let (first, second) = match self {
            Op::Embed { .. } => (None, None),
            Op::Linear { from, linear } => (Some(*from), linear.residual),
            Op::Normalise { from, .. } | Op::Attend { from, .. } => (Some(*from), None),
        };
        first.into_iter().chain(second)
    }
}

/// A decode step: operation i writes register i; the last one is the output.
#[derive(Debug)]
pub struct Program {
    pub(super) ops: Vec<Op>,
    /// Of each register.
    pub(super) widths: Vec<u32>,
    /// Places an image's state has, for every attention.
    pub(super) places: u32,
    pub(super) table_rows: u32,
    pub(super) precision: Precision,
}

impl Program {
    /// Numbers of an output row.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.widths.last().copied().unwrap_or_default()
    }

    /// The precision weights and state are held in.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of one image's state.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        let numbers: u64 = self.attentions().map(|attention| u64::from(attention.place_width())).sum();
        numbers * u64::from(self.places) * self.precision.bytes()
    }

    /// What one evaluation costs at least, for rows that see `places` places in the mean.
    #[must_use]
    pub fn cost(&self, places: f64) -> StepCost {
        let mut cost = StepCost::default();
        for op in &self.ops {
            match op {
                Op::Embed { .. } | Op::Normalise { .. } => {}
                Op::Linear { linear, .. } => cost.weights += linear.weight.numel() as u64,
                Op::Attend { attention, .. } => cost.remembered += f64::from(attention.place_width()) * places,
            }
        }
        cost.bytes_per_number = self.precision.bytes();
        cost
    }

    /// For each operation, the registers that nothing reads after it.
    pub(super) fn last_reads(&self) -> Vec<Vec<Register>> {
        let mut last = vec![Vec::new(); self.ops.len()];
        for register in (0..self.ops.len()).map(Register) {
            let reader = self.ops.iter().rposition(|op| op.reads().any(|read| read == register));
            if let Some(registers) = reader.and_then(|reader| last.get_mut(reader)) {
                registers.push(register);
            }
        }
        last
    }

    fn attentions(&self) -> impl Iterator<Item = &Attention> {
        self.ops.iter().filter_map(|op| if let Op::Attend { attention, .. } = op { Some(attention) } else { None })
    }
}

/// Puts a program together, operation by operation.
#[derive(Debug)]
pub struct Builder(Program);

impl Builder {
    /// An empty program whose state has `places` places, and whose matrices are held in `precision`.
    #[must_use]
    pub fn new(places: u32, precision: Precision) -> Self {
        Self(Program { ops: Vec::new(), widths: Vec::new(), places, table_rows: u32::MAX, precision })
    }

    /// The sum of the rows of `table`, `[rows, width]`, that are a row's inputs.
    ///
    /// # Errors
    /// `table` is not a matrix.
    pub fn embed(&mut self, table: Tensor) -> Result<Register, TchError> {
        let (rows, width) = table.size2()?;
        self.0.table_rows = self.0.table_rows.min(dimension(rows)?);
        Ok(self.push(dimension(width)?, Op::Embed { table }))
    }

    /// See [`Linear`].
    ///
    /// # Errors
    /// Shapes that do not fit each other.
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
        if self.0.precision == Precision::Bf16 {
            linear.weight = linear.weight.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?;
        }
        Ok(self.push(outputs, Op::Linear { from, linear }))
    }

    /// See [`Normalisation`].
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn normalise(&mut self, from: Register, normalisation: Normalisation) -> Result<Register, TchError> {
        let width = self.width(from)?;
        fits("scale", normalisation.scale.size1()?, width)?;
        fits("shift", normalisation.shift.size1()?, width)?;
        Ok(self.push(width, Op::Normalise { from, normalisation }))
    }

    /// See [`Attention`].
    ///
    /// # Errors
    /// `from` is not as wide as queries, keys and values of all heads.
    pub fn attend(&mut self, from: Register, attention: Attention) -> Result<Register, TchError> {
        fits("attention", i64::from(attention.input_width()), self.width(from)?)?;
        Ok(self.push(attention.heads * attention.head_value, Op::Attend { from, attention }))
    }

    /// The program, whose output is what the last operation gives.
    #[must_use]
    pub fn finish(self) -> Program {
        self.0
    }

    fn width(&self, register: Register) -> Result<u32, TchError> {
        self.0.widths.get(register.0).copied().ok_or_else(|| TchError::Shape(format!("there is no {register:?}")))
    }

    fn push(&mut self, width: u32, op: Op) -> Register {
        self.0.ops.push(op);
        self.0.widths.push(width);
        Register(self.0.ops.len() - 1)
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
