//! What becomes of connections that are open.

use std::time::Duration;

use lab::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::client::{GET, echoes, exchange};
use super::{Figure, Goal, Measured, Sizes};
use crate::subject::{Port, RunningSubject, SubjectKind};
use crate::wire::LIMIT;

/// 200 open connections; one is refused and one reset by the Pod; how many of the 200 still echo.
pub(super) async fn blast(kind: &SubjectKind, lab: &Lab) -> anyhow::Result<Measured> {
    const OPEN: usize = 200;
    let subject =
        RunningSubject::start_for(kind, lab, &[Port::Echo, Port::Reset, Port::Nothing]).await?;
    let mut open = Vec::new();
    for _ in 0..OPEN {
        let mut stream = subject.connect(Port::Echo).await?;
        echoes(&mut stream).await?;
        open.push(stream);
    }
    let poke = async |port| {
        if let Ok(mut stream) = subject.connect(port).await {
            let _sent = stream.write_all(b"x").await;
            let _ended = timeout(Duration::from_secs(3), stream.read(&mut [0; 1])).await;
        }
    };
    poke(Port::Nothing).await;
    poke(Port::Reset).await;
    let mut alive = 0;
    for stream in &mut open {
        alive += usize::from(echoes(stream).await.is_ok());
    }
    let what = format!("of {OPEN} open connections, dropped when one is refused and one reset");
    let dropped = Figure::less(what, "", (OPEN - alive) as f64).goal(Goal::Value(0.0));
    Ok(Measured::from(vec![dropped]))
}

/// What open connections without traffic cost in resident memory.
pub(super) async fn held(subject: &RunningSubject, sizes: Sizes) -> anyhow::Result<Measured> {
    let before = subject.resident()?;
    let mut open = Vec::new();
    let mut failed = 0;
    for _ in 0..sizes.held {
        let attempt = timeout(LIMIT, async {
            let mut stream = subject.connect(Port::Http).await?;
            exchange(&mut stream, GET).await?;
            anyhow::Ok(stream)
        });
        match attempt.await {
            Ok(Ok(stream)) => open.push(stream),
            _ => failed += 1,
        }
    }
    // What connections needed only while they were opened is given back within a moment.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = subject.resident()?;
    let each = after.saturating_sub(before) as f64 / open.len().max(1) as f64 / 1024.0;
    let held = sizes.held;
    Ok(Measured::from(vec![
        Figure::less(
            format!("memory per idle open connection, {held} held"),
            "KiB",
            each,
        )
        .goal(Goal::Value(24.0)),
        Figure::less(
            format!("of {held} connections to hold, failed"),
            "",
            f64::from(failed),
        )
        .goal(Goal::Value(0.0)),
    ]))
}
