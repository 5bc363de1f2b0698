//! SPDY frames in binary WebSocket messages: a byte stream that ignores message boundaries.
//!
//! For networks where something drops `Upgrade: SPDY/3.1`. Kubernetes' KEP-4006 describes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::pod::PodId;
use crate::transport::upgrade::{UpgradeError, UpgradedIo, path};
use crate::transport::websocket::{config, io_error, is_end, open as handshake};

const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

/// Limit on the data of one message.
const CHUNK: usize = 128 * 1024;

/// Sends a GET request, as WebSocket requires.
pub(crate) async fn open(
    client: &kube::Client,
    pod: &PodId,
    within: Duration,
) -> Result<WebSocketBytes<UpgradedIo>, UpgradeError> {
    let io = handshake(client, pod, path(pod), PROTOCOL, within).await?;
    Ok(WebSocketBytes::new(io, Role::Client).await)
}

/// A byte stream in WebSocket messages.
pub(crate) struct WebSocketBytes<T> {
    ws: WebSocketStream<T>,
    /// The unread rest of the last message.
    read: Bytes,
}

impl<T: AsyncRead + AsyncWrite + Unpin> WebSocketBytes<T> {
    pub(crate) async fn new(io: T, role: Role) -> Self {
        Self {
            ws: WebSocketStream::from_raw_socket(io, role, Some(config(CHUNK))).await,
            read: Bytes::new(),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketBytes<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.read.is_empty() {
                let n = self.read.len().min(buf.remaining());
                buf.put_slice(&self.read[..n]);
                self.read.advance(n);
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.ws).poll_next(cx)) {
                Some(Ok(Message::Binary(message))) => self.read = message,
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a text message in a tunnel of bytes",
                    )));
                }
                // The library answers pings; the next flush sends the answer.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) if is_end(&error) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketBytes<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.ws).poll_ready(cx)).map_err(io_error)?;
        let chunk = &buf[..buf.len().min(CHUNK)];
        let message = Message::Binary(Bytes::copy_from_slice(chunk));
        Pin::new(&mut self.ws)
            .start_send(message)
            .map_err(io_error)?;
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ws).poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.ws).poll_close(cx)) {
            Err(error) if !is_end(&error) => Poll::Ready(Err(io_error(error))),
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

    use super::*;

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in() {
        // A narrow pipe, so that writes meet back pressure.
        let (a, b) = duplex(1000);
        let (a, b) = tokio::join!(
            WebSocketBytes::new(a, Role::Client),
            WebSocketBytes::new(b, Role::Server)
        );
        let sent: Vec<u8> = (0..700_000u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
        let (mut read, mut write) = (b, a);
        let writer = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let reader = async {
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            read.shutdown().await.unwrap();
            got
        };
        let ((), got) = tokio::join!(writer, reader);
        assert!(got == sent);
    }

    #[tokio::test]
    async fn a_cut_connection_is_an_error() {
        let (a, b) = duplex(1000);
        let mut tunnel = WebSocketBytes::new(a, Role::Client).await;
        drop(b);
        let error = tunnel.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn both_directions_at_once() {
        let (a, b) = duplex(1000);
        let (a, b) = tokio::join!(
            WebSocketBytes::new(a, Role::Client),
            WebSocketBytes::new(b, Role::Server)
        );
        let (mut ar, mut aw) = split(a);
        let (mut br, mut bw) = split(b);
        let echo = async {
            tokio::io::copy(&mut br, &mut bw).await.unwrap();
        };
        let data = vec![7u8; 100_000];
        let client = async {
            let (mut got, sent) = (vec![0; data.len()], &data);
            let write = async {
                aw.write_all(sent).await.unwrap();
                aw.flush().await.unwrap();
            };
            let (_, read) = tokio::join!(write, ar.read_exact(&mut got));
            read.unwrap();
            got
        };
        let got = tokio::select! {
            got = client => got,
            () = echo => panic!("the echo ended early"),
        };
        assert!(got == data);
    }
}
