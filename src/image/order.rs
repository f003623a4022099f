//! In which order a model generates the values of an image.

use super::Shape;
use crate::error::Violations;

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
    /// Blocks in raster order, and in each block its values in raster order (Image Transformer, section 3.3).
    BlockRaster(Blocks),
}

/// Equal blocks that tile the grid of height x (width x channels) values of an image. In that grid the channels of a pixel
/// are neighbours, so a block may hold some channels of a pixel and not the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    height: u32,
    width: u32,
}

impl Blocks {
    /// Blocks of `height` rows of `width` values.
    ///
    /// # Errors
    /// Under `block_height` or `block_width`, a length that does not divide that of an image of `shape`.
    pub fn new(shape: Shape, height: u32, width: u32) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let columns = shape.width() * shape.channels();
        for (field, given, whole) in [("block_height", height, shape.height()), ("block_width", width, columns)] {
            if given == 0 || whole % given != 0 {
                violations.add(field, format!("must divide the {whole} of the image, got {given}"));
            }
        }
        violations.into_result(Self { height, width })
    }

    /// Rows of a block.
    #[must_use]
    pub fn height(self) -> u32 {
        self.height
    }

    /// Values in a row of a block.
    #[must_use]
    pub fn width(self) -> u32 {
        self.width
    }

    /// Blocks beside each other.
    fn across(self, shape: Shape) -> u32 {
        (shape.width() * shape.channels() / self.width).max(1)
    }
}

impl Order {
    /// The position of rank `rank`, which must be below N.
    #[must_use]
    pub fn position(self, shape: Shape, rank: Rank) -> Position {
        let channels = shape.channels();
        match self {
            Order::Raster => {
                let (pixel, channel) = (rank / channels, rank % channels);
                Position { row: pixel / shape.width(), column: pixel % shape.width(), channel }
            }
            Order::BlockRaster(blocks) => {
                let Blocks { height, width } = blocks;
                let (block, within) = (rank / (height * width), rank % (height * width));
                let across = blocks.across(shape);
                let column = block % across * width + within % width;
                let row = block / across * height + within / width;
                Position { row, column: column / channels, channel: column % channels }
            }
        }
    }

    /// The rank of `position`, which must lie in the image.
    #[must_use]
    pub fn rank(self, shape: Shape, position: Position) -> Rank {
        match self {
            Order::Raster => position.raster(shape),
            Order::BlockRaster(blocks) => {
                let Blocks { height, width } = blocks;
                let column = position.column * shape.channels() + position.channel;
                let block = position.row / height * blocks.across(shape) + column / width;
                (block * height + position.row % height) * width + column % width
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(shape: Shape, height: u32, width: u32) -> Order {
        Order::BlockRaster(Blocks::new(shape, height, width).unwrap())
    }

    fn check_bijection(shape: Shape, order: Order) {
        let mut seen = vec![false; shape.values() as usize];
        for rank in 0..shape.values() {
            let position = order.position(shape, rank);
            assert!(position.row < shape.height() && position.column < shape.width());
            assert_eq!(order.rank(shape, position), rank);
            assert!(!std::mem::replace(&mut seen[position.raster(shape) as usize], true));
        }
    }

    proptest! {
        #[test]
        fn rank_and_position_are_inverse(sizes in [1..4u32, 1..4u32, 1..4u32, 1..4u32, 1..5u32]) {
            let [down, across, block_height, pixels, channels] = sizes;
            let shape = Shape::new(down * block_height, across * pixels, channels, 4).unwrap();
            check_bijection(shape, Order::Raster);
            for width in (1..=across * pixels * channels).filter(|width| across * pixels * channels % width == 0) {
                check_bijection(shape, blocks(shape, block_height, width));
            }
        }
    }

    /// The formula of section 3.3 for grid cells, and the block sizes of published models.
    #[test]
    fn blocks_follow_each_other_and_hold_their_values_in_raster_order() {
        let shape = Shape::new(32, 32, 3, 256).unwrap();
        for (height, width) in [(8, 32), (8, 96), (16, 16), (8, 16)] {
            let order = blocks(shape, height, width);
            check_bijection(shape, order);
            for (row, column) in [(0, 0), (7, 31), (8, 0), (9, 33), (31, 95)] {
                let block = row / height * (96 / width) + column / width;
                let rank = (block * height + row % height) * width + column % width;
                let position = Position { row, column: column / 3, channel: column % 3 };
                assert_eq!(order.position(shape, rank), position, "{height} x {width}");
            }
        }
        let wide = blocks(shape, 8, 96);
        assert!((0..shape.values()).all(|rank| wide.position(shape, rank) == Order::Raster.position(shape, rank)));
    }

    #[test]
    fn blocks_must_tile_the_image() {
        let shape = Shape::new(4, 3, 2, 2).unwrap();
        let faults = |height, width| -> Vec<String> {
            let violations = Blocks::new(shape, height, width).unwrap_err();
            violations.iter().map(|violation| violation.field.clone()).collect()
        };
        assert_eq!(faults(0, 0), ["block_height", "block_width"]);
        assert_eq!(faults(3, 4), ["block_height", "block_width"]);
        assert_eq!(faults(8, 6), ["block_height"]);
        assert_eq!(faults(4, u32::MAX), ["block_width"]);
        assert!(Blocks::new(shape, 4, 6).is_ok());
    }
}
