//! The law of discretised logistics: one mixture over the channels of a pixel, taken one channel at a time
//! (PixelCNN++, sections 2.1 and 2.2).
//!
//! With u(v) = 2v / (V - 1) - 1, a component gives a level the mass of a logistic within half a level's distance of u(v),
//! and gives the lowest and the highest level all beyond. Its mean for channel c is m_c plus tanh(q_cp) u(x_p) for every
//! earlier channel p. The component is one for the whole pixel, so a channel weighs the components by what the earlier ones
//! say of them: S_0 = ln pi, S_{c+1} = S_c + ln P_c(x_c), ln p(v) = LSE(S_c + ln P_c(v)) - LSE(S_c).

use super::{Draw, NotFinite, Tuning, table};
use crate::image::Shape;

/// Most components. The papers use 10.
pub const MAX_COMPONENTS: u32 = 64;
/// Smallest log-scale; what is below it counts as it.
const SMALLEST_LOG_SCALE: f64 = -7.0;

/// Length of a row: for each component its logit, and of each channel the mean, the log-scale and the coefficients of the
/// channels before it.
pub(super) fn width(components: u32, channels: u32) -> usize {
    let (components, channels) = (components as usize, channels as usize);
    components * (1 + 2 * channels + channels * channels.saturating_sub(1) / 2)
}

pub(super) fn log_prob(
    row: &[f32],
    components: u32,
    shape: Shape,
    earlier: &[u16],
    value: u16,
) -> Result<f64, NotFinite> {
    if u32::from(value) >= shape.levels() {
        return Err(NotFinite);
    }
    Ok(Conditional::new(row, components, shape, earlier)?.log_prob(u32::from(value)))
}

pub(super) fn draw(
    row: &[f32],
    components: u32,
    shape: Shape,
    earlier: &[u16],
    tuning: &Tuning,
    u: f64,
) -> Result<Draw, NotFinite> {
    let law = Conditional::new(row, components, shape, earlier)?;
    let temperature = f64::from(tuning.temperature());
    let logs = (0..shape.levels()).map(|value| law.log_prob(value));
    let value = if temperature == 0.0 {
        table::likeliest(logs) as u32
    } else if temperature == 1.0 && !tuning.truncates() {
        law.inverse_cdf(u)
    } else {
        let mut weights: Vec<f64> = logs.collect();
        let most = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        weights.iter_mut().for_each(|weight| *weight = ((*weight - most) / temperature).exp());
        table::draw(&mut weights, tuning, u) as u32
    };
    Ok(Draw { value: value as u16, log_prob: law.log_prob(value) })
}

/// One component of the law of one channel.
#[derive(Clone, Copy, Default)]
struct Component {
    /// ln of its weight after the channels before; the weights of all sum to 1.
    ln_weight: f64,
    mean: f64,
    /// 1 / s.
    inverse_scale: f64,
    /// ln(1 - exp(-w)), where w = 2 / ((V - 1) s) is the width of a level in units of the scale.
    ln_width: f64,
}

impl Component {
    fn new(mean: f64, log_scale: f64, levels: u32) -> Self {
        let log_scale = log_scale.max(SMALLEST_LOG_SCALE);
        let ln_w = (2.0 / f64::from(levels - 1)).ln() - log_scale;
        let w = ln_w.exp();
        let ln_width = if w < 1e-6 {
            // ln w - w/2 to the last digit, and finite where w itself is not above zero any more.
            ln_w - w / 2.0
        } else if w < std::f64::consts::LN_2 {
            (-(-w).exp_m1()).ln()
        } else {
            (-(-w).exp()).ln_1p()
        };
        Self { ln_weight: 0.0, mean, inverse_scale: (-log_scale).exp(), ln_width }
    }

    /// The argument of the logistic function at the upper edge of `value`.
    fn upper_edge(&self, value: u32, levels: u32) -> f64 {
        let edge = (2.0 * f64::from(value) + 1.0) / f64::from(levels - 1) - 1.0;
        (edge - self.mean) * self.inverse_scale
    }

    /// ln of the mass of `value`. Nothing cancels: ln(F(a) - F(b)) = ln F(a) + ln F(-b) + ln(1 - exp(b - a)).
    fn log_prob(&self, value: u32, levels: u32) -> f64 {
        let below_upper = || -softplus(-self.upper_edge(value, levels));
        let above_lower = || -softplus(self.upper_edge(value - 1, levels));
        if value == 0 {
            below_upper()
        } else if value == levels - 1 {
            above_lower()
        } else {
            below_upper() + above_lower() + self.ln_width
        }
    }
}

/// The law of one channel of a pixel, given the channels before it.
struct Conditional {
    components: [Component; MAX_COMPONENTS as usize],
    count: usize,
    levels: u32,
}

impl Conditional {
    fn new(row: &[f32], components: u32, shape: Shape, earlier: &[u16]) -> Result<Self, NotFinite> {
        let (count, channels, channel) = (components as usize, shape.channels() as usize, earlier.len());
        let whole = row.len() == width(components, shape.channels()) && channel < channels;
        if !whole || !(1..=MAX_COMPONENTS).contains(&components) || !row.iter().all(|number| number.is_finite()) {
            return Err(NotFinite);
        }
        let levels = shape.levels();
        // Kind by kind, in each kind channel by channel, in each channel component by component.
        let number = |place: usize, k: usize| row.get(place * count + k).map_or(0.0, |&number| f64::from(number));
        let component = |c: usize, k: usize| {
            let first = 1 + 2 * channels + c * c.saturating_sub(1) / 2;
            let pull = (first..).zip(earlier.iter().take(c));
            let pull = pull.map(|(place, &value)| number(place, k).tanh() * symmetric(value, levels));
            Component::new(number(1 + c, k) + pull.sum::<f64>(), number(1 + channels + c, k), levels)
        };
        let mut all = [Component::default(); MAX_COMPONENTS as usize];
        for (k, place) in all.iter_mut().take(count).enumerate() {
            let said = earlier.iter().enumerate().map(|(c, &value)| component(c, k).log_prob(u32::from(value), levels));
            *place = Component { ln_weight: number(0, k) + said.sum::<f64>(), ..component(channel, k) };
        }
        let total = log_sum_exp(all.iter().take(count).map(|component| component.ln_weight));
        all.iter_mut().for_each(|component| component.ln_weight -= total);
        Ok(Self { components: all, count, levels })
    }

    fn components(&self) -> impl Iterator<Item = &Component> + Clone {
        self.components.iter().take(self.count)
    }

    /// ln of the probability of `value`, which is below the levels.
    fn log_prob(&self, value: u32) -> f64 {
        log_sum_exp(self.components().map(|component| component.ln_weight + component.log_prob(value, self.levels)))
    }

    /// The first value whose cumulative probability exceeds `u`. That probability has a closed form, so it is searched
    /// rather than summed: a draw of the model's own law needs no table.
    fn inverse_cdf(&self, u: f64) -> u32 {
        let weight = |component: &Component| component.ln_weight.exp();
        let cumulative = |value: u32| -> f64 {
            let below =
                |component: &Component| weight(component) / (1.0 + (-component.upper_edge(value, self.levels)).exp());
            self.components().map(below).sum()
        };
        let threshold = u * self.components().map(weight).sum::<f64>();
        let (mut low, mut high) = (0, self.levels - 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if cumulative(middle) > threshold {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

/// u(v), from -1 to 1.
fn symmetric(value: u16, levels: u32) -> f64 {
    2.0 * f64::from(value) / f64::from(levels - 1) - 1.0
}

/// ln(1 + e^z).
fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// ln of the sum of the exponentials of `numbers`.
fn log_sum_exp(numbers: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = numbers.clone().fold(f64::NEG_INFINITY, f64::max);
    most + numbers.map(|number| (number - most).exp()).sum::<f64>().ln()
}

#[cfg(test)]
#[path = "mixture_tests.rs"]
mod tests;
