//! The safetensors form: a JSON header and plain numbers.

use std::io::{Read, Seek, SeekFrom};

use safetensors::tensor::TensorInfo;

use super::pickle::shown;
use super::storage::{Kind, Storage, View, Wanted};
use super::{Reading, Tensors};
use crate::error::Violations;
use crate::model::safetensors_header;

/// Reads the tensors of `input`, which has `bytes` bytes.
///
/// # Errors
/// A wrong header, elements that are no real numbers, and more bytes than the limit.
pub(super) fn read(input: &mut (impl Read + Seek), bytes: u64, reading: Reading<'_>) -> Result<Tensors, Violations> {
    let header = safetensors_header(input, bytes).map_err(|why| Violations::one("checkpoint", why))?;
    if reading.key.is_some() {
        return Err(Violations::one("--key", "is for what torch.save writes; a safetensors file is one state dict"));
    }
    let data = bytes.saturating_sub(header.data_len() as u64);
    let (mut views, mut violations) = (Vec::new(), Violations::new());
    for (name, info) in header.tensors() {
        match view(&name, info) {
            Some(view) => views.push((name, view)),
            None => violations
                .add(format!("tensors.{}", shown(&name)), format!("must be of real numbers, is {:?}", info.dtype)),
        }
    }
    let views = violations.into_result(views)?;
    let mut wanted = Wanted::new(views.iter().map(|(name, view)| (name.as_str(), view)).collect(), reading.limit)?;
    for (name, info) in header.tensors() {
        let (start, end) = info.data_offsets;
        let mut content = Vec::new();
        input
            .seek(SeekFrom::Start(data.saturating_add(start as u64)))
            .and_then(|_| input.by_ref().take(end.saturating_sub(start) as u64).read_to_end(&mut content))
            .map_err(|error| Violations::one("checkpoint", error.to_string()))?;
        wanted.fill(&name, &content)?;
    }
    wanted.finish()
}

/// The whole tensor, as a view of a storage of its own.
fn view(name: &str, info: &TensorInfo) -> Option<View> {
    let kind = Kind::of_safetensors(info.dtype)?;
    let shape: Vec<u64> = info.shape.iter().map(|&n| n as u64).collect();
    let mut strides = vec![1; shape.len()];
    let mut elements = 1u64;
    for (stride, &n) in strides.iter_mut().zip(&shape).rev() {
        *stride = elements;
        elements = elements.checked_mul(n)?;
    }
    Some(View { storage: Storage { kind, key: name.to_owned(), elements }, offset: 0, shape, strides })
}
