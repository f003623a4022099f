//! The geometry and quantisation of an image.

use crate::error::Violations;

/// Most values (height x width x channels) one image may have: 1024 x 1024 grey, or about 591 x 591 RGB.
pub const MAX_VALUES: u32 = 1 << 20;
/// Most levels a value may take: two bytes on the wire.
pub const MAX_LEVELS: u32 = 1 << 16;

/// Height, width, channels and levels; a `Shape` that exists is within every limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    height: u32,
    width: u32,
    channels: u32,
    levels: u32,
}

impl Shape {
    /// Checks the four numbers: each at least 1, `levels` 2..=65,536, at most [`MAX_VALUES`] values.
    ///
    /// # Errors
    /// One violation for each broken rule, under `height`, `width`, `channels`, `levels`.
    pub fn new(height: u32, width: u32, channels: u32, levels: u32) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        for (field, given) in [("height", height), ("width", width), ("channels", channels)] {
            if given == 0 {
                violations.add(field, "must be at least 1, got 0");
            }
        }
        if !(2..=MAX_LEVELS).contains(&levels) {
            violations.add("levels", format!("must be 2..={MAX_LEVELS}, got {levels}"));
        }
        let values = u128::from(height) * u128::from(width) * u128::from(channels);
        if values > u128::from(MAX_VALUES) {
            violations.add("height", format!("height x width x channels must be at most {MAX_VALUES}, got {values}"));
        }
        violations.into_result(Self { height, width, channels, levels })
    }

    /// Rows of pixels.
    #[must_use]
    pub fn height(self) -> u32 {
        self.height
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(self) -> u32 {
        self.width
    }

    /// Values in a pixel.
    #[must_use]
    pub fn channels(self) -> u32 {
        self.channels
    }

    /// Values run 0..levels.
    #[must_use]
    pub fn levels(self) -> u32 {
        self.levels
    }

    /// Values in an image, N = H x W x C.
    #[must_use]
    pub fn values(self) -> u32 {
        self.height * self.width * self.channels
    }

    /// Bytes of one value in raw form: 1 up to 256 levels, 2 (little-endian) above.
    #[must_use]
    pub fn bytes_per_value(self) -> usize {
        if self.levels <= 256 { 1 } else { 2 }
    }

    /// Bytes of one image in raw form.
    #[must_use]
    pub fn raw_bytes(self) -> usize {
        self.values() as usize * self.bytes_per_value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_broken_rule_is_reported() {
        let violations = Shape::new(0, 0, 0, 1).unwrap_err();
        let fields: Vec<_> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["height", "width", "channels", "levels"]);
    }

    #[test]
    fn size_is_bounded_without_overflow() {
        assert!(Shape::new(u32::MAX, u32::MAX, u32::MAX, 256).is_err());
        assert!(Shape::new(1024, 1024, 1, 256).is_ok());
        assert!(Shape::new(1024, 1025, 1, 256).is_err());
    }

    #[test]
    fn raw_values_take_two_bytes_above_256_levels() {
        assert_eq!(Shape::new(2, 3, 4, 256).unwrap().raw_bytes(), 24);
        assert_eq!(Shape::new(2, 3, 4, 257).unwrap().raw_bytes(), 48);
    }
}
