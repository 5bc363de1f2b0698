//! Operations that depend on the platform: sessions, descriptors, processes.

use std::io;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// Effective user ID of this process.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Leaves the terminal's session, and with it the terminal's signals.
pub(crate) fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Sets the umask so that only this user can read and write files of this process.
pub(crate) fn own_files_are_readable() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Marks all descriptors but the three standard ones as not inherited by child processes.
pub(crate) fn keep_descriptors() {
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
}

/// Redirects standard output and standard error to `/dev/null`.
pub(crate) fn silence() -> io::Result<()> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// A process, distinguished from later ones with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Start time, in the platform's format. It differs between processes with the same number.
    started: String,
}

impl Process {
    /// This process.
    pub(crate) fn me() -> io::Result<Self> {
        Self::of(std::process::id())
            .ok_or_else(|| io::Error::other("cannot tell when this process was started"))
    }

    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let started = started(pid)?;
        Some(Self { pid, started })
    }

    /// Sends SIGTERM or SIGKILL. Returns false if the process has ended; no other process is signalled.
    pub(crate) fn end(&self, by_force: bool) -> io::Result<bool> {
        let signal = if by_force { Signal::KILL } else { Signal::TERM };
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(false);
        };
        signal_if(pid, signal, || {
            started(self.pid).as_ref() == Some(&self.started)
        })
    }

    /// Whether the process still runs.
    pub(crate) fn lives(&self) -> bool {
        started(self.pid).as_ref() == Some(&self.started)
    }
}

/// The descriptor of the process reserves its number, so that it cannot be reused between check and signal.
#[cfg(target_os = "linux")]
fn signal_if(pid: Pid, signal: Signal, is_it: impl Fn() -> bool) -> io::Result<bool> {
    use rustix::io::Errno;
    use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !is_it() {
        return Ok(false);
    }
    match pidfd_send_signal(process, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn signal_if(pid: Pid, signal: Signal, is_it: impl Fn() -> bool) -> io::Result<bool> {
    use rustix::io::Errno;
    if !is_it() {
        return Ok(false);
    }
    match rustix::process::kill_process(pid, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The boot, and the clock ticks since it (proc(5), field 22 of `stat`). A zombie does not count as started.
#[cfg(target_os = "linux")]
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses, and may itself contain parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    let ticks = fields.nth(18)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{} {ticks}", boot.trim()))
}

#[cfg(not(target_os = "linux"))]
fn started(pid: u32) -> Option<String> {
    let asked = std::process::Command::new("/bin/ps")
        .args(["-o", "lstart=", "-p", &pid.to_string()])
        .env("LC_ALL", "C")
        .output()
        .ok()?;
    let said = String::from_utf8(asked.stdout).ok()?;
    Some(said.trim().to_owned()).filter(|said| !said.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_is_signalled() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.lives());
        let later = Process {
            started: "another time".into(),
            ..process.clone()
        };
        assert!(!later.lives());
        assert!(!later.end(true).unwrap());
        assert!(child.try_wait().unwrap().is_none());
        assert!(process.end(false).unwrap());
        assert!(!child.wait().unwrap().success());
        assert!(!process.lives());
        assert!(!process.end(true).unwrap());
    }
}
