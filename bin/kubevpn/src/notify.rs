//! Messages to the service manager (`sd_notify(3)`): ready, status, stopping. Without `NOTIFY_SOCKET` in the environment,
//! nothing is sent.

use std::fmt::Display;

/// Environment variable with the service manager's socket. Programs that are not part of the service do not get it.
pub(crate) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Reports that the listeners are bound. A second report changes the status only.
pub(crate) fn ready(status: impl Display) {
    tell(Some(ServiceState::Ready), &status);
}

/// Reports what the proxy does, for `systemctl status`.
pub(crate) fn status(status: impl Display) {
    tell(None, &status);
}

/// Reports that the drain has begun.
pub(crate) fn stopping(status: impl Display) {
    tell(Some(ServiceState::Stopping), &status);
}

/// States that the service manager acts on.
#[derive(Clone, Copy)]
enum ServiceState {
    Ready,
    Stopping,
}

/// Errors are ignored: the proxy serves its clients even if its manager cannot be reached.
#[cfg(target_os = "linux")]
fn tell(state: Option<ServiceState>, status: &dyn Display) {
    let Some(socket) = std::env::var_os(NOTIFY_SOCKET) else {
        return;
    };
    // The status is escaped, because a newline in it would begin another assignment.
    let status = status.to_string();
    let status = crate::out::escaped(&status);
    let state = match state {
        Some(ServiceState::Ready) => "READY=1\n",
        Some(ServiceState::Stopping) => "STOPPING=1\n",
        None => "",
    };
    let message = format!("{state}STATUS={status}\n");
    let told = match send(&socket, &message, true) {
        // A manager that is slow must not stop the runtime, and must not miss the message either.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            let late = move || send(&socket, &message, false);
            std::thread::Builder::new().spawn(late).map(drop)
        }
        told => told,
    };
    if let Err(error) = told {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(target_os = "linux")]
fn send(socket: &std::ffi::OsStr, message: &str, is_nonblocking: bool) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(is_nonblocking)?;
    sender.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(not(target_os = "linux"))]
fn tell(_: Option<ServiceState>, _: &dyn Display) {}
