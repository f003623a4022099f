//! The network as programs of decode operations, and the input tables they start from.

use tch::{Device, Kind, TchError, Tensor};

use super::config::{Config, Encoder, Input, Norm, Positions};
use crate::decode::{Activation, Attention, Builder, Linear, Network, Normalisation, ProgramId, Register, Ring, Sight};
use crate::head::Head;
use crate::image::Rank;
use crate::model::Placement;
use crate::torch::weights::Weights;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Ratio of the longest time scale of the sinusoids to the shortest (section 3.1).
const TIME_SCALES: f64 = 1e4;
/// Added to the variance in layer normalisation.
const EPSILON: f64 = 1e-6;

/// The programs of one Image Transformer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Programs {
    /// The step of one cell: its input, layers (section 3.2, eq. 1-2), head.
    pub(super) step: ProgramId,
    /// Takes a low-resolution image in, a row for each of its values and all of them at once: layers in which every
    /// position sees all, then the keys and values that the steps look at (section 3.2).
    pub(super) encode: Option<ProgramId>,
}

/// Puts both together.
///
/// # Errors
/// A tensor is missing or its shape does not fit.
pub(super) fn network(
    weights: &mut Weights,
    config: &Config,
    placement: Placement,
) -> Result<(Network, Programs), TchError> {
    let mut network = Network::new(placement.precision, placement.device);
    let attention = Attention { heads: config.heads, head_key: config.head_key(), head_value: config.head_value() };
    let mut rings =
        |places: u32| -> Vec<Ring> { (0..config.layers).map(|_| network.ring(attention, places)).collect() };
    let own = rings(config.grid.places());
    let crossed = config.encoder.map(|encoder| rings(encoder.low.values())).unwrap_or_default();
    let mut encode = None;
    if let Some(encoder) = config.encoder {
        // Layers follow each other, so one ring serves all of them.
        let ring = network.ring(attention, encoder.low.values());
        let program = network.program();
        encode = Some(Layers { program, weights, config }.encode(encoder, ring, &crossed)?);
    }
    let program = network.program();
    let step = Layers { program, weights, config }.step(&own, &crossed)?;
    Ok((network, Programs { step, encode }))
}

/// A program in the making, with the weights it takes.
struct Layers<'n, 'w> {
    program: Builder<'n>,
    weights: &'w mut Weights,
    config: &'w Config,
}

impl Layers<'_, '_> {
    fn step(mut self, own: &[Ring], crossed: &[Ring]) -> Result<ProgramId, TchError> {
        let table = input_rows(self.weights, self.config)?;
        let mut x = self.program.embed(table)?;
        if let Input::Ordinal { relu } = self.config.input {
            x = self.pixels(relu, x)?;
        }
        for (index, &ring) in own.iter().enumerate() {
            x = self.layer(&format!("layers.{index}"), (ring, Sight::Seen), crossed.get(index).copied(), x)?;
        }
        if self.config.norm == Norm::Pre {
            x = self.normalise("norm", x)?;
        }
        let weight = self.weights.take("head.weight")?;
        let head = match self.config.head {
            Head::Categorical | Head::FactorisedCategorical => {
                Linear { weight, bias: Some(self.weights.take("head.bias")?), ..Linear::default() }
            }
            Head::LogisticMixture { components } => {
                let places = self.config.layout.places(components, self.config.head.width(self.config.shape));
                let places: Vec<i64> = places.into_iter().map(|place| place as i64).collect();
                let weight = weight.f_index_select(0, &Tensor::f_from_slice(&places)?)?;
                Linear { weight, ..Linear::default() }
            }
        };
        let parameters = self.program.linear(x, head)?;
        self.program.finish(Some(parameters))
    }

    fn encode(mut self, encoder: Encoder, ring: Ring, crossed: &[Ring]) -> Result<ProgramId, TchError> {
        let table = low_rows(self.weights, self.config, encoder)?;
        let mut x = self.program.embed(table)?;
        for index in 0..encoder.layers {
            x = self.layer(&format!("encoder.layers.{index}"), (ring, Sight::All), None, x)?;
        }
        if self.config.norm == Norm::Pre {
            x = self.normalise("encoder.norm", x)?;
        }
        for (index, &ring) in crossed.iter().enumerate() {
            self.store(&format!("layers.{index}.cross_attention"), ring, x)?;
        }
        self.program.finish(None)
    }

    /// x + the linear map of the numbers of a row, which are the scaled channels of the pixel before and then a one that
    /// carries the bias: for the first cell all are zero, and so is the map.
    fn pixels(&mut self, relu: bool, x: Register) -> Result<Register, TchError> {
        let [weight, bias] = [self.weights.take("pixels.weight")?, self.weights.take("pixels.bias")?];
        let weight = Tensor::f_cat(&[weight, bias.f_unsqueeze(1)?], 1)?;
        let numbers = self.program.input(self.config.shape.channels() + 1)?;
        let activation = relu.then_some(Activation::Relu);
        self.program.linear(numbers, Linear { weight, bias: None, activation, residual: Some(x) })
    }

    /// Attention, attention to what the encoder left in `crossed`, feed-forward.
    fn layer(
        &mut self,
        name: &str,
        (ring, sight): (Ring, Sight),
        crossed: Option<Ring>,
        mut x: Register,
    ) -> Result<Register, TchError> {
        x = self.around(&format!("{name}.attention"), x, |layers, attention, from, residual| {
            layers.store(attention, ring, from)?;
            layers.look(attention, (ring, sight), from, residual)
        })?;
        if let Some(ring) = crossed {
            x = self.around(&format!("{name}.cross_attention"), x, |layers, attention, from, residual| {
                layers.look(attention, (ring, Sight::All), from, residual)
            })?;
        }
        self.around(&format!("{name}.feed_forward"), x, Self::feed_forward)
    }

    /// Puts the norm where it belongs: norm(x + f(x)), or x + f(norm(x)). `f` is given its name, x, and what is added.
    fn around(
        &mut self,
        name: &str,
        x: Register,
        f: impl FnOnce(&mut Self, &str, Register, Register) -> Result<Register, TchError>,
    ) -> Result<Register, TchError> {
        let norm = format!("{name}_norm");
        match self.config.norm {
            Norm::Post => {
                let sum = f(self, name, x, x)?;
                self.normalise(&norm, sum)
            }
            Norm::Pre => {
                let normal = self.normalise(&norm, x)?;
                f(self, name, normal, x)
            }
        }
    }

    /// Keys and values of `from`.
    fn store(&mut self, name: &str, ring: Ring, from: Register) -> Result<(), TchError> {
        let parts = ["key", "value"].map(|part| self.weights.take(&format!("{name}.{part}.weight")));
        let [key, value] = parts;
        let weight = Tensor::f_cat(&[key?, value?], 0)?;
        let remembered = self.program.linear(from, Linear { weight, ..Linear::default() })?;
        self.program.store(remembered, ring)
    }

    /// residual + attention(from). The queries carry the scale of section 3.2, taken over the features of one head.
    fn look(
        &mut self,
        name: &str,
        (ring, sight): (Ring, Sight),
        from: Register,
        residual: Register,
    ) -> Result<Register, TchError> {
        let scale = 1.0 / f64::from(self.config.head_key()).sqrt();
        let weight = self.weights.take(&format!("{name}.query.weight"))?.f_mul_scalar(scale)?;
        let query = self.program.linear(from, Linear { weight, ..Linear::default() })?;
        let attended = self.program.look(query, ring, sight)?;
        let weight = self.weights.take(&format!("{name}.output.weight"))?;
        self.program.linear(attended, Linear { weight, residual: Some(residual), ..Linear::default() })
    }

    /// residual + W_contract ReLU(W_expand from).
    fn feed_forward(&mut self, name: &str, from: Register, residual: Register) -> Result<Register, TchError> {
        let hidden = self.affine(&format!("{name}.expand"), from, Some(Activation::Relu), None)?;
        self.affine(&format!("{name}.contract"), hidden, None, Some(residual))
    }

    fn affine(
        &mut self,
        name: &str,
        from: Register,
        activation: Option<Activation>,
        residual: Option<Register>,
    ) -> Result<Register, TchError> {
        let weight = self.weights.take(&format!("{name}.weight"))?;
        let bias = Some(self.weights.take(&format!("{name}.bias"))?);
        self.program.linear(from, Linear { weight, bias, activation, residual })
    }

    fn normalise(&mut self, name: &str, from: Register) -> Result<Register, TchError> {
        let [scale, shift] = ["weight", "bias"].map(|part| self.weights.take(&format!("{name}.{part}")));
        self.program.normalise(from, Normalisation { scale: scale?, shift: Some(shift?), epsilon: EPSILON })
    }
}

/// The rows of the input table whose sum is the input at `cell`: the value before, if values are embedded; the place of the
/// cell that is predicted; the class (section 3.1). `values` are those before the cell, at least.
pub(super) fn input(config: &Config, values: &[u16], cell: Rank, class: Option<u32>) -> [u32; 4] {
    let grid = &config.grid;
    let rows = 1 + if config.input == Input::Embedding { config.value_rows() } else { 0 };
    let columns = rows + grid.height;
    let classes = columns + grid.columns;
    let embedded = grid.before(cell).filter(|_| config.input == Input::Embedding);
    let value = embedded.and_then(|before| {
        let [_, column] = grid.position(before);
        let value = u32::from(*values.get(before as usize)?);
        Some(1 + column % config.shape.channels() * config.shape.levels() + value)
    });
    let [row, column] = grid.position(cell);
    [value.unwrap_or(0), rows + row, columns + column, class.map_or(0, |class| classes + class)]
}

/// Adds the numbers of the pixel before `cell` to `numbers`, and a one; zeros where there is none.
pub(super) fn pixel_before(config: &Config, values: &[u16], cell: Rank, numbers: &mut Vec<f32>) {
    let channels = config.shape.channels() as usize;
    let first = config.grid.before(cell).map(|before| before as usize * channels);
    match first.and_then(|first| values.get(first..first + channels)) {
        Some(pixel) => {
            let scale = 2.0 / (config.shape.levels() - 1) as f32;
            numbers.extend(pixel.iter().map(|&value| f32::from(value) * scale - 1.0));
            numbers.push(1.0);
        }
        None => numbers.resize(numbers.len() + channels + 1, 0.0),
    }
}

/// The rows of the encoder's table whose sum is its input at `place` of a low-resolution image, which holds `value`.
pub(super) fn low_input(config: &Config, encoder: Encoder, place: u32, value: u16) -> [u32; 3] {
    let columns = encoder.low.width() * encoder.low.channels();
    let (row, column) = (place / columns, place % columns);
    let rows = config.value_rows();
    let value = column % encoder.low.channels() * encoder.low.levels() + u32::from(value);
    [value, rows + row, rows + encoder.low.height() + column]
}

/// The table that inputs are summed from: one row of zeros; channel x level, if values are embedded; row and column of the
/// grid; class. The factor sqrt(d) is folded in. [rows, d]
fn input_rows(weights: &mut Weights, config: &Config) -> Result<Tensor, TchError> {
    let scale = f64::from(config.model_width).sqrt();
    let mut parts = vec![Tensor::f_zeros([1, i64::from(config.model_width)], FLOAT)?];
    if config.input == Input::Embedding {
        parts.push(weights.take("values.weight")?.f_mul_scalar(scale)?);
    }
    parts.extend(position_rows(weights, config, "positions", [config.grid.height, config.grid.columns])?);
    if config.classes > 0 {
        parts.push(weights.take("classes.weight")?.f_mul_scalar(scale)?);
    }
    Tensor::f_cat(&parts, 0)
}

/// The same for the encoder: channel x level; row and column. [rows, d]
fn low_rows(weights: &mut Weights, config: &Config, encoder: Encoder) -> Result<Tensor, TchError> {
    let size = [encoder.low.height(), encoder.low.width() * encoder.low.channels()];
    let [rows, columns] = position_rows(weights, config, "encoder.positions", size)?;
    let values = weights.take("encoder.values.weight")?.f_mul_scalar(f64::from(config.model_width).sqrt())?;
    Tensor::f_cat(&[values, rows, columns], 0)
}

/// Codes of rows and of columns.
fn position_rows(
    weights: &mut Weights,
    config: &Config,
    name: &str,
    [rows, columns]: [u32; 2],
) -> Result<[Tensor; 2], TchError> {
    let scale = f64::from(config.model_width).sqrt();
    Ok(match config.positions {
        Positions::Learned => [
            weights.take(&format!("{name}.rows"))?.f_mul_scalar(scale)?,
            weights.take(&format!("{name}.columns"))?.f_mul_scalar(scale)?,
        ],
        Positions::Sinusoidal => {
            [sinusoids(rows, config.model_width, Half::First)?, sinusoids(columns, config.model_width, Half::Second)?]
        }
    })
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
