//! The Image Transformer as the PyTorch port sahajgarg/image_transformer saves it: `model.state_dict()` of its class
//! `ImageTransformer`, of either law.
//!
//! What that code fixes: square images of three channels and 256 levels, sinusoidal positions, a shift by one cell of the whole
//! sequence, layers that normalise last, and with a mixture a ReLU behind the input and no bias in the last layer. Its
//! parameters of a pixel stand in our order.

use super::package::{Draft, number};
use super::{Renaming, Tensors};
use crate::error::Violations;

const CHANNELS: usize = 3;
const LEVELS: usize = 256;
/// Parameters of a pixel for each component of the mixture.
const NUMBERS: usize = 10;

/// The hyperparameters that a state dict does not tell, under the names of the port's configuration files.
#[derive(Clone, Copy, Debug)]
pub struct ImageTransformer {
    /// `image_size`: rows of the images, and columns.
    pub image_size: u32,
    /// `num_heads`.
    pub num_heads: u32,
    /// `attn_type` and, where it is `local_1d`, `block_length`; `None` where it is `global`.
    pub block_length: Option<u32>,
}

/// What it tells.
struct Sizes {
    /// Components of the mixture; `None` for the categorical law.
    components: Option<usize>,
    model: usize,
    layers: usize,
    key: usize,
    value: usize,
    feed_forward: usize,
}

impl ImageTransformer {
    /// The package that `tensors` make.
    ///
    /// # Errors
    /// Every tensor by which they differ from such a state dict.
    pub fn draft(self, tensors: Tensors) -> Result<Draft, Violations> {
        let sizes = sizes(&tensors)?;
        let tensors = rename(Renaming::new(tensors), &sizes)?;
        let side = self.image_size;
        let image = vec![
            ("height", side.into()),
            ("width", side.into()),
            ("channels", number(CHANNELS)),
            ("levels", number(LEVELS)),
            ("order", "raster".into()),
        ];
        let (head, input, cell_values) = match sizes.components {
            None => (vec![("kind", "categorical".into())], "embedding", 1),
            Some(components) => {
                let kind = ("kind", "logistic_mixture".into());
                (vec![kind, ("components", number(components)), ("layout", "saha".into())], "ordinal_relu", 3)
            }
        };
        // One block of all cells sees what global attention does.
        let cells = side.saturating_mul(side).saturating_mul(CHANNELS as u32) / cell_values;
        let architecture = vec![
            ("layers", number(sizes.layers)),
            ("model_width", number(sizes.model)),
            ("heads", self.num_heads.into()),
            ("key_width", number(sizes.key)),
            ("value_width", number(sizes.value)),
            ("feed_forward_width", number(sizes.feed_forward)),
            ("query_block", self.block_length.unwrap_or(cells.max(1)).into()),
            ("positions", "sinusoidal".into()),
            ("norm", "post".into()),
            ("input", input.into()),
        ];
        Ok(Draft {
            family: "image_transformer",
            description: "Image Transformer, from a state dict of sahajgarg/image_transformer".to_owned(),
            tables: vec![("image", image), ("head", head), ("architecture", architecture)],
            tensors,
        })
    }
}

fn sizes(tensors: &Tensors) -> Result<Sizes, Violations> {
    let matrix = |name: &str| match tensors.get(name).map(|tensor| tensor.shape.as_slice()) {
        Some(&[rows, columns]) => Ok([rows, columns]),
        _ => {
            let why = "is missing or no matrix: the checkpoint is no state dict of this format";
            Err(Violations::one(format!("tensors.{name}"), why))
        }
    };
    let [outputs, model] = matrix("output_dense.weight")?;
    let components = if tensors.contains_key("embeds.weight") { None } else { Some(outputs / NUMBERS) };
    if components.is_some_and(|components| components == 0 || components * NUMBERS != outputs) {
        let why = format!("must have {NUMBERS} rows for each component of the mixture, got {outputs}");
        return Err(Violations::one("tensors.output_dense.weight", why));
    }
    if model < 8 {
        // Its time scales are then divided by zero.
        let why = format!("must have at least 8 columns for the port's positions to be numbers, got {model}");
        return Err(Violations::one("tensors.output_dense.weight", why));
    }
    let [[key, _], [value, _], [feed_forward, _]] = [
        matrix("layers.0.attn.k_dense.weight")?,
        matrix("layers.0.attn.v_dense.weight")?,
        matrix("layers.0.ffn.0.weight")?,
    ];
    let has_layer = |layer: &usize| tensors.contains_key(&format!("layers.{layer}.attn.k_dense.weight"));
    let layers = (0..tensors.len()).take_while(has_layer).count();
    Ok(Sizes { components, model, layers, key, value, feed_forward })
}

fn rename(mut map: Renaming, sizes: &Sizes) -> Result<Tensors, Violations> {
    let d = sizes.model;
    let mut put = |ours: &str, theirs: &str, shape: &[usize]| {
        let tensor = map.take(theirs, shape);
        map.put(ours, tensor);
    };
    match sizes.components {
        None => {
            put("values.weight", "embeds.weight", &[CHANNELS * LEVELS, d]);
            put("head.weight", "output_dense.weight", &[LEVELS, d]);
            put("head.bias", "output_dense.bias", &[LEVELS]);
        }
        Some(components) => {
            put("pixels.bias", "embedding_conv.bias", &[d]);
            put("head.weight", "output_dense.weight", &[NUMBERS * components, d]);
        }
    }
    for layer in 0..sizes.layers {
        let mut put = |ours: &str, theirs: &str, shape: &[usize]| {
            put(&format!("layers.{layer}.{ours}"), &format!("layers.{layer}.{theirs}"), shape);
        };
        put("attention.query.weight", "attn.q_dense.weight", &[sizes.key, d]);
        put("attention.key.weight", "attn.k_dense.weight", &[sizes.key, d]);
        put("attention.value.weight", "attn.v_dense.weight", &[sizes.value, d]);
        put("attention.output.weight", "attn.output_dense.weight", &[d, sizes.value]);
        put("feed_forward.expand.weight", "ffn.0.weight", &[sizes.feed_forward, d]);
        put("feed_forward.expand.bias", "ffn.0.bias", &[sizes.feed_forward]);
        put("feed_forward.contract.weight", "ffn.2.weight", &[d, sizes.feed_forward]);
        put("feed_forward.contract.bias", "ffn.2.bias", &[d]);
        for part in ["weight", "bias"] {
            put(&format!("attention_norm.{part}"), &format!("layernorm_attn.{part}"), &[d]);
            put(&format!("feed_forward_norm.{part}"), &format!("layernorm_ffn.{part}"), &[d]);
        }
    }
    if sizes.components.is_some() {
        // A convolution of 1 x 3 over the values of a pixel, side by side.
        let kernel = map.take("embedding_conv.weight", &[d, 1, 1, CHANNELS]);
        map.put("pixels.weight", kernel.and_then(|kernel| kernel.reshaped(&[d, CHANNELS])));
    }
    map.finish()
}
