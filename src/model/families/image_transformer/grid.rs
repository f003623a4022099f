//! Which cells see which, and where their keys and values lie (section 3.3).
//!
//! A cell is what one step decides: a value, or a whole pixel. Cells are numbered in the order of generation.

use std::ops::Range;

use crate::image::Rank;

/// Local attention; lengths in cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Local {
    /// Blocks of consecutive cells in raster order, l_q each. A cell sees its own block up to itself, and the block before.
    OneD {
        /// l_q
        query_block: u32,
    },
    /// Rectangular blocks, generated one after the other. A cell sees of its own block the cells up to itself, and around
    /// the block what has been generated already: rows above it, with a margin on both sides, and a margin on its left.
    TwoD {
        /// Rows and columns of a block; blocks tile the grid.
        block: [u32; 2],
        /// Rows above a block, and columns on either side of it, that its cells see.
        memory: [u32; 2],
        /// Whether each block begins as the image does, with no cell before its first.
        shift_per_block: bool,
    },
}

/// The cells of an image: a grid of `height` rows of `columns` cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) height: u32,
    pub(super) columns: u32,
    pub(super) local: Local,
}

impl Grid {
    /// Cells of an image.
    pub(super) fn cells(&self) -> u32 {
        self.height * self.columns
    }

    /// Row and column of `cell`.
    pub(super) fn position(&self, cell: Rank) -> [u32; 2] {
        match self.local {
            Local::OneD { .. } => [cell / self.columns, cell % self.columns],
            Local::TwoD { block: [rows, columns], .. } => {
                let (block, within) = (cell / (rows * columns), cell % (rows * columns));
                let across = self.columns / columns;
                [block / across * rows + within / columns, block % across * columns + within % columns]
            }
        }
    }

    /// The cell whose content is the input at `cell`; the first has none.
    pub(super) fn before(&self, cell: Rank) -> Option<Rank> {
        match self.local {
            Local::TwoD { block: [rows, columns], shift_per_block: true, .. }
                if cell.is_multiple_of(rows * columns) =>
            {
                None
            }
            _ => cell.checked_sub(1),
        }
    }

    /// Places of a ring. 1-D: the block before and the current one. 2-D: all columns of the rows that a block sees. Never
    /// more than the image has.
    pub(super) fn places(&self) -> u32 {
        match self.local {
            Local::OneD { query_block } => query_block.saturating_mul(2).min(self.cells()),
            Local::TwoD { .. } => self.ring_rows() * self.columns,
        }
    }

    /// Rows of the ring of 2-D attention, in which row r of the image lies at r modulo their number. A new row takes the
    /// place of one that no block from there on sees.
    fn ring_rows(&self) -> u32 {
        match self.local {
            Local::OneD { .. } => 0,
            Local::TwoD { block: [rows, _], memory: [above, _], .. } => (rows + above).min(self.height),
        }
    }

    /// The ring place of `cell`.
    pub(super) fn place(&self, cell: Rank) -> u32 {
        match self.local {
            Local::OneD { query_block } => cell % query_block.saturating_mul(2),
            Local::TwoD { .. } => {
                let [row, column] = self.position(cell);
                row % self.ring_rows() * self.columns + column
            }
        }
    }

    /// Adds the ring places that `cell` sees to `seen`: ascending, disjoint.
    pub(super) fn see(&self, cell: Rank, seen: &mut Vec<Range<u32>>) {
        match self.local {
            Local::OneD { query_block } => {
                let (block, offset) = (cell / query_block, cell % query_block);
                let own = self.place(cell) - offset..self.place(cell) + 1;
                match (block, block % 2) {
                    (0, _) => seen.push(own),
                    (_, 0) => seen.extend([own, query_block..query_block.saturating_mul(2)]),
                    // The block before lies in front of the own one: one range.
                    (_, _) => seen.push(0..own.end),
                }
            }
            Local::TwoD { block: [rows, columns], memory: [above, beside], .. } => {
                let [row, column] = self.position(cell);
                let (top, left) = (row - row % rows, column - column % columns);
                let (last, ring_rows) = (top + rows - 1, self.ring_rows());
                let start = left.saturating_sub(beside);
                for ring_row in 0..ring_rows {
                    // The last row of the image down to the block's that lies in this row of the ring.
                    let Some(held) = last.checked_sub((last + ring_rows - ring_row) % ring_rows) else { continue };
                    let end = if held + above < top {
                        continue;
                    } else if held < top {
                        (left + columns + beside).min(self.columns)
                    } else if held < row {
                        left + columns
                    } else if held == row {
                        column + 1
                    } else {
                        left
                    };
                    seen.push(ring_row * self.columns + start..ring_row * self.columns + end);
                }
            }
        }
    }

    /// Where the cells from `cell` on end that can be taken together: none of them is written to a place that another of
    /// them sees with what was there before. 1-D: the block. 2-D: the row of blocks.
    pub(super) fn run_end(&self, cell: Rank) -> Rank {
        let run = match self.local {
            Local::OneD { query_block } => query_block,
            Local::TwoD { block: [rows, _], .. } => rows * self.columns,
        };
        (cell / run + 1).saturating_mul(run).min(self.cells())
    }

    /// Places that a cell sees in the mean over an image.
    pub(super) fn mean_seen(&self) -> f64 {
        let block = match self.local {
            Local::OneD { query_block } => query_block,
            Local::TwoD { block: [rows, columns], .. } => rows * columns,
        };
        let (mut total, mut seen) = (0, Vec::new());
        for first in (0..self.cells()).step_by(block as usize) {
            // The first of a block sees itself and what is around; each further one sees one more.
            let cells = u64::from(block.min(self.cells() - first));
            seen.clear();
            self.see(first, &mut seen);
            let around = seen.iter().map(|range| u64::from(range.end - range.start)).sum::<u64>() - 1;
            total += cells * around + cells * (cells + 1) / 2;
        }
        total as f64 / f64::from(self.cells())
    }
}
