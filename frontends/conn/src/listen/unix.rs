//! A Unix socket and its file.

use std::fs::{self, Metadata, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};

use super::BACKLOG;

/// Limit on the wait for other programs that bind in the same directory; each takes milliseconds.
const TURN: Duration = Duration::from_secs(2);
/// Interval at which the lock is tried again.
const LOOK: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(super) struct UnixListenSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file: another file may be at the path when we end.
    file: (u64, u64),
}

impl UnixListenSocket {
    pub(super) async fn bind(path: &Path) -> io::Result<Self> {
        let _turn = turn(path).await;
        clear(path).await?;
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // No client can connect between bind and listen, so the mode is never too wide.
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

impl Drop for UnixListenSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| identity(&m) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Lock that lets one program at a time inspect, delete and bind the sockets of a directory: two programs that find the same
/// stale file could each delete the other's new socket, and both would believe that they listen. Released on drop. If the
/// directory cannot be locked within [`TURN`], binding continues.
async fn turn(path: &Path) -> Option<fs::File> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = fs::File::open(dir.unwrap_or_else(|| Path::new("."))).ok()?;
    let until = Instant::now() + TURN;
    loop {
        match dir.try_lock() {
            Ok(()) => return Some(dir),
            Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(LOOK).await,
            Err(_) => return None,
        }
    }
}

/// Removes a stale socket file.
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
