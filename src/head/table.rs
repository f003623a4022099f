//! Drawing from a table of weights, one for each level: what all heads share once they have such a table.

use super::Tuning;

/// Draws from `weights` at temperature 1 or tempered already, after cutting off what `tuning` does not keep.
pub(super) fn draw(weights: &mut [f64], tuning: &Tuning, u: f64) -> usize {
    if tuning.truncates() {
        truncate(weights, tuning);
    }
    inverse_cdf(weights, u)
}

/// The level of the largest number; the lowest on a tie.
pub(super) fn likeliest(logs: impl Iterator<Item = f64>) -> usize {
    let larger = |best: (usize, f64), (value, log): (usize, f64)| if log > best.1 { (value, log) } else { best };
    logs.enumerate().fold((0, f64::NEG_INFINITY), larger).0
}

/// The first value whose cumulative weight exceeds u times the total; the last one with weight if rounding leaves none.
fn inverse_cdf(weights: &[f64], u: f64) -> usize {
    let threshold = u * weights.iter().sum::<f64>();
    let (mut cumulative, mut last) = (0.0, 0);
    for (value, &weight) in weights.iter().enumerate() {
        cumulative += weight;
        if weight > 0.0 {
            last = value;
            if cumulative > threshold {
                break;
            }
        }
    }
    last
}

/// Sets to zero the weight of every value that `top_k` or `top_p` cuts off.
fn truncate(weights: &mut [f64], tuning: &Tuning) {
    let mut likeliest: Vec<(usize, f64)> = weights.iter().copied().enumerate().collect();
    likeliest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut keep = if tuning.top_k() == 0 { likeliest.len() } else { likeliest.len().min(tuning.top_k() as usize) };
    if tuning.top_p() < 1.0 {
        let kept = || likeliest.iter().take(keep).map(|&(_, weight)| weight);
        let wanted = f64::from(tuning.top_p()) * kept().sum::<f64>();
        let mut mass = 0.0;
        let below = kept().take_while(|weight| {
            mass += weight;
            mass < wanted
        });
        keep = keep.min(below.count() + 1);
    }
    for &(value, _) in likeliest.iter().skip(keep) {
        if let Some(weight) = weights.get_mut(value) {
            *weight = 0.0;
        }
    }
}
