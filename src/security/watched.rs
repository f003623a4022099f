//! A value made of files, and made again when they change.
//!
//! The contents are compared, not the times: a secret of Kubernetes is replaced by moving a symbolic link, a file system may
//! keep whole seconds only, and a network file system may announce nothing. The files are small and read every few seconds.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::error::Violations;

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// Bytes of a file.
const MOST_BYTES: u64 = 1 << 20;

/// One file and the configuration key that names it.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) key: &'static str,
    pub(super) path: PathBuf,
}

/// How contents, in the order of their files, become a value.
type Make<T> = dyn Fn(&[Named], &[Vec<u8>]) -> Result<T, Violations> + Send + Sync;
/// Of everything that was read; the contents themselves may be secret and are not kept.
type Fingerprint = [u8; 32];

/// The value in force. Cheap to clone; the files are followed as long as one lives.
pub(super) struct Watched<T>(watch::Receiver<T>);

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl<T: Clone + Send + Sync + 'static> Watched<T> {
    /// Makes the value, and goes on in the background.
    pub(super) fn load(
        files: Vec<Named>,
        make: impl Fn(&[Named], &[Vec<u8>]) -> Result<T, Violations> + Send + Sync + 'static,
    ) -> Result<Self, Violations> {
        let source = Arc::new(Source { files, make: Box::new(make) });
        let contents = source.read()?;
        let seen = fingerprint(&contents);
        let (now, watched) = watch::channel((source.make)(&source.files, &contents)?);
        tokio::spawn(follow(source, seen, now));
        Ok(Self(watched))
    }

    /// The value in force.
    pub(super) fn now(&self) -> T {
        self.0.borrow().clone()
    }
}

struct Source<T> {
    files: Vec<Named>,
    make: Box<Make<T>>,
}

impl<T> Source<T> {
    fn read(&self) -> Result<Vec<Vec<u8>>, Violations> {
        let (mut contents, mut faults) = (Vec::new(), Violations::new());
        for Named { key, path } in &self.files {
            match read(path) {
                Ok(content) => contents.push(content),
                Err(error) => faults.add(*key, format!("cannot read {}: {error}", path.display())),
            }
        }
        faults.into_result(contents)
    }

    /// The value again, unless the files are as they were when `seen` was made.
    fn changed(&self, seen: &Fingerprint) -> Result<Option<(Fingerprint, T)>, Violations> {
        let contents = self.read()?;
        let found = fingerprint(&contents);
        if found == *seen {
            return Ok(None);
        }
        (self.make)(&self.files, &contents).map(|value| Some((found, value)))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe would be waited for, every time.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST_BYTES {
        return Err(io::Error::other(format!("it is longer than {MOST_BYTES} bytes")));
    }
    Ok(content)
}

fn fingerprint(contents: &[Vec<u8>]) -> Fingerprint {
    let mut digest = Sha256::new();
    for content in contents {
        digest.update((content.len() as u64).to_le_bytes());
        digest.update(content);
    }
    digest.finalize().into()
}

/// Keeps `now` in step with the files until nobody wants it any more. Files that cannot be used change nothing but the log,
/// which is told once; they are tried again until they can, since one of a pair may come before the other.
async fn follow<T: Send + Sync + 'static>(source: Arc<Source<T>>, mut seen: Fingerprint, now: watch::Sender<T>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let keys = source.files.iter().map(|file| file.key).collect::<Vec<_>>().join(", ");
    let mut complaint = String::new();
    loop {
        tokio::select! {
            () = now.closed() => return,
            _ = ticks.tick() => {}
        }
        let looked = spawn_blocking({
            let source = Arc::clone(&source);
            move || source.changed(&seen)
        });
        let fault = match looked.await {
            Ok(Ok(None)) => String::new(),
            Ok(Ok(Some((found, value)))) => {
                seen = found;
                now.send_replace(value);
                tracing::info!(keys, "files read again");
                String::new()
            }
            Ok(Err(faults)) => faults.to_string(),
            Err(error) => error.to_string(),
        };
        if !fault.is_empty() && fault != complaint {
            tracing::error!(keys, fault, "files cannot be used; what was in force stays");
        }
        complaint = fault;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn text(files: &[Named], contents: &[Vec<u8>]) -> Result<String, Violations> {
        let text = String::from_utf8(contents.concat()).unwrap();
        if text.contains("bad") { Err(Violations::one(files[0].key, "is bad")) } else { Ok(text) }
    }

    fn watched(paths: &[&Path]) -> Result<Watched<String>, Violations> {
        Watched::load(paths.iter().map(|&path| Named { key: "a.b", path: path.to_owned() }).collect(), text)
    }

    /// Waits until the value is `expected`.
    async fn becomes(watched: &mut Watched<String>, expected: &str) {
        tokio::time::timeout(INTERVAL * 10, watched.0.wait_for(|value| value == expected)).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_follows_its_files_through_symbolic_links_and_outlives_bad_ones() {
        // As Kubernetes lays a secret out: the file is a link through a link to a directory, which is replaced.
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for (version, content) in [("1", "one"), ("2", "two"), ("3", "bad"), ("4", "four")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("file"), content).unwrap();
        }
        let swap = |version: &str| {
            symlink(version, at("new")).unwrap();
            fs::rename(at("new"), at("data")).unwrap();
        };
        swap("1");
        symlink("data/file", at("file")).unwrap();
        fs::write(at("other"), "+").unwrap();
        let mut watched = watched(&[&at("file"), &at("other")]).unwrap();
        assert_eq!(watched.now(), "one+");
        swap("2");
        becomes(&mut watched, "two+").await;
        swap("3");
        fs::write(at("other"), "-").unwrap();
        let quiet = tokio::time::timeout(INTERVAL * 5, watched.0.changed()).await;
        assert!(quiet.is_err(), "what is bad is not taken, {:?}", watched.now());
        swap("4");
        becomes(&mut watched, "four-").await;
        fs::remove_file(at("other")).unwrap();
        assert!(tokio::time::timeout(INTERVAL * 5, watched.0.changed()).await.is_err());
        assert_eq!(watched.now(), "four-");
        fs::write(at("other"), "!").unwrap();
        becomes(&mut watched, "four!").await;
    }

    #[tokio::test]
    async fn files_that_cannot_be_read_are_named_with_their_key() {
        let root = tempfile::tempdir().unwrap();
        let long = root.path().join("long");
        fs::write(&long, vec![b'x'; MOST_BYTES as usize + 1]).unwrap();
        let absent = root.path().join("absent");
        let faults = watched(&[&absent, root.path(), &long]).unwrap_err().to_string();
        for part in [
            format!("a.b: cannot read {}: No such file", absent.display()),
            format!("a.b: cannot read {}: it is not a regular file", root.path().display()),
            format!("a.b: cannot read {}: it is longer than 1048576 bytes", long.display()),
        ] {
            assert!(faults.contains(&part), "{faults}");
        }
    }
}
