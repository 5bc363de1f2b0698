//! A child process: its signals, its end and its exit code.

use std::ffi::OsStr;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;

pub(super) fn ended(status: ExitStatus) -> Result<(), Failure> {
    match code(status) {
        0 => Ok(()),
        code => Err(Failure::Ended(code)),
    }
}

/// The exit code, or 128 plus the signal, as in a shell.
fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

pub(super) fn not_run(program: &OsStr, source: std::io::Error) -> Failure {
    Failure::NotRun {
        command: program.to_string_lossy().into_owned(),
        source,
    }
}

/// Waits for the command's end, and passes signals on to it until then.
pub(super) async fn wait(child: &mut Child, signals: &mut Signals) -> Result<ExitStatus, Failure> {
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map_err(|error| Failure::Other(error.into())),
            signal = signals.next() => pass_on(child, signal),
        }
    }
}

fn pass_on(child: &Child, signal: Signal) {
    let pid = child
        .id()
        .and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "the command has ended");
    }
}

/// The signals that are passed on. Ctrl-C and Ctrl-\ at a terminal reach the command directly, because it is in the same
/// process group.
pub(super) struct Signals {
    all: Vec<(tokio::signal::unix::Signal, Signal)>,
    typed: Vec<(tokio::signal::unix::Signal, Signal)>,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let of = |kind, passed| {
            let received = signal(kind).map_err(|error| Failure::Other(error.into()))?;
            Ok::<_, Failure>((received, passed))
        };
        Ok(Self {
            all: vec![
                of(SignalKind::terminate(), Signal::TERM)?,
                of(SignalKind::hangup(), Signal::HUP)?,
                of(SignalKind::user_defined1(), Signal::USR1)?,
                of(SignalKind::user_defined2(), Signal::USR2)?,
            ],
            typed: vec![
                of(SignalKind::interrupt(), Signal::INT)?,
                of(SignalKind::quit(), Signal::QUIT)?,
            ],
        })
    }

    /// The next signal to pass on.
    async fn next(&mut self) -> Signal {
        loop {
            let (signal, typed) = self.any().await;
            if !(typed && in_foreground()) {
                return signal;
            }
        }
    }

    /// The next signal, and whether it may have been typed at a terminal.
    pub(super) async fn any(&mut self) -> (Signal, bool) {
        std::future::poll_fn(|cx| {
            for (signals, typed) in [(&mut self.all, false), (&mut self.typed, true)] {
                for (received, passed) in signals {
                    if received.poll_recv(cx).is_ready() {
                        return std::task::Poll::Ready((*passed, typed));
                    }
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Whether our process group gets signals of the terminal.
fn in_foreground() -> bool {
    let terminal = rustix::termios::tcgetpgrp(std::io::stdin());
    terminal.is_ok_and(|group| group == rustix::process::getpgrp())
}
