//! The parallel causal pass: many cells at once of one run, over state that holds what came before.

use std::ops::Range;

use super::config::{Config, Input};
use super::network::{self, Programs};
use crate::decode::torch::Torch;
use crate::decode::{Decoder, Network, Row, Rows};
use crate::image::Rank;
use crate::model::{Condition, ModelError, ParamRows, ScoreRow, Slot};

/// Floats that one intermediate tensor of a parallel pass may hold.
pub(super) const MAX_FLOATS: u32 = 1 << 24;

/// Where a piece that starts at cell `from` ends, for `images` images and about `rows_wanted` rows: where the run ends, or
/// before it where the parameters or the attention scores would grow too large.
pub(super) fn piece_end(config: &Config, images: u32, from: Rank, rows_wanted: u32) -> Rank {
    let places = config.encoder.map_or(0, |encoder| encoder.low.values()).max(config.grid.places());
    let row = (config.head.width(config.shape) as u32).max(config.heads.saturating_mul(places));
    let most = (MAX_FLOATS / row).min(rows_wanted) / images.max(1);
    config.grid.run_end(from).min(from.saturating_add(most.max(1)))
}

/// The rows of an evaluation in the making; kept from one to the next for their room.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) rows: Rows,
    seen: Vec<Range<u32>>,
    numbers: Vec<f32>,
}

impl Batch {
    /// Adds a row for each of `cells` of the image in `slot`. `values` are those before the last of them, at least.
    pub(super) fn push(&mut self, config: &Config, slot: Slot, values: &[u16], class: Option<u32>, cells: Range<Rank>) {
        for cell in cells {
            self.seen.clear();
            config.grid.see(cell, &mut self.seen);
            self.numbers.clear();
            if config.input != Input::Embedding {
                network::pixel_before(config, values, cell, &mut self.numbers);
            }
            self.rows.push(Row {
                slot: slot.0,
                inputs: &network::input(config, values, cell, class),
                numbers: &self.numbers,
                place: config.grid.place(cell),
                seen: &self.seen,
                ..Row::default()
            });
        }
    }

    /// Readies `slot` of `decoder` for a new image, whose low-resolution image is taken in if there is to be one.
    pub(super) fn open(
        &mut self,
        decoder: &mut dyn Decoder,
        programs: Programs,
        config: &Config,
        slot: Slot,
        condition: &Condition,
    ) -> Result<(), ModelError> {
        decoder.clear(slot)?;
        let (Some(encoder), Some(program)) = (config.encoder, programs.encode) else { return Ok(()) };
        let fits = |low: &&[u16]| {
            low.len() == encoder.low.values() as usize && low.iter().all(|&v| u32::from(v) < encoder.low.levels())
        };
        let low = condition.low.as_deref().filter(fits);
        let low =
            low.ok_or_else(|| ModelError::Step("there is no low-resolution image, or it does not fit".to_owned()))?;
        self.rows.clear();
        for (place, &value) in (0..).zip(low) {
            let inputs = &network::low_input(config, encoder, place, value);
            self.rows.push(Row { slot: slot.0, inputs, place, ..Row::default() });
        }
        decoder.run(program, &self.rows, &mut [])
    }
}

/// The state of a scoring pass between its slices.
#[derive(Debug)]
pub(super) struct Scoring {
    decoder: Box<dyn Decoder>,
    programs: Programs,
    batch: Batch,
    capacity: u32,
    images: usize,
    reached: Rank,
}

impl Scoring {
    pub(super) fn new(network: &Network, programs: Programs, capacity: u32) -> Result<Self, ModelError> {
        let capacity = capacity.max(1);
        Ok(Self::with(Box::new(Torch::parallel(network, capacity)?), programs, capacity))
    }

    /// The same for passes of its own.
    pub(super) fn another(&self) -> Result<Self, ModelError> {
        Ok(Self::with(self.decoder.another(self.capacity)?, self.programs, self.capacity))
    }

    fn with(decoder: Box<dyn Decoder>, programs: Programs, capacity: u32) -> Self {
        Self { decoder, programs, batch: Batch::default(), capacity, images: 0, reached: 0 }
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
            for (slot, row) in (0..).zip(rows) {
                self.batch.open(&mut *self.decoder, self.programs, config, Slot(slot), row.condition)?;
            }
            self.images = rows.len();
        }
        // Whatever fails from here on, the pass cannot go on.
        self.reached = Rank::MAX;
        let first = from / config.cell_values();
        let last = piece_end(config, rows.len() as u32, first, rows_wanted);
        self.batch.rows.clear();
        for (slot, row) in (0..).zip(rows) {
            self.batch.push(config, Slot(slot), row.canvas.values(), row.condition.class, first..last);
        }
        self.decoder.run(self.programs.step, &self.batch.rows, out.resize(self.batch.rows.len()))?;
        self.reached = last * config.cell_values();
        Ok(self.reached)
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
