//! The pool against a node in memory, on a paused clock.

mod ends;
mod fate;
mod liveness;
mod sessions;
mod stalled;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use kubevpn_target::{Refusal, Stream as _};
use tokio::io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt, split};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::dial::{self, ATTEMPTS};
use crate::pod::{PodPort, PodSessionState};
use crate::stream::PodStream;
use crate::testing::*;

const S: Duration = Duration::from_secs(1);

fn quick() -> Config {
    Config::default()
}

async fn dial(pool: &Arc<Pool>, port: u16) -> Result<PodStream, ForwardError> {
    dial::dial(pool.clone(), to(port)).await
}

/// Dials, and checks that both directions work.
async fn open(pool: &Arc<Pool>) -> PodStream {
    let mut stream = dial(pool, ECHO).await.unwrap();
    echo(&mut stream, b"hello").await.unwrap();
    stream
}

/// Ends the client's side and reads the rest, as a relay does. An end by the runtime's clock is an expected error.
async fn close(stream: PodStream) -> Vec<u8> {
    let (mut read, mut write) = split(stream);
    let mut rest = Vec::new();
    let both = async { tokio::join!(write.shutdown(), read.read_to_end(&mut rest)) };
    let (shut, got) = soon(both).await;
    shut.unwrap();
    if let Err(error) = got {
        assert!(error.to_string().contains("silent too long"), "{error}");
    }
    rest
}

/// A port of another Pod.
fn of(pod: &str, port: u16) -> PodPort {
    PodPort {
        pod: pod.into(),
        ..to(port)
    }
}

fn one_session() -> Config {
    Config {
        sessions_per_pod: 1,
        sessions: 1,
        ..quick()
    }
}
