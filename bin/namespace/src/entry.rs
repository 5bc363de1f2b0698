//! The process outside: it starts the helper, maps its users and receives its sockets.

use std::ffi::OsString;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};

use crate::control::{ControlSocket, FromHelper, ToHelper};
use crate::error::{EnterError, SetupStep};
use crate::maps;
use crate::members::Members;
use crate::start::{MALLOC_CONF, ProcessRole, this_program};

/// A namespace being made: from the start of its helper to the command that the helper becomes.
///
/// The methods block for milliseconds, and for at most 20 s if the helper hangs. Dropping it ends a helper that was not
/// told to start.
#[derive(Debug)]
pub struct PendingNamespace {
    control: ControlSocket,
}

/// The sockets of a new network, owned by this process.
#[derive(Debug)]
pub struct NetworkSockets {
    /// Listeners of all TCP connections, whose original destination is known.
    pub listeners: Vec<TcpListener>,
    /// Sockets of all DNS queries over UDP.
    pub dns: Vec<UdpSocket>,
    /// Netlink socket for queries about sockets in the network (`NETLINK_SOCK_DIAG`).
    pub diagnostics: OwnedFd,
    /// The processes in the network.
    pub members: Members,
}

/// Tests whether a namespace can be made here, by making one and dropping it. Blocks for some milliseconds.
pub fn possible() -> Result<(), EnterError> {
    let (mut command, entry) = PendingNamespace::new(&[])?;
    let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = spawned.map_err(|error| EnterError::new(SetupStep::Helper, error))?;
    // The command still has the helper's end of the conversation.
    drop(command);
    let made = entry.prepare(child.id(), String::new());
    drop(entry);
    let ended = child.wait();
    made?;
    ended.map_err(|error| EnterError::new(SetupStep::Helper, error))?;
    Ok(())
}

impl PendingNamespace {
    /// The helper that will become the command `words`. The caller sets its environment, which is the command's, and starts
    /// it from a thread that outlives it: the kernel kills the command when that thread ends.
    ///
    /// The program is the running one, which has to call [`helper`](crate::helper).
    pub fn new(words: &[OsString]) -> Result<(Command, Self), EnterError> {
        let failed = |error| EnterError::new(SetupStep::Helper, error);
        let (control, theirs) = ControlSocket::pair().map_err(failed)?;
        let mut command = this_program(ProcessRole::Helper, theirs);
        command.args(words);
        Ok((command, Self { control }))
    }

    /// Sets up the namespaces of the helper with this process number.
    pub fn prepare(&self, pid: u32, resolv_conf: String) -> Result<NetworkSockets, EnterError> {
        match self.next()?.0 {
            FromHelper::Unshared => {}
            other => return Err(unexpected(other)),
        }
        maps::write(pid).map_err(|error| EnterError::new(SetupStep::Users, error))?;
        let at_helper = |error| EnterError::new(SetupStep::Helper, error);
        let members = Members::of(pid).map_err(at_helper)?;
        let set_up = ToHelper::SetUp {
            resolv_conf,
            malloc_conf: std::env::var(MALLOC_CONF).ok(),
        };
        let stdin = io::stdin();
        self.control
            .send(&set_up, &[stdin.as_fd()])
            .map_err(at_helper)?;
        match self.next()? {
            (FromHelper::Ready { listeners }, sockets) => {
                adopt(sockets, listeners, members).map_err(at_helper)
            }
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Lets the helper become the command. Fails if the command cannot be run.
    pub fn start(self) -> io::Result<()> {
        self.control.send(&ToHelper::Start, &[])?;
        match self.control.receive()? {
            // The command runs: its end of the conversation is closed.
            None => Ok(()),
            Some((FromHelper::NotRun { error }, _)) => Err(io::Error::from_raw_os_error(error)),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn next(&self) -> Result<(FromHelper, Vec<OwnedFd>), EnterError> {
        let received = self.control.receive();
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended");
        received
            .and_then(|message| message.ok_or_else(gone))
            .map_err(|error| EnterError::new(SetupStep::Helper, error))
    }
}

fn unexpected(message: FromHelper) -> EnterError {
    match message {
        FromHelper::Failed { step, on, error } => {
            EnterError::on(step, on, io::Error::from_raw_os_error(error))
        }
        _ => EnterError::new(
            SetupStep::Helper,
            io::Error::from(io::ErrorKind::InvalidData),
        ),
    }
}

fn adopt(
    mut sockets: Vec<OwnedFd>,
    listeners: usize,
    members: Members,
) -> io::Result<NetworkSockets> {
    if listeners > sockets.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut dns = sockets.split_off(listeners);
    let diagnostics = dns.pop().ok_or(io::ErrorKind::InvalidData)?;
    let listeners: Vec<_> = sockets.into_iter().map(TcpListener::from).collect();
    let dns: Vec<_> = dns.into_iter().map(UdpSocket::from).collect();
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    for socket in &dns {
        socket.set_nonblocking(true)?;
    }
    Ok(NetworkSockets {
        listeners,
        dns,
        diagnostics,
        members,
    })
}
