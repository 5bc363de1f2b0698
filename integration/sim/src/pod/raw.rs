//! The echo program's ports without a protocol. An error is the end of the connection.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What `TCP_PORTS` take in before they give up.
const MOST: u64 = 64 * 1024 * 1024;

/// Reads to the end, then answers all of it, then closes: needs a client that half-closes.
pub(super) async fn answer_at_the_end(io: &mut DuplexStream) {
    let mut all = Vec::new();
    if (&mut *io).take(MOST).read_to_end(&mut all).await.is_ok() {
        let _ = io.write_all(&all).await;
    }
}

/// Echoes byte for byte as it comes.
pub(super) async fn echo(io: &mut DuplexStream) {
    let (mut from, mut to) = tokio::io::split(io);
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// Speaks first, then echoes.
pub(super) async fn greet(hostname: &str, io: &mut DuplexStream) {
    let greeting = format!("220 {hostname} ready\r\n");
    if io.write_all(greeting.as_bytes()).await.is_ok() {
        echo(io).await;
    }
}

/// Takes one byte, or the end.
pub(super) async fn read_one(io: &mut DuplexStream) {
    let _ = io.read(&mut [0]).await;
}
