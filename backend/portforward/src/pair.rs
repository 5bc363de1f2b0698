//! A data and an error stream of one SPDY session, as one connection.
//!
//! The error stream is opened with FLAG_FIN, the data stream after it, both in one write. The container runtime
//! connects to the Pod when it has both. Whether that worked is never said; that it did not comes as an end of the
//! data stream and, a moment later, a text on the error stream.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use kubevpn_spdy::{Headers, OpenError, Session, Stream, StreamError, StreamId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::Config;
use crate::error::ErrorText;
use crate::fate::Fate;

/// Both streams.
pub(crate) struct Pair {
    id: StreamId,
    /// `None` once the Pod has ended.
    data: Option<Stream>,
    /// `None` once its end was read.
    error: Option<Stream>,
    text: ErrorText,
    /// Data that was read to learn the connection's fate.
    first: Bytes,
    /// The data stream's end came with the first look at it.
    ended: bool,
}

/// The PING that tells how long a silent forward was given to fail, sent before the streams have their reply.
///
/// A forward that fails says so within [`Config::fate_wait`] of its reply. That it did not is known by the echo of a PING
/// that the server has read so long after the streams, as the echo takes the same way back. On a short line the PING is
/// sent when the reply has come and the wait is over. On a line longer than the wait it is sent so long after the streams,
/// and its echo comes as long after the reply: that saves the round trip. Where the two come closer together, because they
/// have waited for one another on the way, it says nothing, and another is sent as on a short line.
pub(crate) struct Early<'a> {
    session: &'a Session,
    opened: Instant,
    wait: Duration,
    echo: Pin<Box<dyn Future<Output = Option<Instant>> + Send + 'a>>,
    /// When the echo came; `None` within for a session that has ended.
    came: Option<Option<Instant>>,
}

impl<'a> Early<'a> {
    /// For streams that were opened a moment ago.
    pub(crate) fn new(session: &'a Session, config: &Config) -> Self {
        let (opened, wait) = (Instant::now(), config.fate_wait);
        let echo = Box::pin(async move {
            sleep_until(opened + wait).await;
            session.ping().await.ok().map(|_| Instant::now())
        });
        Self {
            session,
            opened,
            wait,
            echo,
            came: None,
        }
    }

    /// Waits for the reply, and sends the PING meanwhile when its time has come.
    pub(crate) async fn beside<T>(&mut self, reply: impl Future<Output = T>) -> T {
        let mut reply = pin!(reply);
        loop {
            tokio::select! {
                biased;
                reply = &mut reply => return reply,
                at = &mut self.echo, if self.came.is_none() && !self.wait.is_zero() => {
                    self.came = Some(at);
                }
            }
        }
    }

    /// From the reply on, until silence is success.
    async fn silence(&mut self, config: &Config) {
        if self.wait.is_zero() {
            return;
        }
        // A session without an echo is found out by its probe, not here.
        let patience = config.reply_timeout / 5;
        let replied = Instant::now();
        if replied > self.opened + self.wait {
            let came = match self.came {
                Some(came) => came,
                None => timeout(patience, &mut self.echo).await.ok().flatten(),
            };
            sleep_until(replied + self.wait).await;
            if came.is_some_and(|at| at >= replied + self.wait / 2) {
                return;
            }
        } else {
            sleep(self.wait).await;
        }
        let _ = timeout(patience, self.session.ping()).await;
    }
}

impl Pair {
    /// Queues both SYN_STREAMs; they leave in one write.
    pub(crate) fn open(session: &Session, port: u16, request: u64) -> Result<Self, OpenError> {
        let headers = |kind| {
            let mut headers = Headers::default();
            let (port, request) = (port.to_string(), request.to_string());
            for (name, value) in [
                ("streamtype", kind),
                ("port", &*port),
                ("requestid", &*request),
            ] {
                headers
                    .insert(name, value)
                    .expect("names and numbers are valid headers");
            }
            headers
        };
        let _one_write = session.cork();
        let error = session.open(&headers("error"), true)?;
        let data = session.open(&headers("data"), false)?;
        Ok(Self {
            id: data.id(),
            data: Some(data),
            error: Some(error),
            text: ErrorText::default(),
            first: Bytes::new(),
            ended: false,
        })
    }

    /// The data stream's number.
    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// The Pod has ended: what is still queued for it is dropped, and the server told to forget the stream.
    pub(crate) fn over(&mut self) {
        self.data = None;
    }

    /// Waits for the reply to the data stream; the error stream's may come before or after it.
    pub(crate) async fn replied(&mut self) -> Result<(), StreamError> {
        match &mut self.data {
            Some(data) => data.replied().await.map(drop),
            None => Ok(()),
        }
    }

    /// Waits until the fate of the forward is known; the reply has just come. Silence is success when it lasts as long as
    /// `early` says: what was said before, on a busy machine too, is read before it.
    pub(crate) async fn fate(&mut self, early: &mut Early<'_>, config: &Config) -> Fate {
        let silence = early.silence(config);
        let news = tokio::select! {
            biased;
            news = self.first_news() => Some(news),
            // Both may have come since the first look.
            () = silence => self.first_news().now_or_never(),
        };
        match news {
            None => return Fate::Good,
            Some(Err(error)) => {
                // The runtime may reset the stream after its text.
                self.last_words(config).await;
                return if self.text.is_empty() {
                    Fate::Broken(error)
                } else {
                    Fate::Refused
                };
            }
            Some(Ok(())) if !self.first.is_empty() => return Fate::Good,
            Some(Ok(())) => {}
        }
        self.last_words(config).await;
        if self.text.is_empty() {
            // Accepted and closed at once.
            Fate::Good
        } else {
            Fate::Refused
        }
    }

    /// Waits for data, the data stream's end, or the error stream's.
    async fn first_news(&mut self) -> io::Result<()> {
        poll_fn(|cx| {
            if let Some(data) = &mut self.data
                && let Poll::Ready(chunk) = data.poll_chunk(cx)
            {
                self.first = chunk?;
                self.ended = self.first.is_empty();
                return Poll::Ready(Ok(()));
            }
            self.poll_text(cx).map(Ok)
        })
        .await
    }

    /// Waits a little for the end of the error stream.
    async fn last_words(&mut self, config: &Config) {
        // What is still missing then is taken for an end without words.
        let _ = timeout(config.last_words, poll_fn(|cx| self.poll_text(cx))).await;
    }

    /// What the error stream said, so far.
    pub(crate) fn text(&self) -> &ErrorText {
        &self.text
    }

    /// Ready when the error stream has ended, and with it its text.
    pub(crate) fn poll_text(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(error) = &mut self.error {
            match ready!(error.poll_chunk(cx)) {
                Ok(chunk) if !chunk.is_empty() => self.text.push(&chunk),
                // The end; a reset is one too.
                Ok(_) | Err(_) => self.error = None,
            }
        }
        Poll::Ready(())
    }

    /// Data of the Pod; nothing at its end.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let n = self.first.len().min(buf.remaining());
            // Split and not advanced: an empty one would hold the buffer it was read into.
            buf.put_slice(&self.first.split_to(n));
            return Poll::Ready(Ok(()));
        }
        match &mut self.data {
            Some(data) if !self.ended => Pin::new(data).poll_read(cx, buf),
            _ => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let over = self.is_over();
        match &mut self.data {
            Some(data) if !over => Pin::new(data).poll_write(cx, buf),
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Whether the forward has ended on the other side, although its last data may not have been read.
    ///
    /// Nothing may be sent from then on: the server's SPDY library hands frames to five workers, and data
    /// that nobody reads any more stops one of them for good.
    fn is_over(&self) -> bool {
        self.ended || self.error.as_ref().is_none_or(Stream::is_readable)
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.data {
            Some(data) => Pin::new(data).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Sends FLAG_FIN. Whoever waited for the client's end has waited for the linger already.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match &mut self.data {
            Some(data) => data.finish_soon(),
            None => Ok(()),
        }
    }
}
