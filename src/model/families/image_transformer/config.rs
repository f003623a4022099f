//! Sizes and choices of one Image Transformer, and the tensors they ask for.

use std::ops::Range;

use crate::error::Violations;
use crate::image::{MAX_VALUES, Order, Rank, Shape};
use crate::model::TensorSpec;
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;

const MAX_LAYERS: u32 = 1024;
const MAX_WIDTH: u32 = 1 << 16;
/// Rows of any table, so that their number and sums of a few of them fit 32 bits.
const MAX_ROWS: u32 = 1 << 28;

/// How a value's place is coded (section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Positions {
    /// Sines and cosines: the row in the first half of the features, the column in the second.
    Sinusoidal,
    /// A learned vector for each row plus one for each column, both of full width.
    Learned,
}

/// Where the layers normalise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norm {
    /// norm(x + f(x)), as published (section 3.2).
    Post,
    /// x + f(norm(x)), and once more after the last layer.
    Pre,
}

/// A checked configuration. "Column" runs over the W x C axis, in which the channels of a pixel are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) shape: Shape,
    pub(super) order: Order,
    pub(super) classes: u32,
    pub(super) layers: u32,
    pub(super) model_width: u32,
    pub(super) heads: u32,
    pub(super) key_width: u32,
    pub(super) value_width: u32,
    pub(super) feed_forward_width: u32,
    pub(super) query_block: u32,
    pub(super) positions: Positions,
    pub(super) norm: Norm,
}

impl Config {
    /// Reads the `architecture` table of `manifest`.
    ///
    /// # Errors
    /// Every fault, under its key.
    pub(super) fn read(manifest: &Manifest) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let mut fields = Fields::new("architecture", manifest.architecture.clone(), &mut violations);
        let config = Self::read_fields(manifest, &mut fields);
        fields.finish();
        match config {
            Some(config) => violations.into_result(config),
            None => Err(violations),
        }
    }

    fn read_fields(manifest: &Manifest, fields: &mut Fields<'_>) -> Option<Self> {
        let layers = fields.number("layers", 1..=MAX_LAYERS);
        let model_width = fields.number("model_width", 1..=MAX_WIDTH);
        let heads = fields.number("heads", 1..=MAX_WIDTH);
        let key_width = fields.number("key_width", 1..=MAX_WIDTH);
        let value_width = fields.number("value_width", 1..=MAX_WIDTH);
        let feed_forward_width = fields.number("feed_forward_width", 1..=MAX_WIDTH);
        let query_block = fields.number("query_block", 1..=MAX_VALUES);
        let positions =
            fields.word("positions", &[("sinusoidal", Positions::Sinusoidal), ("learned", Positions::Learned)]);
        let norm = fields.word("norm", &[("post", Norm::Post), ("pre", Norm::Pre)]);
        for (key, width) in [("key_width", key_width), ("value_width", value_width)] {
            if let (Some(width), Some(heads)) = (width, heads)
                && width % heads != 0
            {
                fields.refuse(key, format!("must be a multiple of the {heads} heads, got {width}"));
            }
        }
        if let (Some(Positions::Sinusoidal), Some(width)) = (positions, model_width)
            && width % 4 != 0
        {
            fields.refuse("model_width", format!("must be a multiple of 4 for sinusoidal positions, got {width}"));
        }
        for (what, rows) in [
            ("channels x levels", u64::from(manifest.shape.channels()) * u64::from(manifest.shape.levels())),
            ("classes", u64::from(manifest.condition.classes)),
        ] {
            if rows > u64::from(MAX_ROWS) {
                fields.refuse("values", format!("{what} must be at most {MAX_ROWS} in this family, got {rows}"));
            }
        }
        Some(Self {
            shape: manifest.shape,
            order: manifest.order,
            classes: manifest.condition.classes,
            layers: layers?,
            model_width: model_width?,
            heads: heads?,
            key_width: key_width?,
            value_width: value_width?,
            feed_forward_width: feed_forward_width?,
            query_block: query_block?,
            positions: positions?,
            norm: norm?,
        })
    }

    /// Columns of an image row, W x C.
    pub(super) fn columns(&self) -> u32 {
        self.shape.width() * self.shape.channels()
    }

    /// Rows of the value table: one for each channel and level.
    pub(super) fn value_rows(&self) -> u32 {
        self.shape.channels() * self.shape.levels()
    }

    /// Features of one head's keys.
    pub(super) fn head_key(&self) -> u32 {
        self.key_width / self.heads
    }

    /// Features of one head's values.
    pub(super) fn head_value(&self) -> u32 {
        self.value_width / self.heads
    }

    /// Places of a ring: the block before and the current one (section 3.3), or the whole image if that is less.
    pub(super) fn places(&self) -> u32 {
        self.query_block.saturating_mul(2).min(self.shape.values())
    }

    /// The ring place of `rank`: offset o of block b lies at `(b mod 2) * l_q + o`.
    pub(super) fn place(&self, rank: Rank) -> u32 {
        rank % self.query_block.saturating_mul(2)
    }

    /// The ring places that `rank` sees: its own block up to itself, and the whole block before (section 3.3).
    pub(super) fn seen(&self, rank: Rank) -> [Range<u32>; 2] {
        let (block, offset) = (rank / self.query_block, rank % self.query_block);
        let own = self.place(rank) - offset..self.place(rank) + 1;
        match (block, block % 2) {
            (0, _) => [own, 0..0],
            (_, 0) => [own, self.query_block..self.query_block.saturating_mul(2)],
            // The block before lies in front of the own one: one range.
            (_, _) => [0..own.end, 0..0],
        }
    }

    /// Places that a rank sees in the mean over an image.
    pub(super) fn mean_seen(&self) -> f64 {
        let ranks = 0..self.shape.values();
        let seen: u64 = ranks.flat_map(|rank| self.seen(rank)).map(|range| u64::from(range.end - range.start)).sum();
        seen as f64 / f64::from(self.shape.values())
    }

    /// Every tensor of the weights file.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        let mut add = |name: &str, shape: &[u32]| {
            tensors.push(TensorSpec { name: name.to_owned(), shape: shape.iter().map(|&n| u64::from(n)).collect() });
        };
        let d = self.model_width;
        add("values.weight", &[self.value_rows(), d]);
        if self.classes > 0 {
            add("classes.weight", &[self.classes, d]);
        }
        if self.positions == Positions::Learned {
            add("positions.rows", &[self.shape.height(), d]);
            add("positions.columns", &[self.columns(), d]);
        }
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[u32]| add(&format!("layers.{layer}.{name}"), shape);
            add("attention.query.weight", &[self.key_width, d]);
            add("attention.key.weight", &[self.key_width, d]);
            add("attention.value.weight", &[self.value_width, d]);
            add("attention.output.weight", &[d, self.value_width]);
            add("feed_forward.expand.weight", &[self.feed_forward_width, d]);
            add("feed_forward.expand.bias", &[self.feed_forward_width]);
            add("feed_forward.contract.weight", &[d, self.feed_forward_width]);
            add("feed_forward.contract.bias", &[d]);
            for norm in ["attention_norm", "feed_forward_norm"] {
                add(&format!("{norm}.weight"), &[d]);
                add(&format!("{norm}.bias"), &[d]);
            }
        }
        if self.norm == Norm::Pre {
            add("norm.weight", &[d]);
            add("norm.bias", &[d]);
        }
        add("head.weight", &[self.shape.levels(), d]);
        add("head.bias", &[self.shape.levels()]);
        tensors
    }
}
