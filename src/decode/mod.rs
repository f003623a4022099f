//! Decode operations: what the step of a family is written in, once, and the backends that run it.
//!
//! A [`Network`] is some programs over one state; a program is a straight line of operations over registers. It is
//! evaluated for any number of [`Rows`] together, operation after operation: a row that reads what another row writes gets
//! it if the writing operation comes first in the program, wherever the rows stand. A row is one node of one image: the
//! places it brings along say what it reads and where it writes. [`torch`] runs programs in libtorch, [`native`] in kernels
//! of our own on the CPU.

pub mod native;
mod op;
mod program;
pub mod torch;

use std::fmt;
use std::ops::Range;

pub use op::{Activation, Attention, Linear, Normalisation, Part, Passing, Sight};
pub use program::{Builder, Memory, NOWHERE, Network, ProgramId, Register, Ring, Taps};

use self::program::Needs;
use crate::machine;
use crate::model::{ModelError, Slot};
use crate::spec::{Backend, Precision};

/// A network with state of its own, for some slots.
pub trait Decoder: Send + fmt::Debug {
    /// Forgets what `slot` holds.
    ///
    /// # Errors
    /// There is no such slot, or the device failed.
    fn clear(&mut self, slot: Slot) -> Result<(), ModelError>;

    /// Evaluates `rows` with `program`; row i of its output goes to the i-th part of `out`, which has room for all.
    ///
    /// Rows of one slot follow each other. Where the program looks at rings, they do so in the order of their ranks, and
    /// each sees what those before it wrote. A program that looks at all of a ring it stores to takes all rows of an image
    /// at once.
    ///
    /// # Errors
    /// A row names what is not there, or the device failed.
    fn run(&mut self, program: ProgramId, rows: &Rows, out: &mut [f32]) -> Result<(), ModelError>;

    /// Whether a row has the same bits however many rows are evaluated with it.
    fn rows_are_invariant(&self) -> bool;

    /// Another decoder of the same network, with `slots` slots and nothing in them. Weights are shared.
    ///
    /// # Errors
    /// There is no memory for its state, or the device failed.
    fn another(&self, slots: u32) -> Result<Box<dyn Decoder>, ModelError>;
}

/// Bytes of one image's state. Memories hold 32 bits, rings what `precision` says.
fn state_bytes(memories: &[(u32, u32)], rings: &[(Attention, u32)], precision: Precision) -> u64 {
    let rings = rings.iter().map(|(attention, places)| u64::from(attention.place_width()) * u64::from(*places));
    let memories = memories.iter().map(|&(width, places)| u64::from(width) * u64::from(places));
    rings.sum::<u64>() * precision.bytes() + memories.sum::<u64>() * Precision::F32.bytes()
}

/// Refuses state that there is no memory for. The system would promise it all the same, and end the process that uses it.
fn check_memory(bytes_per_slot: u64, slots: u32) -> Result<(), ModelError> {
    let (bytes, free) = (bytes_per_slot.saturating_mul(slots.into()), machine::free_memory());
    if bytes > free {
        return Err(ModelError::Step(format!("the state of {slots} images takes {bytes} bytes, {free} are free")));
    }
    Ok(())
}

/// A decoder of `network` for `slots` images.
///
/// # Errors
/// There is no memory for its state, or the device failed.
pub fn decoder(network: &Network, backend: Backend, slots: u32) -> Result<Box<dyn Decoder>, ModelError> {
    match backend {
        Backend::Native => native::decoder(network, slots, native::Isa::detect()),
        Backend::Torch => Ok(Box::new(torch::Torch::new(network, slots)?)),
    }
}

/// One row of an evaluation: one node of the image in `slot`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Row<'a> {
    /// Where the image's state lies.
    pub slot: u32,
    /// Rows of every embedding table of the program whose sum is taken.
    pub inputs: &'a [u32],
    /// For [`Builder::input`].
    pub numbers: &'a [f32],
    /// For [`Builder::taps`], all of them in turn. Writing to [`NOWHERE`] writes nothing.
    pub places: &'a [u32],
    /// Where in every ring its keys and values go.
    pub place: u32,
    /// The places of rings it sees, its own among them; ascending, disjoint.
    pub seen: &'a [Range<u32>],
}

/// The rows of one evaluation; kept from one to the next for their room.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    ends: Vec<Ends>,
    inputs: Vec<u32>,
    numbers: Vec<f32>,
    places: Vec<u32>,
    seen: Vec<Range<u32>>,
}

/// A row, and where what it brings ends in the lists of all rows.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    slot: u32,
    place: u32,
    inputs: usize,
    numbers: usize,
    places: usize,
    seen: usize,
}

impl Rows {
    /// Takes every row out.
    pub fn clear(&mut self) {
        self.ends.clear();
        self.inputs.clear();
        self.numbers.clear();
        self.places.clear();
        self.seen.clear();
    }

    /// Adds a row.
    pub fn push(&mut self, row: Row<'_>) {
        self.inputs.extend_from_slice(row.inputs);
        self.numbers.extend_from_slice(row.numbers);
        self.places.extend_from_slice(row.places);
        self.seen.extend(row.seen.iter().filter(|range| !range.is_empty()).cloned());
        self.ends.push(Ends {
            slot: row.slot,
            place: row.place,
            inputs: self.inputs.len(),
            numbers: self.numbers.len(),
            places: self.places.len(),
            seen: self.seen.len(),
        });
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let mut from = Ends::default();
        self.ends.iter().map(move |&to| {
            let row = Row {
                slot: to.slot,
                inputs: self.inputs.get(from.inputs..to.inputs).unwrap_or_default(),
                numbers: self.numbers.get(from.numbers..to.numbers).unwrap_or_default(),
                places: self.places.get(from.places..to.places).unwrap_or_default(),
                place: to.place,
                seen: self.seen.get(from.seen..to.seen).unwrap_or_default(),
            };
            from = to;
            row
        })
    }

    /// Refuses rows that do not bring what a program needs, or name what it and its `slots` slots do not have, so that
    /// backends need not look again.
    fn check(&self, needs: Option<&Needs>, slots: u32, out: usize) -> Result<(), ModelError> {
        let fault = |what: String| Err(ModelError::Step(what));
        let Some(needs) = needs else { return fault("there is no such program".to_owned()) };
        if out != self.len() * needs.width {
            return fault(format!("{} rows of {} numbers do not fit {out}", self.len(), needs.width));
        }
        for row in self.iter() {
            let ascending = row.seen.windows(2).all(|pair| matches!(pair, [a, b] if a.end <= b.start));
            let sees = row.seen.last().is_some_and(|last| last.end <= needs.ring);
            let within = |(&place, &places): (&u32, &u32)| place < places || place == NOWHERE;
            if row.slot >= slots
                || row.numbers.len() != needs.numbers as usize
                || row.places.len() != needs.places.len()
                || !row.places.iter().zip(&needs.places).all(within)
                || needs.ring > 0 && row.place >= needs.ring
                || needs.looks && !(ascending && sees)
                || row.inputs.iter().any(|&input| input >= needs.table_rows)
            {
                return fault(format!("a row names what is not there: {row:?} of {needs:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
