//! The processes the lab started: written down with their start times, and ended only by that record.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

/// How long a process may take to end before it is killed. An API server that is asked to (TERM) holds on
/// to its open connections for up to a minute.
const GRACE: Duration = Duration::from_secs(6);
/// How long a killed process may take to be gone.
const KILLED: Duration = Duration::from_secs(20);

/// What a daemon can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Signal {
    /// End in order.
    #[value(name = "TERM")]
    Term,
    /// End at once.
    #[value(name = "KILL")]
    Kill,
    /// Stop running and keep every connection: what a black hole looks like from outside.
    #[value(name = "STOP")]
    Stop,
    /// Run on.
    #[value(name = "CONT")]
    Cont,
}

impl From<Signal> for rustix::process::Signal {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Term => Self::TERM,
            Signal::Kill => Self::KILL,
            Signal::Stop => Self::STOP,
            Signal::Cont => Self::CONT,
        }
    }
}

/// A pid, and the start time that tells it from a later process of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LabProcess {
    pid: u32,
    started: u64,
}

impl LabProcess {
    /// The process that has this pid now. None if there is none, or only a zombie.
    pub(crate) fn find(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            started: start_time(&stat)?,
        })
    }

    /// Its only child, once it has one.
    pub(crate) fn child(pid: u32) -> Option<Self> {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        Self::find(children.trim().parse().ok()?)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Of all its threads, those that have ended too.
    pub(crate) fn processor_time(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        processor_time(&stat)
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::find(self.pid).as_ref() == Some(self)
    }

    /// A descriptor that means this very process, if it still lives: the start time is compared after the
    /// descriptor was opened, so the pid cannot pass to another process in between.
    fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(fd)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let fd = self.open().context("it is not running")?;
        Ok(pidfd_send_signal(&fd, signal.into())?)
    }
}

/// Field 22 of `/proc/PID/stat`, which is counted from behind the command's name: that may hold anything.
///
/// None for a zombie, once its last thread is gone (field 20): a killed program shows as one while other threads
/// still hold its sockets.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let threads: u32 = fields.get(17)?.parse().ok()?;
    match *fields.first()? {
        "X" => None,
        "Z" if threads <= 1 => None,
        _ => fields.get(19)?.parse().ok(),
    }
}

/// Fields 14 and 15, in ticks: 100 a second on every Linux.
fn processor_time(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (ticks()? + ticks()?)))
}

/// Writes down the processes of one daemon: first the daemon, then what only waits for it.
pub(crate) fn write(file: &Path, processes: &[LabProcess]) -> io::Result<()> {
    let lines: String = processes
        .iter()
        .map(|p| format!("{} {}\n", p.pid, p.started))
        .collect();
    fs::write(file, lines)
}

/// What was written down; nothing if there is no such file.
pub(crate) fn read(file: &Path) -> Result<Vec<LabProcess>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    text.lines()
        .map(|line| {
            let (pid, started) = line.split_once(' ').context("no start time")?;
            Ok(LabProcess {
                pid: pid.parse()?,
                started: started.parse()?,
            })
        })
        .collect::<Result<_>>()
        .with_context(|| format!("{} is not a record of processes", file.display()))
}

/// Ends what was written down in `file`, waits until all of it is gone, and forgets it.
pub(crate) async fn end(file: &Path, signal: Signal) -> Result<()> {
    let written = read(file)?;
    // Whoever cannot be told is gone, which is as good.
    if let Some((daemon, waiting)) = written.split_first() {
        let _ = daemon.signal(signal);
        for process in waiting {
            let _ = process.signal(Signal::Cont); // nsenter stops itself with the daemon it waits for
        }
    }
    if gone(GRACE, &written).await.is_err() {
        for process in &written {
            let _ = process.signal(Signal::Kill);
        }
        gone(KILLED, &written)
            .await
            .with_context(|| format!("the process of {} was killed", file.display()))?;
    }
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

async fn gone(limit: Duration, written: &[LabProcess]) -> Result<()> {
    until(limit, "its end", async || {
        Ok((!written.iter().any(LabProcess::is_alive)).then_some(()))
    })
    .await
}

/// Asks until the answer is `Some`. What happens in another program can only be asked for.
pub(crate) async fn until<T>(
    limit: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("gave up after {limit:?} waiting for {what}");
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(160));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::process::{Child, Command};

    use super::*;

    fn sleeper() -> (Child, LabProcess) {
        let child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let process = LabProcess::find(child.id().unwrap()).unwrap();
        (child, process)
    }

    #[test]
    fn start_time_survives_any_command_name() {
        let tail = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 1 18 4711 20";
        assert_eq!(start_time(&format!("12 (a) b) S {tail}")), Some(4711));
        assert_eq!(start_time(&format!("12 (sleep) Z {tail}")), None);
        let two_threads = tail.replace(" 1 18", " 2 18");
        assert_eq!(
            start_time(&format!("12 (sleep) Z {two_threads}")),
            Some(4711)
        );
        assert_eq!(start_time("12 (sleep) S 1"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn processor_time_is_of_program_and_kernel() {
        let stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14";
        assert_eq!(processor_time(stat), Some(Duration::from_millis(230)));
        assert_eq!(processor_time("12 (a) S 1"), None);
    }

    #[tokio::test]
    async fn what_was_written_down_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sleep.pid");
        let (mut child, process) = sleeper();
        let (mut waiter, second) = sleeper();
        write(&file, &[process, second]).unwrap();
        assert_eq!(read(&file).unwrap(), [process, second]);
        waiter.kill().await.unwrap(); // what waits for a daemon may be gone before it
        end(&file, Signal::Term).await.unwrap();
        assert!(!process.is_alive() && !file.exists());
        child.wait().await.unwrap();
        end(&file, Signal::Term).await.unwrap(); // nothing written down, nothing to do
    }

    #[tokio::test]
    async fn another_process_with_the_same_pid_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sleep.pid");
        let (_child, process) = sleeper();
        write(
            &file,
            &[LabProcess {
                started: process.started - 1,
                ..process
            }],
        )
        .unwrap();
        assert!(!read(&file).unwrap()[0].is_alive());
        end(&file, Signal::Kill).await.unwrap();
        assert!(process.is_alive() && !file.exists());
    }

    #[tokio::test]
    async fn a_zombie_is_not_alive() {
        let (mut child, process) = sleeper();
        process.signal(Signal::Kill).unwrap();
        gone(KILLED, &[process]).await.unwrap(); // though nobody has waited for it yet
        assert!(process.signal(Signal::Cont).is_err());
        child.wait().await.unwrap();
    }
}
