//! The signals that end a command: Ctrl-C, and those of `kill`, a closed terminal and Ctrl-\.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT. SIGHUP and SIGQUIT are left out if this process was started with them ignored, as
/// by `nohup`.
pub struct Termination {
    interrupt: Signal,
    others: Vec<Signal>,
}

/// The signal that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndSignal {
    /// Ctrl-C: exit code 130.
    Interrupted,
    /// Another signal: exit code 0.
    Terminated,
}

impl Termination {
    /// Handles all of them from now on.
    pub fn new() -> io::Result<Self> {
        Self::of(&[SignalKind::hangup(), SignalKind::quit()])
    }

    /// Handles all but SIGHUP, for a process that outlives its terminal.
    pub fn but_hangup() -> io::Result<Self> {
        Self::of(&[SignalKind::quit()])
    }

    fn of(more: &[SignalKind]) -> io::Result<Self> {
        let ignored = ignored();
        let mut others = vec![signal(SignalKind::terminate())?];
        for kind in more.iter().copied() {
            if ignored & (1 << (kind.as_raw_value() - 1)) == 0 {
                others.push(signal(kind)?);
            }
        }
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            others,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub async fn next(&mut self) -> EndSignal {
        std::future::poll_fn(|cx| {
            use std::task::Poll::{Pending, Ready};
            if self.interrupt.poll_recv(cx).is_ready() {
                return Ready(EndSignal::Interrupted);
            }
            let mut others = self.others.iter_mut();
            match others.any(|signal| signal.poll_recv(cx).is_ready()) {
                true => Ready(EndSignal::Terminated),
                false => Pending,
            }
        })
        .await
    }
}

/// Signals that were ignored at the start of this process, bit N-1 for signal N (proc(5), `SigIgn`); 0 on systems without
/// that file.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
