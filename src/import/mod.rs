//! Foreign checkpoints: what other code trained, made into packages of ours. Nothing in such a file is run.
//!
//! A checkpoint is read into named tensors in memory ([`read`]), a format's own map renames and rearranges them
//! ([`Renaming`]), and the result is written as a package and loaded as a server would load it ([`package::write`]).
//!
//! Four forms are read: safetensors, NumPy archives, and both of `torch.save`, the archive (since PyTorch 1.6) and the stream
//! before it. The object saved must be a state dict, a dictionary of tensors; or a dictionary with one state dict among its entries,
//! whatever the others are. A prefix `module.` that all names have (of a model trained on several GPUs) is dropped.

mod archive;
mod image_gpt;
mod image_transformer;
pub mod npz;
mod openai_pixel_cnn;
pub mod package;
mod pickle;
mod pixel_cnn_pp;
mod renaming;
mod safetensors;
mod storage;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek};
use std::path::Path;

pub use image_gpt::{Divisor, ImageGpt, clusters};
pub use image_transformer::ImageTransformer;
pub use openai_pixel_cnn::OpenaiPixelCnn;
pub use pixel_cnn_pp::PixelCnnPp;
pub use renaming::Renaming;

use crate::error::Violations;
use pickle::{Node, Object};
use storage::View;

/// A tensor of a checkpoint.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements in row-major order; as many as the shape says.
    pub values: Vec<f32>,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// What of a checkpoint is read.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Bytes of the file, and of its tensors as f32, at most.
    pub limit: u64,
    /// Name of the state dict in the dictionary that was saved, where more than one could be meant.
    pub key: Option<&'a str>,
}

/// Reads the tensors of the checkpoint at `path`. Numbers become f32: halves as they are, doubles and whole numbers rounded.
///
/// # Errors
/// A file that cannot be read, is of no form that is known, is larger than the limit, or holds no state dict; and every tensor
/// that is not one of real numbers or leaves its storage.
pub fn read(path: &Path, reading: Reading<'_>) -> Result<Tensors, Violations> {
    let (file, bytes) = open(path, reading.limit)?;
    read_from(file, bytes, reading)
}

/// Whether the file at `path` is of a form that [`read`] reads: tensors without the code that computes with them.
///
/// # Errors
/// A file that cannot be read, or is larger than `limit`.
pub fn holds_tensors(path: &Path, limit: u64) -> Result<bool, Violations> {
    let (mut file, _) = open(path, limit)?;
    Ok(match form(&mut file).map_err(|error| Violations::one(path.display().to_string(), error.to_string()))? {
        Some(Form::Archive) => archive::holds_tensors(file),
        form => form.is_some(),
    })
}

/// Opens the file at `path`, of at most `limit` bytes, and tells its length.
fn open(path: &Path, limit: u64) -> Result<(BufReader<File>, u64), Violations> {
    let refuse = |why: String| Violations::one(path.display().to_string(), why);
    let describe = |error: std::io::Error| refuse(error.to_string());
    // Opening a pipe would wait.
    if !fs::metadata(path).map_err(describe)?.is_file() {
        return Err(refuse("is not a regular file".to_owned()));
    }
    let file = File::open(path).map_err(describe)?;
    let bytes = file.metadata().map_err(describe)?.len();
    if bytes > limit {
        return Err(refuse(format!("must be at most {limit} bytes (--size-limit), got {bytes}")));
    }
    Ok((BufReader::new(file), bytes))
}

/// Forms of a checkpoint.
enum Form {
    Archive,
    Stream,
    Safetensors,
}

/// The form of `input` by its first bytes, which are left to be read again.
fn form(input: &mut (impl Read + Seek)) -> std::io::Result<Option<Form>> {
    let mut start = Vec::new();
    input.by_ref().take(stream::MAGIC.len() as u64).read_to_end(&mut start)?;
    input.rewind()?;
    Ok(match start.as_slice() {
        [b'P', b'K', ..] => Some(Form::Archive),
        magic if magic == stream::MAGIC => Some(Form::Stream),
        // The length of the header, and the header, which is JSON.
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => Some(Form::Safetensors),
        _ => None,
    })
}

/// As [`read`], from a stream of `bytes` bytes.
///
/// # Errors
/// As [`read`].
pub fn read_from(mut input: impl Read + Seek, bytes: u64, reading: Reading<'_>) -> Result<Tensors, Violations> {
    let tensors = match form(&mut input).map_err(|error| Violations::one("checkpoint", error.to_string()))? {
        Some(Form::Archive) => archive::read(input, reading),
        Some(Form::Stream) => stream::read(input, bytes, reading),
        Some(Form::Safetensors) => safetensors::read(&mut input, bytes, reading),
        None => Err(Violations::one(
            "checkpoint",
            "is neither what torch.save writes (PyTorch 0.2 or later), nor a safetensors file, nor a NumPy archive",
        )),
    }?;
    Ok(without_prefix(tensors))
}

/// Drops `module.` from the names if all have it.
fn without_prefix(tensors: Tensors) -> Tensors {
    const PREFIX: &str = "module.";
    if tensors.keys().any(|name| !name.starts_with(PREFIX)) {
        return tensors;
    }
    tensors.into_iter().map(|(name, tensor)| (name.trim_start_matches(PREFIX).to_owned(), tensor)).collect()
}

/// The one state dict that `object` is or has among its entries.
fn state_dict<'a>(object: &'a Object, key: Option<&str>) -> Result<Vec<(&'a str, &'a View)>, Violations> {
    let refuse = |why: String| Err(Violations::one("checkpoint", why));
    let root = object.root();
    if let (None, Some(tensors)) = (key, object.state_dict(root)) {
        return Ok(tensors);
    }
    let Some(entries) = object.entries(root) else {
        return refuse("must hold a dictionary of tensors; save model.state_dict()".to_owned());
    };
    let among = |(name, node): (&'a str, &'a Node)| Some((name, object.state_dict(node)?));
    let mut found: BTreeMap<_, _> = entries.into_iter().filter_map(among).collect();
    let names = found.keys().map(|name| format!("{:?}", pickle::shown(name))).collect::<Vec<_>>().join(", ");
    match key {
        Some(key) => match found.remove(key) {
            Some(tensors) => Ok(tensors),
            None => refuse(format!("has no state dict under {key:?}; it has: {names}")),
        },
        None => match (found.pop_first(), found.is_empty()) {
            (Some((_, tensors)), true) => Ok(tensors),
            (None, _) => refuse("has no dictionary of tensors among its entries; save model.state_dict()".to_owned()),
            _ => refuse(format!("has more than one state dict, name the one that is meant (--key): {names}")),
        },
    }
}
