//! A data and an error stream of one SPDY session, as one connection.
//!
//! The error stream is opened with FLAG_FIN, the data stream after it, both in one write. The container runtime
//! connects to the Pod when it has both. It does not report success. It reports a failure by the end of the data
//! stream and, a moment later, a text on the error stream.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use kubevpn_spdy::{Headers, Session, SpdyStream, StreamError, StreamId, StreamOpenError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::Config;
use crate::error::ErrorText;
use crate::fate::Fate;

/// Both streams.
pub(crate) struct Pair {
    id: StreamId,
    /// `None` once the Pod has ended.
    data: Option<SpdyStream>,
    /// `None` once its end was read.
    error: Option<SpdyStream>,
    text: ErrorText,
    /// The first thing that arrived on the data stream while the connection's fate was awaited was its end.
    ended: bool,
}

/// The first thing that was heard from a forward.
enum PairNews {
    Data,
    /// Of the data stream or the error stream.
    End,
}

/// A PING sent before the streams have their reply, whose echo bounds the time in which a forward can fail silently.
///
/// A forward that fails reports it within [`Config::fate_wait`] of its reply. The echo of a PING that the server read this
/// long after the streams proves that no failure was reported, because the echo takes the same way back. On a short line
/// the PING is sent when the reply has come and the wait is over. On a line with a longer round trip it is sent this long
/// after the streams, and its echo comes as long after the reply: that saves a round trip. If reply and echo arrive closer
/// together, because something on the way held them back, the echo proves nothing, and another PING is sent as on a short
/// line.
pub(crate) struct Early<'a> {
    session: &'a Session,
    opened: Instant,
    wait: Duration,
    echo: Pin<Box<dyn Future<Output = Option<Instant>> + Send + 'a>>,
    /// When the echo came; `Some(None)` for a session that has ended.
    came: Option<Option<Instant>>,
}

impl<'a> Early<'a> {
    /// For streams that were just opened.
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

    /// Waits for the reply, and sends the PING meanwhile when it is due.
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

    /// Waits, from the reply on, until silence means success.
    async fn silence(&mut self, config: &Config) {
        if self.wait.is_zero() {
            return;
        }
        // A session that returns no echo is detected by its probe, not here.
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
    pub(crate) fn open(
        session: &Session,
        port: u16,
        request: u64,
    ) -> Result<Self, StreamOpenError> {
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
            ended: false,
        })
    }

    /// The data stream's number.
    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// The Pod has ended: drops what is still queued for it, and tells the server to forget the stream.
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

    /// Waits until the fate of the forward is known; the reply has just come. Silence means success if it lasts as long as
    /// `early` requires: a failure that was reported before is read before the echo, on a busy machine too.
    pub(crate) async fn fate(&mut self, early: &mut Early<'_>, config: &Config) -> Fate {
        let silence = early.silence(config);
        let news = tokio::select! {
            biased;
            news = self.first_news() => Some(news),
            // Data and end may have arrived since the first look.
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
            Some(Ok(PairNews::Data)) => return Fate::Good,
            Some(Ok(PairNews::End)) => {}
        }
        self.last_words(config).await;
        if self.text.is_empty() {
            // Accepted and closed at once.
            Fate::Good
        } else {
            Fate::Refused
        }
    }

    /// Waits for data, which is left where it counts as unread, for the data stream's end, or for the error stream's.
    async fn first_news(&mut self) -> io::Result<PairNews> {
        poll_fn(|cx| {
            if let Some(data) = &mut self.data
                && let Poll::Ready(ended) = data.poll_end(cx)
            {
                self.ended = ended?;
                return Poll::Ready(Ok(match self.ended {
                    true => PairNews::End,
                    false => PairNews::Data,
                }));
            }
            self.poll_text(cx).map(|()| Ok(PairNews::End))
        })
        .await
    }

    /// Waits a little for the end of the error stream.
    async fn last_words(&mut self, config: &Config) {
        // If it is still missing then, the end counts as one without a text.
        let _ = timeout(config.last_words, poll_fn(|cx| self.poll_text(cx))).await;
    }

    /// The error stream's text so far.
    pub(crate) fn text(&self) -> &ErrorText {
        &self.text
    }

    /// Ready when the error stream has ended: its text is complete.
    pub(crate) fn poll_text(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(error) = &mut self.error {
            match ready!(error.poll_chunk(cx)) {
                Ok(chunk) if !chunk.is_empty() => self.text.push(&chunk),
                // The end; a reset counts as one.
                Ok(_) | Err(_) => self.error = None,
            }
        }
        Poll::Ready(())
    }

    /// Data from the Pod; nothing at its end.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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

    /// Whether the forward has ended on the other side; its last data may still be unread.
    ///
    /// Nothing may be sent from then on: the server's SPDY library gives frames to five workers, and data
    /// that nobody reads stops one of them for good.
    fn is_over(&self) -> bool {
        self.ended || self.error.as_ref().is_none_or(SpdyStream::is_readable)
    }

    /// Ready when the forward has ended on the other side. Pending without a later wake-up if the error stream has no
    /// reply yet.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.error {
            Some(error) if !self.ended => {
                // The reply would wake too.
                let mut unwoken = Context::from_waker(Waker::noop());
                ready!(error.poll_replied(&mut unwoken))
                    .map_or(Poll::Ready(()), |_| error.poll_readable(cx))
            }
            _ => Poll::Ready(()),
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.data {
            Some(data) => Pin::new(data).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Sends FLAG_FIN at once: the linger is over.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match &mut self.data {
            Some(data) => data.finish_soon(),
            None => Ok(()),
        }
    }
}
