//! What one client does: connect, ask, read the answer.

use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::subject::{Port, Subject};

/// No single exchange may take longer; one that does has failed.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

pub(super) const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n";

/// Sends a request and reads the answer, by its Content-Length, from an open connection.
pub(super) async fn exchange(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<()> {
    timeout(LIMIT, async {
        stream.write_all(request).await?;
        let mut answer = Vec::with_capacity(1024);
        loop {
            if let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
                anyhow::ensure!(head.starts_with("http/1.1 200"), "{head}");
                let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
                let length: usize = length.context("no Content-Length")?.trim().parse()?;
                if answer.len() >= end + 4 + length {
                    return Ok(());
                }
            }
            anyhow::ensure!(
                stream.read_buf(&mut answer).await? > 0,
                "ended after {} bytes",
                answer.len()
            );
        }
    })
    .await
    .context("no answer in time")?
}

/// A new connection, one GET, closed by the client.
pub(super) async fn get(subject: &Subject) -> anyhow::Result<Duration> {
    let start = Instant::now();
    timeout(LIMIT, async {
        let mut stream = subject.connect(Port::Http).await?;
        exchange(&mut stream, GET).await
    })
    .await
    .context("no connection in time")??;
    Ok(start.elapsed())
}

pub(super) async fn echoes(stream: &mut TcpStream) -> anyhow::Result<()> {
    timeout(Duration::from_secs(3), async {
        stream.write_all(b"ping").await?;
        let mut back = [0; 4];
        stream.read_exact(&mut back).await?;
        anyhow::ensure!(&back == b"ping");
        Ok(())
    })
    .await?
}

/// In milliseconds.
pub(crate) fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() - 1) as f64 * q).round() as usize;
    times[at].as_secs_f64() * 1e3
}
