//! The stream that `torch.save` wrote before PyTorch 1.6: five pickles (a magic number, a version, the machine, the object,
//! the names of its storages), then every storage.

use std::io::{BufReader, Read, Seek};

use super::pickle::{self, Node, Object, shown};
use super::storage::Wanted;
use super::{Reading, Tensors, state_dict};
use crate::error::Violations;

/// How such a stream begins: the magic number 0x1950a86a20f9469cfc6c, pickled.
pub(super) const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const VERSION: i64 = 1001;

/// Reads the tensors of the state dict in the stream `input`, which has `bytes` bytes.
///
/// # Errors
/// A stream of another version or byte order, damage, and what a pickle, [`state_dict`] and [`Wanted`] refuse.
pub(super) fn read(input: impl Read + Seek, bytes: u64, reading: Reading<'_>) -> Result<Tensors, Violations> {
    let mut input = BufReader::new(input);
    let mut left = pickle::budget();
    let mut next = || Object::read(&mut input, &mut left).map_err(refused);
    let [_, version, machine, object, keys] = [next()?, next()?, next()?, next()?, next()?];
    if !matches!(version.root(), Node::Int(VERSION)) {
        return Err(refused("must be of version 1001".to_owned()));
    }
    let entries = machine.entries(machine.root()).unwrap_or_default();
    if !entries.iter().any(|(name, value)| *name == "little_endian" && matches!(value, Node::Bool(true))) {
        return Err(refused("must be little-endian".to_owned()));
    }
    let mut wanted = Wanted::new(state_dict(&object, reading.key)?, reading.limit)?;
    let Node::List(keys_in_order) = keys.root() else {
        return Err(refused("must list its storages".to_owned()));
    };
    // A storage nobody asks for is passed by, for which its kind must be known.
    let kinds = object.storages();
    for &key in keys_in_order {
        let Node::Text(key) = keys.node(key) else { return Err(refused("must list its storages by name".to_owned())) };
        let storage = kinds
            .get(key.as_str())
            .ok_or_else(|| refused(format!("stores {:?}, which no tensor is in", shown(key))))?;
        let mut elements = [0; 8];
        input.read_exact(&mut elements).map_err(cut)?;
        let held = i64::from_le_bytes(elements);
        let length = storage.bytes().filter(|&length| u64::try_from(held) == Ok(storage.elements) && length <= bytes);
        let Some(length) = length else {
            let said = storage.elements;
            return Err(refused(format!(
                "storage {:?} must have {said} elements within the file, has {held}",
                shown(key)
            )));
        };
        if !wanted.needs(key) {
            input.seek_relative(length.cast_signed()).map_err(cut)?;
            continue;
        }
        let mut content = Vec::new();
        input.by_ref().take(length).read_to_end(&mut content).map_err(cut)?;
        if (content.len() as u64) < length {
            return Err(refused(format!("storage {:?} is cut short", shown(key))));
        }
        wanted.fill(key, &content)?;
    }
    wanted.finish()
}

fn cut(error: std::io::Error) -> Violations {
    refused(format!("a storage is cut short: {error}"))
}

fn refused(why: String) -> Violations {
    Violations::one("checkpoint", why)
}
