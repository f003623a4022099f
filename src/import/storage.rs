//! Storages, the flat arrays of PyTorch checkpoints, and the strided tensors over them.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::Dtype;

use super::pickle::shown;
use super::{Tensor, Tensors};
use crate::error::Violations;

/// What the elements of a tensor are in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    U8,
    I8,
    I16,
    I32,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Kind {
    /// The kind that a class of `torch` stores.
    pub(super) fn of_storage_class(name: &str) -> Option<Self> {
        Some(match name {
            "BoolStorage" => Self::Bool,
            "ByteStorage" => Self::U8,
            "CharStorage" => Self::I8,
            "ShortStorage" => Self::I16,
            "IntStorage" => Self::I32,
            "LongStorage" => Self::I64,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "FloatStorage" => Self::F32,
            "DoubleStorage" => Self::F64,
            _ => return None,
        })
    }

    /// The kind of a safetensors tensor.
    pub(super) fn of_safetensors(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::BOOL => Self::Bool,
            Dtype::U8 => Self::U8,
            Dtype::I8 => Self::I8,
            Dtype::I16 => Self::I16,
            Dtype::I32 => Self::I32,
            Dtype::I64 => Self::I64,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::F32 => Self::F32,
            Dtype::F64 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of an element.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// The little-endian element that `bytes` is, if it has the right length. 64-bit numbers are rounded to the nearest.
    fn decode(self, bytes: &[u8]) -> Option<f32> {
        Some(match self {
            Self::Bool | Self::U8 => f32::from(u8::from_le_bytes(bytes.try_into().ok()?)),
            Self::I8 => f32::from(i8::from_le_bytes(bytes.try_into().ok()?)),
            Self::I16 => f32::from(i16::from_le_bytes(bytes.try_into().ok()?)),
            Self::I32 => i32::from_le_bytes(bytes.try_into().ok()?) as f32,
            Self::I64 => i64::from_le_bytes(bytes.try_into().ok()?) as f32,
            Self::F16 => f16::from_le_bytes(bytes.try_into().ok()?).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(bytes.try_into().ok()?).to_f32(),
            Self::F32 => f32::from_le_bytes(bytes.try_into().ok()?),
            Self::F64 => f64::from_le_bytes(bytes.try_into().ok()?) as f32,
        })
    }
}

/// A storage, as a pickle names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) kind: Kind,
    pub(super) key: String,
    pub(super) elements: u64,
}

impl Storage {
    /// Bytes of its elements, if 64 bits hold that number.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.elements.checked_mul(self.kind.bytes())
    }
}

/// A tensor over a storage; `offset` and `strides` count elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) storage: Storage,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

impl View {
    /// Elements, if 64 bits hold that number.
    pub(super) fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |all, &n| all.checked_mul(n))
    }

    /// Whether every element lies within the storage, and there are not more of them than 64 bits can count.
    fn fits(&self) -> bool {
        match self.elements() {
            None => false,
            Some(0) => true,
            // No size is 0.
            Some(_) => {
                let mut sizes = self.shape.iter().zip(&self.strides);
                let last = |at: u64, (&n, &stride): (&u64, &u64)| at.checked_add((n - 1).checked_mul(stride)?);
                sizes.try_fold(self.offset, last).is_some_and(|last| last < self.storage.elements)
            }
        }
    }

    /// The elements in row-major order, out of the bytes of the storage. The view has been checked.
    fn gather(&self, bytes: &[u8]) -> Option<Tensor> {
        let (kind, size) = (self.storage.kind, usize::try_from(self.storage.kind.bytes()).ok()?);
        let count = usize::try_from(self.elements()?).ok()?;
        let mut values = Vec::new();
        values.try_reserve_exact(count).ok()?;
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        while values.len() < count {
            let start = usize::try_from(at).ok()?.checked_mul(size)?;
            values.push(kind.decode(bytes.get(start..start.checked_add(size)?)?)?);
            // The next place, the last dimension going round fastest.
            for ((place, &n), &stride) in index.iter_mut().zip(&self.shape).zip(&self.strides).rev() {
                if *place + 1 < n {
                    *place += 1;
                    at += stride;
                    break;
                }
                at -= *place * stride;
                *place = 0;
            }
        }
        let shape = self.shape.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<_>>()?;
        Some(Tensor { shape, values })
    }
}

/// The tensors of a state dict that are yet to be read, by the storage they lie in.
pub(super) struct Wanted {
    storages: BTreeMap<String, (Storage, Vec<(String, View)>)>,
    tensors: Tensors,
}

impl Wanted {
    /// Checks every view, and that all tensors together take at most `limit` bytes as f32, as does each storage by itself.
    pub(super) fn new(state_dict: Vec<(&str, &View)>, limit: u64) -> Result<Self, Violations> {
        let (mut storages, mut violations) = (BTreeMap::new(), Violations::new());
        let mut total = 0u64;
        // A name that comes twice counts once, as it does for Python.
        for (name, view) in state_dict.into_iter().collect::<BTreeMap<_, _>>() {
            let path = format!("tensors.{}", shown(name));
            let bytes = view.elements().and_then(|count| count.checked_mul(size_of::<f32>() as u64));
            total = total.saturating_add(bytes.unwrap_or(u64::MAX));
            if !view.fits() {
                let View { offset, shape, strides, storage } = view;
                let held = storage.elements;
                violations.add(path, format!("of shape {shape:?}, offset {offset} and strides {strides:?} leaves its storage of {held} elements"));
                continue;
            }
            let (storage, views): &mut (Storage, Vec<_>) =
                storages.entry(view.storage.key.clone()).or_insert_with(|| (view.storage.clone(), Vec::new()));
            if *storage != view.storage {
                violations.add(
                    path,
                    format!("sees storage {:?} as another kind or length than other tensors do", shown(&storage.key)),
                );
                continue;
            }
            if storage.bytes().is_none_or(|bytes| bytes > limit) {
                violations.add(
                    path,
                    format!("lies in a storage of {} elements; the limit is {limit} bytes", storage.elements),
                );
                continue;
            }
            views.push((name.to_owned(), view.clone()));
        }
        if total > limit {
            violations.add("tensors", format!("must take at most {limit} bytes as f32, got {total}"));
        }
        violations.into_result(Self { storages, tensors: Tensors::new() })
    }

    /// Every storage that is needed.
    pub(super) fn storages(&self) -> Vec<Storage> {
        self.storages.values().map(|(storage, _)| storage.clone()).collect()
    }

    /// Whether the storage `key` is needed.
    pub(super) fn needs(&self, key: &str) -> bool {
        self.storages.contains_key(key)
    }

    /// Reads what lies in the storage `key` from its bytes.
    pub(super) fn fill(&mut self, key: &str, bytes: &[u8]) -> Result<(), Violations> {
        for (name, view) in self.storages.remove(key).map(|(_, views)| views).unwrap_or_default() {
            let tensor = view.gather(bytes).ok_or_else(|| {
                Violations::one(
                    format!("tensors.{}", shown(&name)),
                    "cannot be read: no memory, or its storage is cut short",
                )
            })?;
            self.tensors.insert(name, tensor);
        }
        Ok(())
    }

    /// All tensors, every storage having been read.
    pub(super) fn finish(self) -> Result<Tensors, Violations> {
        let missing = |(storage, _): &(Storage, Vec<_>)| {
            Violations::one("storages", format!("{:?} is not in the file", shown(&storage.key)))
        };
        match self.storages.values().next() {
            Some(storage) => Err(missing(storage)),
            None => Ok(self.tensors),
        }
    }
}
