//! Where packages are: directories on disk, or bytes in the program.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::MAX_MANIFEST_BYTES;
use crate::model::WeightsStream;

/// Packages that one directory may hold.
pub const MAX_PACKAGES: usize = 1024;
/// Entries looked at in search of them.
const MAX_ENTRIES: usize = 16 * MAX_PACKAGES;
const MANIFEST: &str = "model.toml";

/// One package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory with a `model.toml`, named as the package.
    Directory(PathBuf),
    /// The same files in memory, for packages that are part of the program.
    Embedded {
        /// The bytes of `model.toml`.
        manifest: Bytes,
        /// The bytes of the weights file; empty if the manifest names none.
        weights: Bytes,
    },
}

impl Source {
    /// The name that the package must have, where its place prescribes one; fit to be shown, whatever it is.
    pub(super) fn name(&self) -> Option<String> {
        match self {
            Source::Directory(path) => path.file_name().map(|name| name.to_string_lossy().escape_debug().to_string()),
            Source::Embedded { .. } => None,
        }
    }

    pub(super) fn read_manifest(&self) -> Result<Bytes, String> {
        match self {
            Source::Directory(path) => {
                let (file, _) = open_file(&path.join(MANIFEST), MAX_MANIFEST_BYTES)?;
                let mut text = Vec::new();
                // The file may have grown since its length was taken.
                file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text).map_err(|error| error.to_string())?;
                Ok(text.into())
            }
            Source::Embedded { manifest, .. } => Ok(manifest.clone()),
        }
    }

    /// The file `name` of the package and its length, which is at most `limit`. An embedded package has only its weights.
    pub(super) fn open(&self, name: &str, limit: u64) -> Result<(Box<dyn WeightsStream>, u64), String> {
        match self {
            Source::Directory(path) => {
                let (file, bytes) = open_file(&path.join(name), limit)?;
                Ok((Box::new(file), bytes))
            }
            Source::Embedded { weights, .. } => Ok((Box::new(Cursor::new(weights.clone())), weights.len() as u64)),
        }
    }
}

/// Opens a regular file of at most `limit` bytes. What a path leads to is looked at first: opening a pipe would wait.
fn open_file(path: &Path, limit: u64) -> Result<(File, u64), String> {
    let shown = path.display();
    let describe = |error: io::Error| format!("{shown}: {error}");
    if !fs::metadata(path).map_err(describe)?.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    let file = File::open(path).map_err(describe)?;
    let bytes = file.metadata().map_err(describe)?.len();
    if bytes > limit {
        return Err(format!("{shown} must be at most {limit} bytes, got {bytes}"));
    }
    Ok((file, bytes))
}

/// The packages directly under `root`, by name: every directory, or link to one, that has a `model.toml` and is not hidden
/// by a dot. Nothing in them is read, so a broken package hides no other, and one whose name no package may have is refused
/// when it is loaded, where people see it; at most [`MAX_PACKAGES`] are listed.
///
/// # Errors
/// `root` cannot be listed.
pub fn scan(root: &Path) -> io::Result<Vec<(String, Source)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)?.take(MAX_ENTRIES) {
        let Ok(entry) = entry else { continue };
        let source = Source::Directory(entry.path());
        let name = source.name().unwrap_or_default();
        if !name.starts_with('.') && entry.path().join(MANIFEST).symlink_metadata().is_ok() {
            found.push((name, source));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    if found.len() > MAX_PACKAGES {
        tracing::warn!(found = found.len(), "only the first {MAX_PACKAGES} packages of the directory are read");
        found.truncate(MAX_PACKAGES);
    }
    Ok(found)
}
