//! `kubevpn logs`.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use kubevpn_daemon::{ApiError, DaemonClient, StateDir, identity, log};

use super::which;
use crate::exit::Failure;
use crate::out;

/// Interval of reads of a followed log.
const LOOK: Duration = Duration::from_millis(200);

/// Print the daemon's log, or a connection's
///
/// A connection's log has a line for each client. It is kept when the connection is closed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # the daemon's
  kubevpn logs

  # the last lines of a connection's log, and each new one
  kubevpn logs --tail 20 -f 03d

  # the last ten minutes of the connection to the namespace shop
  kubevpn logs --since 10m shop")]
pub(crate) struct Logs {
    /// Connection whose log is printed: its ID or the beginning of it, or, for an open connection, its context or namespace
    /// [default: print the daemon's log]
    #[arg(value_name = "CONNECTION")]
    id: Option<String>,
    /// The same
    #[arg(long, value_name = "ID", hide = true, conflicts_with = "id")]
    connection_id: Option<String>,
    /// Follow the log: print new lines as they are written
    #[arg(short, long)]
    follow: bool,
    /// Print only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// Print only lines that are newer than DURATION, e.g. 10m
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    since: Option<Duration>,
}

impl Logs {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let home = StateDir::locate()?;
        let given = self.id.or(self.connection_id);
        let id = match given {
            None => None,
            Some(given) => match whole(&home, &given)? {
                Some(id) => Some(id),
                // A name selects an open connection.
                None => {
                    Some(which::connection(&DaemonClient::new(home.clone()), Some(&given)).await?)
                }
            },
        };
        let path = home.log(id.as_deref());
        let files = log::files(&path);
        if let Some(id) = id.filter(|id| !identity::is_id(id) || files.is_empty()) {
            return Err(ApiError::no_such_connection(&id).into());
        }
        out::until_interrupted(async move {
            let printed = async {
                let mut open = open(&path)?;
                let older = files.iter().filter(|file| **file != path);
                match (self.tail, self.since) {
                    (None, None) => {
                        for older in older {
                            copy(&mut File::open(older)?)?;
                        }
                        if let Some(file) = &mut open {
                            copy(file)?;
                        }
                    }
                    (tail, since) => {
                        // Rotation bounds the size of the files.
                        let mut text = Vec::new();
                        for older in older {
                            File::open(older)?.read_to_end(&mut text)?;
                        }
                        if let Some(file) = &mut open {
                            file.read_to_end(&mut text)?;
                        }
                        let from = since.and_then(|since| Timestamp::now().checked_sub(since).ok());
                        let text = from.map_or(&*text, |from| newer(&text, from));
                        copy(&mut tail.map_or(text, |lines| last(text, lines)))?;
                    }
                }
                match self.follow {
                    true => follow(&path, open).await,
                    false => Ok(()),
                }
            };
            match printed.await {
                // The reader has closed the pipe.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                ended => Ok(ended.with_context(|| format!("cannot print {}", path.display()))?),
            }
        })
        .await
    }
}

/// Completes the beginning of an ID from the logs, which outlive their connections, so that no daemon is needed.
fn whole(home: &StateDir, given: &str) -> Result<Option<String>, Failure> {
    if identity::is_id(given) {
        return Ok(Some(given.to_owned()));
    }
    let daemon = home.log(None);
    let there = daemon.parent().map(std::fs::read_dir);
    let there = there.into_iter().flatten().flatten().flatten();
    let mut fits: Vec<String> = there
        .filter_map(|entry| {
            let name = entry.file_name();
            let id = name.to_str()?.strip_suffix(".log")?;
            (identity::is_id(id) && id.starts_with(given)).then(|| id.to_owned())
        })
        .collect();
    fits.sort();
    match &fits[..] {
        [id] if !given.is_empty() => Ok(Some(id.clone())),
        [] => Ok(None),
        several => Err(Failure::value(format!(
            "{given:?} may be several connections: {}; name one by its ID",
            several.join(", ")
        ))),
    }
}

/// The last lines of a text.
fn last(text: &[u8], lines: usize) -> &[u8] {
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = whole
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    match lines.checked_sub(1) {
        None => &[],
        Some(others) => match ends.map(|(at, _)| at).nth(others) {
            Some(at) => &text[at + 1..],
            None => text,
        },
    }
}

/// The lines since `from`. A line without a time belongs to the previous one.
fn newer(text: &[u8], from: Timestamp) -> &[u8] {
    let mut at = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let word = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        let time = std::str::from_utf8(word).ok();
        let time = time.and_then(|time| time.parse::<Timestamp>().ok());
        if time.is_some_and(|time| time >= from) {
            return &text[at..];
        }
        at += line.len();
    }
    &[]
}

/// Prints lines as they are added to a file, and continues with the next file after a rotation.
async fn follow(path: &Path, mut open: Option<File>) -> io::Result<()> {
    loop {
        if let Some(file) = &mut open {
            copy(file)?;
        }
        tokio::time::sleep(LOOK).await;
        let there = std::fs::metadata(path).ok().map(|found| found.ino());
        let ours = match &open {
            Some(file) => Some(file.metadata()?.ino()),
            None => None,
        };
        if there.is_some() && there != ours {
            if let Some(file) = &mut open {
                copy(file)?;
            }
            open = self::open(path)?;
        }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn copy(from: &mut impl Read) -> io::Result<()> {
    // `io::copy` would let the kernel move the bytes, which reports no error for /dev/full.
    let mut stdout = io::stdout().lock();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return stdout.flush(),
            n => stdout.write_all(&buffer[..n])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_lines() {
        let text = b"2026-01-02T03:04:05.1Z  INFO one\n2026-01-02T03:05:05Z  INFO two\n  more\n2026-01-02T03:06:05Z  INFO three\n";
        for (from, wanted) in [
            ("2026-01-02T03:00:00Z", 4),
            ("2026-01-02T03:05:05Z", 3),
            ("2026-01-02T03:05:06Z", 1),
            ("2026-01-02T04:00:00Z", 0),
        ] {
            let lines = newer(text, from.parse().unwrap());
            let lines = lines.split_inclusive(|byte| *byte == b'\n').count();
            assert_eq!(lines, wanted, "{from}");
        }
    }

    #[test]
    fn last_lines() {
        for (text, lines, wanted) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb", 1, "b"),
            ("a\n", 5, "a\n"),
            ("a\n\n", 1, "\n"),
            ("a\n", 0, ""),
            ("", 3, ""),
        ] {
            assert_eq!(
                last(text.as_bytes(), lines),
                wanted.as_bytes(),
                "{text:?} {lines}"
            );
        }
    }
}
