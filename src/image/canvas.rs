//! An image in the making.

use super::{Order, Rank, Shape};

/// The values of one image in rank order, of which the first `known` are final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canvas {
    shape: Shape,
    values: Vec<u16>,
}

impl Canvas {
    /// An image of which nothing is known yet.
    #[must_use]
    pub fn empty(shape: Shape) -> Self {
        Self { shape, values: Vec::with_capacity(shape.values() as usize) }
    }

    /// An image whose first values are known, in rank order. `None` if there are more than fit or one is out of range.
    #[must_use]
    pub fn with_prefix(shape: Shape, values: Vec<u16>) -> Option<Self> {
        let fits = values.len() <= shape.values() as usize && values.iter().all(|&v| u32::from(v) < shape.levels());
        fits.then_some(Self { shape, values })
    }

    /// A whole image from its raster values. `None` if they are not exactly N, or one is out of range.
    #[must_use]
    pub fn from_raster(shape: Shape, order: Order, raster: &[u16]) -> Option<Self> {
        if raster.len() != shape.values() as usize {
            return None;
        }
        let values =
            (0..shape.values()).map(|rank| raster.get(order.position(shape, rank).raster(shape) as usize).copied());
        Self::with_prefix(shape, values.collect::<Option<_>>()?)
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How many values are known: the rank of the next one.
    #[must_use]
    pub fn known(&self) -> Rank {
        self.values.len() as Rank
    }

    /// Whether every value is known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.known() == self.shape.values()
    }

    /// The known values in rank order.
    #[must_use]
    pub fn values(&self) -> &[u16] {
        &self.values
    }

    /// Makes the next value known. Beyond the last value, and for a value out of range, nothing happens and `false` comes back.
    pub fn push(&mut self, value: u16) -> bool {
        let fits = !self.is_complete() && u32::from(value) < self.shape.levels();
        if fits {
            self.values.push(value);
        }
        fits
    }

    /// All values in raster order, unknown ones 0.
    #[must_use]
    pub fn to_raster(&self, order: Order) -> Vec<u16> {
        let mut raster = vec![0; self.shape.values() as usize];
        for (rank, &value) in self.values.iter().enumerate() {
            if let Some(place) = raster.get_mut(order.position(self.shape, rank as Rank).raster(self.shape) as usize) {
                *place = value;
            }
        }
        raster
    }
}
