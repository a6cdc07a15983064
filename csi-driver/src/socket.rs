//! Unix sockets that only their owner can reach, from the first moment on.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::Mode;
use tokio::net::{UnixListener, UnixSocket};
use tokio_stream::wrappers::UnixListenerStream;

/// Connections that may wait to be taken; kubelet makes one a call.
const BACKLOG: u32 = 1024;
/// Longest path, without the NUL at the end: `sun_path` of unix(7).
const PATH_BYTES_MAX: usize = 107;

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A step failed.
    #[error("{0:?}: {1} failed: {2}")]
    Io(PathBuf, &'static str, #[source] io::Error),
    /// Something that is not a socket has the name.
    #[error("{0:?} exists and is not a socket; remove it if nobody needs it")]
    NotASocket(PathBuf),
    /// The path does not fit a socket address.
    #[error(
        "{0:?} is longer than {PATH_BYTES_MAX} bytes, the most for a socket; choose a shorter kubelet_dir"
    )]
    TooLong(PathBuf),
}

/// A file in the file system that belongs to a bound socket. Removed on drop, unless another process has put its own
/// in the same place.
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

/// Binds a socket with mode 0600 at `path`; its folder is made when missing. A socket that was left there is replaced.
///
/// # Errors
/// When something else has the name, or the folder cannot be written.
pub fn bind(path: &Path) -> Result<(UnixListenerStream, SocketFile), SocketError> {
    let failed = |step| move |error: io::Error| SocketError::Io(path.to_owned(), step, error);
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(SocketError::TooLong(path.to_owned()));
    }
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(folder)
            .map_err(failed("making the folder"))?;
    }
    remove_stale(path)?;
    let listener = listen(path).map_err(failed("binding the socket"))?;
    let inode = inode(path).map_err(failed("reading the socket's inode"))?;
    Ok((UnixListenerStream::new(listener), SocketFile { path: path.to_owned(), inode }))
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // On Linux the file takes the mode of the socket itself, so there is no moment at which others could connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |step| move |error: io::Error| SocketError::Io(path.to_owned(), step, error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("looking for an old socket")(error)),
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path).map_err(failed("removing the old socket"))
        }
        Ok(_) => Err(SocketError::NotASocket(path.to_owned())),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // Best effort: the next driver replaces a stale socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_its_owner_alone_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugins/driver/csi.sock");
        let bound = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_the_successors_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let (_stream, old) = bind(&path).unwrap();
        let _new = bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let link = folder.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(bind(&link), Err(SocketError::NotASocket(_))));
    }

    #[tokio::test]
    async fn a_path_that_fits_no_address_is_named() {
        let path = Path::new("/").join("x".repeat(200));
        let error = bind(&path).err().unwrap().to_string();
        assert!(error.contains("kubelet_dir"), "{error}");
    }
}
