//! Output laws: from the parameters a network gives for the next values to a draw and to log-probabilities.
//!
//! One type gives both, so that sampling and scoring cannot drift apart. All arithmetic is in `f64` and in a fixed order.

mod categorical;
mod layout;
mod mixture;
mod table;
mod tuning;

pub use layout::Layout;
pub use mixture::MAX_COMPONENTS;
pub use tuning::{MAX_TEMPERATURE, Tuning};

use crate::image::{Canvas, Rank, Shape};

/// How a row of network outputs is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// One logit for each level of one value; softmax (Image Transformer 3.1, PixelRNN 2.2).
    Categorical,
    /// One logit for each level of each channel of a pixel, channel after channel: the channels have a softmax each, and are
    /// independent given the pixels before. Not the law of any of the papers, but of most public categorical models.
    FactorisedCategorical,
    /// Components of one mixture of discretised logistics over all channels of a pixel (PixelCNN++ 2.1 and 2.2), which it
    /// gives one channel at a time. A row holds the K logits, then for each channel K means, for each channel K
    /// log-scales, and for each channel and each before it K coefficients.
    LogisticMixture {
        /// K, 1..=[`MAX_COMPONENTS`].
        components: u32,
    },
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
            Head::FactorisedCategorical => shape.channels() as usize * shape.levels() as usize,
            Head::LogisticMixture { components } => mixture::width(components, shape.channels()),
        }
    }

    /// How many values, consecutive in rank, one row decides.
    #[must_use]
    pub fn values_per_step(self, shape: Shape) -> u32 {
        match self {
            Head::Categorical => 1,
            Head::FactorisedCategorical | Head::LogisticMixture { .. } => shape.channels(),
        }
    }

    /// Draws the next value of `canvas` for the uniform number `u` by inverse CDF, levels ascending. `row` is the one that
    /// decides it; the values that the same row has decided already are part of its law.
    ///
    /// # Errors
    /// [`NotFinite`] if a parameter is NaN or infinite, or the row has another length.
    pub fn draw(self, row: &[f32], canvas: &Canvas, tuning: &Tuning, u: f64) -> Result<Draw, NotFinite> {
        match self {
            Head::Categorical => categorical::draw(row, tuning, u),
            Head::FactorisedCategorical => {
                categorical::draw(self.logits_of(row, canvas.shape(), canvas.known())?, tuning, u)
            }
            Head::LogisticMixture { components } => {
                let (shape, earlier) = (canvas.shape(), self.earlier(canvas, canvas.known()));
                mixture::draw(row, components, shape, earlier, tuning, u)
            }
        }
    }

    /// Natural log of the probability that `row`, which decides the value at `rank`, gives the value that `canvas` holds
    /// there.
    ///
    /// # Errors
    /// [`NotFinite`] if a parameter is NaN or infinite, or the row has another length; also if `canvas` holds no value
    /// there.
    pub fn log_prob(self, row: &[f32], canvas: &Canvas, rank: Rank) -> Result<f64, NotFinite> {
        let value = *canvas.values().get(rank as usize).ok_or(NotFinite)?;
        match self {
            Head::Categorical => categorical::log_prob(row, value),
            Head::FactorisedCategorical => categorical::log_prob(self.logits_of(row, canvas.shape(), rank)?, value),
            Head::LogisticMixture { components } => {
                mixture::log_prob(row, components, canvas.shape(), self.earlier(canvas, rank), value)
            }
        }
    }

    /// The part of a factorised row that is about the channel of `rank`.
    fn logits_of(self, row: &[f32], shape: Shape, rank: Rank) -> Result<&[f32], NotFinite> {
        let levels = shape.levels() as usize;
        let first = (rank % shape.channels()) as usize * levels;
        row.get(first..first + levels).filter(|_| row.len() == self.width(shape)).ok_or(NotFinite)
    }

    /// The values that the row of `rank` decides before that one.
    fn earlier(self, canvas: &Canvas, rank: Rank) -> &[u16] {
        let first = rank - rank % self.values_per_step(canvas.shape()).max(1);
        canvas.values().get(first as usize..rank as usize).unwrap_or_default()
    }
}
