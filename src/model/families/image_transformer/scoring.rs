//! The parallel causal pass: many ranks at once of one block, over state that holds what came before.

use std::ops::Range;

use super::config::Config;
use super::network;
use crate::decode::torch::Torch;
use crate::decode::{Decoder, Network, ProgramId, Row, Rows};
use crate::image::Rank;
use crate::model::{ModelError, ParamRows, ScoreRow, Slot};

/// Floats that one intermediate tensor of a parallel pass may hold.
pub(super) const MAX_FLOATS: u32 = 1 << 24;

/// Where a piece that starts at `from` ends, for `images` images and about `rows_wanted` rows: at the block's border, or
/// before it where the logits or the attention scores would grow too large.
pub(super) fn piece_end(config: &Config, images: u32, from: Rank, rows_wanted: u32) -> Rank {
    let border = (from / config.query_block + 1).saturating_mul(config.query_block).min(config.shape.values());
    let row = config.shape.levels().max(config.heads.saturating_mul(config.places()));
    let most = (MAX_FLOATS / row).min(rows_wanted) / images.max(1);
    border.min(from.saturating_add(most.max(1)))
}

/// Adds a row for each of `ranks` of the image in `slot`. `values` are those before the last of them, at least.
pub(super) fn push(
    rows: &mut Rows,
    config: &Config,
    slot: Slot,
    values: &[u16],
    class: Option<u32>,
    ranks: Range<Rank>,
) {
    for rank in ranks {
        rows.push(Row {
            slot: slot.0,
            inputs: &network::input(config, values, rank, class),
            place: config.place(rank),
            seen: &config.seen(rank),
            ..Row::default()
        });
    }
}

/// The state of a scoring pass between its slices.
#[derive(Debug)]
pub(super) struct Scoring {
    decoder: Box<dyn Decoder>,
    program: ProgramId,
    rows: Rows,
    capacity: u32,
    images: usize,
    reached: Rank,
}

impl Scoring {
    pub(super) fn new(network: &Network, program: ProgramId, capacity: u32) -> Result<Self, ModelError> {
        let capacity = capacity.max(1);
        Ok(Self::with(Box::new(Torch::parallel(network, capacity)?), program, capacity))
    }

    /// The same for passes of its own.
    pub(super) fn another(&self) -> Result<Self, ModelError> {
        Ok(Self::with(self.decoder.another(self.capacity)?, self.program, self.capacity))
    }

    fn with(decoder: Box<dyn Decoder>, program: ProgramId, capacity: u32) -> Self {
        Self { decoder, program, rows: Rows::default(), capacity, images: 0, reached: 0 }
    }

    /// See [`crate::model::PixelModel::score`].
    pub(super) fn slice(
        &mut self,
        config: &Config,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        self.check(config, rows, from)?;
        if from == 0 {
            (0..rows.len() as u32).try_for_each(|slot| self.decoder.clear(Slot(slot)))?;
            self.images = rows.len();
        }
        // Whatever fails from here on, the pass cannot go on.
        self.reached = Rank::MAX;
        let upto = piece_end(config, rows.len() as u32, from, rows_wanted);
        self.rows.clear();
        for (slot, row) in (0..).zip(rows) {
            push(&mut self.rows, config, Slot(slot), row.canvas.values(), row.condition.class, from..upto);
        }
        self.decoder.run(self.program, &self.rows, out.resize(self.rows.len()))?;
        self.reached = upto;
        Ok(upto)
    }

    fn check(&self, config: &Config, rows: &[ScoreRow<'_>], from: Rank) -> Result<(), ModelError> {
        let fault = if rows.is_empty() || rows.len() > self.capacity as usize {
            format!("a scoring pass takes 1 to {} images, got {}", self.capacity, rows.len())
        } else if from != 0 && (from != self.reached || rows.len() != self.images) {
            format!("no scoring pass of {} images stands at rank {from}", rows.len())
        } else if from >= config.shape.values() || !rows.iter().all(|row| row.canvas.is_complete()) {
            "only complete images can be scored, and only once".to_owned()
        } else {
            return Ok(());
        };
        Err(ModelError::Step(fault))
    }
}
