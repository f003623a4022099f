//! Sizes and choices of one Image Transformer, and the tensors they ask for.

use super::grid::{Grid, Local};
use crate::error::Violations;
use crate::head::{Head, Layout};
use crate::image::{MAX_VALUES, Order, Shape};
use crate::model::TensorSpec;
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;

const MAX_LAYERS: u32 = 1024;
const MAX_WIDTH: u32 = 1 << 16;
/// Rows of any table, so that their number and sums of a few of them fit 32 bits.
const MAX_ROWS: u32 = 1 << 28;
/// Floats that one intermediate tensor of an encoder may hold; all positions are evaluated together.
const MAX_ENCODER_FLOATS: u64 = 1 << 27;

/// How the values of an image enter (section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A learned vector for each value of each channel; a cell is a value.
    Embedding,
    /// A linear map of the scaled channels of a pixel, with a ReLU or without; a cell is a pixel.
    Ordinal {
        /// Whether the ReLU is there.
        relu: bool,
    },
}

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

/// The encoder of a low-resolution image, of which it embeds every value (section 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoder {
    pub(super) layers: u32,
    pub(super) low: Shape,
}

/// A checked configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) shape: Shape,
    pub(super) head: Head,
    pub(super) layout: Layout,
    pub(super) classes: u32,
    pub(super) input: Input,
    pub(super) grid: Grid,
    pub(super) encoder: Option<Encoder>,
    pub(super) layers: u32,
    pub(super) model_width: u32,
    pub(super) heads: u32,
    pub(super) key_width: u32,
    pub(super) value_width: u32,
    pub(super) feed_forward_width: u32,
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
        let input = read_input(manifest, fields);
        let grid = read_grid(manifest, input.unwrap_or(Input::Embedding), fields);
        let positions =
            fields.word("positions", &[("sinusoidal", Positions::Sinusoidal), ("learned", Positions::Learned)]);
        let norm = fields.word("norm", &[("post", Norm::Post), ("pre", Norm::Pre)]);
        if manifest.head == Head::FactorisedCategorical {
            fields
                .refuse("input", "must predict values: head.kind = \"factorised_categorical\" is not for this family");
        }
        let low = manifest.condition.low;
        let encoder_layers = low.and_then(|_| fields.number("encoder_layers", 1..=MAX_LAYERS));
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
        let config = Self {
            shape: manifest.shape,
            head: manifest.head,
            layout: manifest.layout,
            classes: manifest.condition.classes,
            input: input?,
            grid: grid?,
            encoder: None,
            layers: layers?,
            model_width: model_width?,
            heads: heads?,
            key_width: key_width?,
            value_width: value_width?,
            feed_forward_width: feed_forward_width?,
            positions: positions?,
            norm: norm?,
        };
        let Some(low) = low else { return Some(config) };
        let widths = [config.model_width, config.key_width, config.value_width, config.feed_forward_width];
        let values = u64::from(low.values());
        let widest = widths.into_iter().map(u64::from).fold(values * u64::from(config.heads), u64::max);
        // One row alone would go through the steps of a decoder, which may add up in another order than spans of rows.
        if values < 2 || values * widest > MAX_ENCODER_FLOATS {
            let why = "low_height x low_width x channels must be at least 2, and times itself and the heads, or times a \
                       width, at most";
            fields.refuse("encoder_layers", format!("{why} {MAX_ENCODER_FLOATS}, got {values} values"));
        }
        Some(Self { encoder: Some(Encoder { layers: encoder_layers?, low }), ..config })
    }

    /// Values of a cell.
    pub(super) fn cell_values(&self) -> u32 {
        match self.input {
            Input::Embedding => 1,
            Input::Ordinal { .. } => self.shape.channels(),
        }
    }

    /// Rows of a value table: one for each channel and level.
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

    /// Every tensor of the weights file.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = Tensors(Vec::new());
        let d = self.model_width;
        match self.input {
            Input::Embedding => tensors.add("values.weight", &[self.value_rows(), d]),
            Input::Ordinal { .. } => {
                tensors.add("pixels.weight", &[d, self.shape.channels()]);
                tensors.add("pixels.bias", &[d]);
            }
        }
        if self.classes > 0 {
            tensors.add("classes.weight", &[self.classes, d]);
        }
        self.add_stack(&mut tensors, "", [self.grid.height, self.grid.columns], self.layers, self.encoder.is_some());
        let width = self.head.width(self.shape) as u32;
        tensors.add("head.weight", &[width, d]);
        if self.head == Head::Categorical {
            tensors.add("head.bias", &[width]);
        }
        if let Some(Encoder { layers, low }) = self.encoder {
            tensors.add("encoder.values.weight", &[self.value_rows(), d]);
            self.add_stack(&mut tensors, "encoder.", [low.height(), low.width() * low.channels()], layers, false);
        }
        tensors.0
    }

    /// Adds positions on a grid, and layers.
    fn add_stack(&self, tensors: &mut Tensors, prefix: &str, [rows, columns]: [u32; 2], layers: u32, crosses: bool) {
        let d = self.model_width;
        if self.positions == Positions::Learned {
            tensors.add(&format!("{prefix}positions.rows"), &[rows, d]);
            tensors.add(&format!("{prefix}positions.columns"), &[columns, d]);
        }
        for layer in 0..layers {
            let mut add = |name: &str, shape: &[u32]| tensors.add(&format!("{prefix}layers.{layer}.{name}"), shape);
            for attention in ["attention", "cross_attention"].into_iter().take(1 + usize::from(crosses)) {
                add(&format!("{attention}.query.weight"), &[self.key_width, d]);
                add(&format!("{attention}.key.weight"), &[self.key_width, d]);
                add(&format!("{attention}.value.weight"), &[self.value_width, d]);
                add(&format!("{attention}.output.weight"), &[d, self.value_width]);
                add(&format!("{attention}_norm.weight"), &[d]);
                add(&format!("{attention}_norm.bias"), &[d]);
            }
            add("feed_forward.expand.weight", &[self.feed_forward_width, d]);
            add("feed_forward.expand.bias", &[self.feed_forward_width]);
            add("feed_forward.contract.weight", &[d, self.feed_forward_width]);
            add("feed_forward.contract.bias", &[d]);
            add("feed_forward_norm.weight", &[d]);
            add("feed_forward_norm.bias", &[d]);
        }
        if self.norm == Norm::Pre {
            tensors.add(&format!("{prefix}norm.weight"), &[d]);
            tensors.add(&format!("{prefix}norm.bias"), &[d]);
        }
    }
}

struct Tensors(Vec<TensorSpec>);

impl Tensors {
    fn add(&mut self, name: &str, shape: &[u32]) {
        self.0.push(TensorSpec { name: name.to_owned(), shape: shape.iter().map(|&n| u64::from(n)).collect() });
    }
}

/// The word at `key`, or `default` if there is nothing.
fn optional_word<T: Copy>(fields: &mut Fields<'_>, key: &str, words: &[(&str, T)], default: T) -> Option<T> {
    if fields.has(key) { fields.word(key, words) } else { Some(default) }
}

fn read_input(manifest: &Manifest, fields: &mut Fields<'_>) -> Option<Input> {
    let words = [
        ("embedding", Input::Embedding),
        ("ordinal", Input::Ordinal { relu: false }),
        ("ordinal_relu", Input::Ordinal { relu: true }),
    ];
    let input = optional_word(fields, "input", &words, Input::Embedding)?;
    let (channels, categorical) = (manifest.shape.channels(), manifest.head == Head::Categorical);
    match input {
        Input::Embedding if !categorical => fields.refuse("input", "must be ordinal with a mixture head"),
        Input::Ordinal { .. } if categorical && channels != 1 => {
            fields.refuse("input", format!("must be an embedding with a categorical head and {channels} channels"));
        }
        Input::Ordinal { .. } if manifest.order != Order::Raster && manifest.width_unit != channels => {
            fields.refuse("input", "must be an embedding where blocks count values");
        }
        _ => return Some(input),
    }
    None
}

fn read_grid(manifest: &Manifest, input: Input, fields: &mut Fields<'_>) -> Option<Grid> {
    let shape = manifest.shape;
    let cell_values = if input == Input::Embedding { 1 } else { shape.channels() };
    let two_d = optional_word(fields, "attention", &[("local_1d", false), ("local_2d", true)], false)?;
    let local = match manifest.order {
        Order::Raster if !two_d => Local::OneD { query_block: fields.number("query_block", 1..=MAX_VALUES)? },
        Order::BlockRaster(blocks) if two_d => {
            let [above, beside] = ["memory_height", "memory_width"].map(|key| fields.number(key, 0..=MAX_VALUES));
            let shift_per_block = fields.word("shift", &[("block_raster", false), ("per_block", true)]);
            // What lies outside the image is not seen anyway.
            let columns = shape.width() * shape.channels() / cell_values;
            let beside = (beside?.saturating_mul(manifest.width_unit) / cell_values).min(columns);
            Local::TwoD {
                block: [blocks.height(), blocks.width() / cell_values],
                memory: [above?.min(shape.height()), beside],
                shift_per_block: shift_per_block?,
            }
        }
        _ => {
            fields.refuse("attention", "must be local_2d with the order block_raster, and with no other");
            return None;
        }
    };
    Some(Grid { height: shape.height(), columns: shape.width() * shape.channels() / cell_values, local })
}
