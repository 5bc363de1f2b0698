//! A child process: signals, end and exit code.

use std::ffi::OsStr;
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getpgid, getpgrp, getpid, getppid, getsid, kill_process,
    waitid,
};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;

pub(super) fn ended(status: ExitStatus) -> Result<(), Failure> {
    match code(status) {
        0 => Ok(()),
        code => Err(Failure::Ended(code)),
    }
}

/// The exit code, or 128 plus the number of the signal, as in a shell.
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

/// Waits for the command's end. Until then, signals are passed on to the command, and this process stops whenever the command
/// stops.
pub(super) async fn wait(child: &mut Child, signals: &mut Signals) -> Result<ExitStatus, Failure> {
    if let Some(command) = pid(child) {
        match signals.stop.take().map_or_else(StopSignals::new, Ok) {
            Ok(signals) => drop(tokio::spawn(Stops { command, signals }.follow())),
            // The command runs already, and is not left alone for this.
            Err(error) => tracing::warn!(%error, "Ctrl-Z is not followed"),
        }
    }
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map_err(|error| Failure::Other(error.into())),
            signal = signals.next() => pass_on(child, signal),
        }
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id()?.try_into().ok()?)
}

/// Stops this process after its command has stopped, as by Ctrl-Z, and not earlier.
///
/// A shell takes its terminal back as soon as its own child, this process, has stopped. A command that has not stopped yet, or
/// that first restores the terminal, would then read and write there beside the shell: a line typed for the shell could be read
/// by the command, and the shell would wait for it.
struct Stops {
    command: Pid,
    signals: StopSignals,
}

#[derive(Debug)]
struct StopSignals {
    /// SIGTSTP: the command may be about to stop.
    asked: tokio::signal::unix::Signal,
    /// SIGCHLD: the command may have stopped.
    changed: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            asked: signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?,
            changed: signal(SignalKind::child())?,
        })
    }
}

/// Whether SIGTSTP is ignored, which a command inherits.
fn ignores_stops() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (Signal::TSTP.as_raw() - 1)) != 0)
}

impl Stops {
    /// Whether the command has stopped or continued since the last call; `None` for neither. Each change is reported once, so
    /// that a stop that was followed is not followed again when SIGCONT, which the shell sends to the whole group, reaches this
    /// process before the command.
    fn has_stopped(&self) -> rustix::io::Result<Option<bool>> {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::CONTINUED | WaitIdOptions::NOHANG;
        let changed = waitid(WaitId::Pid(self.command), options)?;
        Ok(changed.map(|status| status.stopped()))
    }

    /// Runs until the command has ended. SIGTSTP has lost its default action in this process, so that nothing else would stop it.
    async fn follow(mut self) {
        let (mut was_asked, mut is_stopped) = (false, false);
        let mut asked_now = false;
        loop {
            let has_stopped = self.has_stopped();
            match has_stopped {
                Ok(Some(stopped)) => is_stopped = stopped,
                // The command has ended, and this process ends with it. A SIGTSTP of before, which the command ignored, may be
                // reported after the end.
                Err(Errno::CHILD) => return,
                _ => {}
            }
            // A command with a process group of its own, such as a shell with job control, does not get the Ctrl-Z
            // that reaches this process.
            let is_elsewhere = getpgid(Some(self.command)).is_ok_and(|group| group != getpgrp());
            // A SIGTSTP that was not typed, as by `kill -TSTP`, may have reached this process alone.
            if asked_now
                && !is_elsewhere
                && !in_foreground_of_terminal()
                && let Err(error) = kill_process(self.command, Signal::TSTP)
            {
                tracing::debug!(%error, "the command has ended");
            }
            let follows = asked_now && is_elsewhere
                || was_asked && is_stopped
                // A stop without Ctrl-Z, such as `kill -STOP` on a command in the background, concerns the command alone.
                || has_stopped == Ok(Some(true)) && !is_elsewhere && in_foreground_of_terminal();
            if follows {
                (was_asked, is_stopped) = (false, false);
                if can_be_continued()
                    && let Err(error) = kill_process(getpid(), Signal::STOP)
                {
                    tracing::debug!(%error, "cannot stop");
                }
            }
            asked_now = tokio::select! {
                biased;
                _ = self.signals.asked.recv() => true,
                _ = self.signals.changed.recv() => false,
            };
            was_asked |= asked_now;
        }
    }
}

/// Whether a parent in this session, such as a shell with job control, could continue this process. Without one, as in
/// `ssh -t host kubevpn run`, a stop would last for ever.
fn can_be_continued() -> bool {
    let Ok(session) = getsid(None) else {
        return false;
    };
    session != getpid() && getppid().is_some_and(|parent| getsid(Some(parent)) == Ok(session))
}

/// Whether this process's group is in the foreground of its controlling terminal, even if standard input is redirected.
fn in_foreground_of_terminal() -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| {
        rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == getpgrp())
    })
}

fn pass_on(child: &Child, signal: Signal) {
    if let Some(pid) = pid(child)
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "the command has ended");
    }
}

/// Signals that are passed on. Ctrl-C and Ctrl-\ at a terminal reach the command directly, because it is in the same process
/// group.
pub(super) struct Signals {
    all: Vec<(tokio::signal::unix::Signal, Signal)>,
    typed: Vec<(tokio::signal::unix::Signal, Signal)>,
    /// `None` if the command is to inherit that SIGTSTP is ignored: it is handled once the command has started.
    stop: Option<StopSignals>,
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
            // SIGTSTP is handled before the command starts: until then it would stop this process alone.
            stop: (!ignores_stops())
                .then(StopSignals::new)
                .transpose()
                .map_err(|error| Failure::Other(error.into()))?,
        })
    }

    /// Waits for the next signal to pass on.
    async fn next(&mut self) -> Signal {
        loop {
            let (signal, typed) = self.any().await;
            if !(typed && in_foreground()) {
                return signal;
            }
        }
    }

    /// Waits for the next signal; also whether it may have been typed at a terminal.
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

/// Whether signals typed at the terminal reach this process group.
fn in_foreground() -> bool {
    let terminal = rustix::termios::tcgetpgrp(std::io::stdin());
    terminal.is_ok_and(|group| group == getpgrp())
}
