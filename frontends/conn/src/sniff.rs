//! Detection of the client's protocol on a listener for two.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::Rewind;

/// The client's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SniffedProtocol {
    /// A method's letters (RFC 9110 section 9.1).
    Http,
    /// Anything else: a SOCKS greeting begins with its version, and the SOCKS frontend refuses the rest.
    Socks,
}

impl SniffedProtocol {
    /// Reads the first byte and puts it back.
    ///
    /// Waits without a limit. A client that ends before its first byte is [`io::ErrorKind::UnexpectedEof`].
    ///
    /// ```
    /// use kubevpn_conn::SniffedProtocol;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let client = std::io::Cursor::new(b"CONNECT web.shop:80 HTTP/1.1\r\n\r\n");
    /// let (opening, _client) = SniffedProtocol::read(client).await?;
    /// assert_eq!(opening, SniffedProtocol::Http);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn read<T: AsyncRead + Unpin>(mut client: T) -> io::Result<(Self, Rewind<T>)> {
        let first = client.read_u8().await?;
        let opening = if first.is_ascii_alphabetic() {
            Self::Http
        } else {
            Self::Socks
        };
        Ok((opening, Rewind::new(client, vec![first])))
    }
}
