//! The network as a program of decode operations, and the input table it starts from.

use tch::{Device, Kind, TchError, Tensor};

use super::config::{Config, Norm, Positions};
use crate::decode::{Activation, Attention, Builder, Linear, Network, Normalisation, ProgramId, Register, Ring, Sight};
use crate::image::Rank;
use crate::spec::Precision;
use crate::torch::weights::Weights;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Ratio of the longest time scale of the sinusoids to the shortest (section 3.1).
const TIME_SCALES: f64 = 1e4;
/// Added to the variance in layer normalisation.
const EPSILON: f64 = 1e-6;

/// The step of one rank: embedded inputs, layers (section 3.2, eq. 1-2), head.
///
/// # Errors
/// A tensor is missing or its shape does not fit.
pub(super) fn network(
    weights: &mut Weights,
    config: &Config,
    precision: Precision,
) -> Result<(Network, ProgramId), TchError> {
    let mut network = Network::new(precision);
    let attention = Attention { heads: config.heads, head_key: config.head_key(), head_value: config.head_value() };
    let rings: Vec<_> = (0..config.layers).map(|_| network.ring(attention, config.places())).collect();
    let mut program = network.program();
    let mut x = program.embed(input_rows(weights, config)?)?;
    for (index, ring) in rings.into_iter().enumerate() {
        let name = |part: &str| format!("layers.{index}.{part}");
        x = match config.norm {
            Norm::Post => {
                let attended = attend(&mut program, weights, config, &name("attention"), ring, x, x)?;
                let attended = normalise(&mut program, weights, &name("attention_norm"), attended)?;
                let fed = feed_forward(&mut program, weights, &name("feed_forward"), attended, attended)?;
                normalise(&mut program, weights, &name("feed_forward_norm"), fed)?
            }
            Norm::Pre => {
                let normal = normalise(&mut program, weights, &name("attention_norm"), x)?;
                let attended = attend(&mut program, weights, config, &name("attention"), ring, normal, x)?;
                let normal = normalise(&mut program, weights, &name("feed_forward_norm"), attended)?;
                feed_forward(&mut program, weights, &name("feed_forward"), normal, attended)?
            }
        };
    }
    if config.norm == Norm::Pre {
        x = normalise(&mut program, weights, "norm", x)?;
    }
    let logits = linear(&mut program, weights, "head", x, None, None)?;
    let step = program.finish(Some(logits))?;
    Ok((network, step))
}

/// residual + attention(from). The queries carry the scale of section 3.2, taken over the features of one head.
fn attend(
    program: &mut Builder<'_>,
    weights: &mut Weights,
    config: &Config,
    name: &str,
    ring: Ring,
    from: Register,
    residual: Register,
) -> Result<Register, TchError> {
    let mut take = |part: &str| weights.take(&format!("{name}.{part}.weight"));
    let scale = 1.0 / f64::from(config.head_key()).sqrt();
    let weight = take("query")?.f_mul_scalar(scale)?;
    let query = program.linear(from, Linear { weight, ..Linear::default() })?;
    let weight = Tensor::f_cat(&[take("key")?, take("value")?], 0)?;
    let remembered = program.linear(from, Linear { weight, ..Linear::default() })?;
    program.store(remembered, ring)?;
    let attended = program.look(query, ring, Sight::Seen)?;
    program.linear(attended, Linear { weight: take("output")?, residual: Some(residual), ..Linear::default() })
}

/// residual + W_contract ReLU(W_expand from).
fn feed_forward(
    program: &mut Builder<'_>,
    weights: &mut Weights,
    name: &str,
    from: Register,
    residual: Register,
) -> Result<Register, TchError> {
    let hidden = linear(program, weights, &format!("{name}.expand"), from, Some(Activation::Relu), None)?;
    linear(program, weights, &format!("{name}.contract"), hidden, None, Some(residual))
}

/// The affine map `name` with what follows it.
fn linear(
    program: &mut Builder<'_>,
    weights: &mut Weights,
    name: &str,
    from: Register,
    activation: Option<Activation>,
    residual: Option<Register>,
) -> Result<Register, TchError> {
    let weight = weights.take(&format!("{name}.weight"))?;
    let bias = Some(weights.take(&format!("{name}.bias"))?);
    program.linear(from, Linear { weight, bias, activation, residual })
}

fn normalise(
    program: &mut Builder<'_>,
    weights: &mut Weights,
    name: &str,
    from: Register,
) -> Result<Register, TchError> {
    let [scale, shift] = [weights.take(&format!("{name}.weight"))?, weights.take(&format!("{name}.bias"))?];
    program.normalise(from, Normalisation { scale, shift, epsilon: EPSILON })
}

/// The rows of the input table whose sum is the input at `rank`: the value before, the place of the value that is
/// predicted, the class (section 3.1). `values` are those before `rank`, at least.
pub(super) fn input(config: &Config, values: &[u16], rank: Rank, class: Option<u32>) -> [u32; 4] {
    let Config { shape, order, .. } = *config;
    let rows = 1 + config.value_rows();
    let columns = rows + shape.height();
    let classes = columns + config.columns();
    let before = rank.checked_sub(1).and_then(|rank| Some((rank, *values.get(rank as usize)?)));
    let value =
        before.map_or(0, |(rank, value)| 1 + order.position(shape, rank).channel * shape.levels() + u32::from(value));
    let place = order.position(shape, rank);
    let column = columns + place.column * shape.channels() + place.channel;
    [value, rows + place.row, column, class.map_or(0, |class| classes + class)]
}

/// The table that inputs are summed from: one row of zeros; channel x level; image row; column; class. The factor sqrt(d) is
/// folded in. [rows, d]
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
