//! How much many clients get done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::client::get;
use super::{Figure, Goal, Measured, Sizes};
use crate::subject::{Port, RunningSubject};
use crate::wire;

/// `clients` loops for the length of the window; how often the body ran, and how often it failed.
pub(crate) async fn in_parallel<F>(clients: usize, window: Duration, body: F) -> (u64, u64)
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
    subject: &RunningSubject,
    clients: usize,
    sizes: Sizes,
) -> anyhow::Result<Measured> {
    let (done, failed) =
        in_parallel(clients, sizes.window, async || get(subject).await.map(drop)).await;
    let what = format!("new connections, {clients} clients");
    let goal = if clients > 16 { 1.55 } else { 1.5 };
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
    subject: &RunningSubject,
    streams: usize,
    sizes: Sizes,
    down: bool,
) -> anyhow::Result<Measured> {
    let each = sizes.bulk / streams as u64;
    let start = Instant::now();
    let one = async || {
        let mut stream = subject.connect(Port::Http).await?;
        match down {
            true => wire::download(&mut stream, each).await,
            false => wire::upload(&mut stream, each).await,
        }
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
