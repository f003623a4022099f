//! Weights files to tensors, strictly: the file must hold exactly the tensors asked for, finite, and nothing it says of
//! itself is believed before it is bounded.
//!
//! A TorchScript archive can hold code, some of which runs when libtorch opens it: load only archives whose author you
//! trust. The safetensors format holds numbers alone.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use tch::{CModule, Device, Kind, TchError, Tensor};
use zip::ZipArchive;

use super::first_line;
use crate::error::Violations;
use crate::model::{TensorSpec, WeightsFile, WeightsFormat, WeightsStream, safetensors_header};

/// Characters of a file's own names that are repeated in messages.
const SHOWN: usize = 120;

/// Tensors by name: f32, contiguous, finite, without gradients, on the CPU.
#[derive(Debug)]
pub struct Weights(BTreeMap<String, Tensor>);

impl Weights {
    /// Reads the tensors that `expected` names.
    ///
    /// # Errors
    /// Under `weights` what is wrong with the file as a whole; otherwise under `weights.<tensor>` every tensor that is
    /// missing, unexpected, of another shape, not of floating-point numbers, or not finite.
    pub fn load(file: WeightsFile<'_>, expected: &[TensorSpec]) -> Result<Self, Violations> {
        let _guard = tch::no_grad_guard();
        match file.format {
            WeightsFormat::TorchScript => load_torch_script(file, expected),
            WeightsFormat::Safetensors => load_safetensors(file, expected),
        }
    }

    /// Takes the tensor `name` out.
    ///
    /// # Errors
    /// It was not among those loaded, or was taken before.
    pub fn take(&mut self, name: &str) -> Result<Tensor, TchError> {
        self.0.remove(name).ok_or_else(|| TchError::TensorNameNotFound(name.to_owned(), "weights".to_owned()))
    }

    /// The tensor `name`, for networks whose programs share it.
    ///
    /// # Errors
    /// It was not among those loaded, or was taken out.
    pub fn get(&self, name: &str) -> Result<&Tensor, TchError> {
        self.0.get(name).ok_or_else(|| TchError::TensorNameNotFound(name.to_owned(), "weights".to_owned()))
    }
}

/// Loads the module that a TorchScript archive holds, in evaluation mode, on `device`.
///
/// # Errors
/// Under `weights`, what is wrong with the file.
pub fn module(file: WeightsFile<'_>, device: Device) -> Result<CModule, Violations> {
    if file.format != WeightsFormat::TorchScript {
        return Err(Violations::one("weights.file", "must be a TorchScript archive, ending in .pt"));
    }
    let failed = |error: TchError| Violations::one("weights", first_line(&error));
    check_archive(file.stream, file.bytes).map_err(|why| Violations::one("weights", why))?;
    // The executor that profiles first changes what it computes after some runs, and with it the last bits.
    tch::jit::f_set_profiling_mode(false).map_err(failed)?;
    let mut module = CModule::load_data_on_device(&mut FullReads(file.stream), device).map_err(failed)?;
    module.f_set_eval().map_err(failed)?;
    Ok(module)
}

fn load_torch_script(file: WeightsFile<'_>, expected: &[TensorSpec]) -> Result<Weights, Violations> {
    if file.bytes == 0 {
        return Err(Violations::one("weights", "the file is empty"));
    }
    check_archive(file.stream, file.bytes).map_err(|why| Violations::one("weights", why))?;
    let loaded = Tensor::load_multi_from_stream_with_device(FullReads(file.stream), Device::Cpu)
        .map_err(|error| Violations::one("weights", first_line(&error)))?;
    compare(expected, loaded.iter().map(|(name, tensor)| (name.as_str(), tensor.size())))?;
    let mut weights = Collector::default();
    for (name, tensor) in loaded {
        weights.add(name, Ok(tensor));
    }
    weights.finish()
}

/// Bytes that the code in an archive, which is compressed, may unpack to; tensors are not.
const MAX_CODE: u64 = 64 << 20;

/// Checks that an archive unpacks to little more than its own length, and rewinds it: libtorch would inflate whatever it finds.
fn check_archive(stream: &mut dyn WeightsStream, bytes: u64) -> Result<(), String> {
    let mut archive = ZipArchive::new(&mut *stream).map_err(|error| format!("is no TorchScript archive: {error}"))?;
    if archive.has_duplicate_names() {
        return Err("the archive must not have two files of one name".to_owned());
    }
    let (most, mut unpacked) = (bytes.saturating_add(MAX_CODE), 0u64);
    for index in 0..archive.len() {
        unpacked = unpacked.saturating_add(archive.by_index_raw(index).map_err(|error| error.to_string())?.size());
    }
    if unpacked > most {
        return Err(format!("the archive must unpack to at most {most} bytes, got {unpacked}"));
    }
    stream.rewind().map_err(|error| error.to_string())
}

fn load_safetensors(file: WeightsFile<'_>, expected: &[TensorSpec]) -> Result<Weights, Violations> {
    let stream = file.stream;
    let header = safetensors_header(stream, file.bytes).map_err(|why| Violations::one("weights", why))?;
    let found = header.tensors();
    let shapes = found.iter().map(|(name, info)| (name.as_str(), info.shape.iter().map(|&n| n as i64).collect()));
    compare(expected, shapes)?;
    let mut weights = Collector::default();
    // In the order of the file, so that it is read from front to back.
    for name in header.offset_keys() {
        if let Some(info) = header.info(&name) {
            weights.add(name, read_tensor(stream, info));
        }
    }
    weights.finish()
}

fn read_tensor(stream: &mut dyn WeightsStream, info: &TensorInfo) -> Result<Tensor, TchError> {
    let (start, end) = info.data_offsets;
    let mut data = vec![0; end - start];
    stream.read_exact(&mut data)?;
    let kind = match info.dtype {
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        other => return Err(TchError::Convert(format!("elements are {other:?}"))),
    };
    let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
    Tensor::f_from_data_size(&data, &shape, kind)
}

/// Names every tensor by which `found` differs from `expected`.
fn compare<'a>(expected: &[TensorSpec], found: impl Iterator<Item = (&'a str, Vec<i64>)>) -> Result<(), Violations> {
    let mut violations = Violations::new();
    let mut missing: BTreeMap<&str, &[u64]> =
        expected.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
    let mut unexpected = Vec::new();
    for (name, shape) in found.collect::<BTreeMap<_, _>>() {
        match missing.remove(name) {
            None => unexpected.push(name),
            Some(wanted) if !wanted.iter().map(|&n| n as i64).eq(shape.iter().copied()) => {
                violations.add(path(name), format!("must have shape {wanted:?}, got {shape:?}"));
            }
            Some(_) => {}
        }
    }
    for (name, shape) in missing {
        violations.add(path(name), format!("is missing; it must have shape {shape:?}"));
    }
    for name in unexpected {
        violations.add(path(name), "is not a tensor of this model");
    }
    violations.into_result(())
}

/// Loaded tensors and what was wrong with the others.
#[derive(Default)]
struct Collector {
    weights: BTreeMap<String, Tensor>,
    violations: Violations,
}

impl Collector {
    fn add(&mut self, name: String, tensor: Result<Tensor, TchError>) {
        match tensor.and_then(|tensor| plain(&tensor)) {
            Ok(tensor) => {
                self.weights.insert(name, tensor);
            }
            Err(error) => self.violations.add(path(&name), first_line(&error)),
        }
    }

    fn finish(self) -> Result<Weights, Violations> {
        self.violations.into_result(Weights(self.weights))
    }
}

/// `tensor` as contiguous f32 without gradients.
fn plain(tensor: &Tensor) -> Result<Tensor, TchError> {
    let kind = tensor.f_kind()?;
    if !matches!(kind, Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double) {
        return Err(TchError::Kind(format!("elements must be floating-point, got {kind:?}")));
    }
    let plain = tensor.f_detach()?.f_to_kind(Kind::Float)?.f_contiguous()?;
    if bool::try_from(plain.f_isfinite()?.f_all()?)? {
        Ok(plain)
    } else {
        Err(TchError::Convert("an element is NaN or infinite".to_owned()))
    }
}

fn path(name: &str) -> String {
    format!("weights.{}", name.escape_debug().take(SHOWN).collect::<String>())
}

/// libtorch takes a short read for the end of the file; an operating system may give one at any time.
struct FullReads<'a>(&'a mut dyn WeightsStream);

impl Read for FullReads<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.0.read(rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl Seek for FullReads<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
