//! `v4.channel.k8s.io`: one WebSocket for one connection, for networks that pass nothing else.
//!
//! Every message begins with the number of its channel, 0 for data and 1 for the error text. The first two
//! bytes of each channel repeat the port, little endian. A single direction cannot be ended: ending it closes the
//! connection. Derived from the kubelet's port-forward server; there is no specification.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Sink, Stream};
use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::config::Config;
use crate::error::ErrorText;
use crate::fate::Fate;
use crate::pod::PodId;
use crate::stats::MAY_BLOCK;
use crate::transport::SessionIo;
use crate::transport::upgrade::{UpgradeError, UpgradedIo, path};
use crate::transport::websocket::{config as ws_config, io_error, is_end, open as handshake};

const PROTOCOL: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Limit on the data of one message.
const CHUNK: usize = 64 * 1024;

/// Sends a GET request, as WebSocket requires.
pub(crate) async fn open(
    client: &kube::Client,
    pod: &PodId,
    port: u16,
    within: Duration,
) -> Result<UpgradedIo, UpgradeError> {
    let uri = format!("{}?ports={port}", path(pod));
    handshake(client, pod, uri, PROTOCOL, within).await
}

/// One connection to a Pod's port.
pub(crate) struct WebSocketChannel {
    ws: WebSocketStream<Box<dyn SessionIo>>,
    /// The unread rest of the last message's data.
    data: Bytes,
    /// How many of the port's bytes were skipped, by channel.
    passed: [u8; 2],
    text: ErrorText,
    ended: bool,
    /// We have closed the connection; errors after that do not matter.
    closing: bool,
    /// The writer that waits for room.
    blocked: Option<Waker>,
    beat: Beat,
}

/// Timing of pings, and of the answers awaited.
struct Beat {
    timer: Pin<Box<Sleep>>,
    heard: Instant,
    wrote: Instant,
    /// Something was sent since the peer last sent something.
    unanswered: bool,
    /// Bytes sent that no pong has confirmed, and how many of them were sent before the ping.
    written: u64,
    before_ping: u64,
    pinged: Option<Instant>,
    /// Since when the connection accepts no more data: the Pod does not read, or the peer is gone.
    full: Option<Instant>,
    every: Duration,
    suspect: Duration,
    patience: Duration,
    long_patience: Duration,
}

impl WebSocketChannel {
    pub(crate) async fn new(io: Box<dyn SessionIo>, config: &Config) -> Self {
        let ws_config = ws_config(16 * 1024);
        Self {
            ws: WebSocketStream::from_raw_socket(io, Role::Client, Some(ws_config)).await,
            data: Bytes::new(),
            passed: [0; 2],
            text: ErrorText::default(),
            ended: false,
            closing: false,
            blocked: None,
            beat: Beat::new(config),
        }
    }

    /// Waits until the fate of the forward, which began with the upgrade, is known, or the connection was silent for a
    /// while.
    pub(crate) async fn fate(&mut self, config: &Config) -> Fate {
        let open = poll_fn(|cx| self.poll_open(cx));
        match timeout(config.reply_timeout, open).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Fate::Broken(error),
            Err(elapsed) => return Fate::Broken(elapsed.into()),
        }
        let news = poll_fn(|cx| self.poll_news(cx));
        let news = match timeout(config.fate_wait, news).await {
            Ok(news) => news,
            Err(_) if config.fate_wait.is_zero() => return Fate::Good,
            // As on a session: a failure reported before the pong is read before it.
            Err(_) => match timeout(config.reply_timeout / 5, self.news_or_pong()).await {
                Ok(news) => news,
                Err(_) => return Fate::Good,
            },
        };
        match news {
            Err(error) => Fate::Broken(error),
            Ok(()) if self.data.is_empty() && !self.text.is_empty() => Fate::Refused,
            Ok(()) => Fate::Good,
        }
    }

    /// Pings, and waits for the pong or for what comes before it.
    async fn news_or_pong(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_ping(cx)).await?;
        poll_fn(|cx| {
            while self.beat.pinged.is_some() && !self.has_news() {
                ready!(self.poll_message(cx))?;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Data from the Pod; nothing at its end.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.data.is_empty() {
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if self.poll_message(cx)?.is_pending() {
                // Sends what a writer left unflushed. A flush replaces the writer's waker, so it is the one of a writer
                // that waits for room.
                let blocked = self.blocked.clone();
                let writer = blocked.as_ref().unwrap_or_else(|| cx.waker());
                if let Poll::Ready(Err(error)) = self.poll_flush(&mut Context::from_waker(writer)) {
                    return Poll::Ready(Err(error));
                }
                return self.poll_beat(cx);
            }
        }
        let n = self.data.len().min(buf.remaining());
        // Split and not advanced: an empty one would hold the buffer it was read into.
        buf.put_slice(&self.data.split_to(n));
        Poll::Ready(Ok(()))
    }

    /// Ready when data, an error text or the end is there.
    fn poll_news(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.has_news() {
            ready!(self.poll_message(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn has_news(&self) -> bool {
        !self.data.is_empty() || !self.text.is_empty() || self.ended
    }

    /// Ready when the server has opened both channels, or has done more than that.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.passed != [2; 2] && !self.ended && self.data.is_empty() {
            ready!(self.poll_message(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Text of the error channel, complete once the connection has ended.
    pub(crate) fn text(&self) -> &ErrorText {
        &self.text
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let ws = &mut self.ws;
        let room = Pin::new(&mut *ws).poll_ready(cx);
        self.blocked = room.is_pending().then(|| cx.waker().clone());
        ready!(room).map_err(io_error)?;
        let chunk = &buf[..buf.len().min(CHUNK)];
        let mut message = BytesMut::with_capacity(1 + chunk.len());
        message.extend_from_slice(&[DATA]);
        message.extend_from_slice(chunk);
        let message = Message::Binary(message.freeze());
        Pin::new(ws).start_send(message).map_err(io_error)?;
        self.beat.wrote(chunk.len());
        Poll::Ready(Ok(chunk.len()))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.ws).poll_flush(cx)).map_err(io_error)?;
        self.beat.drained();
        self.blocked.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }

    /// Closes the connection, which is the only end it has.
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closing = true;
        match ready!(Pin::new(&mut self.ws).poll_close(cx)) {
            Err(error) if !is_end(&error) => Poll::Ready(Err(io_error(error))),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Takes one message in.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let message = match ready!(Pin::new(&mut self.ws).poll_next(cx)) {
            None | Some(Ok(Message::Close(_))) => {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            Some(Err(error)) if is_end(&error) || self.closing || !self.text.is_empty() => {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            Some(Ok(message)) => message,
        };
        self.beat.heard(matches!(message, Message::Pong(_)));
        if let Message::Binary(mut message) = message
            && message.has_remaining()
        {
            let channel = message.get_u8();
            if let Some(passed) = self.passed.get_mut(usize::from(channel)) {
                while *passed < 2 && message.has_remaining() {
                    message.advance(1);
                    *passed += 1;
                }
            }
            match channel {
                DATA => self.data = message,
                ERROR => self.text.push(&message),
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Pings when it is time. Ready only with an error, when the answer does not come.
    fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.beat.timer.as_mut().poll(cx).is_ready() {
            if self.beat.is_dead() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the connection to the API server stopped answering",
                )));
            }
            if self.beat.is_due() {
                if self.closing {
                    // Nothing may follow our close. Its acceptance by the peer is awaited like an answer.
                    self.beat.pinged = Some(Instant::now());
                } else if self.blocked.is_none()
                    && let Poll::Ready(sent) = self.poll_ping(cx)
                {
                    sent?;
                } else if self.beat.pinged.is_none() {
                    self.beat.full.get_or_insert_with(Instant::now);
                }
            }
            let next = self.beat.next();
            self.beat.timer.as_mut().reset(next);
        }
        Poll::Pending
    }

    /// Ready when a ping was sent.
    fn poll_ping(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.beat.pinged.is_none() {
            ready!(Pin::new(&mut self.ws).poll_ready(cx)).map_err(io_error)?;
            let ping = Message::Ping(Bytes::new());
            Pin::new(&mut self.ws).start_send(ping).map_err(io_error)?;
            self.beat.pinged();
        }
        self.poll_flush(cx)
    }
}

impl Beat {
    fn new(config: &Config) -> Self {
        let now = Instant::now();
        Self {
            timer: Box::pin(sleep_until(now + config.ping_every)),
            heard: now,
            wrote: now,
            unanswered: false,
            written: 0,
            before_ping: 0,
            pinged: None,
            full: None,
            every: config.ping_every,
            suspect: config.suspect_after,
            patience: config.probe_timeout,
            long_patience: config.upload_patience,
        }
    }

    fn heard(&mut self, pong: bool) {
        self.heard = Instant::now();
        self.unanswered = false;
        if pong {
            self.pinged = None;
            self.written -= std::mem::take(&mut self.before_ping);
        }
    }

    fn wrote(&mut self, bytes: usize) {
        self.wrote = Instant::now();
        self.unanswered = true;
        self.written += bytes as u64;
        self.full = None;
        let next = self.next();
        if next < self.timer.deadline() {
            self.timer.as_mut().reset(next);
        }
    }

    fn pinged(&mut self) {
        self.pinged = Some(Instant::now());
        self.before_ping = self.written;
        self.full = None;
    }

    /// The connection has taken everything: the next ping is due as if it had never been full.
    fn drained(&mut self) {
        if self.full.take().is_some() {
            let next = self.next();
            self.timer.as_mut().reset(next);
        }
    }

    fn next(&self) -> Instant {
        match self.pinged {
            // A Pod that does not read an upload holds up the ping behind it.
            Some(at) if self.written > MAY_BLOCK => at.max(self.heard) + self.long_patience,
            Some(at) => at.max(self.heard) + self.patience,
            None => match self.full {
                Some(since) => since.max(self.heard) + self.long_patience,
                None if self.unanswered => (self.wrote + self.suspect).min(self.heard + self.every),
                None => self.heard + self.every,
            },
        }
    }

    fn is_due(&self) -> bool {
        self.pinged.is_none() && self.full.is_none() && Instant::now() >= self.next()
    }

    fn is_dead(&self) -> bool {
        (self.pinged.is_some() || self.full.is_some()) && Instant::now() >= self.next()
    }
}
