//! Writes a package and loads it as a server would, before anybody sees it.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};
use sha2::{Digest, Sha256};
use toml::Value;

use super::{Tensor, Tensors};
use crate::error::Violations;
use crate::model::Placement;
use crate::model::manifest::{FORMAT, check_name};
use crate::repository::{self, Limits, Source};
use crate::spec::ModelSpec;

const WEIGHTS: &str = "weights.safetensors";
const ARCHIVE: &str = "weights.pt";
const MANIFEST: &str = "model.toml";

/// A package to be written.
#[derive(Debug)]
pub struct Draft {
    /// Name of its family.
    pub family: &'static str,
    /// One line for people.
    pub description: String,
    /// The other tables of its manifest in order, by name: `image`, `head`, `condition`, `architecture`, `training`.
    pub tables: Vec<(&'static str, Entries)>,
    /// Its weights.
    pub tensors: Tensors,
}

/// The entries of a table, in the order in which people would write them.
pub type Entries = Vec<(&'static str, Value)>;

/// A number of elements, for a table.
pub fn number(count: usize) -> Value {
    Value::Integer(i64::try_from(count).unwrap_or(i64::MAX))
}

/// Writes `draft` as the package at `directory`, which must not be there yet, and loads it. Whatever fails, nothing is left.
///
/// # Errors
/// A directory that is there, a name that no package may have, a file that cannot be written, and whatever the repository
/// refuses.
pub fn write(directory: &Path, draft: Draft, limits: Limits) -> Result<ModelSpec, Violations> {
    place(directory, |package, name| {
        write_files(package, name, draft)
            .map_err(|error| Violations::one(directory.display().to_string(), error.to_string()))?;
        let model = repository::load(&Source::Directory(package.to_owned()), Placement::new(1, 1), limits)?;
        Ok(model.spec().clone())
    })
}

/// Writes the package of a TorchScript archive, a copy of the file at `archive`, as [`write()`] does. `manifest` is all but its
/// `weights` table, and was found for an archive of digest `digest`. The module is not loaded, since that would run it.
///
/// # Errors
/// As [`write()`], but for the repository's; and a file that has another digest by now.
pub fn write_archive(directory: &Path, manifest: &str, archive: &Path, digest: &str) -> Result<(), Violations> {
    place(directory, |package, _| {
        let write = || {
            fs::create_dir(package)?;
            let weights = package.join(ARCHIVE);
            fs::copy(archive, &weights)?;
            if sha256(&weights)? != digest {
                return Err(io::Error::other(format!("{} changed while it was probed", archive.display())));
            }
            fs::write(package.join(MANIFEST), with_archive(manifest, digest))
        };
        write().map_err(|error: io::Error| Violations::one(directory.display().to_string(), error.to_string()))
    })
}

/// `manifest` with the `weights` table of an archive of digest `sha256`.
#[must_use]
pub fn with_archive(manifest: &str, sha256: &str) -> String {
    format!("{manifest}\n[weights]\nfile = \"{ARCHIVE}\"\nsha256 = \"{sha256}\"\n")
}

/// The name that a package at `directory` has.
///
/// # Errors
/// No package may have it.
pub fn name_of(directory: &Path) -> Result<&str, Violations> {
    let refuse = |why: String| Violations::one(directory.display().to_string(), why);
    let name =
        directory.file_name().and_then(|name| name.to_str()).ok_or_else(|| refuse("must end in a name".into()))?;
    check_name(name).map_err(|rule| refuse(format!("its last part {rule}")))?;
    Ok(name)
}

/// Has `fill` make the package of `directory`, which must not be there yet, out of sight, and puts it there.
fn place<T>(directory: &Path, fill: impl FnOnce(&Path, &str) -> Result<T, Violations>) -> Result<T, Violations> {
    let refuse = |why: String| Violations::one(directory.display().to_string(), why);
    let name = name_of(directory)?;
    if fs::symlink_metadata(directory).is_ok() {
        return Err(refuse("is there already; name a new directory".to_owned()));
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|error| refuse(error.to_string()))?;
    // A package must be called as its directory, so it is made in a directory of its own.
    let scratch = Scratch::new(parent.join(format!(".{name}.{}", std::process::id())))
        .map_err(|error| refuse(error.to_string()))?;
    let package = scratch.0.join(name);
    let filled = fill(&package, name)?;
    fs::rename(&package, directory).map_err(|error| refuse(error.to_string()))?;
    Ok(filled)
}

fn write_files(package: &Path, name: &str, draft: Draft) -> io::Result<()> {
    fs::create_dir(package)?;
    let weights = package.join(WEIGHTS);
    let views = draft.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::serialize_to_file(views, None, &weights).map_err(io::Error::other)?;
    let digest = sha256(&weights)?;
    let (named, described) = (Value::from(name), Value::from(draft.description));
    let family = draft.family;
    let mut text = format!("format = {FORMAT}\nname = {named}\nfamily = \"{family}\"\ndescription = {described}\n");
    let files = vec![("file", WEIGHTS.into()), ("sha256", digest.into())];
    for (name, entries) in draft.tables.into_iter().chain([("weights", files)]) {
        text.push_str(&format!("\n[{name}]\n"));
        for (key, value) in entries {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    let manifest = package.join(MANIFEST);
    fs::write(&manifest, text)?;
    // The weights were written for their owner alone; whoever may read the manifest may read them.
    fs::set_permissions(&weights, fs::metadata(&manifest)?.permissions())
}

/// SHA-256 of the file at `path`, in hex digits.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    digest(File::open(path)?)
}

/// SHA-256 of what `input` still holds, in hex digits.
///
/// # Errors
/// It cannot be read.
pub fn digest(mut input: impl Read) -> io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        match input.read(&mut buffer)? {
            0 => break,
            count => hash.update(buffer.get(..count).unwrap_or_default()),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A directory that goes with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed stays, under a name that no server looks at.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        bytemuck::cast_slice(&self.values).into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_that_changed_since_it_was_probed_makes_no_package() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, out) = (folder.path().join("module.pt"), folder.path().join("models/m"));
        fs::write(&archive, "probed").unwrap();
        let digest = sha256(&archive).unwrap();
        fs::write(&archive, "another").unwrap();
        let refused = write_archive(&out, "", &archive, &digest).unwrap_err().to_string();
        assert!(refused.contains("module.pt changed while it was probed"), "{refused}");
        assert_eq!(fs::read_dir(folder.path().join("models")).unwrap().count(), 0);
        fs::write(&archive, "probed").unwrap();
        write_archive(&out, "", &archive, &digest).unwrap();
        assert!(fs::read_to_string(out.join("model.toml")).unwrap().contains(&digest));
    }
}
