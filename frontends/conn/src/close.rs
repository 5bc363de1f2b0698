//! Saying no so that it is heard.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::ClientIo;

/// How long a refused client has to take its answer and go.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much of what it still sends is thrown away before it is cut.
const DISCARD: u64 = 256 * 1024;

/// Writes `reply` and closes such that the client can read it.
///
/// A socket that is closed with bytes unread sends a reset, which may reach the client before it has read
/// the reply. So the writing side is ended first, and what the client still sends is read and thrown away
/// until it closes, for at most 2 seconds and 256 KiB.
///
/// The error is the client's connection breaking first. Taking too long is no error.
///
/// ```
/// use tokio::io::AsyncReadExt;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let (client, mut app) = tokio::io::duplex(64);
/// let refused = tokio::spawn(kubevpn_conn::reply_and_close(client, b"no"));
/// let mut reply = String::new();
/// app.read_to_string(&mut reply).await?;
/// assert_eq!(reply, "no");
/// drop(app);
/// refused.await?
/// # }
/// ```
pub async fn reply_and_close<C: ClientIo>(mut client: C, reply: &[u8]) -> io::Result<()> {
    let farewell = async {
        client.write_all(reply).await?;
        client.shutdown().await?;
        let mut rest = client.take(DISCARD);
        let mut chunk = vec![0; 4096];
        while rest.read(&mut chunk).await? > 0 {}
        Ok(())
    };
    timeout(PATIENCE, farewell).await.unwrap_or(Ok(()))
}
