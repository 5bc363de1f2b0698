//! How long one client waits.

use std::time::Duration;

use lab::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::client::{GET, exchange, get};
use super::{Figure, Goal, Measured, Sizes};
use crate::subject::{Port, RunningSubject, SubjectKind};
use crate::wire::quantile;

/// New connections one after another, and what they cost in upgrades by the API server's audit log.
pub(super) async fn sequential(
    kind: &SubjectKind,
    lab: &Lab,
    subject: &RunningSubject,
    sizes: Sizes,
    since: &lab::AuditMark,
) -> anyhow::Result<Measured> {
    let count = match kind {
        // Ten times as slow.
        SubjectKind::KubeRs { .. } => sizes.sequential / 10,
        _ => sizes.sequential,
    };
    let mut times = Vec::new();
    for _ in 0..count {
        times.push(get(subject).await?);
    }
    let events = lab.audit_since(since).await?;
    let upgrades = events.iter().filter(|e| e.subresource == "portforward");
    let upgrades = upgrades.count() as f64 * 1000.0 / (count + super::WARM_UP) as f64;
    let what = "new connection + GET, one at a time";
    Ok(Measured {
        figures: vec![
            Figure::less(format!("{what}, p50"), "ms", quantile(&mut times, 0.5))
                .goal(Goal::Ratio(0.5)),
            Figure::less(format!("{what}, p99"), "ms", quantile(&mut times, 0.99)),
            Figure::less("upgrades per 1,000 sequential connections", "", upgrades)
                .goal(Goal::Value(8.0)),
        ],
        done: count as f64,
        unit: "connection",
        ..Measured::default()
    })
}

pub(super) async fn keep_alive(
    subject: &RunningSubject,
    clients: usize,
    sizes: Sizes,
) -> anyhow::Result<Measured> {
    let open = (0..clients).map(|_| async {
        let mut stream = subject.connect(Port::Http).await?;
        exchange(&mut stream, GET).await?;
        anyhow::Ok(stream)
    });
    let open = futures_util::future::try_join_all(open).await?;
    let end = Instant::now() + sizes.window;
    let one = async |mut stream| {
        let mut times = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            exchange(&mut stream, GET).await?;
            times.push(start.elapsed());
        }
        anyhow::Ok(times)
    };
    let all = futures_util::future::try_join_all(open.into_iter().map(one)).await?;
    let mut times: Vec<_> = all.into_iter().flatten().collect();
    let done = times.len() as f64;
    let what = match clients {
        1 => "keep-alive GET, 1 client".into(),
        n => format!("keep-alive GET, {n} clients"),
    };
    let mut p50 = Figure::less(format!("{what}, p50"), "ms", quantile(&mut times, 0.5));
    let mut rate = Figure::more(
        format!("{what}, rate"),
        "/s",
        done / sizes.window.as_secs_f64(),
    );
    match clients {
        1 => p50 = p50.goal(Goal::Ratio(0.8)),
        _ => rate = rate.goal(Goal::Ratio(1.4)),
    }
    Ok(Measured {
        figures: vec![p50, rate],
        done,
        unit: "request",
        ..Measured::default()
    })
}

pub(super) async fn beside_stalled(
    subject: &RunningSubject,
    sizes: Sizes,
) -> anyhow::Result<Measured> {
    let gets = async || {
        let (mut times, mut failed) = (Vec::new(), 0);
        let end = Instant::now() + sizes.window;
        while Instant::now() < end {
            match timeout(Duration::from_secs(3), get(subject)).await {
                Ok(Ok(time)) => times.push(time),
                _ => failed += 1,
            }
        }
        let p99 = if times.is_empty() {
            f64::INFINITY
        } else {
            quantile(&mut times, 0.99)
        };
        (p99, failed)
    };
    let (without, _) = gets().await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut stream = subject.connect(Port::Http).await?;
        stream
            .write_all(b"GET /bytes?n=1000000000 HTTP/1.1\r\nHost: reviews\r\n\r\n")
            .await?;
        stream.read_exact(&mut [0; 1]).await?;
        stalled.push(stream);
    }
    let (with, failed) = gets().await;
    let mut figures = vec![
        Figure::less(
            "GETs beside 4 stalled readers, failed",
            "",
            f64::from(failed),
        )
        .goal(Goal::Value(0.0)),
    ];
    if with.is_finite() {
        figures.push(
            Figure::less(
                "GETs beside 4 stalled readers: p99, as a multiple of without them",
                "x",
                with / without,
            )
            .goal(Goal::Value(2.0)),
        );
    }
    Ok(Measured::from(figures))
}
