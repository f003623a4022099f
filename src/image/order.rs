//! In which order a model generates the values of an image.

use super::Shape;

/// Place of a value in the model's generation order, 0..N.
pub type Rank = u32;

/// Place of a value in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Row, from the top.
    pub row: u32,
    /// Column, from the left.
    pub column: u32,
    /// Channel within the pixel.
    pub channel: u32,
}

impl Position {
    /// Offset in raster order: rows, then columns, then channels.
    #[must_use]
    pub fn raster(self, shape: Shape) -> u32 {
        (self.row * shape.width() + self.column) * shape.channels() + self.channel
    }
}

/// A bijection between ranks and positions. Every place where a position crosses an interface goes through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Rows from the top, columns from the left, channels in turn.
    Raster,
}

impl Order {
    /// The position of rank `rank`, which must be below N.
    #[must_use]
    pub fn position(self, shape: Shape, rank: Rank) -> Position {
        match self {
            Order::Raster => {
                let (pixel, channel) = (rank / shape.channels(), rank % shape.channels());
                Position { row: pixel / shape.width(), column: pixel % shape.width(), channel }
            }
        }
    }

    /// The rank of `position`, which must lie in the image.
    #[must_use]
    pub fn rank(self, shape: Shape, position: Position) -> Rank {
        match self {
            Order::Raster => position.raster(shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_and_position_are_inverse() {
        let shape = Shape::new(3, 5, 2, 4).unwrap();
        let mut seen = vec![false; shape.values() as usize];
        for rank in 0..shape.values() {
            let position = Order::Raster.position(shape, rank);
            assert_eq!(Order::Raster.rank(shape, position), rank);
            assert!(!std::mem::replace(&mut seen[position.raster(shape) as usize], true));
        }
    }
}
