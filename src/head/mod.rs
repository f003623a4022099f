//! Output laws: from the parameters a network gives for the next values to a draw and to log-probabilities.
//!
//! One type gives both, so that sampling and scoring cannot drift apart. All arithmetic is in `f64` and in a fixed order.

mod categorical;
mod tuning;

pub use tuning::{MAX_TEMPERATURE, Tuning};

use crate::image::Shape;

/// How a row of network outputs is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// One logit for each level of one value; softmax (Image Transformer 3.1, PixelRNN 2.2).
    Categorical,
}

/// A drawn value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The value, below the levels.
    pub value: u16,
    /// Natural log of its probability under the model itself: temperature 1, nothing truncated.
    pub log_prob: f64,
}

/// The row held NaN or infinity where a finite parameter must stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the network gave a parameter that is not finite")]
pub struct NotFinite;

impl Head {
    /// Length of a row of parameters.
    #[must_use]
    pub fn width(self, shape: Shape) -> usize {
        match self {
            Head::Categorical => shape.levels() as usize,
        }
    }

    /// How many values, consecutive in rank, one row decides.
    #[must_use]
    pub fn values_per_step(self, _shape: Shape) -> u32 {
        match self {
            Head::Categorical => 1,
        }
    }

    /// Draws the value for the uniform number `u` by inverse CDF, levels ascending.
    ///
    /// # Errors
    /// [`NotFinite`] if a parameter is NaN or infinite.
    pub fn draw(self, row: &[f32], tuning: &Tuning, u: f64) -> Result<Draw, NotFinite> {
        match self {
            Head::Categorical => categorical::draw(row, tuning, u),
        }
    }

    /// Natural log of the probability of `value` under the model.
    ///
    /// # Errors
    /// [`NotFinite`] if a parameter is NaN or infinite, or `value` is beyond the row.
    pub fn log_prob(self, row: &[f32], value: u16) -> Result<f64, NotFinite> {
        match self {
            Head::Categorical => categorical::log_prob(row, value),
        }
    }
}
