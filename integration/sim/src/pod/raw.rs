//! The echo program's ports without a protocol. An error is the end of the connection.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};

/// What `TCP_PORTS` take in before they give up.
const MOST: u64 = 64 * 1024 * 1024;
/// The largest head of an HTTP request on `CLOSE_PORTS`.
const MOST_HEAD: u64 = 64 * 1024;

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

/// Answers one HTTP request, then closes without a field that announces it.
pub(super) async fn answer_and_close(io: &mut DuplexStream) {
    let mut io = BufReader::new(io);
    let Some((method, length)) = head(&mut io).await else {
        return;
    };
    let read = tokio::io::copy(&mut (&mut io).take(length), &mut tokio::io::sink()).await;
    let body = format!("{method} {}\n", read.unwrap_or_default());
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = io.write_all(answer.as_bytes()).await;
}

/// The method and the length of the body; bodies of other kinds do not come here.
async fn head(io: &mut BufReader<&mut DuplexStream>) -> Option<(String, u64)> {
    let mut lines = io.take(MOST_HEAD).lines();
    let request = lines.next_line().await.ok()??;
    let method = request.split(' ').next().unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let line = lines.next_line().await.ok()??.to_ascii_lowercase();
        if line.is_empty() {
            return Some((method, length));
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
}
