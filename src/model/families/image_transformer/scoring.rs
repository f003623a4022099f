//! The parallel causal pass: many ranks at once of one block, over rings that hold what came before.

use std::ops::Range;

use tch::{TchError, Tensor};

use super::MAX_FLOATS;
use super::config::Config;
use super::layer::{Window, Write};
use super::network::{Network, Rings};
use crate::image::Rank;
use crate::model::{ModelError, ParamRows, ScoreRow};

/// Where a piece that starts at `from` ends, for `images` images and about `rows_wanted` rows: at the block's border, or
/// before it where the logits or the attention scores would grow too large.
pub(super) fn piece_end(config: &Config, images: u32, from: Rank, rows_wanted: u32) -> Rank {
    let border = (from / config.query_block + 1).saturating_mul(config.query_block).min(config.shape.values());
    let row = config.shape.levels().max(config.heads.saturating_mul(config.places()));
    let most = (MAX_FLOATS / row).min(rows_wanted) / images.max(1);
    border.min(from.saturating_add(most.max(1)))
}

/// Logits [images * ranks, levels] of one piece, for `images` (values, class) whose rings begin at `first`.
pub(super) fn forward(
    network: &Network,
    rings: &mut Rings,
    first: i64,
    images: &[(&[u16], Option<u32>)],
    ranks: Range<Rank>,
) -> Result<Tensor, TchError> {
    let config = network.config();
    let inputs: Vec<[i64; 4]> = images
        .iter()
        .flat_map(|&(values, class)| ranks.clone().map(move |rank| network.input(values, rank, class)))
        .collect();
    let mut mask = Vec::with_capacity(ranks.len() * config.places() as usize);
    ranks.clone().for_each(|rank| config.extend_mask(rank, &mut mask));
    let count = i64::from(ranks.end - ranks.start);
    let window = Window {
        first,
        images: images.len() as i64,
        ranks: count,
        write: Write::Span(i64::from(config.place(ranks.start))),
        mask: Tensor::f_from_slice(&mask)?.f_view([1, count, i64::from(config.places())])?,
    };
    network.forward(inputs.as_flattened(), rings, &window)
}

/// The state of a scoring pass between its slices.
pub(super) struct Scoring {
    pub(super) rings: Rings,
    capacity: u32,
    images: usize,
    reached: Rank,
}

impl Scoring {
    pub(super) fn new(config: &Config, capacity: u32) -> Result<Self, TchError> {
        let capacity = capacity.max(1);
        Ok(Self { rings: Rings::new(config, i64::from(capacity))?, capacity, images: 0, reached: 0 })
    }

    /// See [`crate::model::PixelModel::score`].
    pub(super) fn slice(
        &mut self,
        network: &Network,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        self.check(network, rows, from)?;
        if from == 0 {
            self.rings.clear(0, rows.len() as i64)?;
            self.images = rows.len();
        }
        // Whatever fails from here on, the pass cannot go on.
        self.reached = Rank::MAX;
        let upto = piece_end(network.config(), rows.len() as u32, from, rows_wanted);
        let images: Vec<_> = rows.iter().map(|row| (row.canvas.values(), row.condition.class)).collect();
        let logits = forward(network, &mut self.rings, 0, &images, from..upto)?;
        let to = out.resize(rows.len() * (upto - from) as usize);
        logits.f_copy_data(to, to.len())?;
        self.reached = upto;
        Ok(upto)
    }

    fn check(&self, network: &Network, rows: &[ScoreRow<'_>], from: Rank) -> Result<(), ModelError> {
        let fault = if rows.is_empty() || rows.len() > self.capacity as usize {
            format!("a scoring pass takes 1 to {} images, got {}", self.capacity, rows.len())
        } else if from != 0 && (from != self.reached || rows.len() != self.images) {
            format!("no scoring pass of {} images stands at rank {from}", rows.len())
        } else if from >= network.config().shape.values() || !rows.iter().all(|row| row.canvas.is_complete()) {
            "only complete images can be scored, and only once".to_owned()
        } else {
            return Ok(());
        };
        Err(ModelError::Step(fault))
    }
}
