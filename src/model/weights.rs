//! What a weights file is to a family: a stream of known format and length, and the tensors it must hold.

use std::fmt;
use std::io::{Read, Seek};

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
