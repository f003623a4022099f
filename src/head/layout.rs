//! In which order a weights file holds the parameters of a mixture of logistics.

use crate::image::Shape;

/// The order in which the numbers of a row stand behind its K logits. Code bases differ in it while all shapes agree
/// (openai/pixel-cnn, tensor2tensor, and a PyTorch port of the latter); [`super::Head`] reads [`Layout::Saha`] alone, so
/// weights are brought into that order when they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Kind by kind, in each kind channel by channel, in each channel component by component.
    #[default]
    Saha,
    /// Channel by channel, in each channel kind by kind, in each kind component by component. Three channels.
    Oai,
    /// Kind by kind, in each kind component by component, in each component channel by channel. Three channels.
    T2t,
}

impl Layout {
    /// Whether it is defined for images of `shape`: the foreign ones are for three channels, where there are as many
    /// coefficients as means.
    #[must_use]
    pub fn suits(self, shape: Shape) -> bool {
        self == Layout::Saha || shape.channels() == 3
    }

    /// For each place of a row of `width` numbers, in the order in which [`super::Head`] reads it, the place that the
    /// number has in this layout. `components` is at least 1.
    #[must_use]
    pub fn places(self, components: u32, width: usize) -> Vec<usize> {
        const CHANNELS: usize = 3;
        let k = components.max(1) as usize;
        let place = |place: usize| {
            let Some(behind) = place.checked_sub(k) else { return place };
            let (kind, channel, component) = (behind / (CHANNELS * k), behind / k % CHANNELS, behind % k);
            k + match self {
                Layout::Saha => behind,
                Layout::Oai => channel * CHANNELS * k + kind * k + component,
                Layout::T2t => kind * CHANNELS * k + component * CHANNELS + channel,
            }
        };
        (0..width).map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row in each layout that says of every number what it is, by the formulas of the code bases.
    #[test]
    fn every_layout_is_read_as_what_it_means() {
        let components = 4;
        let k = components as usize;
        let said = |kind: usize, channel: usize, component: usize| 1000 * kind + 100 * channel + component + 7;
        let mut rows = [Layout::Saha, Layout::Oai, Layout::T2t].map(|layout| (layout, vec![0; 10 * k]));
        for kind in 0..3 {
            for channel in 0..3 {
                for component in 0..k {
                    let value = said(kind, channel, component);
                    rows[0].1[k + kind * 3 * k + channel * k + component] = value;
                    rows[1].1[k + channel * 3 * k + kind * k + component] = value;
                    rows[2].1[k + kind * 3 * k + component * 3 + channel] = value;
                }
            }
        }
        let canonical = rows[0].1.clone();
        for (layout, row) in rows {
            let read: Vec<usize> = layout.places(components, 10 * k).iter().map(|&place| row[place]).collect();
            assert_eq!(read, canonical, "{layout:?}");
        }
    }

    #[test]
    fn foreign_layouts_are_for_three_channels() {
        let shape = |channels| Shape::new(1, 1, channels, 2).unwrap();
        assert!(Layout::Saha.suits(shape(1)) && Layout::Oai.suits(shape(3)) && Layout::T2t.suits(shape(3)));
        assert!(!Layout::Oai.suits(shape(1)) && !Layout::T2t.suits(shape(4)));
    }
}
