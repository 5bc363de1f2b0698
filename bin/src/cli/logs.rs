//! `kubevpn logs`.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use crate::daemon::api::Fault;
use crate::daemon::{Home, identity, log};
use crate::exit::Failure;

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Print the daemon's log, or a connection's
///
/// Logs outlive their connection.
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// The connection whose clients and cluster it is about [default: the daemon itself]
    #[arg(value_name = "CONNECTION-ID")]
    id: Option<String>,
    /// The same
    #[arg(long, value_name = "ID", hide = true, conflicts_with = "id")]
    connection_id: Option<String>,
    /// Go on with what is added
    #[arg(short, long)]
    follow: bool,
}

impl Logs {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let home = Home::locate()?;
        let id = self.id.or(self.connection_id);
        let path = home.log(id.as_deref());
        let files = log::files(&path);
        let known = id.as_deref().is_none_or(identity::is_id);
        if !known || id.is_some() && files.is_empty() {
            let id = id.unwrap_or_default();
            return Err(Failure::Told(Fault::new(
                51,
                format!(
                    "there is no log of a connection {id}: kubevpn status lists those there are"
                ),
            )));
        }
        let printed = async {
            for older in files.iter().filter(|file| **file != path) {
                copy(&mut File::open(older)?)?;
            }
            follow(&path, self.follow).await
        };
        let ended = tokio::select! {
            printed = printed => printed,
            _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
        };
        match ended {
            // Whoever read it has had enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            ended => Ok(ended.with_context(|| format!("cannot print {}", path.display()))?),
        }
    }
}

/// Prints a file, and what is added to it; the next one when it was rotated away.
async fn follow(path: &Path, follow: bool) -> io::Result<()> {
    let mut open = open(path)?;
    loop {
        if let Some(file) = &mut open {
            copy(file)?;
        }
        if !follow {
            return Ok(());
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
    let mut stdout = io::stdout().lock();
    io::copy(from, &mut stdout)?;
    stdout.flush()
}
