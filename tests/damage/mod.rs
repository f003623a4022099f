//! Changes of bytes such as accidents and enemies make.

use proptest::prelude::*;
use proptest::sample::Index;

/// One change of a file.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Set(Index, u8),
    Number(Index, u64, usize),
    Cut(Index),
    Remove(Index, usize),
    Copy(Index, Index, usize),
}

impl Change {
    /// Makes it.
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match *self {
            Self::Set(at, byte) => bytes[at.index(length)] = byte,
            Self::Number(at, number, width) => {
                let at = at.index(length);
                let width = width.min(length - at);
                bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            }
            Self::Cut(at) => bytes.truncate(at.index(length)),
            Self::Remove(at, count) => {
                let at = at.index(length);
                bytes.drain(at..(at + count).min(length));
            }
            Self::Copy(from, to, count) => {
                let from = from.index(length);
                let piece = bytes[from..(from + count).min(length)].to_vec();
                let to = to.index(length);
                bytes.splice(to..to, piece);
            }
        }
    }
}

/// Any change.
pub(crate) fn change() -> impl Strategy<Value = Change> {
    let numbers = prop_oneof![any::<u64>(), (0u32..64).prop_map(|bit| 1 << bit), Just(u64::MAX), Just(0)];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (any::<Index>(), numbers, prop_oneof![Just(1usize), Just(2), Just(4), Just(8)])
            .prop_map(|(at, number, width)| Change::Number(at, number, width)),
        any::<Index>().prop_map(Change::Cut),
        (any::<Index>(), 1usize..40).prop_map(|(at, count)| Change::Remove(at, count)),
        (any::<Index>(), any::<Index>(), 1usize..200).prop_map(|(from, to, count)| Change::Copy(from, to, count)),
    ]
}
