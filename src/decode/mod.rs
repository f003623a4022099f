//! Decode operations: what the step of a family is written in, once, and the backends that run it.
//!
//! A [`Program`] is a straight line of operations over registers. It is evaluated for any number of [`Rows`] together; a
//! row stands for one rank of one image, and its place in the state says what it may see. [`torch`] runs programs in
//! libtorch, [`native`] in kernels of our own on the CPU.

pub mod native;
mod program;
pub mod torch;

use std::fmt;
use std::ops::Range;

pub use program::{Activation, Attention, Builder, Linear, Normalisation, Program, Register};

use crate::model::{ModelError, Slot};
use crate::spec::Backend;

/// A program with state of its own: keys and values of `slots` images.
pub trait Decoder: Send + fmt::Debug {
    /// Forgets what `slot` holds.
    ///
    /// # Errors
    /// There is no such slot, or the device failed.
    fn clear(&mut self, slot: Slot) -> Result<(), ModelError>;

    /// Evaluates `rows`; row i of the program's output goes to the i-th part of `out`, which has room for all.
    ///
    /// Rows of one slot follow each other in the order of their ranks, and each sees what those before it wrote.
    ///
    /// # Errors
    /// A row names what is not there, or the device failed.
    fn run(&mut self, rows: &Rows, out: &mut [f32]) -> Result<(), ModelError>;

    /// Whether a row has the same bits however many rows of its slot are evaluated with it.
    fn rows_are_invariant(&self) -> bool;

    /// Another decoder of the same program, with `slots` slots and nothing in them. Weights are shared.
    ///
    /// # Errors
    /// There is no memory for its state, or the device failed.
    fn another(&self, slots: u32) -> Result<Box<dyn Decoder>, ModelError>;
}

/// A decoder of `program` for `slots` images.
///
/// # Errors
/// There is no memory for its state, or the device failed.
pub fn decoder(program: &Program, backend: Backend, slots: u32) -> Result<Box<dyn Decoder>, ModelError> {
    match backend {
        Backend::Native => native::decoder(program, slots, native::Isa::detect()),
        Backend::Torch => Ok(Box::new(torch::Torch::new(program, slots)?)),
    }
}

/// The rows of one evaluation; kept from one to the next for their room.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    rows: Vec<Row>,
    inputs: Vec<u32>,
    seen: Vec<Range<u32>>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    slot: u32,
    place: u32,
    inputs_end: usize,
    seen_end: usize,
}

/// One row of [`Rows`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowView<'a> {
    pub(crate) slot: u32,
    pub(crate) place: u32,
    pub(crate) inputs: &'a [u32],
    pub(crate) seen: &'a [Range<u32>],
}

impl Rows {
    /// Takes every row out.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.inputs.clear();
        self.seen.clear();
    }

    /// Adds a row. `inputs`: rows of the input table whose sum it starts from. `place`: where its keys and values go.
    /// `seen`: the places it sees, its own among them; ascending, disjoint, none empty.
    pub fn push(&mut self, slot: Slot, inputs: &[u32], place: u32, seen: impl IntoIterator<Item = Range<u32>>) {
        self.inputs.extend_from_slice(inputs);
        self.seen.extend(seen.into_iter().filter(|range| !range.is_empty()));
        let [inputs_end, seen_end] = [self.inputs.len(), self.seen.len()];
        self.rows.push(Row { slot: slot.0, place, inputs_end, seen_end });
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = RowView<'_>> {
        let mut starts = (0, 0);
        self.rows.iter().map(move |row| {
            let inputs = self.inputs.get(starts.0..row.inputs_end).unwrap_or_default();
            let seen = self.seen.get(starts.1..row.seen_end).unwrap_or_default();
            starts = (row.inputs_end, row.seen_end);
            RowView { slot: row.slot, place: row.place, inputs, seen }
        })
    }

    /// Refuses rows that name what a decoder of `slots` slots and `places` places does not have, so that backends need
    /// not look again.
    fn check(&self, program: Shape, out: usize) -> Result<(), ModelError> {
        let fault = |what: String| Err(ModelError::Step(what));
        if out != self.len() * program.width {
            return fault(format!("{} rows of {} numbers do not fit {out}", self.len(), program.width));
        }
        for row in self.iter() {
            let ascending = row.seen.windows(2).all(|pair| matches!(pair, [a, b] if a.end <= b.start));
            if row.slot >= program.slots
                || row.place >= program.places
                || !ascending
                || row.seen.last().is_none_or(|last| last.end > program.places)
                || row.inputs.iter().any(|&input| input >= program.table_rows)
            {
                return fault(format!("a row names what is not there: {row:?} of {program:?}"));
            }
        }
        Ok(())
    }
}

/// What rows are checked against.
#[derive(Clone, Copy, Debug)]
struct Shape {
    slots: u32,
    places: u32,
    table_rows: u32,
    width: usize,
}

#[cfg(test)]
mod tests;
