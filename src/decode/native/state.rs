//! Keys and values of every slot, in place.

use super::kernels::{Group, LANES, Lanes};
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

    /// Groups of one slot's keys, and of its values.
    pub(super) fn groups(self) -> [usize; 2] {
        let places = self.heads * self.place_groups();
        [places * self.head_key, places * LANES * self.value_groups()]
    }
}

/// Keys and values of every slot, for one ring.
pub(super) struct State<G> {
    pub(super) keys: Vec<G>,
    pub(super) values: Vec<G>,
}

impl<G: Group> State<G> {
    pub(super) fn new(shape: Heads, slots: usize) -> Result<Self, ModelError> {
        let [keys, values] = shape.groups().map(|groups| zeros(groups.checked_mul(slots)));
        Ok(Self { keys: keys?, values: values? })
    }

    /// Keys and values of `slot`.
    pub(super) fn of(&self, slot: usize, groups: [usize; 2]) -> (&[G], &[G]) {
        let [keys, values] = groups;
        (
            self.keys.get(slot * keys..(slot + 1) * keys).unwrap_or_default(),
            self.values.get(slot * values..(slot + 1) * values).unwrap_or_default(),
        )
    }

    pub(super) fn of_mut(&mut self, slot: usize, groups: [usize; 2]) -> (&mut [G], &mut [G]) {
        let [keys, values] = groups;
        (
            self.keys.get_mut(slot * keys..(slot + 1) * keys).unwrap_or_default(),
            self.values.get_mut(slot * values..(slot + 1) * values).unwrap_or_default(),
        )
    }
}

/// Zeros, or a refusal where they do not fit into memory.
pub(super) fn zeros<T: Clone + Default>(groups: Option<usize>) -> Result<Vec<T>, ModelError> {
    let mut memory = Vec::new();
    let reserved = groups.and_then(|groups| memory.try_reserve_exact(groups).ok().map(|()| groups));
    let Some(groups) = reserved else {
        return Err(ModelError::Step("there is no memory for the decode state".to_owned()));
    };
    memory.resize(groups, T::default());
    Ok(memory)
}

/// Writes the keys and values of a row to `place` of its slot.
pub(super) fn store<G: Group>(shape: Heads, row: &[Lanes], place: usize, keys: &mut [G], values: &mut [G]) {
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
