//! The interface of a backend.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use crate::{BoxError, ConnectError, Target, classify};

/// Opens byte streams to targets.
///
/// Do not implement it: every [`Service<Target>`] whose response is a [`Stream`] and whose error converts into a
/// [`BoxError`] has it. Frontends use this trait as a bound, authors of backends write the service.
pub trait Connect: Send {
    /// The stream of a successful call.
    type Stream: Stream;

    /// Waits until the service is ready, calls it once, and classifies its error.
    ///
    /// Cancellation: dropping the future gives the dial up.
    fn connect(
        self,
        target: Target,
    ) -> impl Future<Output = Result<Self::Stream, ConnectError>> + Send;
}

impl<S> Connect for S
where
    S: Service<Target> + Send,
    S::Response: Stream,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    /// Boxed: on its way to the relay a frontend's future would hold its memory several times.
    type Stream = Box<S::Response>;

    async fn connect(mut self, target: Target) -> Result<Self::Stream, ConnectError> {
        poll_fn(|cx| self.poll_ready(cx))
            .await
            .map_err(|e| classify(e.into()))?;
        let response = self.call(target);
        response.await.map(Box::new).map_err(|e| classify(e.into()))
    }
}

/// A byte stream that can be half-closed.
///
/// `poll_shutdown` ends the writing direction only; the other side's data can still be read to its end. Dropping the
/// stream releases all of its resources.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// The endpoint of the stream, for logs.
    fn via(&self) -> Via {
        Via::default()
    }

    /// Declares that the stream will not be read any more. Written data is still delivered, but the end of the writing
    /// direction need not leave the other one time to finish.
    fn no_reader(&mut self) {}
}

impl<S: Stream> Stream for Box<S> {
    fn via(&self) -> Via {
        (**self).via()
    }

    fn no_reader(&mut self) {
        (**self).no_reader();
    }
}

impl Stream for tokio::net::TcpStream {
    fn via(&self) -> Via {
        Via {
            to: self.peer_addr().map(|a| a.to_string()).unwrap_or_default(),
            transport: "tcp",
        }
    }
}

#[cfg(unix)]
impl Stream for tokio::net::UnixStream {
    fn via(&self) -> Via {
        Via {
            to: String::new(),
            transport: "unix",
        }
    }
}

impl Stream for tokio::io::DuplexStream {}

/// The endpoint and transport of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Via {
    /// The endpoint, e.g. `default/web-0:8080`; empty if unknown.
    pub to: String,
    /// The transport, e.g. `spdy`; empty if unknown.
    pub transport: &'static str,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.to.as_str(), self.transport) {
            ("", "") => f.write_str("-"),
            (to, "") => f.write_str(to),
            ("", transport) => write!(f, "({transport})"),
            (to, transport) => write!(f, "{to} ({transport})"),
        }
    }
}

/// Makes any byte stream a [`Stream`].
///
/// ```
/// use kubevpn_target::{Plain, Stream, Via};
/// let (end, _other) = tokio::io::duplex(64);
/// let stream = Plain(tokio::io::BufReader::new(end));
/// assert_eq!(stream.via(), Via::default());
/// ```
#[derive(Debug)]
pub struct Plain<T>(pub T);

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for Plain<T> {}

impl<T: AsyncRead + Unpin> AsyncRead for Plain<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Plain<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
