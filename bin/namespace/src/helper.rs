//! The helper: the process inside, from its start until it becomes the command.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, unshare};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use socket2::{Domain, Socket, Type};

use crate::control::{ControlSocket, FromHelper, ToHelper};
use crate::error::{EnterError, SetupStep};
use crate::start::{MALLOC_CONF, ProcessRole};
use crate::{files, keeper, netlink, network, porter, rules};

/// Backlog of listeners.
const BACKLOG: i32 = 1024;

/// Receive buffer of DNS sockets, in bytes.
const BUFFER: usize = 1024 * 1024;

/// Whether this process was started as a helper. A program that uses namespaces has to check this first, because a helper
/// must have one thread.
pub fn is_helper() -> bool {
    ProcessRole::of_this_process().is_some()
}

/// Runs the helper, which becomes the command or exits.
pub fn helper() -> ExitCode {
    // The error has been sent to the process outside, if that exists.
    let Err(_) = match ProcessRole::of_this_process() {
        Some(ProcessRole::Porter) => porter::serve(),
        Some(ProcessRole::Keeper) => keeper::serve(),
        Some(ProcessRole::Helper) | None => {
            inside(&std::env::args_os().skip(2).collect::<Vec<_>>())
        }
    };
    ExitCode::FAILURE
}

fn inside(words: &[OsString]) -> io::Result<Infallible> {
    let parent = getppid();
    let control = ControlSocket::of(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?)?;
    let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
    // One call makes all three, so that the network and the mounts belong to the new user namespace.
    let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if let Err(error) = unshare(namespaces) {
        return tell_failure(&control, &EnterError::new(SetupStep::Namespaces, error));
    }
    control.send(&FromHelper::Unshared, &[])?;
    let (told, mut descriptors) = control.receive()?.ok_or_else(gone)?;
    let (
        ToHelper::SetUp {
            resolv_conf,
            malloc_conf,
        },
        Some(stdin),
    ) = (told, descriptors.pop())
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let made = set_up(&resolv_conf).and_then(|sockets| {
        let diagnostics = netlink::of_sockets();
        Ok((
            sockets,
            diagnostics.map_err(|error| EnterError::new(SetupStep::Sockets, error))?,
        ))
    });
    let ((listeners, datagrams), diagnostics) = match made {
        Ok(sockets) => sockets,
        Err(error) => return tell_failure(&control, &error),
    };
    let ready = FromHelper::Ready {
        listeners: listeners.len(),
    };
    let sockets: Vec<_> = listeners
        .iter()
        .chain(&datagrams)
        .chain([&diagnostics])
        .map(|s| s.as_fd())
        .collect();
    control.send(&ready, &sockets)?;
    // Only the process outside serves them.
    drop((listeners, datagrams, diagnostics));
    let (ToHelper::Start, _) = control.receive()?.ok_or_else(gone)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    rustix::stdio::dup2_stdin(&stdin)?;
    drop(stdin);
    // The signal is sent when the thread that started this process ends, which has to be the main thread.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != parent {
        return Err(gone());
    }
    let Some((program, rest)) = words.split_first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut command = Command::new(program);
    command.args(rest);
    match malloc_conf {
        Some(value) => command.env(MALLOC_CONF, value),
        None => command.env_remove(MALLOC_CONF),
    };
    let error = command.exec();
    let error = error.raw_os_error().unwrap_or_default();
    control.send(&FromHelper::NotRun { error }, &[])?;
    Err(io::Error::from_raw_os_error(error))
}

fn tell_failure(control: &ControlSocket, failed: &EnterError) -> io::Result<Infallible> {
    let error = failed.source.raw_os_error().unwrap_or_default();
    let message = FromHelper::Failed {
        step: failed.step,
        on: failed.on.clone(),
        error,
    };
    control.send(&message, &[])?;
    Err(io::Error::from_raw_os_error(error))
}

/// Sockets that accept connections, and sockets for datagrams.
type HelperSockets = (Vec<OwnedFd>, Vec<OwnedFd>);

fn set_up(resolv_conf: &str) -> Result<HelperSockets, EnterError> {
    let at = |step| move |error: io::Error| EnterError::new(step, error);
    files::show(resolv_conf)?;
    let has_ipv6 = network::set_up().map_err(at(SetupStep::Network))?;
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    if has_ipv6 {
        addresses.push(Ipv6Addr::LOCALHOST.into());
    }
    let (listeners, tcp) = sockets(&addresses, Type::STREAM).map_err(at(SetupStep::Sockets))?;
    let (datagrams, dns) = sockets(&addresses, Type::DGRAM).map_err(at(SetupStep::Sockets))?;
    rules::set(tcp, dns).map_err(at(SetupStep::Rules))?;
    Ok((listeners, datagrams))
}

/// A socket on each of these addresses, on one port.
fn sockets(addresses: &[IpAddr], kind: Type) -> io::Result<(Vec<OwnedFd>, u16)> {
    let (mut found, mut port) = (Vec::new(), 0);
    for ip in addresses {
        let at = SocketAddr::new(*ip, port);
        let socket = Socket::new(Domain::for_address(at), kind, None)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&at.into())?;
        match kind {
            Type::STREAM => socket.listen(BACKLOG)?,
            // The system may permit less.
            _ => drop(socket.set_recv_buffer_size(BUFFER)),
        }
        let bound = socket.local_addr()?.as_socket();
        port = bound.map_or(0, |bound| bound.port());
        found.push(socket.into());
    }
    Ok((found, port))
}
