//! What a loaded model promises to its callers.

use std::fmt;
use std::sync::Arc;

use crate::head::Head;
use crate::image::{Order, Palette, Shape};

/// Conditioning a model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConditionSpec {
    /// Classes; labels run 0..classes. 0: the model takes no label.
    pub classes: u32,
    /// Whether a request must name a class.
    pub class_required: bool,
    /// Shape of the low-resolution image that every image is made from; `None`: the model takes none.
    pub low: Option<Shape>,
}

/// What computes a model's steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Kernels of our own, on the CPU.
    #[default]
    Native,
    /// libtorch.
    Torch,
}

impl Backend {
    /// Its name in the configuration and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Backend::Native => "native",
            Backend::Torch => "torch",
        }
    }
}

/// Where a model's tensors are, and so what computes its passes, and its steps if their backend is libtorch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU, by the number that CUDA gives it.
    Cuda(u32),
}

/// As in the configuration and in reports.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// How the matrices of a model, and what it remembers of an image, are held. Arithmetic is in 32 bits either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits: what the package holds.
    #[default]
    F32,
    /// Rounded to bfloat16. Half the memory to read; another law, if slightly.
    Bf16,
}

impl Precision {
    /// Its name in the configuration and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Bytes of a number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }
}

/// What a step of B images cannot do without, in the mean over an image: reading matrices once and B times what an image
/// remembers, and a multiplication and an addition for each product of an image and for each number it remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepCost {
    /// Numbers of the matrices read; of those that serve a whole row of pixels at once, a pixel's share.
    pub weights: f64,
    /// Products of one image with them.
    pub products: f64,
    /// Numbers of all matrices that steps read in turn, and so find again where so many fit.
    pub resident: u64,
    /// Numbers remembered that one image reads.
    pub remembered: f64,
    /// Bytes of each.
    pub bytes_per_number: u64,
}

/// How a model is run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Execution {
    /// What computes its steps.
    pub backend: Backend,
    /// Where.
    pub device: Device,
    /// How its numbers are held.
    pub precision: Precision,
    /// Whether taking a known prefix in leaves the bits that sampling it would.
    pub absorbs_exactly: bool,
    /// Whether a step changes what it reads, as that of a recurrent network does, so that it cannot be made again.
    pub carries_state: bool,
    /// Whether every step is a full pass over what is known of the image.
    pub recomputes: bool,
    /// What a step costs at least; zero where nobody has counted.
    pub cost: StepCost,
    /// Bytes of all matrices that steps use, shared by the shards of a model.
    pub weight_bytes: u64,
}

/// Everything about a model that requests are checked against; fixed once it is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Name of the package.
    pub name: String,
    /// Digest of the package: same revision, same weights and manifest.
    pub revision: String,
    /// One line for people.
    pub description: String,
    /// Name of the family in the registry.
    pub family: &'static str,
    /// Geometry of every image.
    pub shape: Shape,
    /// Colours of its levels; `None`: levels are brightness.
    pub palette: Option<Arc<Palette>>,
    /// Order of generation.
    pub order: Order,
    /// Output law.
    pub head: Head,
    /// Conditioning.
    pub condition: ConditionSpec,
    /// Name of the model that draws the low-resolution image of a request that brings none; `None`: every request must.
    pub low_model: Option<String>,
    /// Images that can be in the making at once.
    pub slots: u32,
    /// Device memory one slot takes, in bytes.
    pub bytes_per_slot: u64,
    /// Held-out bits/dim the package's author measured.
    pub held_out_bits_per_dim: Option<f64>,
    /// How it is run.
    pub execution: Execution,
}

impl ModelSpec {
    /// Values one step decides.
    #[must_use]
    pub fn values_per_step(&self) -> u32 {
        self.head.values_per_step(self.shape)
    }
}
