//! Where the nodes around a node remember, and the pixels around a pixel.

use crate::decode::NOWHERE;
use crate::image::{Canvas, Shape};

/// What lies beyond a border of a [`Grid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model::families) enum Edge {
    /// Zeros.
    Zeros,
    /// One place for all.
    Place(u32),
    /// A place for each row, from this one on.
    Rows(u32),
}

/// The places of a memory: the latest rows of a map, and what lies around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model::families) struct Grid {
    /// Its nodes are the pixels whose row and column are multiples of this.
    pub(in crate::model::families) scale: u32,
    pub(in crate::model::families) height: u32,
    pub(in crate::model::families) width: u32,
    /// Rows that are kept; a newer one takes the place of the one so many rows above.
    pub(in crate::model::families) kept: u32,
    /// Above the first row, where there are columns.
    pub(in crate::model::families) above: Edge,
    /// Left of the first column and right of the last, where there are rows.
    pub(in crate::model::families) beside: [Edge; 2],
}

impl Grid {
    /// The latest `kept` rows of a map of the image's pixels, or of those whose coordinates are multiples of `scale`;
    /// zeros around.
    pub(in crate::model::families) fn of(shape: Shape, scale: u32, kept: u32) -> Self {
        let [height, width] = [shape.height() / scale, shape.width() / scale];
        Self { scale, height, width, kept: kept.min(height), above: Edge::Zeros, beside: [Edge::Zeros; 2] }
    }

    /// A single place, whatever the node.
    pub(in crate::model::families) fn spot() -> Self {
        Self { scale: 1, height: u32::MAX, width: u32::MAX, kept: 0, above: Edge::Zeros, beside: [Edge::Zeros; 2] }
    }

    /// Places in all: those of the rows kept, then those of edges.
    pub(in crate::model::families) fn places(&self) -> u32 {
        let end = |edge: &Edge| match *edge {
            Edge::Zeros => 0,
            Edge::Place(place) => place + 1,
            Edge::Rows(first) => first + self.height,
        };
        let rows = if self.kept == 0 { 1 } else { self.kept * self.width };
        std::iter::once(&self.above).chain(&self.beside).map(end).fold(rows, u32::max)
    }

    /// The place of (row, column), which may lie outside.
    pub(in crate::model::families) fn place(&self, row: i64, column: i64) -> u32 {
        if self.kept == 0 {
            return 0;
        }
        let (inside_rows, inside_columns) =
            ((0..i64::from(self.height)).contains(&row), (0..i64::from(self.width)).contains(&column));
        let edge = match (inside_rows, inside_columns) {
            (true, true) => {
                return (row % i64::from(self.kept)) as u32 * self.width + column as u32;
            }
            (false, true) if row < 0 => self.above,
            (true, false) => {
                let [left, right] = self.beside;
                if column < 0 { left } else { right }
            }
            _ => Edge::Zeros,
        };
        match edge {
            Edge::Zeros => NOWHERE,
            Edge::Place(place) => place,
            Edge::Rows(first) => first + row as u32,
        }
    }
}

/// Places around a node that a program names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::model::families) struct Stencil {
    /// Which of the net's grids.
    pub(in crate::model::families) grid: usize,
    /// Its rows and columns from the node on, or from where the node stands in it if it has another scale.
    pub(in crate::model::families) offsets: Vec<(i32, i32)>,
}

/// How levels become numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model::families) enum Scaling {
    /// -1 to 1.
    Symmetric,
    /// 0 to 1.
    Unit,
}

impl Scaling {
    pub(in crate::model::families) fn number(self, value: u16, levels: u32) -> f32 {
        let unit = f32::from(value) / (levels - 1) as f32;
        match self {
            Scaling::Symmetric => 2.0 * unit - 1.0,
            Scaling::Unit => unit,
        }
    }
}

/// Pixels around a pixel that a program looks at; none of them later than it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::model::families) struct Pixels {
    /// Rows and columns from the pixel on, all channels of each.
    pub(in crate::model::families) offsets: Vec<(i32, i32)>,
    /// Whether a one follows the channels of each of these, which tells it from the zeros outside the image.
    pub(in crate::model::families) ones: bool,
    /// And so many channels of the pixel itself.
    pub(in crate::model::families) own: u32,
}

impl Pixels {
    /// Adds the numbers seen from pixel (row, column); zeros stand for what lies outside.
    pub(in crate::model::families) fn collect(
        &self,
        canvas: &Canvas,
        scaling: Scaling,
        row: u32,
        column: u32,
        to: &mut Vec<f32>,
    ) {
        let shape = canvas.shape();
        let channels = shape.channels() as usize;
        let known = canvas.values();
        let at = |row: i64, column: i64| {
            let (Ok(row), Ok(column)) = (u32::try_from(row), u32::try_from(column)) else { return &[][..] };
            if row >= shape.height() || column >= shape.width() {
                return &[];
            }
            known.get((row * shape.width() + column) as usize * channels..).unwrap_or_default()
        };
        let add = |to: &mut Vec<f32>, values: &[u16], count: usize| {
            let numbers = values.iter().map(|&value| scaling.number(value, shape.levels()));
            to.extend(numbers.chain(std::iter::repeat(0.0)).take(count));
        };
        for &(down, right) in &self.offsets {
            let values = at(i64::from(row) + i64::from(down), i64::from(column) + i64::from(right));
            add(to, values, channels);
            if self.ones {
                to.push(f32::from(u8::from(!values.is_empty())));
            }
        }
        add(to, at(i64::from(row), i64::from(column)), self.own as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_take_each_others_places_and_edges_lie_behind_them() {
        let shape = Shape::new(5, 3, 1, 2).unwrap();
        let plain = Grid::of(shape, 1, 2);
        assert_eq!(plain.places(), 6);
        assert_eq!([plain.place(0, 1), plain.place(1, 1), plain.place(2, 1)], [1, 4, 1]);
        for (row, column) in [(-1, 0), (0, -1), (0, 3), (5, 0), (-1, -1)] {
            assert_eq!(plain.place(row, column), NOWHERE, "{row} {column}");
        }
        let edged = Grid { above: Edge::Place(6), beside: [Edge::Rows(7), Edge::Rows(12)], ..plain };
        assert_eq!([edged.place(-1, 2), edged.place(3, -1), edged.place(3, 3)], [6, 10, 15]);
        assert_eq!([edged.place(-1, -1), edged.place(-1, 3), edged.place(5, 0)], [NOWHERE; 3], "corners are zeros");
        assert_eq!(Grid::spot().place(4, 2), 0);
        assert_eq!(Grid::of(shape, 1, 9).places(), 15, "no more rows than there are");
    }

    #[test]
    fn pixels_outside_are_zeros_and_levels_become_numbers() {
        let shape = Shape::new(2, 2, 2, 5).unwrap();
        let canvas = Canvas::with_prefix(shape, vec![0, 4, 2, 3, 1]).unwrap();
        let pixels = Pixels { offsets: vec![(-1, -1), (-1, 0), (-1, 1)], own: 1, ones: false };
        let mut numbers = Vec::new();
        pixels.collect(&canvas, Scaling::Symmetric, 1, 0, &mut numbers);
        assert_eq!(numbers, [0.0, 0.0, -1.0, 1.0, 0.0, 0.5, -0.5]);
        numbers.clear();
        pixels.collect(&canvas, Scaling::Unit, 1, 1, &mut numbers);
        assert_eq!(numbers, [0.0, 1.0, 0.5, 0.75, 0.0, 0.0, 0.0], "what is not known yet is zero too");
        numbers.clear();
        Pixels { ones: true, own: 0, ..pixels }.collect(&canvas, Scaling::Unit, 1, 1, &mut numbers);
        assert_eq!(numbers, [0.0, 1.0, 1.0, 0.5, 0.75, 1.0, 0.0, 0.0, 0.0], "a one for each pixel of the image");
    }
}
