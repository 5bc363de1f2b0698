//! Port-forward over `v4.channel.k8s.io`: WebSocket messages that begin with a channel's number.
//!
//! Each port has two channels, data and error, and one connection from the start to the end of the socket.
//! Each begins with two bytes, the port in little endian. There is no way to end one direction.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, WriteHalf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::forward::forward;
use super::sessions::SessionPlace;
use super::tunnel;
use crate::cluster::SimCluster;
use crate::faults::StreamFault;
use crate::pod::SimPod;

/// What a channel holds of what its pod does not read yet.
const BUFFER: usize = 64 * 1024;
/// The largest piece of data in one message.
const CHUNK: usize = 32 * 1024;

/// Serves a socket to its end.
pub(super) async fn serve<T>(
    cluster: Arc<SimCluster>,
    live: SessionPlace,
    pod: Arc<SimPod>,
    ports: Vec<u16>,
    io: T,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, source) = tunnel::socket(io).await.split();
    match cluster.faults.stream_fault() {
        StreamFault::Refuse => return,
        StreamFault::Silent => return ignore(source).await,
        StreamFault::None => {}
    }
    for (index, port) in ports.iter().enumerate() {
        for channel in [data_of(index), data_of(index) + 1] {
            let start = message(channel, &port.to_le_bytes());
            if sink.send(start).await.is_err() {
                return;
            }
        }
    }
    let (out, queue) = mpsc::channel(8);
    let mut inputs = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let (near, far) = tokio::io::duplex(BUFFER);
        let (from_pod, to_pod) = tokio::io::split(near);
        inputs.push(to_pod);
        let (pod, out) = (Arc::clone(&pod), out.clone());
        let delay = cluster.faults.pod_delay();
        let counted = live.counter().count();
        cluster.spawn(async move {
            let channel = data_of(index);
            let (outcome, ()) = tokio::join!(
                forward(&pod, port, delay, far),
                send(channel, from_pod, out.clone())
            );
            if let Some(text) = outcome.error {
                let _ = out.send(message(channel + 1, text.as_bytes())).await;
            }
            drop(counted);
        });
    }
    drop(out);
    tokio::select! {
        // When every forward has ended the queue ends, and the socket with it.
        () = write(sink, queue) => {}
        () = read(source, &mut inputs) => {}
    }
    // The client is gone: to the forwards that is its end, and theirs is a second later.
    for mut input in inputs {
        let _ = input.shutdown().await;
    }
}

/// The data channel of the port at this place of the list. Far fewer ports than numbers fit into one
/// request line.
fn data_of(index: usize) -> u8 {
    (index * 2) as u8
}

/// From the client to the pods.
async fn read<T>(
    mut source: SplitStream<WebSocketStream<T>>,
    inputs: &mut [WriteHalf<DuplexStream>],
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = source.next().await {
        let Message::Binary(data) = message else {
            continue;
        };
        let [channel, data @ ..] = &data[..] else {
            continue;
        };
        // What comes on an error channel, or one that is not there, is ignored.
        if channel % 2 == 0
            && let Some(input) = inputs.get_mut(usize::from(channel / 2))
        {
            let _ = input.write_all(data).await;
        }
    }
}

/// From a pod to the queue.
async fn send<R: AsyncRead + Unpin>(channel: u8, mut from: R, out: mpsc::Sender<Message>) {
    loop {
        let mut piece = BytesMut::with_capacity(CHUNK + 1);
        piece.put_u8(channel);
        match from.read_buf(&mut (&mut piece).limit(CHUNK)).await {
            Ok(0) | Err(_) => return,
            Ok(_) if out.send(Message::Binary(piece.freeze())).await.is_err() => return,
            Ok(_) => {}
        }
    }
}

/// From the queue to the client, and the close after it.
async fn write<T>(
    mut sink: SplitSink<WebSocketStream<T>, Message>,
    mut queue: mpsc::Receiver<Message>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(piece) = queue.recv().await {
        if sink.send(piece).await.is_err() {
            return;
        }
    }
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    let _ = sink.send(Message::Close(Some(close))).await;
}

/// Reads and does nothing, until the client ends it.
async fn ignore<T: AsyncRead + AsyncWrite + Unpin>(mut source: SplitStream<WebSocketStream<T>>) {
    while let Some(Ok(_)) = source.next().await {}
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(data.len() + 1);
    message.put_u8(channel);
    message.put_slice(data);
    Message::Binary(message.freeze())
}
