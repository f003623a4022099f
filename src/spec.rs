//! What a loaded model promises to its callers.

use crate::head::Head;
use crate::image::{Order, Shape};

/// Conditioning a model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConditionSpec {
    /// Classes; labels run 0..classes. 0: the model takes no label.
    pub classes: u32,
    /// Whether a request must name a class.
    pub class_required: bool,
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
    /// Order of generation.
    pub order: Order,
    /// Output law.
    pub head: Head,
    /// Conditioning.
    pub condition: ConditionSpec,
    /// Images that can be in the making at once.
    pub slots: u32,
    /// Device memory one slot takes, in bytes.
    pub bytes_per_slot: u64,
    /// Held-out bits/dim the package's author measured.
    pub held_out_bits_per_dim: Option<f64>,
}

impl ModelSpec {
    /// Values one step decides.
    #[must_use]
    pub fn values_per_step(&self) -> u32 {
        self.head.values_per_step(self.shape)
    }
}
