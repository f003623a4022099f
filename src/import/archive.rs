//! Zip files: the archive that `torch.save` writes since PyTorch 1.6, with one pickle and one file for each storage, and that of
//! NumPy, which is told from it by its names.

use std::io::{BufReader, Read, Seek};

use zip::ZipArchive;

use super::pickle::{self, Object, shown};
use super::storage::Wanted;
use super::{Reading, Tensors, npz, state_dict};
use crate::error::Violations;

/// Entries that an archive may have: one for each storage and a few more.
const MAX_ENTRIES: usize = 1 << 17;

/// Reads the tensors of the state dict in the archive `input`.
///
/// # Errors
/// An archive of another kind, damage, and what a pickle, [`state_dict`] and [`Wanted`] refuse.
pub(super) fn read(input: impl Read + Seek, reading: Reading<'_>) -> Result<Tensors, Violations> {
    let mut archive = ZipArchive::new(input).map_err(|error| refused(format!("is no zip archive: {error}")))?;
    bounded(&archive).map_err(refused)?;
    if is_numpy(&archive) {
        return match reading.key {
            None => npz::read(&mut archive, reading.limit),
            Some(_) => {
                Err(Violations::one("--key", "is for what torch.save writes; a NumPy archive is one state dict"))
            }
        };
    }
    let folder = folder(&archive).map_err(refused)?;
    let whole = |name: &str| format!("{folder}{name}");
    if archive.index_for_name(&whole("byteorder")).is_some() {
        let order = contents(&mut archive, &whole("byteorder"), 16).map_err(refused)?;
        if order != b"little" {
            return Err(refused(format!("must be little-endian, says {:?}", shown(&String::from_utf8_lossy(&order)))));
        }
    }
    let object = {
        let pickle = archive.by_name(&whole("data.pkl")).map_err(|error| refused(error.to_string()))?;
        Object::read(&mut BufReader::new(pickle), &mut pickle::budget()).map_err(refused)?
    };
    let mut wanted = Wanted::new(state_dict(&object, reading.key)?, reading.limit)?;
    for storage in wanted.storages() {
        let name = whole(&format!("data/{}", storage.key));
        let bytes = storage.bytes().unwrap_or(u64::MAX);
        let content = contents(&mut archive, &name, bytes).map_err(refused)?;
        if content.len() as u64 != bytes {
            let got = content.len();
            return Err(refused(format!("{} must have {bytes} bytes, got {got}", shown(&name))));
        }
        wanted.fill(&storage.key, &content)?;
    }
    wanted.finish()
}

/// Whether `input` is an archive that [`read`] reads, as far as its names tell.
pub(super) fn holds_tensors(input: impl Read + Seek) -> bool {
    ZipArchive::new(input)
        .is_ok_and(|archive| bounded(&archive).is_ok() && (is_numpy(&archive) || folder(&archive).is_ok()))
}

fn is_numpy<R: Read + Seek>(archive: &ZipArchive<R>) -> bool {
    archive.file_names().all(|name| name.is_ok_and(|name| name.ends_with(".npy")))
}

/// Refuses an archive of too many entries, or with two of one name: which of them counts is for every reader to choose.
fn bounded<R: Read + Seek>(archive: &ZipArchive<R>) -> Result<(), String> {
    if archive.len() > MAX_ENTRIES {
        return Err(format!("must have at most {MAX_ENTRIES} entries, got {}", archive.len()));
    }
    if archive.has_duplicate_names() {
        return Err("must not have two entries of one name".to_owned());
    }
    Ok(())
}

/// The folder of the archive's only `data.pkl`, with a slash at its end, or nothing.
fn folder<R: Read + Seek>(archive: &ZipArchive<R>) -> Result<String, String> {
    let folder = |name: &str| name.strip_suffix("data.pkl").map(str::to_owned);
    let folders = archive.file_names().filter_map(|name| folder(&name.ok()?));
    let mut folders = folders.filter(|folder| folder.is_empty() || folder.ends_with('/'));
    let (Some(folder), None) = (folders.next(), folders.next()) else {
        return Err("is not what torch.save writes: it must have one data.pkl".to_owned());
    };
    if archive.index_for_name(&format!("{folder}constants.pkl")).is_some() {
        return Err("is a TorchScript module, not a state dict".to_owned());
    }
    Ok(folder)
}

/// The entry `name`, which is at most `limit` bytes long. What it says of its own length is not believed.
pub(super) fn contents<R: Read + Seek>(archive: &mut ZipArchive<R>, name: &str, limit: u64) -> Result<Vec<u8>, String> {
    let broken = |error: &dyn std::error::Error| format!("{}: {error}", shown(name));
    let entry = archive.by_name(name).map_err(|error| broken(&error))?;
    let mut content = Vec::new();
    entry.take(limit.saturating_add(1)).read_to_end(&mut content).map_err(|error| broken(&error))?;
    if content.len() as u64 > limit {
        return Err(format!("{} must have at most {limit} bytes", shown(name)));
    }
    Ok(content)
}

fn refused(why: String) -> Violations {
    Violations::one("checkpoint", why)
}
