//! The processes in a network.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::task::spawn_blocking;

/// How long a thread waits at a time.
const SLICE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// The processes in one network namespace, found by `/proc`.
#[derive(Clone, Debug)]
pub struct Members {
    /// The target of the link `/proc/PID/ns/net` of each.
    network: OsString,
    but: Vec<u32>,
}

impl Members {
    /// Those that are in the network of this process.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let network = fs::read_link(format!("/proc/{pid}/ns/net"))?.into_os_string();
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
            // One that has ended meanwhile, or is another user's, is in none.
            let network = fs::read_link(format!("/proc/{pid}/ns/net"));
            if network.is_ok_and(|network| network.as_os_str() == self.network) {
                found.push(pid);
            }
        }
        found.retain(|pid| !self.but.contains(pid));
        Ok(found)
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
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        process => process?,
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
