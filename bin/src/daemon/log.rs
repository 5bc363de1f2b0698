//! Log files: the daemon's and one for each connection, rotated by size.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::telemetry;

/// A file begins anew when it has grown beyond this.
const BYTES: usize = 4 << 20;
/// How many older ones are kept.
pub(crate) const OLDER: usize = 3;

/// Writes what happens to this file, readable by this user alone.
pub(crate) fn to_file(path: &Path, verbose: u8) -> Dispatch {
    let writer = writer(path, BYTES);
    let layer = fmt::layer()
        .with_writer(Mutex::new(writer))
        .with_ansi(false)
        .with_filter(telemetry::filter(verbose));
    Dispatch::new(tracing_subscriber::registry().with(layer))
}

fn writer(path: &Path, bytes: usize) -> FileRotate<AppendCount> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).create(true).append(true).mode(0o600);
    FileRotate::new(
        path,
        AppendCount::new(OLDER),
        ContentLimit::BytesSurpassed(bytes),
        Compression::None,
        Some(options),
    )
}

/// The files of one log, oldest first; those that are there.
pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
    let numbered = (1..=OLDER).rev().map(|n| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    });
    let all = numbered.chain([path.to_owned()]);
    all.filter(|path| path.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn it_rotates_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut log = writer(&path, 100);
        for n in 0..100 {
            writeln!(log, "line {n} with some more words").unwrap();
        }
        let files = files(&path);
        assert_eq!(files.len(), OLDER + 1);
        assert_eq!(files.last(), Some(&path));
        let text: String = files
            .iter()
            .map(|file| std::fs::read_to_string(file).unwrap())
            .collect();
        assert!(text.ends_with("line 99 with some more words\n"), "{text}");
        for file in files {
            let found = std::fs::metadata(file).unwrap();
            assert!(found.len() < 200);
            assert_eq!(found.mode() & 0o777, 0o600);
        }
    }
}
