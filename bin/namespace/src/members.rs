//! The processes in a network.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

/// How long a thread waits at a time.
const SLICE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// Times that processes are looked for and killed. Each time takes all there are; one that starts others may be quicker.
const ROUNDS: usize = 1000;

/// The processes in one network namespace, found by `/proc`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Members {
    /// The target of the link `/proc/PID/ns/net` of each: `net:[4026532180]`.
    network: String,
    but: Vec<u32>,
}

impl Members {
    /// Those that are in the network of this process.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let network = fs::read_link(format!("/proc/{pid}/ns/net"))?;
        let network = network.to_string_lossy().into_owned();
        let but = Vec::new();
        Ok(Self { network, but })
    }

    /// The same without one that serves the others.
    #[must_use]
    pub fn without(mut self, pid: u32) -> Self {
        self.but.push(pid);
        self
    }

    /// Those there are now.
    pub fn now(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if self.has(pid) {
                found.push(pid);
            }
        }
        found.retain(|pid| !self.but.contains(pid));
        Ok(found)
    }

    /// Whether it is there. One that has ended, or is another user's, is not.
    fn has(&self, pid: u32) -> bool {
        let network = fs::read_link(format!("/proc/{pid}/ns/net"));
        network.is_ok_and(|network| network == Path::new(&self.network))
    }

    /// Kills them, and those that they start meanwhile. Blocks until they have ended.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let mut empty = 0;
        for _ in 0..ROUNDS {
            let found = self.now()?;
            empty = if found.is_empty() { empty + 1 } else { 0 };
            if empty == 2 {
                break;
            }
            let mut killed = Vec::new();
            for pid in found {
                // The number may be another process's by now, which is not there.
                if let Some(process) = open(pid)?
                    && self.has(pid)
                    && pidfd_send_signal(&process, Signal::KILL).is_ok()
                {
                    killed.push(process);
                }
            }
            for process in killed {
                poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&SLICE))?;
            }
        }
        Ok(())
    }

    /// Waits until there are none.
    ///
    /// Cancellation: nothing is lost.
    pub async fn gone(&self) -> io::Result<()> {
        // A process that is starting another as it ends may be missed with both; not twice in a row.
        let mut empty = 0;
        while empty < 2 {
            let Some(pid) = self.now()?.first().copied() else {
                empty += 1;
                continue;
            };
            empty = 0;
            ended(pid).await?;
        }
        Ok(())
    }
}

/// Waits for the end of a process that need not be a child.
async fn ended(pid: u32) -> io::Result<()> {
    let Some(process) = open(pid)? else {
        return Ok(());
    };
    let process = Arc::new(process);
    // In slices, so that the thread is free soon after nobody waits any more.
    loop {
        let process = process.clone();
        let polling = spawn_blocking(move || {
            let mut asked = [PollFd::new(&*process, PollFlags::IN)];
            poll(&mut asked, Some(&SLICE))
        });
        match polling.await.map_err(io::Error::other)? {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// `None` where it has ended.
fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => Ok(None),
        process => Ok(Some(process?)),
    }
}
