//! Packages: finding them, reading them within bounds, verifying them, and turning them into models.

mod golden;
mod source;

use sha2::{Digest, Sha256};

pub use source::{MAX_PACKAGES, Source, scan};

use crate::error::Violations;
use crate::model::manifest::{Manifest, Weights, check_name};
use crate::model::{FAMILIES, Family, PixelModel, Placement, WeightsFile, WeightsStream};
use crate::spec::Precision;

/// Longest `model.toml` read, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// What is read at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a weights file.
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
        Some(weights) if !tensors.is_empty() => {
            let (mut stream, bytes) =
                source.open(&weights.file, limits.weights_bytes).map_err(|why| Violations::one("weights.file", why))?;
            verify(&mut *stream, bytes, weights)?;
            let file = WeightsFile { format: weights.format, bytes, stream: &mut *stream };
            (family.build)(&manifest, Some(file), placement)?
        }
        None => return Err(Violations::one("weights", format!("is required by family {:?}", family.name))),
        Some(_) => {
            return Err(Violations::one("weights", format!("must be absent: family {:?} has none", family.name)));
        }
    };
    // The known answers are those of the law in the package, which a rounded model is not.
    if placement.precision == Precision::F32 {
        golden::check(&mut *model, &manifest.golden)?;
    }
    Ok(model)
}

/// Reads and checks a package's manifest alone.
///
/// # Errors
/// Every fault, as [`Manifest::parse`] reports them; and `name` if the package's directory has another, or one that
/// no package may have.
pub fn manifest(source: &Source) -> Result<Manifest, Violations> {
    if let Some(Err(rule)) = source.name().map(|name| check_name(&name)) {
        return Err(Violations::one("name", format!("of the directory {rule}")));
    }
    let text = source.read_manifest().map_err(|why| Violations::one("model.toml", why))?;
    let manifest = Manifest::parse(&text)?;
    match source.name() {
        Some(name) if name != manifest.name => {
            Err(Violations::one("name", format!("must be that of the directory, {name:?}, got {:?}", manifest.name)))
        }
        _ => Ok(manifest),
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
