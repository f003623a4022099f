//! Checkpoints made by hand: pickles opcode by opcode, in either of the forms of `torch.save`.

use std::io::{Cursor, Write};

use pixeld::error::Violations;
use pixeld::import::{self, Reading, Tensors};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// How a pickle of protocol 2 begins.
pub(crate) const PROTOCOL: &[u8] = b"\x80\x02";
/// Limit of the readings below.
pub(crate) const LIMIT: u64 = 1 << 16;

pub(crate) fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub(crate) fn int(number: i32) -> Vec<u8> {
    [b"J", &number.to_le_bytes()[..]].concat()
}

pub(crate) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

pub(crate) fn numbers(numbers: &[i32]) -> Vec<u8> {
    tuple(&numbers.iter().map(|&number| int(number)).collect::<Vec<_>>())
}

/// A dictionary.
pub(crate) fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<_> = items.iter().map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(", &items.concat()[..], b"u"].concat()
}

/// The persistent id of a storage.
pub(crate) fn storage(class: &str, key: &str, elements: i32) -> Vec<u8> {
    let class = format!("ctorch\n{class}\n").into_bytes();
    [tuple(&[text("storage"), class, text(key), text("cpu"), int(elements)]), b"Q".to_vec()].concat()
}

/// A tensor over it.
pub(crate) fn tensor(storage: Vec<u8>, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    let arguments = tuple(&[storage, int(offset), numbers(shape), numbers(strides), b"\x89".to_vec(), hooks]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n", &arguments[..], b"R"].concat()
}

/// A pickle of `object`.
pub(crate) fn pickle(object: &[u8]) -> Vec<u8> {
    [PROTOCOL, object, b"."].concat()
}

/// The archive of PyTorch 1.6 and later, with `files` in its folder.
pub(crate) fn zipped(files: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        archive.start_file(format!("archive/{name}"), SimpleFileOptions::default().compression_method(method)).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

pub(crate) fn archive(object: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let (pickle, names) = (pickle(object), storages.iter().map(|(key, _)| format!("data/{key}")).collect::<Vec<_>>());
    let mut files = vec![("data.pkl", pickle.as_slice()), ("byteorder", b"little"), ("version", b"3\n")];
    files.extend(names.iter().zip(storages).map(|(name, (_, content))| (name.as_str(), *content)));
    zipped(&files, CompressionMethod::Stored)
}

/// The stream before: `storages` are key, elements, bytes.
pub(crate) fn stream(object: &[u8], storages: &[(&str, i64, &[u8])]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    let machine = dict(&[("protocol_version", int(1001)), ("little_endian", b"\x88".to_vec())]);
    let keys: Vec<_> = storages.iter().map(|(key, ..)| text(key)).collect();
    let keys = [b"](", &keys.concat()[..], b"e"].concat();
    let mut bytes = [magic, pickle(&int(1001)), pickle(&machine), pickle(object), pickle(&keys)].concat();
    for (_, elements, content) in storages {
        bytes.extend(elements.to_le_bytes());
        bytes.extend(*content);
    }
    bytes
}

pub(crate) fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub(crate) fn read(bytes: &[u8]) -> Result<Tensors, Violations> {
    read_key(bytes, None)
}

pub(crate) fn read_key(bytes: &[u8], key: Option<&str>) -> Result<Tensors, Violations> {
    import::read_from(Cursor::new(bytes), bytes.len() as u64, Reading { limit: LIMIT, key })
}

/// What reading `bytes` is refused with.
pub(crate) fn refused(bytes: &[u8]) -> String {
    match read(bytes) {
        Ok(tensors) => panic!("read: {tensors:?}"),
        Err(violations) => violations.to_string(),
    }
}
