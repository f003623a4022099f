//! Memories: vectors by place, which rows of an evaluation read and write.

use tch::{Device, Kind, TchError, Tensor};

use super::on;
use crate::decode::program::{NOWHERE, Taps};

/// A memory of every slot, place after place; then a row of zeros, and a spare one.
pub(super) struct Store {
    /// [slots x places + 2, width]
    numbers: Tensor,
    pub(super) width: u32,
    pub(super) places: u32,
    slots: u32,
    /// Some of its columns, by the first and their number; made when they are first asked for.
    views: Vec<((i64, i64), Tensor)>,
}

/// The places that rows name.
pub(super) struct Named {
    /// Of each row.
    slots: Vec<u32>,
    /// Of each row, all of its places in turn.
    places: Vec<u32>,
    /// What was looked up: most operations of a program name the same.
    known: Vec<(Lines, Tensor)>,
}

/// Which rows of stores of one shape.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Lines {
    taps: Taps,
    /// Of the store.
    places: u32,
    /// Rows from each place on that are written; 0 to read.
    written: i64,
}

impl Named {
    pub(super) fn new(slots: Vec<u32>, places: Vec<u32>) -> Self {
        Self { slots, places, known: Vec::new() }
    }

    /// Of each row and each of its taps in turn: the rows of `store`.
    fn lines(&mut self, store: &Store, taps: Taps, written: i64) -> Result<&Tensor, TchError> {
        let lines = Lines { taps, places: store.places, written };
        let index = match self.known.iter().position(|(known, _)| *known == lines) {
            Some(index) => index,
            None => {
                self.known.push((lines, on(store.numbers.device(), &self.find(store, lines))?));
                self.known.len() - 1
            }
        };
        let found = self.known.get(index).map(|(_, found)| found);
        found.ok_or_else(|| TchError::Shape("no such place".to_owned()))
    }

    fn find(&self, store: &Store, Lines { taps, places, written }: Lines) -> Vec<i64> {
        let zeros = i64::from(store.slots) * i64::from(places);
        // Rows of what is beyond the image read zeros, and write where nobody reads.
        let beyond = if written > 0 { zeros + 1 } else { zeros };
        let each = self.places.len() / self.slots.len().max(1);
        let rows = self.places.chunks_exact(each.max(1)).zip(&self.slots);
        rows.flat_map(|(row, &slot)| {
            let first = i64::from(slot) * i64::from(places);
            row.iter().skip(taps.first).take(taps.count).flat_map(move |&place| {
                (0..written.max(1))
                    .map(move |next| if place == NOWHERE { beyond } else { first + i64::from(place) + next })
            })
        })
        .collect()
    }
}

impl Store {
    /// # Errors
    /// There is no memory for it.
    pub(super) fn new(width: u32, places: u32, slots: u32, device: Device) -> Result<Self, TchError> {
        let shape = [i64::from(slots) * i64::from(places) + 2, i64::from(width)];
        Ok(Self { numbers: Tensor::f_zeros(shape, (Kind::Float, device))?, width, places, slots, views: Vec::new() })
    }

    pub(super) fn clear(&self, slot: u32) -> Result<(), TchError> {
        let places = i64::from(self.places);
        let _ = self.numbers.f_narrow(0, i64::from(slot) * places, places)?.f_zero_()?;
        Ok(())
    }

    /// `width` numbers from `column` on of what lies at `taps` of each row, side by side: [rows, taps x width].
    pub(super) fn recall(
        &mut self,
        named: &mut Named,
        taps: Taps,
        column: i64,
        width: i64,
    ) -> Result<Tensor, TchError> {
        let rows = named.slots.len() as i64;
        let lines = named.lines(self, taps, 0)?;
        let found = self.columns(column, width)?.f_index_select(0, lines)?;
        if taps.count == 1 { Ok(found) } else { found.f_view([rows, taps.count as i64 * width]) }
    }

    /// Writes `from` [rows, width] from `column` on to the place that `taps` names of each row, or, if it is several times
    /// as wide as the memory, to as many places from there on.
    pub(super) fn remember(
        &mut self,
        from: &Tensor,
        named: &mut Named,
        taps: Taps,
        column: i64,
    ) -> Result<(), TchError> {
        let ((_, given), width) = (from.size2()?, i64::from(self.width));
        let (places, given) = if given > width { (given / width, width) } else { (1, given) };
        let lines = named.lines(self, taps, places)?;
        let to = self.columns(column, given)?;
        let _ = match places {
            1 => to.f_index_copy_(0, lines, from)?,
            _ => to.f_index_copy_(0, lines, &from.f_reshape([-1, given])?)?,
        };
        Ok(())
    }

    fn columns(&mut self, column: i64, width: i64) -> Result<&mut Tensor, TchError> {
        if width == i64::from(self.width) {
            return Ok(&mut self.numbers);
        }
        let index = match self.views.iter().position(|(known, _)| *known == (column, width)) {
            Some(index) => index,
            None => {
                self.views.push(((column, width), self.numbers.f_narrow(1, column, width)?));
                self.views.len() - 1
            }
        };
        let found = self.views.get_mut(index).map(|(_, view)| view);
        found.ok_or_else(|| TchError::Shape("no such columns".to_owned()))
    }
}
