//! What a family is to the rest of the program. `families` lists those there are.

use super::PixelModel;
use super::manifest::Manifest;
use super::weights::{TensorSpec, WeightsFile};
use crate::error::Violations;
use crate::spec::{Backend, Device, Precision};

/// Where and how large a model is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Images that can be in the making at once, at least 1.
    pub slots: u32,
    /// Images a scoring pass may hold, at least 1.
    pub score_images: u32,
    /// What computes its steps.
    pub backend: Backend,
    /// Where its tensors are; with [`Backend::Native`], the processor.
    pub device: Device,
    /// How its numbers are held.
    pub precision: Precision,
}

impl Placement {
    /// A placement on the processor, of the default backend and precision.
    #[must_use]
    pub fn new(slots: u32, score_images: u32) -> Self {
        Self {
            slots,
            score_images,
            backend: Backend::default(),
            device: Device::default(),
            precision: Precision::default(),
        }
    }
}

/// Builds a model. The errors are those of the manifest's `architecture` table and of the weights.
pub type Build = fn(&Manifest, Option<WeightsFile<'_>>, Placement) -> Result<Box<dyn PixelModel>, Violations>;

/// One architecture.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name in manifests and in the API.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// The tensors that the weights file of such a package holds; none for a family without weights, or whose weights file
    /// says itself what it holds. The errors are those of the manifest's `architecture` table.
    pub tensors: fn(&Manifest) -> Result<Vec<TensorSpec>, Violations>,
    /// Builds a model from its manifest and weights file, which is there if `tensors` names any.
    pub build: Build,
}
