//! The signals that end a command: Ctrl-C, and those of `kill`, a closed terminal and Ctrl-\.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT from now on. SIGHUP and SIGQUIT are left out where this process was started to
/// ignore them, as `nohup` does.
pub(crate) struct Termination {
    interrupt: Signal,
    others: Vec<Signal>,
}

/// Which of them came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Ctrl-C: exit code 130.
    Interrupted,
    /// One of the others: exit code 0.
    Terminated,
}

impl Termination {
    pub(crate) fn new() -> Result<Self, Failure> {
        Self::of(&[SignalKind::hangup(), SignalKind::quit()])
    }

    /// Without SIGHUP, for a process that its terminal's end is no business of.
    pub(crate) fn but_hangup() -> Result<Self, Failure> {
        Self::of(&[SignalKind::quit()])
    }

    fn of(more: &[SignalKind]) -> Result<Self, Failure> {
        let ignored = ignored();
        let mut others = vec![signal(SignalKind::terminate()).map_err(failed)?];
        for kind in more.iter().copied() {
            if ignored & (1 << (kind.as_raw_value() - 1)) == 0 {
                others.push(signal(kind).map_err(failed)?);
            }
        }
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            others,
        })
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Ended {
        std::future::poll_fn(|cx| {
            use std::task::Poll::{Pending, Ready};
            if self.interrupt.poll_recv(cx).is_ready() {
                return Ready(Ended::Interrupted);
            }
            let mut others = self.others.iter_mut();
            match others.any(|signal| signal.poll_recv(cx).is_ready()) {
                true => Ready(Ended::Terminated),
                false => Pending,
            }
        })
        .await
    }
}

impl Ended {
    /// How a command ends that came to its end by one of them.
    pub(crate) fn result(self) -> Result<(), Failure> {
        match self {
            Self::Interrupted => Err(Failure::Interrupted),
            Self::Terminated => Ok(()),
        }
    }
}

fn failed(error: std::io::Error) -> Failure {
    Failure::Other(anyhow::Error::new(error).context("cannot wait for signals"))
}

/// The signals that this process was started to ignore, bit N-1 for signal N (proc(5), `SigIgn`). Other systems have no
/// such file: nothing counts as ignored there.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
