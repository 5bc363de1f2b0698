//! Connections into a network from outside, by a process of ours that goes in and stays.
//!
//! A socket belongs to the network it was made in, for good. The process outside may not change its own: it has threads.

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

/// A server on loopback answers at once, or has no room for more connections.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
enum ToPorter {
    /// Go there. With the user and the network namespace.
    Enter,
    /// Connect to this port of loopback.
    Connect { port: u16 },
}

#[derive(Debug, Serialize, Deserialize)]
enum FromPorter {
    /// With the connection, where there is one.
    Done,
    Failed {
        error: i32,
    },
}

/// Connects to servers in a network. To drop it ends its process.
#[derive(Debug)]
pub struct Porter {
    control: Mutex<ControlSocket>,
    process: Child,
}

impl Porter {
    /// Sends a process into the namespaces of the process of this number, which may have ended by the time it is there.
    /// Blocks for some milliseconds.
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

    /// The process, which is in the network itself.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A connection to a port of the network's loopback. Blocks, for 5 s at most.
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

/// Is the porter, until nobody asks any more.
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
    // First the users, which give the right to the network.
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
