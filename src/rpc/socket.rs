//! Where operators connect: a Unix socket that only this user may open, or a port of this machine.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use rustix::fs::{Mode, fchmod};
use tokio::net::{TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio_util::either::Either;

use super::Listener;

/// Read and write for the user alone.
const OURS: u32 = 0o600;
/// Clients that may wait to be accepted.
const BACKLOG: u32 = 128;

/// A bound listener of operators: a stream of connections. A Unix socket is removed when it is dropped.
#[derive(Debug)]
pub struct AdminListener {
    bound: Bound,
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Bound {
    Unix(UnixListener),
    Loopback(Listener),
}

impl AdminListener {
    /// Binds a Unix socket at `path`, which has the permissions 0600 from the first moment on. A socket that is there and that
    /// nobody listens on, as a process leaves behind that was killed, is removed before.
    ///
    /// # Errors
    /// Somebody listens there, something else is there, or whatever the operating system has against it. Must be called within
    /// a tokio runtime.
    pub fn unix(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = UnixSocket::new_stream()?;
        // Linux gives the file the permissions of the socket.
        fchmod(&socket, Mode::from_raw_mode(OURS))?;
        socket.bind(path)?;
        // From here on the file is ours to remove.
        let file = SocketFile::found(path)?;
        Ok(Self { bound: Bound::Unix(socket.listen(BACKLOG)?), _file: Some(file) })
    }

    /// Binds a port of a loopback address; port 0 takes a free one.
    ///
    /// # Errors
    /// Whatever the operating system has against it.
    pub async fn loopback(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { bound: Bound::Loopback(Listener::bind(address).await?), _file: None })
    }
}

impl Stream for AdminListener {
    type Item = io::Result<Either<UnixStream, TcpStream>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match &mut self.bound {
            Bound::Unix(listener) => {
                let (socket, _) = ready!(listener.poll_accept(context))?;
                Some(Ok(Either::Left(socket)))
            }
            Bound::Loopback(listener) => {
                ready!(Pin::new(listener).poll_next(context)).map(|socket| socket.map(Either::Right))
            }
        })
    }
}

/// The file of a socket, removed when it is dropped unless another has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    fn found(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "something is there that is no socket"));
    }
    match Probe::connect(path) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "somebody listens there")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing a socket that nobody listens on");
            fs::remove_file(path)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn refused(path: &Path) -> String {
        AdminListener::unix(path).unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_socket_is_the_users_alone_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = AdminListener::unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(refused(&path).contains("somebody listens"));
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_removed_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        let listener = AdminListener::unix(&path).unwrap();
        // Somebody has put another in its place.
        fs::remove_file(&path).unwrap();
        let other = AdminListener::unix(&path).unwrap();
        drop(listener);
        assert!(path.exists(), "it is the other's");
        drop(other);
        fs::write(&path, "precious").unwrap();
        assert!(refused(&path).contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert!(refused(&path).contains("no socket"), "links are not followed");
    }
}
