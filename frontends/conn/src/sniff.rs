//! Two protocols on one listener: which one a client has begun to speak.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::Rewind;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A method's letters (RFC 9110 section 9.1).
    Http,
    /// Anything else: a SOCKS greeting begins with its version, and SOCKS knows how to refuse the rest.
    Socks,
}

impl Opening {
    /// Reads the first byte, and puts it back.
    ///
    /// Waits as long as the client does; a client that ends before is [`io::ErrorKind::UnexpectedEof`].
    ///
    /// ```
    /// use kubevpn_conn::Opening;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let client = std::io::Cursor::new(b"CONNECT web.shop:80 HTTP/1.1\r\n\r\n");
    /// let (opening, _client) = Opening::read(client).await?;
    /// assert_eq!(opening, Opening::Http);
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
