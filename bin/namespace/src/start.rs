//! Starts this program again in one of the roles that serve a network.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

/// The settings of jemalloc, as tikv-jemallocator reads them. A process that enters namespaces has no thread beside its own.
pub(crate) const MALLOC_CONF: &str = "_RJEM_MALLOC_CONF";
const NO_THREADS: &str = "background_thread:false";

/// The role of a process, which is the first word of its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessRole {
    Helper,
    Porter,
    Keeper,
}

impl ProcessRole {
    const ALL: [Self; 3] = [Self::Helper, Self::Porter, Self::Keeper];

    fn word(self) -> &'static str {
        match self {
            Self::Helper => "inside-namespace",
            Self::Porter => "porter-of-namespace",
            Self::Keeper => "keeper-of-namespace",
        }
    }

    /// The role of this process.
    pub(crate) fn of_this_process() -> Option<Self> {
        let word = std::env::args_os().nth(1)?;
        Self::ALL.into_iter().find(|role| word == role.word())
    }
}

/// The running program with a role, and its end of a conversation as its standard input.
pub(crate) fn this_program(role: ProcessRole, control: OwnedFd) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(role.word())
        .env(MALLOC_CONF, NO_THREADS)
        .stdin(Stdio::from(control));
    command
}

/// The same in the background: without output, and in a process group that Ctrl-C does not reach.
pub(crate) fn in_background(role: ProcessRole, control: OwnedFd) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut command = this_program(role, control);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command
}
