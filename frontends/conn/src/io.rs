//! What a frontend needs to know of a client's socket beyond reading and writing.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

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

    /// Makes the coming drop a reset and no orderly end, where the transport knows the difference.
    ///
    /// For a connection that is cut: an orderly end would let what was sent so far pass for the whole.
    fn reset_on_drop(&mut self) {}
}

impl ClientIo for TcpStream {
    fn peer(&self) -> Option<SocketAddr> {
        self.peer_addr().ok()
    }

    fn broken(&self) -> Option<io::Error> {
        pending_error(self.take_error())
    }

    fn reset_on_drop(&mut self) {
        // Fails on a connection that has ended already, which is as good.
        let _ = self.set_zero_linger();
    }
}

/// A Unix socket has no reset but this: its peer closed with bytes unread.
#[cfg(unix)]
impl ClientIo for tokio::net::UnixStream {
    fn broken(&self) -> Option<io::Error> {
        pending_error(self.take_error())
    }
}

impl ClientIo for DuplexStream {}

/// The error the socket holds (`SO_ERROR`); a socket that cannot even be asked is broken too.
fn pending_error(asked: io::Result<Option<io::Error>>) -> Option<io::Error> {
    asked.unwrap_or_else(Some)
}
