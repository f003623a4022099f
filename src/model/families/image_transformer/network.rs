//! The whole network: embedded inputs, layers, head; and the rings its layers remember in.

use tch::{Device, Kind, TchError, Tensor};

use super::config::{Config, Norm, Positions};
use super::layer::{Layer, LayerNorm, Ring, Window};
use crate::image::Rank;
use crate::torch::weights::Weights;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Ratio of the longest time scale of the sinusoids to the shortest (section 3.1).
const TIME_SCALES: f64 = 1e4;

/// Weights, folded once: the input tables carry their factor sqrt(d).
pub(super) struct Network {
    config: Config,
    /// Rows that inputs are sums of: one of zeros; channel x level; image row; column; class. [rows, d]
    inputs: Tensor,
    layers: Vec<Layer>,
    /// After the last layer, with pre-norm.
    norm: Option<LayerNorm>,
    head: (Tensor, Tensor),
}

impl Network {
    pub(super) fn take(weights: &mut Weights, config: Config) -> Result<Self, TchError> {
        let inputs = input_rows(weights, &config)?;
        let layers = (0..config.layers).map(|layer| Layer::take(weights, layer, &config)).collect::<Result<_, _>>()?;
        let norm = match config.norm {
            Norm::Post => None,
            Norm::Pre => Some(LayerNorm::take(weights, "norm", config.model_width)?),
        };
        let head = (weights.take("head.weight")?, weights.take("head.bias")?);
        Ok(Self { config, inputs, layers, norm, head })
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The rows of the input table whose sum is the input at `rank`: the value before, the place of the value that is
    /// predicted, the class (section 3.1). `values` are those before `rank`, at least.
    pub(super) fn input(&self, values: &[u16], rank: Rank, class: Option<u32>) -> [i64; 4] {
        let Config { shape, order, .. } = self.config;
        let rows = 1 + self.config.value_rows();
        let columns = rows + shape.height();
        let classes = columns + self.config.columns();
        let before = rank.checked_sub(1).and_then(|rank| Some((rank, *values.get(rank as usize)?)));
        let value = before
            .map_or(0, |(rank, value)| 1 + order.position(shape, rank).channel * shape.levels() + u32::from(value));
        let place = order.position(shape, rank);
        let column = columns + place.column * shape.channels() + place.channel;
        [value, rows + place.row, column, class.map_or(0, |class| classes + class)].map(i64::from)
    }

    /// Logits [B * T, levels] of a window whose inputs are sums of the rows `inputs` [B * T, 4] of the input table.
    pub(super) fn forward(&self, inputs: &[i64], rings: &mut Rings, window: &Window) -> Result<Tensor, TchError> {
        let rows = window.images * window.ranks;
        let mut x = self
            .inputs
            .f_index_select(0, &Tensor::f_from_slice(inputs)?)?
            .f_view([rows, 4, i64::from(self.config.model_width)])?
            .f_sum_dim_intlist([1i64].as_slice(), false, None)?;
        for (layer, ring) in self.layers.iter().zip(&mut rings.layers) {
            x = layer.forward(&x, ring, window)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.apply(&x)?;
        }
        x.f_linear(&self.head.0, Some(&self.head.1))
    }
}

/// The table that inputs are summed from.
fn input_rows(weights: &mut Weights, config: &Config) -> Result<Tensor, TchError> {
    let scale = f64::from(config.model_width).sqrt();
    let mut parts = vec![Tensor::f_zeros([1, i64::from(config.model_width)], FLOAT)?];
    parts.push(weights.take("values.weight")?.f_mul_scalar(scale)?);
    match config.positions {
        Positions::Learned => {
            parts.push(weights.take("positions.rows")?.f_mul_scalar(scale)?);
            parts.push(weights.take("positions.columns")?.f_mul_scalar(scale)?);
        }
        Positions::Sinusoidal => {
            parts.push(sinusoids(config.shape.height(), config.model_width, Half::First)?);
            parts.push(sinusoids(config.columns(), config.model_width, Half::Second)?);
        }
    }
    if config.classes > 0 {
        parts.push(weights.take("classes.weight")?.f_mul_scalar(scale)?);
    }
    Tensor::f_cat(&parts, 0)
}

/// Which half of the features a coordinate is coded in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    First,
    Second,
}

/// [length, d]: sines and cosines of 0..length on d/4 time scales in one half of the features, zeros in the other.
fn sinusoids(length: u32, width: u32, half: Half) -> Result<Tensor, TchError> {
    let scales = width / 4;
    let steps = f64::from(scales.saturating_sub(1).max(1));
    let inverse: Vec<f64> = (0..scales).map(|m| (-f64::from(m) * TIME_SCALES.ln() / steps).exp()).collect();
    let zeros = std::iter::repeat_n(0.0, 2 * inverse.len());
    let mut table = Vec::with_capacity(length as usize * width as usize);
    for coordinate in (0..length).map(f64::from) {
        if half == Half::Second {
            table.extend(zeros.clone());
        }
        table.extend(inverse.iter().map(|inverse| (coordinate * inverse).sin() as f32));
        table.extend(inverse.iter().map(|inverse| (coordinate * inverse).cos() as f32));
        if half == Half::First {
            table.extend(zeros.clone());
        }
    }
    Tensor::f_from_slice(&table)?.f_view([i64::from(length), i64::from(width)])
}

/// Keys and values of the current and the previous block of some images, for every layer (section 3.3): all that a
/// strictly causal network has to remember.
pub(super) struct Rings {
    layers: Vec<Ring>,
}

impl Rings {
    pub(super) fn new(config: &Config, images: i64) -> Result<Self, TchError> {
        let [heads, places] = [config.heads, config.places()].map(i64::from);
        let zeros = |width: u32| Tensor::f_zeros([images, heads, places, i64::from(width)], FLOAT);
        let ring = |_| Ok(Ring { keys: zeros(config.head_key())?, values: zeros(config.head_value())? });
        Ok(Self { layers: (0..config.layers).map(ring).collect::<Result<_, TchError>>()? })
    }

    /// Forgets `images` images from `first` on. The mask alone would not do: 0 x NaN is NaN.
    pub(super) fn clear(&mut self, first: i64, images: i64) -> Result<(), TchError> {
        for ring in self.tensors() {
            let _ = ring.f_narrow(0, first, images)?.f_zero_()?;
        }
        Ok(())
    }

    /// Fills every image with the same made-up keys and values.
    pub(super) fn fill(&mut self) -> Result<(), TchError> {
        for ring in self.tensors() {
            let one = ring.f_narrow(0, 0, 1)?;
            let length = i64::try_from(one.numel()).unwrap_or(i64::MAX);
            let pattern = Tensor::f_arange(length, FLOAT)?.f_mul_scalar(0.7)?.f_cos()?.f_view(one.size().as_slice())?;
            ring.f_copy_(&pattern.f_expand_as(ring)?)?;
        }
        Ok(())
    }

    /// Makes every key and value NaN.
    #[cfg(test)]
    pub(super) fn poison(&mut self) -> Result<(), TchError> {
        for ring in self.tensors() {
            let _ = ring.f_fill_(f64::NAN)?;
        }
        Ok(())
    }

    fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.layers.iter_mut().flat_map(|ring| [&mut ring.keys, &mut ring.values])
    }
}
