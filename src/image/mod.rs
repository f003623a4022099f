//! Images as the models see them: a shape, an order of generation, values. Knows nothing else of pixeld.

mod canvas;
pub mod codec;
mod order;
mod palette;
mod shape;

pub use canvas::Canvas;
pub use order::{Blocks, Order, Position, Rank};
pub use palette::{MAX_COLOURS, Palette};
pub use shape::{MAX_LEVELS, MAX_VALUES, Shape};
