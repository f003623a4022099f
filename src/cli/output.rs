//! The two standard streams, and files that the user named.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::OnceLock;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::stdio::{dup2_stdout, stderr, stdout};
use serde::Serialize;

use super::failure::Failure;

/// Standard output as this process was given it, once [`keep`] was called.
static KEPT: OnceLock<File> = OnceLock::new();

/// Keeps standard output for [`line`]: what else is written there, by a module that prints, goes to standard error from now on.
pub(super) fn keep() -> Result<(), Failure> {
    let kept = fcntl_dupfd_cloexec(stdout(), 3).and_then(|kept| dup2_stdout(stderr()).map(|()| kept));
    let kept = kept.map_err(|error| Failure::Internal(format!("cannot set standard output aside: {error}")))?;
    // Whoever calls this again keeps what was kept first.
    let _ = KEPT.set(kept.into());
    Ok(())
}

/// Writes a line to standard output, and through.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    let whole = format!("{text}\n");
    let written = match KEPT.get() {
        Some(mut kept) => kept.write_all(whole.as_bytes()),
        None => std::io::stdout().lock().write_all(whole.as_bytes()),
    };
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::Internal(format!("cannot write to standard output: {error}")),
    })
}

/// Writes `value` to standard output as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string(value).map_err(|error| Failure::Internal(error.to_string()))?)
}

/// Tells the user what went wrong. If nobody listens on standard error either, there is nothing left to do.
pub(super) fn complain(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "error: {message}");
}

/// Tells the user what they should look at, though the work is done.
pub(super) fn warn(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "warning: {message}");
}

/// Writes a file, whole.
pub(super) fn file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|error| Failure::Usage(format!("cannot write {}: {error}", path.display())))
}

/// Makes a directory that may be there already.
pub(super) fn directory(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| Failure::Usage(format!("cannot make {}: {error}", path.display())))
}

/// Refuses a file that could not be written, before the work that would fill it.
pub(super) fn expect_writable(path: &Path) -> Result<(), Failure> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() || !parent.is_dir() {
        return Err(Failure::Usage(format!("cannot write {}: not a file in an existing directory", path.display())));
    }
    Ok(())
}
