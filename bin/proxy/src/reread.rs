//! Files that are read again when they change. Kubernetes replaces those of a mounted Secret while a program runs, and
//! cert-manager a certificate before it expires.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// Interval between reads. Contents are compared, not times: the files of a mounted Secret are symbolic links that are
/// replaced.
const INTERVAL: Duration = Duration::from_secs(2);

/// Upper bound on one file: 128 users, or a chain of certificates.
const MAX: u64 = 64 * 1024;

/// Applies the new contents of all files, or returns why they cannot be used; the old ones stay in use then.
type Update = Box<dyn Fn(&[Vec<u8>]) -> Result<(), String> + Send>;

/// A watcher of files: their contents are applied again when they change.
pub struct Reread {
    files: Vec<PathBuf>,
    contents: Vec<Vec<u8>>,
    update: Update,
}

impl Reread {
    /// `contents` are those in use.
    pub(crate) fn new(files: Vec<PathBuf>, contents: Vec<Vec<u8>>, update: Update) -> Self {
        Self {
            files,
            contents,
            update,
        }
    }

    /// Reads the files at each interval. A pipe is skipped, because it can be read only once.
    ///
    /// Cancellation: dropping the future ends it.
    pub(crate) async fn run(mut self) {
        if !self.files.iter().all(|file| file.is_file()) {
            return;
        }
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The reported error: each error is logged once.
        let mut failed = None;
        loop {
            ticks.tick().await;
            let files = self.files.clone();
            // A file system may block.
            let reading = tokio::task::spawn_blocking(move || read_all(&files));
            let Ok(read) = reading.await else { return };
            let updated = match read {
                Ok(contents) if contents == self.contents => {
                    failed = None;
                    continue;
                }
                Ok(contents) => {
                    let updated = (self.update)(&contents);
                    self.contents = contents;
                    updated
                }
                Err(error) => Err(error),
            };
            match &updated {
                Ok(()) => tracing::info!(file = %self.files[0].display(), "read again"),
                Err(reason) if failed.as_ref() == Some(reason) => {}
                Err(reason) => tracing::warn!(
                    file = %self.files[0].display(),
                    reason,
                    "changed, but cannot be used: keeping the previous contents"
                ),
            }
            failed = updated.err();
        }
    }
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let read = |file: &PathBuf| read(file).map_err(|error| format!("{}: {error}", file.display()));
    files.iter().map(read).collect()
}

/// Reads a file of at most 64 KiB.
pub(crate) fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX + 1).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()).is_ok_and(|len| len <= MAX) {
        true => Ok(bytes),
        false => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the file has more than {} KiB", MAX / 1024),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::mpsc;

    use super::*;

    /// Replaces the contents as the kubelet does: `file` is a link through `..data`, which is replaced.
    fn publish(dir: &Path, version: &str, text: &str) {
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("file"), text).unwrap();
        symlink(version, dir.join("..new")).unwrap();
        fs::rename(dir.join("..new"), dir.join("..data")).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn exchanged_file_is_read_and_one_of_no_use_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        publish(dir.path(), "..1", "one");
        symlink("..data/file", dir.path().join("file")).unwrap();
        let file = dir.path().join("file");
        let (told, updates) = mpsc::channel();
        let update = move |contents: &[Vec<u8>]| {
            let text = String::from_utf8(contents[0].clone()).unwrap();
            told.send(text.clone()).unwrap();
            match text.as_str() {
                "bad" => Err("it is bad".to_owned()),
                _ => Ok(()),
            }
        };
        let reread = Reread::new(vec![file], vec![b"one".to_vec()], Box::new(update));
        let following = tokio::spawn(reread.run());
        let rest = || tokio::time::sleep(3 * INTERVAL);
        rest().await;
        assert!(updates.try_recv().is_err(), "nothing has changed");
        for (version, text) in [("..2", "two"), ("..3", "bad"), ("..4", "two")] {
            publish(dir.path(), version, text);
            rest().await;
            assert_eq!(updates.try_iter().collect::<Vec<_>>(), [text]);
        }
        fs::remove_file(dir.path().join("..data")).unwrap();
        rest().await;
        assert!(updates.try_recv().is_err());
        publish(dir.path(), "..5", "five");
        rest().await;
        assert_eq!(updates.try_iter().collect::<Vec<_>>(), ["five"]);
        following.abort();
    }

    #[test]
    fn file_without_an_end_is_not_read_to_it() {
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
