//! What any client says on its connection: to a proxy, and to the server behind it.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No single exchange may take longer; one that does has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A transfer's bytes go in pieces of this size.
const CHUNK: usize = 256 << 10;

/// Nobody here answers with a longer head.
const LONGEST_HEAD: usize = 64 << 10;

/// Asks a SOCKS5 proxy for an address: its type, itself and the port, as RFC 1928 has them.
pub(crate) async fn socks5(stream: &mut TcpStream, address: &[u8]) -> anyhow::Result<()> {
    stream.write_all(&[5, 1, 0]).await?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer[..2]).await?;
    let mut request = vec![5, 1, 0];
    request.extend_from_slice(address);
    stream.write_all(&request).await?;
    stream.read_exact(&mut answer).await?;
    ensure!(answer[1] == 0, "SOCKS5 reply {}", answer[1]);
    Ok(())
}

/// The head of an answer 200.
pub(crate) struct AnswerHead {
    pub(crate) length: Option<u64>,
    /// Whether the connection can take another request.
    pub(crate) keeps: bool,
}

/// Reads to the end of a head; what is behind it stays in the buffer. A connection that ends before the first byte
/// is an [`io::Error`] as one that is reset.
pub(crate) async fn head(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> anyhow::Result<AnswerHead> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = std::str::from_utf8(&buffer[..end])?.to_ascii_lowercase();
            buffer.drain(..end + 4);
            let status = head.lines().next().unwrap_or_default();
            ensure!(status.split(' ').nth(1) == Some("200"), "{head}");
            let field = |name: &str| {
                head.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                    .map(str::trim)
            };
            return Ok(AnswerHead {
                length: field("content-length").map(str::parse).transpose()?,
                keeps: status.starts_with("http/1.1") && field("connection") != Some("close"),
            });
        }
        ensure!(buffer.len() < LONGEST_HEAD, "a head without end");
        if stream.read_buf(buffer).await? == 0 {
            ensure!(buffer.is_empty(), "ended in the head of an answer");
            return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
        }
    }
}

/// Sends a request and reads the answer, by its Content-Length; whether the connection can take another.
pub(crate) async fn exchange(
    stream: &mut TcpStream,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> anyhow::Result<bool> {
    stream.write_all(request).await?;
    let head = head(stream, buffer).await?;
    let length = usize::try_from(head.length.context("no Content-Length")?)?;
    while buffer.len() < length {
        ensure!(
            stream.read_buf(buffer).await? > 0,
            "ended after {} of {length} bytes",
            buffer.len()
        );
    }
    buffer.drain(..length);
    Ok(head.keeps)
}

/// Has the server send so many bytes.
pub(crate) async fn download(stream: &mut TcpStream, bytes: u64) -> anyhow::Result<()> {
    let ask =
        format!("GET /bytes?n={bytes} HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let mut buffer = Vec::new();
    let head = timeout(LIMIT, head(stream, &mut buffer)).await;
    head.context("no answer in time")??;
    let mut got = buffer.len() as u64;
    let mut chunk = vec![0; CHUNK];
    while got < bytes {
        let n = timeout(LIMIT, stream.read(&mut chunk)).await;
        let n = n.context("stalled")??;
        ensure!(n > 0, "ended after {got} of {bytes} bytes");
        got += n as u64;
    }
    Ok(())
}

/// Has the server take so many bytes.
pub(crate) async fn upload(stream: &mut TcpStream, bytes: u64) -> anyhow::Result<()> {
    let ask = format!("POST /sink HTTP/1.1\r\nHost: reviews\r\nContent-Length: {bytes}\r\n\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(CHUNK as u64) as usize;
        let written = timeout(LIMIT, stream.write_all(&chunk[..n])).await;
        written.context("stalled")??;
        left -= n as u64;
    }
    let answer = timeout(LIMIT, exchange(stream, b"", &mut Vec::new())).await;
    answer.context("no answer in time")??;
    Ok(())
}

/// In milliseconds.
pub(crate) fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() - 1) as f64 * q).round() as usize;
    times[at].as_secs_f64() * 1e3
}
