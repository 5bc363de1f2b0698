//! The keeper: a process that outlives this one, and kills the processes whose network has ended with it.
//!
//! The kernel kills the command with the process outside (`PR_SET_PDEATHSIG`), and not what the command has started.

use std::convert::Infallible;
use std::io;
use std::process::Child;

use crate::control::ControlSocket;
use crate::error::{EnterError, SetupStep};
use crate::members::Members;
use crate::start::{ProcessRole, in_background};

/// Kills the processes of a network if this process ends without dropping the keeper, e.g. by SIGKILL. Dropping it leaves
/// them running.
#[derive(Debug)]
pub struct Keeper {
    process: Child,
    /// Closed when this process ends in any way.
    _control: ControlSocket,
}

impl Keeper {
    /// Starts a keeper for the network of `members`.
    pub fn start(members: &Members) -> Result<Self, EnterError> {
        let failed = |error: io::Error| EnterError::new(SetupStep::Helper, error);
        let (control, theirs) = ControlSocket::pair().map_err(failed)?;
        let process = in_background(ProcessRole::Keeper, theirs).spawn();
        let process = process.map_err(failed)?;
        let keeper = Self {
            process,
            _control: control,
        };
        keeper._control.send(members, &[]).map_err(failed)?;
        Ok(keeper)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs the keeper, until the process outside has ended and no process is left.
pub(crate) fn serve() -> io::Result<Infallible> {
    let control = ControlSocket::patient(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?);
    let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (members, _) = control.receive::<Members>()?.ok_or_else(gone)?;
    // There are no further messages: the keeper was dropped.
    if control.receive::<()>()?.is_none() {
        members.kill()?;
    }
    Err(gone())
}
