//! The colours that the levels of a one-channel image stand for.

use super::Shape;

/// Most colours of a palette: a listing tells those of every model.
pub const MAX_COLOURS: usize = 1024;
/// Colours times pixels at most: every pixel of a PNG file is compared with every colour, tens of milliseconds in all.
const MAX_COMPARISONS: u64 = 1 << 26;

/// One colour for each level: red, green and blue, real numbers of 0..=255.
#[derive(Clone, Debug, PartialEq)]
pub struct Palette(Vec<[f64; 3]>);

impl Palette {
    /// The palette of `colours`, for images of `shape`.
    ///
    /// # Errors
    /// The rule that is broken: one channel, a colour for each level, at most [`MAX_COLOURS`] and 2^26 over the pixels of an
    /// image, numbers of 0..=255.
    pub fn new(colours: Vec<[f64; 3]>, shape: Shape) -> Result<Self, String> {
        let within = |colour: &[f64; 3]| colour.iter().all(|number| (0.0..=255.0).contains(number));
        if shape.channels() != 1 {
            return Err(format!("is only for images of 1 channel, got {}", shape.channels()));
        }
        if colours.len() != shape.levels() as usize || colours.len() > MAX_COLOURS {
            let (levels, given) = (shape.levels(), colours.len());
            return Err(format!(
                "must be a colour for each of the {levels} levels, at most {MAX_COLOURS}, got {given}"
            ));
        }
        let comparisons = u64::from(shape.values()) * colours.len() as u64;
        if comparisons > MAX_COMPARISONS {
            let (most, pixels) = (MAX_COMPARISONS / u64::from(shape.values()), shape.values());
            return Err(format!("must be at most {most} colours for images of {pixels} pixels, got {}", colours.len()));
        }
        if let Some(level) = colours.iter().position(|colour| !within(colour)) {
            let found = colours.get(level).copied().unwrap_or_default();
            return Err(format!("must be numbers of 0..=255, got {found:?} for level {level}"));
        }
        Ok(Self(colours))
    }

    /// The palette of three bytes a level, as it travels.
    ///
    /// # Errors
    /// As [`Palette::new`]; and bytes that are left over.
    pub fn from_bytes(bytes: &[u8], shape: Shape) -> Result<Self, String> {
        match bytes.as_chunks::<3>() {
            (colours, []) => Self::new(colours.iter().map(|colour| colour.map(f64::from)).collect(), shape),
            _ => Err(format!("must be three bytes for each level, got {}", bytes.len())),
        }
    }

    /// The colours, one for each level.
    #[must_use]
    pub fn colours(&self) -> &[[f64; 3]] {
        &self.0
    }

    /// The colour of `level`, each number rounded to the nearest.
    #[must_use]
    pub fn rgb(&self, level: u16) -> [u8; 3] {
        self.0.get(usize::from(level)).copied().unwrap_or_default().map(|number| number.round() as u8)
    }

    /// Three bytes for each level.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        (0..=u16::MAX).take(self.0.len()).flat_map(|level| self.rgb(level)).collect()
    }

    /// The level whose colour is nearest to `rgb` by squared distance, the lowest of several.
    #[must_use]
    pub fn nearest(&self, rgb: [u8; 3]) -> u16 {
        let square = |(a, b): (f64, u8)| (a - f64::from(b)) * (a - f64::from(b));
        let distance = |colour: &[f64; 3]| colour.iter().copied().zip(rgb).map(square).sum::<f64>();
        let mut nearest = (0, f64::INFINITY);
        for (level, distance) in (0..).zip(self.0.iter().map(distance)) {
            if distance < nearest.1 {
                nearest = (level, distance);
            }
        }
        nearest.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(channels: u32, levels: u32) -> Shape {
        Shape::new(1, 1, channels, levels).unwrap()
    }

    #[test]
    fn colours_are_one_for_each_level_of_one_channel_and_within_a_byte() {
        let [grey, wrong] = [[1.5; 3], [1.0, 255.1, 0.0]];
        assert!(Palette::new(vec![grey; 2], shape(1, 2)).is_ok());
        let refused = |colours, shape| Palette::new(colours, shape).unwrap_err();
        assert!(refused(vec![grey; 3], shape(3, 3)).contains("1 channel, got 3"));
        assert!(refused(vec![grey; 3], shape(1, 2)).contains("each of the 2 levels, at most 1024, got 3"));
        assert!(refused(vec![grey; 1025], shape(1, 1025)).contains("at most 1024, got 1025"));
        assert!(refused(vec![grey, wrong], shape(1, 2)).contains("got [1.0, 255.1, 0.0] for level 1"));
        for bad in [f64::NAN, f64::INFINITY, -0.1] {
            assert!(refused(vec![[bad; 3]; 2], shape(1, 2)).contains("for level 0"));
        }
    }

    #[test]
    fn what_looking_up_the_pixels_of_an_image_costs_is_bounded() {
        let palette = |side: u32, levels: u32| {
            Palette::new(vec![[0.0; 3]; levels as usize], Shape::new(side, side, 1, levels).unwrap())
        };
        assert!(palette(256, 1024).is_ok() && palette(1024, 64).is_ok());
        let refused = palette(1024, 65).unwrap_err();
        assert_eq!(refused, "must be at most 64 colours for images of 1048576 pixels, got 65");
    }

    #[test]
    fn a_colour_is_taken_for_the_nearest_and_the_lowest_level_of_equals() {
        let colours = vec![[9.0, 0.0, 0.0], [10.4, 20.0, 30.5], [11.0, 0.0, 0.0], [11.0, 0.0, 0.0]];
        let palette = Palette::new(colours, shape(1, 4)).unwrap();
        assert_eq!([[10, 0, 0], [11, 0, 0], [255, 255, 255], [8, 1, 1]].map(|rgb| palette.nearest(rgb)), [0, 2, 1, 0]);
        assert_eq!((palette.rgb(1), palette.rgb(9)), ([10, 20, 31], [0, 0, 0]));
        let rounded = Palette::from_bytes(&palette.to_bytes(), shape(1, 4)).unwrap();
        assert_eq!(rounded.colours()[..2], [[9.0, 0.0, 0.0], [10.0, 20.0, 31.0]]);
        assert!(Palette::from_bytes(&[0; 11], shape(1, 4)).unwrap_err().contains("got 11"));
    }
}
