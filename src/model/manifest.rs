//! `model.toml`: what a package says about itself.

/// A parsed and checked manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {}
