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

/// Longest wait of a thread.
const SLICE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// Rounds of finding and killing processes. A round kills all that exist, but a process may start others meanwhile.
const ROUNDS: usize = 1000;

/// The processes in one network namespace, found by `/proc`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Members {
    /// Target of `/proc/PID/ns/net` of its processes: `net:[4026532180]`.
    network: String,
    but: Vec<u32>,
}

impl Members {
    /// The members of the network of process `pid`.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let network = fs::read_link(format!("/proc/{pid}/ns/net"))?;
        let network = network.to_string_lossy().into_owned();
        let but = Vec::new();
        Ok(Self { network, but })
    }

    /// The same members without this one, which serves the others.
    #[must_use]
    pub fn without(mut self, pid: u32) -> Self {
        self.but.push(pid);
        self
    }

    /// The current processes.
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

    /// Whether the process is a member. One that has ended, or belongs to another user, is not.
    fn has(&self, pid: u32) -> bool {
        let network = fs::read_link(format!("/proc/{pid}/ns/net"));
        network.is_ok_and(|network| network == Path::new(&self.network))
    }

    /// Kills the members, and those that they start meanwhile. Blocks until they have ended.
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
                // The number may have been reused by a process outside of the network.
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

    /// Waits until there are no members.
    ///
    /// Cancellation: nothing is lost.
    pub async fn gone(&self) -> io::Result<()> {
        // A process that forks and ends during the scan can hide its child from it, but not twice in a row.
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
    // Waits in slices, so that the thread is free soon after the future is dropped.
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

/// `None` if the process has ended.
fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => Ok(None),
        process => Ok(Some(process?)),
    }
}
