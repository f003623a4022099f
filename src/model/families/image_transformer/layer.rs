//! One layer: local attention over the rings, then the feed-forward network (Image Transformer section 3.2, eq. 1-2).

use tch::{TchError, Tensor};

use super::config::{Config, Norm};
use crate::torch::weights::Weights;

const EPSILON: f64 = 1e-6;

/// Layer normalisation over the features.
pub(super) struct LayerNorm {
    width: i64,
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub(super) fn take(weights: &mut Weights, name: &str, width: u32) -> Result<Self, TchError> {
        let [weight, bias] = [weights.take(&format!("{name}.weight"))?, weights.take(&format!("{name}.bias"))?];
        Ok(Self { width: i64::from(width), weight, bias })
    }

    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_layer_norm([self.width], Some(&self.weight), Some(&self.bias), EPSILON, false)
    }
}

/// Which images and ranks an evaluation covers, and which keys each of them sees. All layers share it.
pub(super) struct Window {
    /// First image of the rings.
    pub(super) first: i64,
    /// Images B, consecutive in the rings.
    pub(super) images: i64,
    /// Ranks T of each image.
    pub(super) ranks: i64,
    /// Where the new keys and values go.
    pub(super) write: Write,
    /// Added to the attention scores: 0 or minus infinity, of a shape that expands to [B * heads, T, places].
    pub(super) mask: Tensor,
}

/// Where new keys and values go.
pub(super) enum Write {
    /// Row by row: indices [B * heads] into the first three axes of the whole ring, flattened. T is 1.
    Each(Tensor),
    /// Consecutive places from this one on, the same in every image.
    Span(i64),
}

/// What one layer remembers of some images, preallocated.
pub(super) struct Ring {
    /// [images, heads, places, head_key]
    pub(super) keys: Tensor,
    /// [images, heads, places, head_value]
    pub(super) values: Tensor,
}

/// A layer's weights.
pub(super) struct Layer {
    heads: i64,
    head_key: i64,
    head_value: i64,
    norm: Norm,
    /// Rows: the queries of all heads, scaled; the keys of all heads; their values. [2 * key_width + value_width, d]
    project: Tensor,
    /// Transposed: [value_width, d].
    output: Tensor,
    attention_norm: LayerNorm,
    expand: (Tensor, Tensor),
    contract: (Tensor, Tensor),
    feed_forward_norm: LayerNorm,
}

impl Layer {
    pub(super) fn take(weights: &mut Weights, index: u32, config: &Config) -> Result<Self, TchError> {
        let mut take = |name: &str| weights.take(&format!("layers.{index}.{name}"));
        let query = take("attention.query.weight")?;
        let [key, value] = [take("attention.key.weight")?, take("attention.value.weight")?];
        let output = take("attention.output.weight")?.f_transpose(0, 1)?;
        let expand = (take("feed_forward.expand.weight")?, take("feed_forward.expand.bias")?);
        let contract = (take("feed_forward.contract.weight")?, take("feed_forward.contract.bias")?);
        let [heads, head_key, head_value] = [config.heads, config.head_key(), config.head_value()].map(i64::from);
        let query = query.f_mul_scalar(1.0 / (head_key as f64).sqrt())?;
        Ok(Self {
            heads,
            head_key,
            head_value,
            norm: config.norm,
            project: Tensor::f_cat(&[query, key, value], 0)?,
            output,
            attention_norm: LayerNorm::take(weights, &format!("layers.{index}.attention_norm"), config.model_width)?,
            expand,
            contract,
            feed_forward_norm: LayerNorm::take(
                weights,
                &format!("layers.{index}.feed_forward_norm"),
                config.model_width,
            )?,
        })
    }

    /// x [B * T, d] -> [B * T, d]. Writes the keys and values of these ranks into `ring` and attends over it.
    pub(super) fn forward(&self, x: &Tensor, ring: &mut Ring, window: &Window) -> Result<Tensor, TchError> {
        match self.norm {
            Norm::Post => {
                let x = self.attention_norm.apply(&self.attend(x, x, ring, window)?)?;
                self.feed_forward_norm.apply(&self.feed_forward(&x, &x)?)
            }
            Norm::Pre => {
                let x = self.attend(x, &self.attention_norm.apply(x)?, ring, window)?;
                self.feed_forward(&x, &self.feed_forward_norm.apply(&x)?)
            }
        }
    }

    /// residual + attention(x).
    fn attend(&self, residual: &Tensor, x: &Tensor, ring: &mut Ring, window: &Window) -> Result<Tensor, TchError> {
        let Window { first, images, ranks, .. } = *window;
        let batch = images * self.heads;
        let projected = x.f_linear(&self.project, None::<&Tensor>)?;
        let [key_width, value_width] = [self.heads * self.head_key, self.heads * self.head_value];
        self.remember(&projected.f_narrow(1, key_width, key_width)?, &mut ring.keys, self.head_key, window)?;
        self.remember(&projected.f_narrow(1, 2 * key_width, value_width)?, &mut ring.values, self.head_value, window)?;

        // [B * heads, T, head_key]
        let query = projected
            .f_narrow(1, 0, key_width)?
            .f_view([images, ranks, self.heads, self.head_key])?
            .f_transpose(1, 2)?
            .f_reshape([batch, ranks, self.head_key])?;
        // [B * heads, places, head_key] and [.., head_value]: views of the rings.
        let keys = ring.keys.f_narrow(0, first, images)?.f_flatten(0, 1)?;
        let values = ring.values.f_narrow(0, first, images)?.f_flatten(0, 1)?;
        let scores = window.mask.f_baddbmm(&query, &keys.f_transpose(1, 2)?, 1.0, 1.0)?;
        let attended = scores
            .f_softmax(-1, None)?
            .f_bmm(&values)?
            .f_view([images, self.heads, ranks, self.head_value])?
            .f_transpose(1, 2)?
            .f_reshape([images * ranks, value_width])?;
        residual.f_addmm(&attended, &self.output)
    }

    /// Writes `rows` [B * T, heads * width] into `ring` [all images, heads, places, width].
    fn remember(&self, rows: &Tensor, ring: &mut Tensor, width: i64, window: &Window) -> Result<(), TchError> {
        match &window.write {
            Write::Each(places) => {
                let rows = rows.f_reshape([window.images * self.heads, width])?;
                let _ = ring.f_view([-1, width])?.f_index_copy_(0, places, &rows)?;
            }
            Write::Span(start) => {
                let rows = rows.f_view([window.images, window.ranks, self.heads, width])?.f_transpose(1, 2)?;
                ring.f_narrow(0, window.first, window.images)?.f_narrow(2, *start, window.ranks)?.f_copy_(&rows)?;
            }
        }
        Ok(())
    }

    /// residual + W_contract ReLU(W_expand x).
    fn feed_forward(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        let hidden = x.f_linear(&self.expand.0, Some(&self.expand.1))?.f_relu()?;
        hidden.f_linear(&self.contract.0, Some(&self.contract.1))?.f_add_(residual)
    }
}
