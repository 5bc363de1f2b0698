//! Log files: the daemon's and one for each connection, rotated by size.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use serde::{Deserialize, Serialize};
use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

/// Size at which a file is rotated.
const BYTES: usize = 4 << 20;
/// Number of rotated files that are kept.
const OLDER: usize = 3;

/// Level of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Start and end of connections, refusals and access records.
    #[default]
    Info,
    /// Each step of this program.
    Debug,
    /// Each frame, and the steps of libraries.
    Trace,
}

impl LogLevel {
    /// The level for this number of `-v`.
    pub fn of_verbosity(verbose: u8) -> Self {
        match verbose {
            0 => Self::Info,
            1 => Self::Debug,
            _ => Self::Trace,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Filter for this level; `RUST_LOG` overrides it.
    pub fn filter(self) -> EnvFilter {
        let directives = match self {
            Self::Info => "warn,kubevpn=info,access=info",
            Self::Debug => "info,kubevpn=debug,access=info",
            Self::Trace => "debug,kubevpn=trace,access=info",
        };
        match std::env::var("RUST_LOG") {
            Ok(own) if !own.is_empty() => EnvFilter::new(own),
            _ => EnvFilter::new(directives),
        }
    }
}

/// A log file whose level can be changed while it is written.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) dispatch: Dispatch,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Log {
    /// A log in this file, which only this user can read.
    pub(crate) fn to_file(path: &Path, level: LogLevel) -> Self {
        let (filter, handle) = reload::Layer::new(level.filter());
        let layer = fmt::layer()
            .with_writer(Mutex::new(writer(path, BYTES)))
            .with_ansi(false)
            .with_filter(filter);
        Self {
            dispatch: Dispatch::new(tracing_subscriber::registry().with(layer)),
            filter: handle,
        }
    }

    /// Sets the level.
    pub(crate) fn set_level(&self, level: LogLevel) {
        // This fails only after the subscriber was dropped, and the dispatch keeps it.
        let _ = self.filter.reload(level.filter());
    }
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

/// The existing files of one log, oldest first.
pub fn files(path: &Path) -> Vec<PathBuf> {
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
    fn level_changes_while_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let log = Log::to_file(&path, LogLevel::Info);
        let say = |what| {
            let event = || tracing::debug!(target: "kubevpn", "{what}");
            tracing::dispatcher::with_default(&log.dispatch, event);
        };
        say("unheard");
        log.set_level(LogLevel::Debug);
        say("heard");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.contains(" heard") && !text.contains("unheard"),
            "{text}"
        );
    }

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
