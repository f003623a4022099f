//! The families there are. Adding one is one file in `families/` and one line here.

use super::PixelModel;
use super::families::toy;
use super::manifest::Manifest;
use crate::error::Violations;

/// Where and how large a model is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Images that can be in the making at once, at least 1.
    pub slots: u32,
    /// Images a scoring pass may hold, at least 1.
    pub score_images: u32,
}

/// One architecture.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name in manifests and in the API.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Builds a model from its manifest and weights file (empty if the manifest names none).
    pub build: fn(&Manifest, &[u8], Placement) -> Result<Box<dyn PixelModel>, Violations>,
}

/// Every family; the CLI, the API listing and the conformance suite walk this slice.
pub const FAMILIES: &[Family] = &[toy::FAMILY];
