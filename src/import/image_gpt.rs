//! ImageGPT as Hugging Face transformers saves it: `config.json`, the tensors of `ImageGPTForCausalImageModeling`, and
//! the colour clusters.
//!
//! The network is ours under other names, but that its linear maps hold their weights `[inputs, outputs]` and that query,
//! key and value are one map. A cluster c of -1..=1 is the colour 127.5 (c + 1), as its image processor has it.

use serde::Deserialize;
use serde_json::{Map, Value};
use toml::Table;

use super::package::{Draft, number};
use super::pickle::shown;
use super::{Renaming, Tensor, Tensors};
use crate::error::Violations;
use crate::model::fields::Fields;

const MAX_LENGTH: u32 = 1 << 20;
const MAX_WIDTH: u32 = 1 << 16;
const MAX_LAYERS: u32 = 1024;
/// Every name but that of the last layer begins so, where the whole model was saved.
const PREFIX: &str = "transformer.";
/// Keys of `config.json` that do not change the law: training, bookkeeping, and how `generate` draws.
const WITHOUT_EFFECT: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "attn_pdrop",
    "bos_token_id",
    "do_sample",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_decoder",
    "label2id",
    "max_length",
    "num_beams",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "temperature",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// What attention divides its scores by, where it scales them by the width of a head. OpenAI's law is the root; transformers
/// takes its whole part from version 4.42 on, unless `reorder_and_upcast_attn` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divisor {
    /// The root.
    Root,
    /// Its whole part.
    Whole,
}

/// What a checkpoint's tensors do not tell.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageGpt {
    size: [u32; 2],
    /// Red, green and blue of 0..=255.
    palette: Vec<[f64; 3]>,
    layers: u32,
    width: u32,
    heads: u32,
    feed_forward_width: u32,
    activation: &'static str,
    epsilon: f64,
    /// `None`: the root of a head's width.
    score_divisor: Option<f64>,
    scale_by_layer: bool,
}

impl ImageGpt {
    /// Reads the text of a `config.json`, of a model of `clusters`. `size` is height and width; without it, images are squares.
    /// `divisor` must be there if the root of a head's width is no whole number.
    ///
    /// # Errors
    /// Under `config` every key that is unknown or wrong, or asks for another law; and clusters outside -1..=1, or of another
    /// number.
    pub fn new(
        config: &[u8],
        clusters: &[[f64; 3]],
        size: Option<[u32; 2]>,
        divisor: Option<Divisor>,
    ) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let object: Map<String, Value> =
            serde_json::from_slice(config).map_err(|error| Violations::one("config", error.to_string()))?;
        // What is null is as if it were not there.
        let present: Map<_, _> = object.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let table = Table::try_from(present).map_err(|error| Violations::one("config", error.to_string()))?;
        let mut fields = Fields::new("config", table, &mut violations);
        let format = Self::read(&mut fields, clusters, size, divisor);
        fields.finish();
        for (index, cluster) in clusters.iter().enumerate() {
            if !cluster.iter().all(|number| (-1.0..=1.0).contains(number)) {
                violations.add(format!("clusters[{index}]"), format!("must be numbers of -1..=1, got {cluster:?}"));
            }
        }
        match format {
            Some(format) => violations.into_result(format),
            None => Err(violations),
        }
    }

    fn read(
        fields: &mut Fields<'_>,
        clusters: &[[f64; 3]],
        size: Option<[u32; 2]>,
        divisor: Option<Divisor>,
    ) -> Option<Self> {
        let model_type: Option<String> = fields.required("model_type");
        if let Some(other) = model_type.filter(|name| name != "imagegpt") {
            fields.refuse("model_type", format!("must be \"imagegpt\", got {:?}", shown(&other)));
        }
        WITHOUT_EFFECT.iter().for_each(|key| fields.skip(key));
        for (key, what) in [
            ("add_cross_attention", "attention to another sequence"),
            ("is_encoder_decoder", "an encoder"),
            ("tie_word_embeddings", "a last layer that is the embedding"),
        ] {
            if fields.optional(key) == Some(true) {
                fields.refuse(key, format!("must be false: {what} is not supported"));
            }
        }
        if fields.optional("pruned_heads").is_some_and(|heads: Table| !heads.is_empty()) {
            fields.refuse("pruned_heads", "must be empty: heads that were taken out are not supported");
        }
        // What a key that is absent means is what the original code takes it for.
        let mut whole = |key: &str, default: u32, most: u32| {
            if fields.has(key) { fields.number(key, 1..=most) } else { Some(default) }
        };
        let [vocabulary, positions] = [whole("vocab_size", 513, MAX_LENGTH), whole("n_positions", 1024, MAX_LENGTH)];
        let [width, layers] = [whole("n_embd", 512, MAX_WIDTH), whole("n_layer", 24, MAX_LAYERS)];
        let heads = whole("n_head", 8, MAX_WIDTH);
        let feed_forward_width = whole("n_inner", width.unwrap_or(1).saturating_mul(4), 4 * MAX_WIDTH);
        let activations = [
            ("quick_gelu", "gelu_sigmoid"),
            ("gelu", "gelu"),
            ("gelu_new", "gelu_tanh"),
            ("gelu_pytorch_tanh", "gelu_tanh"),
            ("relu", "relu"),
        ];
        let key = "activation_function";
        let activation = if fields.has(key) { fields.word(key, &activations) } else { Some("gelu_sigmoid") };
        let epsilon = fields.optional("layer_norm_epsilon").unwrap_or(1e-5);
        let switches = [
            ("scale_attn_weights", true),
            ("scale_attn_by_inverse_layer_idx", false),
            ("reorder_and_upcast_attn", false),
        ];
        let [by_head, by_layer, reordered] = switches.map(|(key, default)| fields.optional(key).unwrap_or(default));
        let (vocabulary, positions, width, heads) = (vocabulary?, positions?, width?, heads?);
        if width % heads != 0 {
            fields.refuse("n_head", format!("must divide the {width} of n_embd, got {heads}"));
        }
        let root = f64::from(width / heads).sqrt();
        let score_divisor = match divisor {
            _ if !by_head => Some(1.0),
            _ if reordered || root.fract() == 0.0 => None,
            Some(Divisor::Root) => None,
            Some(Divisor::Whole) => Some(root.trunc()),
            None => {
                let why = format!(
                    "makes heads {} wide: scores were divided by the root, {root:.3}, or by its whole part; name one \
                     (--score-divisor)",
                    width / heads
                );
                fields.refuse("n_head", why);
                None
            }
        };
        if vocabulary as usize != clusters.len() + 1 {
            let count = clusters.len();
            fields.refuse("vocab_size", format!("must be one more than the {count} clusters, got {vocabulary}"));
        }
        let [height, columns] = size.unwrap_or([positions.isqrt(); 2]);
        if u64::from(height) * u64::from(columns) != u64::from(positions) {
            let given = if size.is_some() { format!("{height} x {columns}") } else { "a square".to_owned() };
            fields.refuse("n_positions", format!("must be the pixels of an image, {given}, got {positions}"));
        }
        Some(Self {
            size: [height, columns],
            palette: clusters.iter().map(|cluster| cluster.map(|number| 127.5 * (number + 1.0))).collect(),
            layers: layers?,
            width,
            heads,
            feed_forward_width: feed_forward_width?,
            activation: activation?,
            epsilon,
            score_divisor,
            scale_by_layer: by_layer,
        })
    }

    /// The package that `tensors` make.
    ///
    /// # Errors
    /// Every tensor by which they differ from such a checkpoint.
    pub fn draft(self, tensors: Tensors) -> Result<Draft, Violations> {
        let tensors = self.rename(Renaming::new(without_prefix(tensors)?))?;
        let [height, width] = self.size;
        let colours = self.palette.iter().map(|colour| toml::Value::from(colour.to_vec())).collect();
        let image = vec![
            ("height", height.into()),
            ("width", width.into()),
            ("channels", 1.into()),
            ("levels", number(self.palette.len())),
            ("order", "raster".into()),
            ("palette", toml::Value::Array(colours)),
        ];
        let divisor = self.score_divisor.map(|divisor| ("score_divisor", divisor.into()));
        let mut architecture = vec![
            ("layers", self.layers.into()),
            ("model_width", self.width.into()),
            ("heads", self.heads.into()),
            ("feed_forward_width", self.feed_forward_width.into()),
            ("activation", self.activation.into()),
            ("epsilon", self.epsilon.into()),
            ("scale_by_layer", self.scale_by_layer.into()),
        ];
        architecture.extend(divisor);
        Ok(Draft {
            family: "image_gpt",
            description: "ImageGPT, from Hugging Face transformers".to_owned(),
            tables: vec![
                ("image", image),
                ("head", vec![("kind", "categorical".into())]),
                ("architecture", architecture),
            ],
            tensors,
        })
    }

    fn rename(&self, mut map: Renaming) -> Result<Tensors, Violations> {
        let [d, wide, levels] = [self.width as usize, self.feed_forward_width as usize, self.palette.len()];
        let positions = self.size.into_iter().map(|length| length as usize).product();
        let mut plain = |ours: &str, theirs: &str, shape: &[usize]| {
            let tensor = map.take(theirs, shape);
            map.put(ours, tensor);
        };
        plain("tokens.weight", "wte.weight", &[levels + 1, d]);
        plain("positions.weight", "wpe.weight", &[positions, d]);
        plain("norm.weight", "ln_f.weight", &[d]);
        plain("head.weight", "lm_head.weight", &[levels, d]);
        for layer in 0..self.layers {
            let ours = |part: &str| format!("layers.{layer}.{part}");
            let theirs = |part: &str| format!("h.{layer}.{part}");
            // Masks, which older versions saved: which positions are seen is fixed.
            map.drop(&theirs("attn.bias"));
            map.drop(&theirs("attn.masked_bias"));
            for (to, from) in [("attention_norm.weight", "ln_1.weight"), ("feed_forward_norm.weight", "ln_2.weight")] {
                let scale = map.take(&theirs(from), &[d]);
                map.put(ours(to), scale);
            }
            let [weight, bias] = linear(&mut map, &theirs("attn.c_attn"), [d, 3 * d]);
            for (index, part) in ["query", "key", "value"].into_iter().enumerate() {
                map.put(ours(&format!("attention.{part}.weight")), rows(weight.as_ref(), index * d, d));
                map.put(ours(&format!("attention.{part}.bias")), rows(bias.as_ref(), index * d, d));
            }
            for (to, from, sizes) in [
                ("attention.output", "attn.c_proj", [d, d]),
                ("feed_forward.expand", "mlp.c_fc", [d, wide]),
                ("feed_forward.contract", "mlp.c_proj", [wide, d]),
            ] {
                let [weight, bias] = linear(&mut map, &theirs(from), sizes);
                map.put(ours(&format!("{to}.weight")), weight);
                map.put(ours(&format!("{to}.bias")), bias);
            }
        }
        map.finish()
    }
}

/// The clusters in the text of a `preprocessor_config.json`; `None` if it has none.
///
/// # Errors
/// What is no such text, and clusters of colours that are not scaled to -1..=1.
pub fn clusters(preprocessor: &[u8]) -> Result<Option<Vec<[f64; 3]>>, Violations> {
    /// Of it, what the law depends on.
    #[derive(Deserialize)]
    struct Preprocessor {
        clusters: Option<Vec<[f64; 3]>>,
        do_normalize: Option<bool>,
    }
    let read: Preprocessor =
        serde_json::from_slice(preprocessor).map_err(|error| Violations::one("preprocessor", error.to_string()))?;
    match read.do_normalize {
        Some(false) => Err(Violations::one("preprocessor.do_normalize", "must be true: clusters are of -1..=1")),
        _ => Ok(read.clusters),
    }
}

/// Drops [`PREFIX`] where it is.
fn without_prefix(tensors: Tensors) -> Result<Tensors, Violations> {
    let (mut plain, mut violations) = (Tensors::new(), Violations::new());
    for (name, tensor) in tensors {
        let short = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
        let path = format!("tensors.{}", shown(&short));
        if plain.insert(short, tensor).is_some() {
            violations.add(path, format!("is there with {PREFIX:?} before it and without"));
        }
    }
    violations.into_result(plain)
}

/// Weight and bias of a linear map, which the checkpoint holds `[inputs, outputs]`, as `[outputs, inputs]`.
fn linear(map: &mut Renaming, theirs: &str, sizes: [usize; 2]) -> [Option<Tensor>; 2] {
    let weight = map.take(&format!("{theirs}.weight"), &sizes);
    let bias = map.take(&format!("{theirs}.bias"), &sizes[1..]);
    [weight.and_then(|weight| weight.permuted(&[1, 0])), bias]
}

/// `count` rows of `tensor` from row `first` on.
fn rows(tensor: Option<&Tensor>, first: usize, count: usize) -> Option<Tensor> {
    let Tensor { shape, values } = tensor?;
    let width = values.len().checked_div(*shape.first()?)?;
    let values = values.get(first * width..(first + count) * width)?.to_vec();
    Some(Tensor { shape: [&[count], shape.get(1..)?].concat(), values })
}
