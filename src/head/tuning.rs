//! What a request may change about how values are drawn. None of it changes the reported log-probabilities.

use crate::error::Violations;

/// Highest temperature accepted; above it every model is uniform for all purposes.
pub const MAX_TEMPERATURE: f32 = 100.0;

/// Temperature and truncation; a `Tuning` that exists is valid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    temperature: f32,
    top_k: u32,
    top_p: f32,
}

impl Default for Tuning {
    /// The model's own law: temperature 1, nothing truncated.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0 }
    }
}

impl Tuning {
    /// Checks the three controls; `None` leaves one at its default.
    ///
    /// `temperature` 0..=100 divides the logits, which are the logarithms of the levels' probabilities (0 takes the likeliest value, the lowest on a tie); `top_k` >= 1 keeps
    /// the k likeliest values; `top_p` in (0, 1] keeps the smallest set of likeliest values of at least that mass, after
    /// temperature and `top_k`. Ties go to the lower value.
    ///
    /// # Errors
    /// One violation for each control out of range, under its own name.
    pub fn new(temperature: Option<f32>, top_k: Option<u32>, top_p: Option<f32>) -> Result<Self, Violations> {
        let default = Self::default();
        let tuning = Self {
            temperature: temperature.unwrap_or(default.temperature),
            top_k: top_k.unwrap_or(default.top_k),
            top_p: top_p.unwrap_or(default.top_p),
        };
        let mut violations = Violations::new();
        if !(0.0..=MAX_TEMPERATURE).contains(&tuning.temperature) {
            violations.add("temperature", format!("must be 0..={MAX_TEMPERATURE}, got {}", tuning.temperature));
        }
        if top_k == Some(0) {
            violations.add("top_k", "must be at least 1, got 0; leave it unset to keep every value");
        }
        if !(tuning.top_p > 0.0 && tuning.top_p <= 1.0) {
            violations.add("top_p", format!("must be above 0 and at most 1, got {}", tuning.top_p));
        }
        violations.into_result(tuning)
    }

    /// Divisor of the logits; 0 means the likeliest value.
    #[must_use]
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// Values kept, likeliest first; 0 keeps all.
    #[must_use]
    pub fn top_k(&self) -> u32 {
        self.top_k
    }

    /// Mass kept, likeliest first; 1 keeps all.
    #[must_use]
    pub fn top_p(&self) -> f32 {
        self.top_p
    }

    /// Whether values are cut off before drawing.
    #[must_use]
    pub fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_controls_are_all_named() {
        let violations = Tuning::new(Some(f32::NAN), Some(0), Some(0.0)).unwrap_err();
        let fields: Vec<_> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["temperature", "top_k", "top_p"]);
        for temperature in [-0.1, 100.1, f32::INFINITY] {
            assert!(Tuning::new(Some(temperature), None, None).is_err());
        }
        for top_p in [-1.0, 1.1, f32::NAN] {
            assert!(Tuning::new(None, None, Some(top_p)).is_err());
        }
        assert_eq!(Tuning::new(None, None, None), Ok(Tuning::default()));
        assert!(Tuning::new(Some(0.0), Some(1), Some(1.0)).is_ok());
    }
}
