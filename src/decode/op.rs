//! Operations: what a program can do with registers and state.

use tch::Tensor;

use super::program::{Memory, Register, Ring, Taps};

/// A function of numbers one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(0, x). The only one that may follow a linear map in the same operation.
    Relu,
    /// ELU of x and then ELU of -x: twice as wide (PixelCNN++, section 2).
    ConcatElu,
    /// x Phi(x), Phi being the distribution function of the normal law (Hendrycks and Gimpel, arXiv 1606.08415).
    Gelu,
    /// The same with Phi(x) taken for (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (section 2 there).
    GeluTanh,
    /// The same with Phi(x) taken for sigmoid(1.702 x) (section 2 there).
    GeluSigmoid,
}

impl Activation {
    /// How many times as wide the result is.
    pub(super) fn widens(self) -> u32 {
        match self {
            Activation::ConcatElu => 2,
            Activation::Relu | Activation::Gelu | Activation::GeluTanh | Activation::GeluSigmoid => 1,
        }
    }
}

/// to = residual + activation(weight x + bias).
#[derive(Debug, Default)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Tensor,
    /// One number for each output.
    pub bias: Option<Tensor>,
    /// What follows: [`Activation::Relu`], if anything.
    pub activation: Option<Activation>,
    /// As wide as the outputs.
    pub residual: Option<Register>,
}

/// Layer normalisation over the features of a row: (x - mean) / sqrt(variance + epsilon) x scale + shift. Without a shift, it
/// leaves the mean out too: x / sqrt(mean of x^2 + epsilon) x scale (Zhang and Sennrich, arXiv 1910.07467).
#[derive(Debug)]
pub struct Normalisation {
    /// One number for each feature.
    pub scale: Tensor,
    /// One number for each feature, if any.
    pub shift: Option<Tensor>,
    /// Added to the variance, or to the mean square.
    pub epsilon: f64,
}

/// Shape of an attention. Queries carry their scale already.
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
    /// Numbers of the queries of all heads.
    pub(super) fn query_width(&self) -> u32 {
        self.heads * self.head_key
    }

    /// Numbers a place holds: keys of all heads, then their values.
    pub(super) fn place_width(&self) -> u32 {
        self.heads * (self.head_key + self.head_value)
    }

    /// Numbers that attention gives.
    pub(super) fn value_width(&self) -> u32 {
        self.heads * self.head_value
    }
}

/// What a row of an attention may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The places that the row says.
    Seen,
    /// Every place of the ring.
    All,
}

/// A part of a [`Builder::gather`](super::Builder::gather).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `width` numbers of a register from column `column` on.
    Register {
        /// Where from.
        register: Register,
        /// First column.
        column: u32,
        /// Columns.
        width: u32,
    },
    /// Of each place of `taps` in turn, `width` numbers of `memory` from column `column` on.
    Memory {
        /// Where from.
        memory: Memory,
        /// Which places.
        taps: Taps,
        /// First column.
        column: u32,
        /// Columns.
        width: u32,
    },
}

/// What a gate does to the half that passes it (Gated PixelCNN, eq. 2; PixelCNN++, section 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// tanh.
    Tanh,
    /// Nothing.
    Identity,
}

#[derive(Debug)]
pub(super) enum Op {
    /// The sum of the table rows that are the row's inputs.
    Embed { table: Tensor },
    /// The numbers of the row.
    Input,
    /// See [`Linear`].
    Linear { from: Register, linear: Linear },
    /// See [`Normalisation`].
    Normalise { from: Register, normalisation: Normalisation },
    /// Element by element.
    Activate { from: Register, activation: Activation },
    /// first + second.
    Add { first: Register, second: Register },
    /// residual + passing(first half) x sigmoid(second half).
    Gate { from: Register, passing: Passing, residual: Option<Register> },
    /// One step of a long short-term memory.
    Cell { gates: Register, carried: Register },
    /// Parts put side by side.
    Gather { parts: Vec<Part> },
    /// Writes a register to a memory, or to neighbouring places of it.
    Remember { from: Register, memory: Memory, taps: Taps, column: u32 },
    /// Writes keys and values to the row's place.
    Store { from: Register, ring: Ring },
    /// Compares each head's query with the keys of what the row sees and mixes the values.
    Look { from: Register, ring: Ring, sight: Sight },
}

impl Op {
    /// The registers it reads.
    pub(super) fn reads(&self) -> Vec<Register> {
        match self {
            Op::Embed { .. } | Op::Input => Vec::new(),
            Op::Linear { from, linear } => [Some(*from), linear.residual].into_iter().flatten().collect(),
            Op::Gate { from, residual, .. } => [Some(*from), *residual].into_iter().flatten().collect(),
            Op::Normalise { from, .. }
            | Op::Activate { from, .. }
            | Op::Remember { from, .. }
            | Op::Store { from, .. }
            | Op::Look { from, .. } => vec![*from],
            Op::Add { first, second } => vec![*first, *second],
            Op::Cell { gates, carried } => vec![*gates, *carried],
            Op::Gather { parts } => parts
                .iter()
                .filter_map(|part| if let Part::Register { register, .. } = part { Some(*register) } else { None })
                .collect(),
        }
    }
}
