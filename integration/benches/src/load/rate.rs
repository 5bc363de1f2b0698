//! How much many clients get done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::client::{LIMIT, exchange, get};
use super::{Figure, Goal, Measured, Sizes};
use crate::subject::{Port, Subject};

/// `clients` loops for the length of the window; how often the body ran, and how often it failed.
async fn in_parallel<F>(clients: usize, window: Duration, body: F) -> (u64, u64)
where
    F: AsyncFn() -> anyhow::Result<()>,
{
    let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + window;
    let one = async || {
        while Instant::now() < end {
            match body().await {
                Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                Err(_) => failed.fetch_add(1, Ordering::Relaxed),
            };
        }
    };
    futures_util::future::join_all((0..clients).map(|_| one())).await;
    (done.into_inner(), failed.into_inner())
}

/// From a cold start: what a subject does in the first second of a burst is part of it.
pub(super) async fn churn(
    subject: &Subject,
    clients: usize,
    sizes: Sizes,
) -> anyhow::Result<Measured> {
    let (done, failed) =
        in_parallel(clients, sizes.window, async || get(subject).await.map(drop)).await;
    let what = format!("new connections, {clients} clients");
    let goal = if clients > 16 { 1.5 } else { 1.8 };
    let rate = done as f64 / sizes.window.as_secs_f64();
    Ok(Measured {
        figures: vec![
            Figure::more(what.clone(), "/s", rate).goal(Goal::Ratio(goal)),
            Figure::less(format!("{what}, failed"), "", failed as f64),
        ],
        done: done as f64,
        unit: "connection",
        ..Measured::default()
    })
}

pub(super) async fn bulk(
    subject: &Subject,
    streams: usize,
    sizes: Sizes,
    down: bool,
) -> anyhow::Result<Measured> {
    let each = sizes.bulk / streams as u64;
    let start = Instant::now();
    let one = async || match down {
        true => download(subject, each).await,
        false => upload(subject, each).await,
    };
    futures_util::future::try_join_all((0..streams).map(|_| one())).await?;
    let moved = (each * streams as u64) as f64 / f64::from(1 << 20);
    let what = if down { "download" } else { "upload" };
    let plural = if streams == 1 { "" } else { "s" };
    let rate = moved / start.elapsed().as_secs_f64();
    Ok(Measured {
        figures: vec![
            Figure::more(format!("{what}, {streams} stream{plural}"), "MiB/s", rate)
                .goal(Goal::Ratio(1.2)),
        ],
        done: moved,
        unit: "MiB",
        ..Measured::default()
    })
}

async fn download(subject: &Subject, bytes: u64) -> anyhow::Result<()> {
    let mut stream = subject.connect(Port::Http).await?;
    let request =
        format!("GET /bytes?n={bytes} HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = vec![0; 256 << 10];
    let mut got = 0;
    // The head is a few hundred bytes of many millions.
    while got < bytes {
        let n = timeout(LIMIT, stream.read(&mut buffer))
            .await
            .context("stalled")??;
        anyhow::ensure!(n > 0, "ended after {got} of {bytes} bytes");
        got += n as u64;
    }
    Ok(())
}

async fn upload(subject: &Subject, bytes: u64) -> anyhow::Result<()> {
    let mut stream = subject.connect(Port::Http).await?;
    let head = format!("POST /sink HTTP/1.1\r\nHost: reviews\r\nContent-Length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let buffer = vec![0; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        timeout(LIMIT, stream.write_all(&buffer[..n]))
            .await
            .context("stalled")??;
        left -= n as u64;
    }
    exchange(&mut stream, b"").await
}
