//! The end of processes whose network ended with this program: a process of ours that outlives it.
//!
//! The kernel kills the command with the process outside (`PR_SET_PDEATHSIG`), and not what the command has started.

use std::convert::Infallible;
use std::io;
use std::process::Child;

use crate::control::ControlSocket;
use crate::error::{EnterError, SetupStep};
use crate::members::Members;
use crate::start::{ProcessRole, in_background};

/// Kills the processes of a network when this process ends without having dropped it, as by SIGKILL. To drop it leaves them
/// alone.
#[derive(Debug)]
pub struct Keeper {
    process: Child,
    /// Closed by the end of this process, whatever that is.
    _control: ControlSocket,
}

impl Keeper {
    /// Of the network of these.
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

/// Is the keeper, until the process outside has ended and nobody is left.
pub(crate) fn serve() -> io::Result<Infallible> {
    let control = ControlSocket::patient(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?);
    let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (members, _) = control.receive::<Members>()?.ok_or_else(gone)?;
    // Nothing more is said: this is its end.
    if control.receive::<()>()?.is_none() {
        members.kill()?;
    }
    Err(gone())
}
