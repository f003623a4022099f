//! What a weights file is to a family: a stream of known format and length, and the tensors it must hold.

use std::fmt;
use std::io::{Read, Seek};

use safetensors::tensor::Metadata;

/// Longest safetensors header read. One tensor takes about a hundred bytes of it.
pub const MAX_HEADER: u64 = 4 << 20;

/// How tensors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsFormat {
    /// A TorchScript archive, as `torch.jit.save` writes it; its named parameters are the tensors.
    TorchScript,
    /// The safetensors format.
    Safetensors,
}

/// A readable, seekable stream: an open file or bytes in memory.
pub trait WeightsStream: Read + Seek {}

impl<T: Read + Seek> WeightsStream for T {}

/// An open weights file, at its start. Families stream from it, so that no second copy of the file is ever in memory.
pub struct WeightsFile<'a> {
    /// How tensors are stored.
    pub format: WeightsFormat,
    /// Length in bytes.
    pub bytes: u64,
    /// The content.
    pub stream: &'a mut dyn WeightsStream,
}

impl fmt::Debug for WeightsFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightsFile").field("format", &self.format).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// A tensor that a weights file must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, the module path of the PyTorch reference module.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// The header of a safetensors stream of `bytes` bytes, which is left at the first byte of data. Nothing that it says is
/// believed beyond the length of the stream.
///
/// # Errors
/// What is wrong with it.
pub fn safetensors_header(stream: &mut (impl Read + ?Sized), bytes: u64) -> Result<Metadata, String> {
    let mut length = [0; 8];
    stream.read_exact(&mut length).map_err(|error| format!("the header's length cannot be read: {error}"))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > bytes.saturating_sub(8) {
        return Err(format!("a header of {length} bytes is more than the file or the limit of {MAX_HEADER} allows"));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text).map_err(|error| format!("the header cannot be read: {error}"))?;
    let header: Metadata = serde_json::from_slice(&text).map_err(|error| format!("the header is wrong: {error}"))?;
    match (header.data_len() as u64).checked_add(8 + length) {
        Some(total) if total == bytes => Ok(header),
        _ => Err(format!(
            "the header describes {} bytes of data, the file has {}",
            header.data_len(),
            bytes - 8 - length
        )),
    }
}
