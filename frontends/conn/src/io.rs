//! The client's socket beyond reading and writing.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

use crate::{Drain, Observed};

/// The client's side of a connection.
///
/// The methods have neutral defaults, so any byte stream can implement it:
///
/// ```
/// use kubevpn_conn::ClientIo;
/// let (end, _other) = tokio::io::duplex(64);
/// assert_eq!(end.peer(), None);
/// assert!(end.broken().is_none());
/// ```
pub trait ClientIo: AsyncRead + AsyncWrite + Send + Unpin {
    /// The client's address, if it has one.
    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    /// The error that ended the connection, if it can be found without reading.
    ///
    /// A connection that is not being read, because earlier data was not passed on yet, reports no reset. A caller that
    /// stops reading has to call this from time to time. The call clears the error: it is returned once.
    fn broken(&self) -> Option<io::Error> {
        None
    }

    /// Whether the client's program has closed its socket, once its end of file was read: `Some(false)` if it has only
    /// ended its writing and still reads; `None` if that is unknown.
    ///
    /// Known on Linux, for Unix sockets and for TCP from the same machine. Costs one or two system calls.
    fn closed(&self) -> Option<bool> {
        None
    }

    /// The address that the client connected to, before a rule of the kernel redirected it here (`SO_ORIGINAL_DST`).
    ///
    /// Known on Linux, for TCP connections that the kernel tracks; `None` for one that was not redirected.
    fn original_destination(&self) -> Option<SocketAddr> {
        None
    }

    /// Makes the drop a reset instead of an orderly end, if the transport has one. The same happens if this process is
    /// killed.
    ///
    /// For a connection that is cut: an orderly end would make a truncated answer look complete.
    fn reset_on_drop(&mut self) {}

    /// Undoes [`reset_on_drop`](Self::reset_on_drop): everything was sent.
    fn close_on_drop(&mut self) {}

    /// The drain of the connection; one that never begins if it has none.
    fn drain(&self) -> Drain {
        Drain::new()
    }

    /// Returns the connection's permit before its end ([`Gate`](crate::Gate)).
    fn release(&mut self) {}

    /// Notes that the client is authenticated, so that it no longer counts towards the limit on unauthenticated ones
    /// ([`Listener::asks_for_password`](crate::Listener::asks_for_password)).
    fn authenticated(&mut self) {}

    /// The observer of the connection ([`Listener::observed`](crate::Listener::observed)).
    fn observed(&self) -> Option<Observed> {
        None
    }
}

type AskClosed = dyn Fn(SocketAddr, SocketAddr) -> Option<bool> + Send + Sync;

/// Asks whether a client in another network namespace has closed its socket ([`ClientIo::closed`]).
#[derive(Clone)]
pub struct Closed(Arc<AskClosed>);

impl Closed {
    /// Arguments: the client's address, and the address that it connected to.
    pub fn new(ask: Arc<AskClosed>) -> Self {
        Self(ask)
    }

    pub(crate) fn ask(&self, client: SocketAddr, to: SocketAddr) -> Option<bool> {
        (self.0)(client, to)
    }
}

impl fmt::Debug for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closed")
    }
}

impl ClientIo for TcpStream {
    fn peer(&self) -> Option<SocketAddr> {
        self.peer_addr().ok()
    }

    fn broken(&self) -> Option<io::Error> {
        pending_error(self.take_error())
    }

    #[cfg(target_os = "linux")]
    fn closed(&self) -> Option<bool> {
        crate::peer::closed(self.local_addr().ok()?, self.peer_addr().ok()?)
    }

    #[cfg(target_os = "linux")]
    fn original_destination(&self) -> Option<SocketAddr> {
        let socket = socket2::SockRef::from(self);
        // The option is specific to the protocol: an IPv4 client of an IPv6 socket uses that of IPv4.
        let local = self.local_addr().ok()?;
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        let found = match local {
            SocketAddr::V4(_) => socket.original_dst_v4(),
            SocketAddr::V6(_) => socket.original_dst_v6(),
        };
        let to = found.ok()?.as_socket()?;
        (SocketAddr::new(to.ip(), to.port()) != local).then_some(to)
    }

    // Both fail only on a connection that has ended already.
    fn reset_on_drop(&mut self) {
        let _ = self.set_zero_linger();
    }

    fn close_on_drop(&mut self) {
        let _ = socket2::SockRef::from(&*self).set_linger(None);
    }
}

/// The only reset of a Unix socket: its peer closed with unread bytes.
impl ClientIo for tokio::net::UnixStream {
    fn broken(&self) -> Option<io::Error> {
        pending_error(self.take_error())
    }

    #[cfg(target_os = "linux")]
    fn closed(&self) -> Option<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut asked = [PollFd::new(self, PollFlags::empty())];
        poll(&mut asked, Some(&Timespec::default())).ok()?;
        // For a socket whose writing is open: its peer has closed, and not only ended its writing.
        Some(asked[0].revents().contains(PollFlags::HUP))
    }
}

impl ClientIo for DuplexStream {}

/// The socket's pending error (`SO_ERROR`); a socket that cannot be queried is broken too.
fn pending_error(asked: io::Result<Option<io::Error>>) -> Option<io::Error> {
    asked.unwrap_or_else(Some)
}
