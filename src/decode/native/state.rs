//! What every slot remembers, in place.

use std::ops::Range;

use bytemuck::Pod;

use super::kernels::{Group, LANES, Lanes};
use super::pages::Pages;
use crate::decode::op::Attention;
use crate::model::ModelError;

/// Sizes of a ring.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) head_key: usize,
    pub(super) head_value: usize,
    pub(super) places: usize,
}

impl Heads {
    pub(super) fn new(attention: &Attention, places: u32) -> Self {
        let [heads, head_key, head_value, places] =
            [attention.heads, attention.head_key, attention.head_value, places].map(|n| n as usize);
        Self { heads, head_key, head_value, places }
    }

    pub(super) fn value_groups(self) -> usize {
        self.head_value.div_ceil(LANES)
    }

    pub(super) fn place_groups(self) -> usize {
        self.places.div_ceil(LANES)
    }

    /// Groups of one slot's keys, which its values come after.
    pub(super) fn key_groups(self) -> usize {
        self.heads * self.place_groups() * self.head_key
    }

    /// Groups of one slot's keys and values, if they can be counted.
    pub(super) fn groups(self) -> Option<usize> {
        let values = LANES.checked_mul(self.value_groups())?;
        self.heads.checked_mul(self.place_groups())?.checked_mul(self.head_key.checked_add(values)?)
    }
}

/// What every slot remembers: parts of fixed lengths, those of one slot side by side.
pub(super) struct Slots<T> {
    pages: Pages<T>,
    /// Where each part of a slot begins, and the last ends.
    bounds: Vec<usize>,
}

impl<T: Pod> Slots<T> {
    /// Zeros for `slots` slots; no length stands for one that no machine can count.
    pub(super) fn new(lengths: impl Iterator<Item = Option<usize>>, slots: usize) -> Result<Self, ModelError> {
        let mut bounds = vec![0];
        let mut each = Some(0_usize);
        for length in lengths {
            each = each.and_then(|each| each.checked_add(length?));
            bounds.extend(each);
        }
        let mut pages = Pages::zeros(each.and_then(|each| each.checked_mul(slots)))?;
        // Written now, so that no step waits for the system to find the memory.
        pages.fill(T::zeroed());
        Ok(Self { pages, bounds })
    }

    fn range(&self, slot: usize, part: usize) -> Range<usize> {
        let bound = |index: usize| self.bounds.get(index).or(self.bounds.last()).copied().unwrap_or_default();
        let first = slot * bound(usize::MAX);
        first + bound(part)..first + bound(part + 1)
    }

    pub(super) fn part(&self, slot: usize, part: usize) -> &[T] {
        self.pages.get(self.range(slot, part)).unwrap_or_default()
    }

    pub(super) fn part_mut(&mut self, slot: usize, part: usize) -> &mut [T] {
        let range = self.range(slot, part);
        self.pages.get_mut(range).unwrap_or_default()
    }

    pub(super) fn clear(&mut self, slot: usize) {
        let range = self.range(slot, 0).start..self.range(slot + 1, 0).start;
        self.pages.get_mut(range).unwrap_or_default().fill(T::zeroed());
    }
}

/// Writes the keys and values of a row to `place` of `ring`, which is that of its slot.
pub(super) fn store<G: Group>(shape: Heads, row: &[Lanes], place: usize, ring: &mut [G]) {
    let Some((keys, values)) = ring.split_at_mut_checked(shape.key_groups()) else { return };
    let numbers: &[f32] = bytemuck::cast_slice(row);
    let (key_width, value_groups) = (shape.heads * shape.head_key, shape.value_groups());
    let new_keys = numbers.get(..key_width).unwrap_or_default();
    let new_values = numbers.get(key_width..).unwrap_or_default();
    let all = keys.chunks_exact_mut(shape.place_groups() * shape.head_key);
    for (keys, new) in all.zip(new_keys.chunks_exact(shape.head_key)) {
        let at = place / LANES * shape.head_key;
        for (group, &number) in keys.iter_mut().skip(at).zip(new) {
            group.set(place % LANES, number);
        }
    }
    let all = values.chunks_exact_mut(shape.place_groups() * LANES * value_groups);
    for (values, new) in all.zip(new_values.chunks_exact(shape.head_value)) {
        for (group, new) in values.iter_mut().skip(place * value_groups).zip(new.chunks(LANES)) {
            for (lane, &number) in new.iter().enumerate() {
                group.set(lane, number);
            }
        }
    }
}
