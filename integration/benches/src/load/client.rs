//! What one client does: connect, ask, read the answer.

use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::subject::{Port, RunningSubject};
use crate::wire::{self, LIMIT};

pub(super) const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n";

/// Sends a request and reads the answer from an open connection.
pub(super) async fn exchange(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<()> {
    let mut buffer = Vec::with_capacity(1024);
    let answer = timeout(LIMIT, wire::exchange(stream, request, &mut buffer)).await;
    answer.context("no answer in time")?.map(drop)
}

/// A new connection, one GET, closed by the client.
pub(super) async fn get(subject: &RunningSubject) -> anyhow::Result<Duration> {
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
