//! Features, and the channels they belong to (PixelRNN, section 3.4).

use tch::{TchError, Tensor};

/// Which feature belongs to which channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model::families) enum GroupScheme {
    /// Feature f to channel f mod C.
    Mod,
    /// Feature f of n to channel floor(C f / n).
    Contiguous,
}

/// Features in the order in which they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::model::families) struct Features {
    /// Of each feature its place in the weights file.
    pub(super) order: Vec<i64>,
    /// Where each channel's features begin; then their number.
    bounds: Vec<u32>,
}

impl Features {
    pub(in crate::model::families) fn new(count: u32, channels: u32, scheme: GroupScheme) -> Self {
        let group = |feature: u32| match scheme {
            GroupScheme::Mod => feature % channels,
            GroupScheme::Contiguous => (u64::from(channels) * u64::from(feature) / u64::from(count.max(1))) as u32,
        };
        let mut order: Vec<u32> = (0..count).collect();
        order.sort_by_key(|&feature| group(feature));
        let bound = |channel| order.iter().filter(|&&feature| group(feature) < channel).count() as u32;
        Self { bounds: (0..=channels).map(bound).collect(), order: order.into_iter().map(i64::from).collect() }
    }

    /// `each` features for every channel, one channel after the other.
    pub(in crate::model::families) fn by_channel(each: u32, channels: u32) -> Self {
        Self {
            order: (0..i64::from(each) * i64::from(channels)).collect(),
            bounds: (0..=channels).map(|channel| channel * each).collect(),
        }
    }

    pub(in crate::model::families) fn count(&self) -> u32 {
        self.order.len() as u32
    }

    /// As what a convolution of so many gates gives.
    pub(in crate::model::families) fn gates(&self, gates: u32) -> Outputs<'_> {
        Outputs { features: self, gates }
    }

    /// `tensor` [features, ..] in this order.
    pub(in crate::model::families) fn arrange(&self, tensor: &Tensor) -> Result<Tensor, TchError> {
        tensor.f_index_select(0, &Tensor::f_from_slice(&self.order)?)
    }

    /// As [`arrange`](Self::arrange), for two halves of the same features.
    pub(in crate::model::families) fn arrange_halves(&self, tensor: &Tensor) -> Result<Tensor, TchError> {
        let count = i64::from(self.count());
        let order: Vec<i64> = self.order.iter().copied().chain(self.order.iter().map(|place| place + count)).collect();
        tensor.f_index_select(0, &Tensor::f_from_slice(&order)?)
    }

    pub(super) fn bound(&self, channel: u32) -> u32 {
        self.bounds.get(channel as usize).copied().unwrap_or(self.count())
    }
}

/// What a convolution gives: as many maps as there are gates, each of the same features.
#[derive(Clone, Copy, Debug)]
pub(in crate::model::families) struct Outputs<'f> {
    pub(super) features: &'f Features,
    pub(super) gates: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_ordered_by_group_whatever_their_number() {
        let mixed = Features::new(8, 3, GroupScheme::Mod);
        assert_eq!(mixed.order, [0, 3, 6, 1, 4, 7, 2, 5]);
        assert_eq!(mixed.bounds, [0, 3, 6, 8]);
        let contiguous = Features::new(8, 3, GroupScheme::Contiguous);
        assert_eq!(contiguous.order, [0, 1, 2, 3, 4, 5, 6, 7]);
        // floor(3 f / 8) = 0 0 0 1 1 1 2 2
        assert_eq!(contiguous.bounds, [0, 3, 6, 8]);
        assert_eq!(Features::new(2, 3, GroupScheme::Contiguous).bounds, [0, 1, 2, 2], "a group may be empty");
        assert_eq!(Features::by_channel(2, 3).bounds, [0, 2, 4, 6]);
    }
}
