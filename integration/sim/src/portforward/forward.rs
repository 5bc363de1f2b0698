//! One forwarded connection, with containerd's rules for its end.
//!
//! Neither direction's end is passed on by itself. When either ends, by an end of file, a reset or an
//! error, the other has one second left; then both close.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader, copy_buf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::pod::{PodConnection, PodDialError, Reset, SimPod};

/// What the other direction has left when one has ended.
const GRACE: Duration = Duration::from_secs(1);
/// What is copied at a time, and so the size of most frames.
const CHUNK: usize = 32 * 1024;

/// How a forward ended.
#[derive(Debug)]
pub(super) struct ForwardOutcome {
    /// For the error stream; nothing if all went well.
    pub(super) error: Option<String>,
    /// Whether the data stream ends before the error is told, as it does once there is a network
    /// namespace to dial in.
    pub(super) data_first: bool,
}

/// Forwards until it is over. The caller ends the streams then.
pub(super) async fn forward<S>(
    pod: &Arc<SimPod>,
    port: u16,
    delay: Duration,
    stream: S,
) -> ForwardOutcome
where
    S: AsyncRead + AsyncWrite,
{
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let info = &pod.info;
    let id = &info.sandbox;
    let place = format!("error forwarding port {port} to pod {id}, uid : ");
    let namespace = format!(
        "failed to execute portforward in network namespace \"/run/containerd/io.containerd.grpc.v1.cri/netns/cni-{}\": ",
        info.netns
    );
    let connection = match pod.connect(port) {
        Ok(connection) => connection,
        Err(PodDialError::Gone) => {
            let why = format!("network namespace for sandbox {id:?} is closed");
            return ForwardOutcome {
                error: Some(place + &why),
                data_first: false,
            };
        }
        Err(PodDialError::Refused) => {
            let why = format!(
                "failed to connect to localhost:{port} inside namespace {id:?}, IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused IPv6 dial tcp6: address localhost: no suitable address found "
            );
            return ForwardOutcome {
                error: Some(place + &namespace + &why),
                data_first: true,
            };
        }
    };
    let from = connection.from;
    let why = match copy_both(stream, connection).await {
        Ok(()) => None,
        Err(_) => Some(format!(
            "read tcp4 127.0.0.1:{from}->127.0.0.1:{port}: read: connection reset by peer"
        )),
    };
    ForwardOutcome {
        error: why.map(|why| place + &namespace + &why),
        data_first: true,
    }
}

/// The error is a reset by the pod.
async fn copy_both<S: AsyncRead + AsyncWrite>(
    stream: S,
    connection: PodConnection,
) -> io::Result<()> {
    let (from_client, to_client) = tokio::io::split(stream);
    let (from_pod, to_pod) = tokio::io::split(connection.io);
    let up = async {
        // Whatever ends the client's direction is its end.
        let _ = copy(from_client, to_pod).await;
        Ok(())
    };
    let down = async {
        let _ = copy(from_pod, to_client).await;
        ended(connection.end)
    };
    tokio::pin!(up, down);
    let (first, second) = tokio::select! {
        first = &mut down => (first, timeout(GRACE, up).await),
        first = &mut up => (first, timeout(GRACE, down).await),
    };
    first?;
    second.unwrap_or(Ok(()))
}

async fn copy<R, W>(from: R, mut to: W) -> io::Result<u64>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    copy_buf(&mut BufReader::with_capacity(CHUNK, from), &mut to).await
}

fn ended(mut end: oneshot::Receiver<Reset>) -> io::Result<()> {
    match end.try_recv() {
        Ok(Reset) => Err(io::ErrorKind::ConnectionReset.into()),
        // A program that says nothing has just closed.
        Err(_) => Ok(()),
    }
}
