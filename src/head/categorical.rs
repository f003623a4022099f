//! The categorical law: a softmax over the levels of one value.

use super::{Draw, NotFinite, Tuning, table};

/// Largest logit, once every logit is known to be finite.
fn largest(row: &[f32]) -> Result<f64, NotFinite> {
    if row.is_empty() || !row.iter().all(|logit| logit.is_finite()) {
        return Err(NotFinite);
    }
    Ok(f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max)))
}

pub(super) fn log_prob(row: &[f32], value: u16) -> Result<f64, NotFinite> {
    let max = largest(row)?;
    let total: f64 = row.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    let logit = row.get(usize::from(value)).ok_or(NotFinite)?;
    Ok(f64::from(*logit) - max - total.ln())
}

pub(super) fn draw(row: &[f32], tuning: &Tuning, u: f64) -> Result<Draw, NotFinite> {
    let max = largest(row)?;
    // Exponentials are what a draw costs, so the model's own weights serve for drawing too unless tuning changes them.
    let mut weights: Vec<f64> = row.iter().map(|&logit| (f64::from(logit) - max).exp()).collect();
    let ln_total = weights.iter().sum::<f64>().ln();
    let value = if tuning.temperature() == 0.0 {
        table::likeliest(row.iter().map(|&logit| f64::from(logit)))
    } else {
        if tuning.temperature() != 1.0 {
            let temperature = f64::from(tuning.temperature());
            for (weight, &logit) in weights.iter_mut().zip(row) {
                *weight = ((f64::from(logit) - max) / temperature).exp();
            }
        }
        table::draw(&mut weights, tuning, u)
    };
    let log_prob = row.get(value).map_or(f64::NEG_INFINITY, |&logit| f64::from(logit) - max - ln_total);
    Ok(Draw { value: value as u16, log_prob })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning(temperature: f32, top_k: Option<u32>, top_p: Option<f32>) -> Tuning {
        Tuning::new(Some(temperature), top_k, top_p).unwrap()
    }

    #[test]
    fn probabilities_sum_to_one() {
        let row: Vec<f32> = (0..300).map(|v| ((v * 37) % 101) as f32 / 9.0 - 4.0).collect();
        let total: f64 = (0..300).map(|value| log_prob(&row, value).unwrap().exp()).sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
    }

    #[test]
    fn equal_logits_give_exactly_the_log_of_the_levels() {
        assert_eq!(log_prob(&[0.0; 256], 77).unwrap(), -(256f64.ln()));
    }

    #[test]
    fn draws_follow_the_law() {
        let row = [0.0, 1.0, -1.0, 2.0];
        let mut counts = [0u32; 4];
        let draws = 40_000;
        for rank in 0..draws {
            let drawn = draw(&row, &Tuning::default(), crate::noise::uniform(3, 0, rank)).unwrap();
            assert_eq!(drawn.log_prob, log_prob(&row, drawn.value).unwrap());
            counts[usize::from(drawn.value)] += 1;
        }
        for (value, count) in counts.into_iter().enumerate() {
            let expected = log_prob(&row, value as u16).unwrap().exp();
            let seen = f64::from(count) / f64::from(draws);
            assert!((seen - expected).abs() < 0.01, "value {value}: {seen} against {expected}");
        }
    }

    #[test]
    fn tuning_narrows_the_choice_but_not_the_log_probability() {
        let row = [0.0, 3.0, 2.0, 3.0];
        for step in 0..100 {
            let u = (f64::from(step) + 0.5) / 100.0;
            assert_eq!(draw(&row, &tuning(0.0, None, None), u).unwrap().value, 1, "a tie goes to the lower value");
            assert_eq!(draw(&row, &tuning(1.0, Some(1), None), u).unwrap().value, 1);
            assert_ne!(draw(&row, &tuning(1.0, Some(3), None), u).unwrap().value, 0);
            assert!([1, 3].contains(&draw(&row, &tuning(1.0, None, Some(0.7)), u).unwrap().value));
            let cold = draw(&row, &tuning(0.2, None, None), u).unwrap();
            assert_eq!(cold.log_prob, log_prob(&row, cold.value).unwrap());
        }
    }

    #[test]
    fn parameters_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(draw(&[0.0, bad], &Tuning::default(), 0.5), Err(NotFinite));
            assert_eq!(log_prob(&[0.0, bad], 0), Err(NotFinite));
        }
        assert_eq!(log_prob(&[0.0, 0.0], 2), Err(NotFinite));
    }

    #[test]
    fn extreme_uniforms_and_logits_stay_within_the_levels() {
        for u in [1e-300, 0.5, 1.0 - f64::EPSILON / 2.0] {
            let drawn = draw(&[-1e30, 0.0, 1e30, -1e30], &Tuning::default(), u).unwrap();
            assert_eq!((drawn.value, drawn.log_prob), (2, 0.0));
        }
    }
}
