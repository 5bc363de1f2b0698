//! One daemon per directory: a lock on a file, which says whose it is.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::home;
use super::sys::Process;

/// Held until dropped, or until the process is gone, however it went.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// `None` if somebody has it.
    pub(crate) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // Whoever had it may have deleted the file meanwhile: then this lock is worth nothing.
            let ours = file.metadata()?;
            match std::fs::metadata(path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                    let path = path.to_owned();
                    return Ok(Some(Self { file, path }));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes who holds it.
    pub(crate) fn sign(&mut self, process: &Process) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(&serde_json::to_vec(process)?)
    }

    /// Lets go of it, and deletes the file.
    pub(crate) fn remove(self) -> io::Result<()> {
        home::remove(&self.path)
    }
}

/// Who has signed it last, and may be gone.
pub(crate) fn holder(path: &Path) -> Option<Process> {
    let text = home::read(path).ok().flatten()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut lock = Lock::try_take(&path).unwrap().unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());
        let me = Process::me().unwrap();
        lock.sign(&me).unwrap();
        assert_eq!(holder(&path), Some(me));
        lock.remove().unwrap();
        assert!(!path.exists());
        assert_eq!(holder(&path), None);
        drop(Lock::try_take(&path).unwrap().unwrap());
        assert!(Lock::try_take(&path).unwrap().is_some());
    }
}
