//! What a frontend needs to know of a client's socket beyond reading and writing.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

use crate::{Drain, Observed};

/// The client's side of a connection.
///
/// The methods have defaults that claim nothing, so any byte stream can be one:
///
/// ```
/// use kubevpn_conn::ClientIo;
/// let (end, _other) = tokio::io::duplex(64);
/// assert_eq!(end.peer(), None);
/// assert!(end.broken().is_none());
/// ```
pub trait ClientIo: AsyncRead + AsyncWrite + Send + Unpin {
    /// The client's address, where it has one.
    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    /// The error that ended the connection, if that can be told without reading.
    ///
    /// A connection nobody reads, because what was read has not been passed on yet, reports no reset;
    /// so whoever stops reading asks here from time to time. Asking takes the error away: it is told once.
    fn broken(&self) -> Option<io::Error> {
        None
    }

    /// Whether the client's program has closed its socket, once its end of file was read: `Some(false)` where it has
    /// only ended its writing, and reads on; `None` where nobody knows.
    ///
    /// Known on Linux, of Unix sockets and of TCP from the same machine. Costs one or two system calls.
    fn closed(&self) -> Option<bool> {
        None
    }

    /// The address that the client connected to, before a rule of the kernel redirected it here (`SO_ORIGINAL_DST`).
    ///
    /// Known on Linux, of TCP connections that the kernel tracks; `None` for one that was not redirected.
    fn original_destination(&self) -> Option<SocketAddr> {
        None
    }

    /// Makes the drop a reset and no orderly end, where the transport knows the difference. The same when this
    /// process is killed.
    ///
    /// For a connection that is cut: an orderly end would let what was sent so far pass for the whole.
    fn reset_on_drop(&mut self) {}

    /// Takes [`reset_on_drop`](Self::reset_on_drop) back: the whole was sent.
    fn close_on_drop(&mut self) {}

    /// The drain the connection runs in; one that never begins where it runs in none.
    fn drain(&self) -> Drain {
        Drain::new()
    }

    /// Gives the connection's place among those that are limited back before its end ([`Gate`](crate::Gate)).
    fn release(&mut self) {}

    /// The client has shown what the listener asks for, and counts no more among those that have not
    /// ([`Listener::asks_for_password`](crate::Listener::asks_for_password)).
    fn authenticated(&mut self) {}

    /// Who is told what becomes of the connection ([`Listener::observed`](crate::Listener::observed)).
    fn observed(&self) -> Option<Observed> {
        None
    }
}

type AskClosed = dyn Fn(SocketAddr, SocketAddr) -> Option<bool> + Send + Sync;

/// A way to ask whether a client has closed its socket ([`ClientIo::closed`]), where that is in another network namespace.
#[derive(Clone)]
pub struct Closed(Arc<AskClosed>);

impl Closed {
    /// By the client's address, and the one that it connected to.
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
        // The two are options of their protocols: an IPv4 client of an IPv6 socket is asked for as IPv4.
        let local = self.local_addr().ok()?;
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        let found = match local {
            SocketAddr::V4(_) => socket.original_dst_v4(),
            SocketAddr::V6(_) => socket.original_dst_v6(),
        };
        let to = found.ok()?.as_socket()?;
        (SocketAddr::new(to.ip(), to.port()) != local).then_some(to)
    }

    // Both fail on a connection that has ended already, which is as good.
    fn reset_on_drop(&mut self) {
        let _ = self.set_zero_linger();
    }

    fn close_on_drop(&mut self) {
        let _ = socket2::SockRef::from(&*self).set_linger(None);
    }
}

/// A Unix socket has no reset but this: its peer closed with bytes unread.
impl ClientIo for tokio::net::UnixStream {
    fn broken(&self) -> Option<io::Error> {
        pending_error(self.take_error())
    }

    #[cfg(target_os = "linux")]
    fn closed(&self) -> Option<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut asked = [PollFd::new(self, PollFlags::empty())];
        poll(&mut asked, Some(&Timespec::default())).ok()?;
        // Of a socket whose writing is open: its peer has closed, and not ended its writing alone.
        Some(asked[0].revents().contains(PollFlags::HUP))
    }
}

impl ClientIo for DuplexStream {}

/// The error the socket holds (`SO_ERROR`); a socket that cannot even be asked is broken too.
fn pending_error(asked: io::Result<Option<io::Error>>) -> Option<io::Error> {
    asked.unwrap_or_else(Some)
}
