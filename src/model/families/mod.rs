//! One file for each architecture, in the order of its paper. See `model::FAMILIES`.

pub mod toy;
