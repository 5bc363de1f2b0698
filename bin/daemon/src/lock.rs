//! The lock that permits one daemon per directory. The locked file names its holder, and stays when the lock is released.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::state_dir;
use crate::sys::Process;

/// Held until it is dropped or the process has ended in any way.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// `None` if another process has it.
    pub(crate) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        // The mode must not depend on the umask: other commands have to open the file.
        file.set_permissions(Permissions::from_mode(0o600))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Writes the holder.
    pub(crate) fn sign(&mut self, process: &Process) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.rewind()?;
        self.0.write_all(&serde_json::to_vec(process)?)
    }

    /// Releases the lock, and removes the holder from the file.
    pub(crate) fn release(self) -> io::Result<()> {
        self.0.set_len(0)
    }
}

/// The process that signed it last, and may have ended.
pub(crate) fn holder(path: &Path) -> Option<Process> {
    let text = state_dir::read(path).ok().flatten()?;
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
        lock.release().unwrap();
        assert_eq!(holder(&path), None);
        drop(Lock::try_take(&path).unwrap().unwrap());
        assert!(Lock::try_take(&path).unwrap().is_some());
    }
}
