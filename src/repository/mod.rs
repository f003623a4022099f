//! Packages: finding them, reading them within bounds, verifying them, and turning them into models.

mod golden;
mod source;

use sha2::{Digest, Sha256};

pub use source::{MAX_PACKAGES, Source, scan};

use crate::error::Violations;
use crate::model::manifest::{Manifest, Weights, check_name};
use crate::model::{FAMILIES, Family, PixelModel, Placement, TensorSpec, WeightsFile, WeightsStream};
use crate::spec::Precision;

/// Longest `model.toml` read, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// What is read at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a weights file, and of its tensors in memory.
    pub weights_bytes: u64,
}

impl Default for Limits {
    /// 8 GiB of weights.
    fn default() -> Self {
        Self { weights_bytes: 8 << 30 }
    }
}

/// Loads and verifies one package: manifest, digest of the weights, strict weights, known answers (at full precision).
///
/// # Errors
/// Every fault of the first of these that has any, under the manifest's keys, or under `model.toml` and
/// `weights.<tensor>` for the files themselves.
pub fn load(source: &Source, placement: Placement, limits: Limits) -> Result<Box<dyn PixelModel>, Violations> {
    let manifest = manifest(source)?;
    let family = family(&manifest)?;
    let tensors = (family.tensors)(&manifest)?;
    let mut model = match &manifest.weights {
        None if tensors.is_empty() => (family.build)(&manifest, None, placement)?,
        Some(weights) => {
            let (mut stream, bytes) =
                source.open(&weights.file, limits.weights_bytes).map_err(|why| Violations::one("weights.file", why))?;
            check_size(&tensors, limits)?;
            // Before anything in the file is believed: an archive can hold code that runs when it is opened.
            verify(&mut *stream, bytes, weights)?;
            let file = WeightsFile { format: weights.format, bytes, stream: &mut *stream };
            (family.build)(&manifest, Some(file), placement)?
        }
        None => return Err(Violations::one("weights", format!("is required by family {:?}", family.name))),
    };
    // The known answers are those of the law in the package, which a rounded model is not.
    if placement.precision == Precision::F32 {
        golden::check(&mut *model, &manifest.golden)?;
    }
    Ok(model)
}

/// What a package says of itself, its weights unread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Digest of weights and manifest, as the manifest tells them.
    pub revision: String,
    /// Bytes of the weights file; 0 if there is none. The model takes at least as much memory.
    pub weight_bytes: u64,
}

/// Reads what a package says of itself.
///
/// # Errors
/// As [`load`], of the manifest and of the size of the weights file.
pub fn outline(source: &Source, limits: Limits) -> Result<Outline, Violations> {
    let manifest = manifest(source)?;
    let weight_bytes = match &manifest.weights {
        Some(weights) => {
            let opened = source.open(&weights.file, limits.weights_bytes);
            opened.map_err(|why| Violations::one("weights.file", why))?.1
        }
        None => 0,
    };
    Ok(Outline { revision: manifest.revision, weight_bytes })
}

/// Refuses tensors that take more memory than a weights file may be long: an archive can say that one number is a billion.
fn check_size(tensors: &[TensorSpec], limits: Limits) -> Result<(), Violations> {
    let numbers = |tensor: &TensorSpec| tensor.shape.iter().fold(1, |all: u64, &n| all.saturating_mul(n));
    let bytes = tensors.iter().map(numbers).fold(0, u64::saturating_add).saturating_mul(size_of::<f32>() as u64);
    if bytes > limits.weights_bytes {
        let most = limits.weights_bytes;
        return Err(Violations::one("architecture", format!("must have at most {most} bytes of weights, got {bytes}")));
    }
    Ok(())
}

/// Reads and checks a package's manifest alone.
///
/// # Errors
/// Every fault, as [`Manifest::parse`] reports them; and `name` if the package's directory has another, or one that
/// no package may have.
pub fn manifest(source: &Source) -> Result<Manifest, Violations> {
    let (name, mut violations) = (source.name(), Violations::new());
    if let Some(Err(rule)) = name.as_deref().map(check_name) {
        violations.add("name", format!("of the directory {rule}"));
    }
    let text = source.read_manifest().map_err(|why| Violations::one("model.toml", why))?;
    match (Manifest::parse(&text), name) {
        (Ok(manifest), Some(name)) if violations.is_empty() && name != manifest.name => {
            Err(Violations::one("name", format!("must be that of the directory, {name:?}, got {:?}", manifest.name)))
        }
        (Ok(manifest), _) => violations.into_result(manifest),
        (Err(found), _) => {
            violations.add_all(found);
            Err(violations)
        }
    }
}

fn family(manifest: &Manifest) -> Result<&'static Family, Violations> {
    FAMILIES.iter().find(|family| family.name == manifest.family).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        Violations::one("family", format!("must be one of {}, got {:?}", known.join(", "), manifest.family))
    })
}

/// Checks the digest of the weights and rewinds the stream. The same open file is read afterwards, not the path.
fn verify(stream: &mut dyn WeightsStream, bytes: u64, weights: &Weights) -> Result<(), Violations> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut left = bytes;
    while left > 0 {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        stream.read_exact(piece).map_err(|error| Violations::one("weights.file", error.to_string()))?;
        hash.update(&*piece);
        left -= piece.len() as u64;
    }
    stream.rewind().map_err(|error| Violations::one("weights.file", error.to_string()))?;
    let digest: [u8; 32] = hash.finalize().into();
    if digest == weights.sha256 {
        return Ok(());
    }
    let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Err(Violations::one("weights.sha256", format!("says {}, the file has {}", hex(&weights.sha256), hex(&digest))))
}

#[cfg(test)]
mod tests;
