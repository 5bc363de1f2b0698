//! The state directory, which contains all files of this program.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{ApiError, Code, ErrorContext as _};
use crate::lock::Lock;
use crate::{identity, sys};

/// Environment variable with its path.
pub const VARIABLE: &str = "KUBEVPN_HOME";
/// Upper bound on a socket's path: 104 bytes on macOS and 108 on Linux, including a terminating zero.
const SOCKET_PATH: usize = 103;
/// Upper bound on a file.
const MOST_BYTES: u64 = 4 << 20;
/// Prefix of unfinished files.
const UNFINISHED: &str = ".kubevpn-unfinished-";

/// The state directory, which may not exist yet.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// `$KUBEVPN_HOME`, else `~/.kubevpn/proxy-out`.
    pub fn locate() -> Result<Self, ApiError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dir = match (set(VARIABLE), set("HOME")) {
            (Some(dir), _) => PathBuf::from(dir),
            (None, Some(home)) => Path::new(&home).join(".kubevpn/proxy-out"),
            (None, None) => {
                return Err(refused(format!(
                    "neither {VARIABLE} nor HOME is set: set {VARIABLE} to a directory for what kubevpn keeps"
                )));
            }
        };
        let dir = Self::of(dir)?;
        dir.check()?;
        Ok(dir)
    }

    /// A directory with this path, which has to be valid. Its contents are not checked.
    fn of(dir: PathBuf) -> Result<Self, ApiError> {
        if dir.is_relative() {
            return Err(refused(format!(
                "{VARIABLE} or HOME is the relative path {}, which is another directory in each working directory: write it \
                 from / on",
                dir.display()
            )));
        }
        let home = Self(dir);
        let length = home.socket().as_os_str().len();
        if length > SOCKET_PATH {
            return Err(refused(format!(
                "the path of the daemon's socket, {}, has {length} bytes, and a socket's path has room for \
                 {SOCKET_PATH}: set {VARIABLE} to a shorter one",
                home.socket().display()
            )));
        }
        Ok(home)
    }

    #[cfg(test)]
    pub(crate) fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Checks that no other user can write to it, and that it is not used for something else. It may not exist yet.
    fn check(&self) -> Result<(), ApiError> {
        for dir in [
            self.0.clone(),
            self.connections(),
            self.logs(),
            self.foreground(),
        ] {
            // The directory itself may be a symbolic link, e.g. to another disk. A link below it could lead to a file of
            // another user.
            let found = match dir == self.0 {
                true => fs::metadata(&dir),
                false => fs::symlink_metadata(&dir),
            };
            let found = match found {
                Ok(found) => found,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    let what = format!("cannot look at {}", dir.display());
                    return Err(ApiError::caused_by(Code::Other, what, &e));
                }
            };
            let own = sys::own_uid();
            let wrong = match found.is_dir() {
                false if found.is_symlink() => {
                    "is a symbolic link: put a directory there".to_owned()
                }
                false => "is no directory: move it away".to_owned(),
                true if found.uid() != own => format!(
                    "is owned by uid {}, not by you (uid {own}): chown it",
                    found.uid()
                ),
                true if found.mode() & 0o022 != 0 => {
                    "can be written by others: take that right away with chmod go-w".to_owned()
                }
                true => continue,
            };
            return Err(refused(format!(
                "{} {wrong}, or set {VARIABLE} to another directory",
                dir.display()
            )));
        }
        match self.foreign() {
            Some(name) => Err(refused(format!(
                "{} is not a directory of kubevpn's: it holds {name:?}. Set {VARIABLE} to a new directory",
                self.0.display()
            ))),
            None => Ok(()),
        }
    }

    /// A foreign file in the directory, if kubevpn has not used the directory before.
    fn foreign(&self) -> Option<OsString> {
        if self.connections().is_dir() {
            return None;
        }
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name());
        let ours = [
            "connections",
            "log",
            "daemon.lock",
            "daemon.sock",
            "foreground",
            "lost+found",
        ];
        names
            .filter(|name| ours.iter().all(|ours| name != ours))
            .min()
    }

    /// Makes the missing directories, accessible to this user only.
    pub(crate) fn prepare(&self) -> Result<(), ApiError> {
        for dir in [self.0.clone(), self.connections(), self.logs()] {
            make(&dir).context(format!(
                "cannot make the directory {} ({VARIABLE} names another)",
                dir.display()
            ))?;
        }
        // Another process may have made one of them.
        self.check()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("daemon.sock")
    }

    fn foreground(&self) -> PathBuf {
        self.0.join("foreground")
    }

    /// Socket of the console of this process, a proxy in the foreground. Makes its directory.
    pub fn foreground_socket(&self, pid: u32) -> Result<PathBuf, ApiError> {
        let dir = self.foreground();
        let path = dir.join(format!("{pid}.sock"));
        if path.as_os_str().len() > SOCKET_PATH {
            let path = path.display();
            return Err(refused(format!("{path} is too long for a socket's path")));
        }
        make(&dir).context(format!("cannot make the directory {}", dir.display()))?;
        self.check()?;
        Ok(path)
    }

    /// Sockets of all proxies in the foreground, including those that were killed.
    pub(crate) fn foreground_sockets(&self) -> io::Result<Vec<PathBuf>> {
        let is_socket = |path: &PathBuf| path.extension().is_some_and(|end| end == "sock");
        Ok(files(&self.foreground())?.filter(is_socket).collect())
    }

    /// Deletes the directory of such sockets if it is empty.
    pub fn leave_foreground(&self) {
        let _ = fs::remove_dir(self.foreground());
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("daemon.lock")
    }

    /// Takes the lock; `None` if another process has it.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, ApiError> {
        let path = self.lock();
        Lock::try_take(&path).context(format!("cannot take the lock {}", path.display()))
    }

    pub(crate) fn current(&self) -> PathBuf {
        self.connections().join("current")
    }

    /// ID of the current connection, as last stored.
    pub(crate) fn read_current(&self) -> Result<String, ApiError> {
        Ok(read(&self.current())?.unwrap_or_default())
    }

    pub(crate) fn connections(&self) -> PathBuf {
        self.0.join("connections")
    }

    pub(crate) fn state(&self, id: &str) -> PathBuf {
        self.connections().join(format!("{id}.json"))
    }

    pub(crate) fn kubeconfig(&self, id: &str) -> PathBuf {
        self.connections().join(format!("{id}.kubeconfig"))
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The daemon's log, or a connection's.
    pub fn log(&self, id: Option<&str>) -> PathBuf {
        self.logs().join(format!("{}.log", id.unwrap_or("daemon")))
    }

    /// Whether there are connections to restore.
    pub(crate) fn has_connections(&self) -> bool {
        self.saved().is_ok_and(|ids| !ids.is_empty())
    }

    /// The IDs with a state file.
    pub(crate) fn saved(&self) -> io::Result<Vec<String>> {
        let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
        let mut ids: Vec<_> = files(&self.connections())?
            .filter(|file| FileKind::of(file) == Some(FileKind::State))
            .filter_map(stem)
            .collect();
        ids.sort();
        Ok(ids)
    }

    /// Deletes what a killed daemon has left: unfinished files, and kubeconfigs without a connection. The caller holds the
    /// lock.
    pub(crate) fn tidy(&self) -> io::Result<()> {
        for file in files(&self.connections())? {
            let orphan = FileKind::of(&file) == Some(FileKind::Kubeconfig)
                && !file.with_extension("json").exists();
            if orphan || FileKind::of(&file) == Some(FileKind::Unfinished) {
                remove(&file)?;
            }
        }
        Ok(())
    }

    /// Deletes all files of this program except the logs and the lock. The caller holds the lock.
    pub(crate) fn clear(&self) -> io::Result<()> {
        for file in files(&self.connections())? {
            if FileKind::of(&file).is_some() {
                remove(&file)?;
            }
        }
        self.remove_socket()
    }

    /// Deletes the daemon's socket, but no other kind of file.
    pub(crate) fn remove_socket(&self) -> io::Result<()> {
        let path = self.socket();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => remove(&path),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Kinds of files in `connections`, recognised by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileKind {
    State,
    Kubeconfig,
    Current,
    Unfinished,
}

impl FileKind {
    /// `None` for a foreign file, which must not be deleted.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        if name.starts_with(UNFINISHED) {
            return Some(Self::Unfinished);
        }
        if name == "current" {
            return Some(Self::Current);
        }
        match name.split_once('.') {
            Some((id, "json")) if identity::is_id(id) => Some(Self::State),
            Some((id, "kubeconfig")) if identity::is_id(id) => Some(Self::Kubeconfig),
            _ => None,
        }
    }
}

/// Makes a directory and its parents with mode 0700, whatever the umask is. Existing ones are not changed.
fn make(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.exists()) {
        make(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => fs::set_permissions(dir, Permissions::from_mode(0o700)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

fn refused(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidValue, message)
}

fn files(dir: &Path) -> io::Result<impl Iterator<Item = PathBuf> + use<>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => Some(entries),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| !kind.is_dir());
    Ok(entries.filter(is_file).map(|entry| entry.path()))
}

/// Deletes a file, if it exists.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Replaces the contents of a file atomically, with mode 0600. When it returns, they are on the disk.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), ApiError> {
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    let written = || -> io::Result<()> {
        // The temporary file has mode 0600, and is deleted after an error.
        let mut file: NamedTempFile = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync(dir)
    };
    written().context(format!("cannot write {}", path.display()))
}

/// Flushes renames and deletions in a directory to the disk.
pub(crate) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A file's text; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, ApiError> {
    let read = || -> io::Result<Option<String>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut text = String::new();
        file.take(MOST_BYTES).read_to_string(&mut text)?;
        Ok(Some(text))
    };
    read().context(format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn for_this_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let home = StateDir::at(&dir.path().join("a/b"));
        home.prepare().unwrap();
        write(&home.kubeconfig("0123"), b"secret").unwrap();
        for dir in [home.path(), &home.connections(), &home.logs()] {
            assert_eq!(mode(dir), 0o700, "{}", dir.display());
        }
        assert_eq!(mode(&home.kubeconfig("0123")), 0o600);
        home.check().unwrap();
        fs::set_permissions(home.connections(), Permissions::from_mode(0o777)).unwrap();
        // This applies to a directory that another user has made, too.
        for said in [home.check(), home.prepare()] {
            let said = said.unwrap_err();
            assert_eq!(said.code, Code::InvalidValue);
            assert!(said.to_string().contains("chmod go-w"), "{said}");
        }
    }

    #[test]
    fn files_of_a_killed_daemon_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let home = StateDir::at(dir.path());
        home.prepare().unwrap();
        let foreign = [
            "b.kubeconfig",
            "b.json",
            ".unfinished-x",
            "0123456789ab.json.bak",
        ];
        for file in [
            "0123456789ab.json",
            "0123456789ab.kubeconfig",
            "ba9876543210.kubeconfig",
            ".kubevpn-unfinished-x",
            "current",
        ]
        .iter()
        .chain(&foreign)
        {
            fs::write(home.connections().join(file), "").unwrap();
        }
        let beside = [
            home.log(None),
            home.path().join("prod.kubeconfig"),
            home.path().join("current"),
            home.socket(),
        ];
        for file in &beside {
            fs::write(file, "").unwrap();
        }
        home.tidy().unwrap();
        assert_eq!(home.saved().unwrap(), ["0123456789ab"]);
        assert!(home.kubeconfig("0123456789ab").exists());
        assert!(!home.kubeconfig("ba9876543210").exists());
        assert_eq!(
            files(&home.connections()).unwrap().count(),
            3 + foreign.len()
        );
        home.clear().unwrap();
        assert!(!home.has_connections());
        assert_eq!(files(&home.connections()).unwrap().count(), foreign.len());
        assert!(beside.iter().all(|file| file.exists()));
    }

    #[test]
    fn path_of_the_socket_is_bounded() {
        let of = |length: usize| {
            let beside = "/".len() + "/daemon.sock".len();
            StateDir::of(Path::new("/").join("x".repeat(length - beside)))
        };
        assert_eq!(
            of(SOCKET_PATH).unwrap().socket().as_os_str().len(),
            SOCKET_PATH
        );
        let said = of(SOCKET_PATH + 1).unwrap_err();
        assert_eq!(said.code, Code::InvalidValue);
        assert!(said.message.contains("104 bytes"), "{said}");
        let said = StateDir::of("here".into()).unwrap_err();
        assert!(said.message.contains("relative"), "{said}");
    }

    #[test]
    fn directory_for_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = StateDir::at(dir.path());
        fs::write(dir.path().join("prod.kubeconfig"), "").unwrap();
        let said = home.check().unwrap_err();
        assert_eq!(said.code, Code::InvalidValue);
        assert!(said.to_string().contains("prod.kubeconfig"), "{said}");
        // A directory in use stays valid when a foreign file is added.
        fs::create_dir(home.connections()).unwrap();
        home.check().unwrap();
        fs::remove_dir(home.connections()).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), home.connections()).unwrap();
        assert!(
            home.check()
                .unwrap_err()
                .to_string()
                .contains("is a symbolic link")
        );
    }

    #[test]
    fn a_write_is_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        let nowhere = dir.path().join("none/state");
        let said = write(&nowhere, b"x").unwrap_err().to_string();
        assert!(said.contains("none/state"), "{said}");
        assert_eq!(
            files(dir.path()).unwrap().count(),
            1,
            "nothing unfinished stays"
        );
    }
}
