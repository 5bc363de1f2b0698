//! A Unix socket and its file.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};
use tokio::net::{UnixListener, UnixStream};

use super::BACKLOG;

#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file: another may stand at the path by the time we end.
    file: (u64, u64),
}

impl Socket {
    pub(super) async fn bind(path: &Path) -> io::Result<Self> {
        clear(path).await?;
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Between bind and listen nobody can connect yet, so there is no moment of wider rights.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let file = identity(&fs::symlink_metadata(path)?);
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(socket.into())?,
            path: path.to_owned(),
            file,
        })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| identity(&m) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file nobody answers on.
async fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the path exists and is no socket; remove it or choose another",
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::debug!(path = %path.display(), "replacing a socket file nobody answers on");
            fs::remove_file(path)
        }
        Err(e) => Err(e),
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
