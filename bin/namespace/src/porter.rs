//! The porter: a process in the network, which makes connections there for the process outside.
//!
//! A socket belongs to the network in which it was made, and the process outside cannot change its network because it has
//! threads.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::control::ControlSocket;
use crate::error::{EnterError, SetupStep};
use crate::start::{ProcessRole, in_background};

/// A server on loopback answers at once, unless its backlog is full.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
enum ToPorter {
    /// Enter the namespaces, whose user and network descriptors come with it.
    Enter,
    /// Connect to this port of loopback.
    Connect { port: u16 },
}

#[derive(Debug, Serialize, Deserialize)]
enum FromPorter {
    /// The result; an established connection comes with it.
    Done,
    Failed {
        error: i32,
    },
}

/// Connects to servers in a network. Dropping it ends its process.
#[derive(Debug)]
pub struct Porter {
    control: Mutex<ControlSocket>,
    process: Child,
}

impl Porter {
    /// Starts a process in the namespaces of process `pid`, which may end afterwards. Blocks for some milliseconds.
    pub fn enter(pid: u32) -> Result<Self, EnterError> {
        let failed = |error: io::Error| EnterError::new(SetupStep::Helper, error);
        let namespace = |name: &str| File::open(format!("/proc/{pid}/ns/{name}"));
        let user = namespace("user").map_err(failed)?;
        let network = namespace("net").map_err(failed)?;
        let (control, theirs) = ControlSocket::pair().map_err(failed)?;
        let process = in_background(ProcessRole::Porter, theirs).spawn();
        let process = process.map_err(failed)?;
        let porter = Self {
            control: Mutex::new(control),
            process,
        };
        let descriptors = [user.as_fd(), network.as_fd()];
        porter
            .ask(&ToPorter::Enter, &descriptors)
            .map_err(|error| EnterError::new(SetupStep::Namespaces, error))?;
        Ok(porter)
    }

    /// Process number of the porter, which is a member of the network itself.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Connects to a port of the network's loopback. Blocks for at most 5 s.
    pub fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let mut connected = self.ask(&ToPorter::Connect { port }, &[])?;
        let socket = connected.pop().ok_or(io::ErrorKind::InvalidData)?;
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    fn ask(&self, message: &ToPorter, descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        control.send(message, descriptors)?;
        match control.receive()? {
            Some((FromPorter::Done, descriptors)) => Ok(descriptors),
            Some((FromPorter::Failed { error }, _)) => Err(io::Error::from_raw_os_error(error)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Drop for Porter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs the porter until the other end is closed.
pub(crate) fn serve() -> io::Result<Infallible> {
    let control = ControlSocket::patient(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?);
    loop {
        let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let (message, mut descriptors) = control.receive()?.ok_or_else(gone)?;
        let done = match message {
            ToPorter::Enter => {
                let (network, user) = (descriptors.pop(), descriptors.pop());
                enter(user, network).map(|()| None)
            }
            ToPorter::Connect { port } => connect(port).map(Some),
        };
        match &done {
            Ok(None) => control.send(&FromPorter::Done, &[])?,
            Ok(Some(stream)) => control.send(&FromPorter::Done, &[stream.as_fd()])?,
            Err(error) => {
                let error = error.raw_os_error().unwrap_or_default();
                control.send(&FromPorter::Failed { error }, &[])?;
            }
        }
    }
}

fn enter(user: Option<OwnedFd>, network: Option<OwnedFd>) -> io::Result<()> {
    let (Some(user), Some(network)) = (user, network) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    // The user namespace comes first, because it grants the right to enter the network.
    setns(user, CloneFlags::CLONE_NEWUSER)?;
    Ok(setns(network, CloneFlags::CLONE_NEWNET)?)
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let at = |ip: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(ip, port), PATIENCE);
    at(Ipv4Addr::LOCALHOST.into()).or_else(|error| match at(Ipv6Addr::LOCALHOST.into()) {
        Ok(stream) => Ok(stream),
        Err(_) => Err(error),
    })
}
