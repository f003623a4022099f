//! NumPy archives (`numpy.savez`): a zip file with one array for each tensor, and what is believed of an array's header.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use npyz::{DType, NpyHeader, TypeChar};
use zip::ZipArchive;

use super::Tensors;
use super::archive::contents;
use super::pickle::shown;
use super::storage::{Kind, Storage, View, Wanted};
use crate::error::Violations;

/// Longest header of an array that is read: that of a plain array is 118 bytes, and the parser recurses over what it is given.
pub const MAX_HEADER: usize = 512;

/// Looks at a header, of which `start` is the first [`MAX_HEADER`] bytes, before the parser does, which trusts it: it allocates
/// what the header asks for, recurses as deep as its brackets go, and multiplies its numbers. Returns the header's length.
///
/// # Errors
/// What is wrong with it.
pub fn check_header(start: &[u8]) -> Result<usize, String> {
    let (preamble, length) = match start.get(..12) {
        Some(&[0x93, b'N', b'U', b'M', b'P', b'Y', 1, 0, a, b, ..]) => (10, u32::from_le_bytes([a, b, 0, 0])),
        Some(&[0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, 0, a, b, c, d]) => (12, u32::from_le_bytes([a, b, c, d])),
        _ => return Err("is no NumPy file (.npy)".to_owned()),
    };
    let end = preamble + length as usize;
    let text = start.get(preamble..end).ok_or("must hold a plain array; its header is too long for one, or cut")?;
    let numbers = text.split(|byte| !byte.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let mut numbers = numbers.map(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
    let product = numbers.try_fold(1u64, |product, number| product.checked_mul(number?.max(1)));
    if product.is_none_or(|product| product > 1 << 60) {
        return Err("announces more values than a file can hold".to_owned());
    }
    Ok(end)
}

/// Reads the arrays of `archive`, which has nothing else in it. They and each of them take at most `limit` bytes.
///
/// # Errors
/// Arrays that are damaged or hold no real numbers, and what [`Wanted`] refuses.
pub(super) fn read<R: Read + Seek>(archive: &mut ZipArchive<R>, limit: u64) -> Result<Tensors, Violations> {
    let (mut views, mut headers, mut violations) = (Vec::new(), BTreeMap::new(), Violations::new());
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|error| Violations::one("checkpoint", error.to_string()))?;
        let entry_name = entry.name().map_err(|error| Violations::one("checkpoint", error.to_string()))?.into_owned();
        let name = entry_name.strip_suffix(".npy").unwrap_or(&entry_name).to_owned();
        match array(entry, &entry_name) {
            Ok((header, view)) => {
                headers.insert(entry_name, header);
                views.push((name, view));
            }
            Err(why) => violations.add(format!("tensors.{}", shown(&name)), why),
        }
    }
    let views = violations.into_result(views)?;
    let mut wanted = Wanted::new(views.iter().map(|(name, view)| (name.as_str(), view)).collect(), limit)?;
    for storage in wanted.storages() {
        let header = headers.get(&storage.key).copied().unwrap_or_default();
        let bytes = storage.bytes().unwrap_or(u64::MAX).saturating_add(header as u64);
        let content = contents(archive, &storage.key, bytes).map_err(|why| Violations::one("checkpoint", why))?;
        wanted.fill(&storage.key, content.get(header..).unwrap_or_default())?;
    }
    wanted.finish()
}

/// The length of the header of the array in `entry`, and the array as a view of all that is behind it.
fn array(entry: impl Read, entry_name: &str) -> Result<(usize, View), String> {
    let mut start = Vec::new();
    entry.take(MAX_HEADER as u64).read_to_end(&mut start).map_err(|error| error.to_string())?;
    let length = check_header(&start)?;
    let header = NpyHeader::from_reader(start.as_slice()).map_err(|error| error.to_string())?;
    let kind = kind(&header.dtype())
        .ok_or_else(|| format!("must be of little-endian real numbers, is {}", header.dtype().descr()))?;
    let shape = header.shape().to_vec();
    let elements = shape.iter().try_fold(1u64, |all, &n| all.checked_mul(n)).ok_or("is too large")?;
    let storage = Storage { kind, key: entry_name.to_owned(), elements };
    Ok((length, View { storage, offset: 0, shape, strides: header.strides().to_vec() }))
}

fn kind(dtype: &DType) -> Option<Kind> {
    let DType::Plain(plain) = dtype else { return None };
    let big_endian = plain.to_string().starts_with('>');
    Some(match (plain.type_char(), plain.size_field()) {
        _ if big_endian => return None,
        (TypeChar::Bool, 1) => Kind::Bool,
        (TypeChar::Uint, 1) => Kind::U8,
        (TypeChar::Int, 1) => Kind::I8,
        (TypeChar::Int, 2) => Kind::I16,
        (TypeChar::Int, 4) => Kind::I32,
        (TypeChar::Int, 8) => Kind::I64,
        (TypeChar::Float, 2) => Kind::F16,
        (TypeChar::Float, 4) => Kind::F32,
        (TypeChar::Float, 8) => Kind::F64,
        _ => return None,
    })
}
