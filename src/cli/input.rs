//! Files that the user named, read within bounds: one may be a device without end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The bytes of a file; `None` if there are more than `most`.
pub(super) fn bytes(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((read as u64 <= most).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abc").unwrap();
        assert_eq!(bytes(file.path(), 3).unwrap(), Some(b"abc".to_vec()));
        assert_eq!(bytes(file.path(), 2).unwrap(), None);
        assert_eq!(bytes(Path::new("/dev/zero"), 1 << 20).unwrap(), None);
    }
}
