//! Work for a client that is cancelled when the client is gone.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::ReadBuf;
use tokio::time::Sleep;

use crate::ClientIo;

/// Interval at which a client that is not being read is asked whether its connection is broken.
pub(crate) const CHECK: Duration = Duration::from_secs(1);

/// Limit on data that is read ahead while the target is being dialled; the rest waits in the socket.
const EARLY: usize = 16 * 1024;

/// Runs `work` until it is done or the client is gone; the error is then the client's.
///
/// Data that the client sends meanwhile is appended to `early`, up to 16 KiB. An end of file does not stop the work, unless the
/// client has sent nothing and is known to have closed its socket ([`ClientIo::closed`]), which is `ConnectionAborted`. A
/// reset is noticed at once while the client is being read. After an end of file, or with `early` full, nothing is read, and
/// a reset is noticed within a second, on transports that implement [`ClientIo::broken`].
///
/// Cancellation: dropping the future drops `work`; data that was read is in `early`.
///
/// ```
/// use bytes::BytesMut;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let (mut client, _app) = tokio::io::duplex(64);
/// let mut early = BytesMut::new();
/// let dialled = kubevpn_conn::while_connected(&mut client, &mut early, async { 42 }).await?;
/// assert_eq!(dialled, 42);
/// # Ok(())
/// # }
/// ```
pub async fn while_connected<C, F>(
    client: &mut C,
    early: &mut BytesMut,
    work: F,
) -> io::Result<F::Output>
where
    C: ClientIo,
    F: Future,
{
    let mut work = pin!(work);
    let mut watch = ClientWatch {
        ended: false,
        check: ClientCheck::default(),
    };
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        watch.poll(cx, client, early).map(Err)
    })
    .await
}

struct ClientWatch {
    /// Whether the client has sent its end of file.
    ended: bool,
    check: ClientCheck,
}

impl ClientWatch {
    /// Ready with the error that broke the connection.
    fn poll<C: ClientIo>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        early: &mut BytesMut,
    ) -> Poll<io::Error> {
        while !self.ended && early.len() < EARLY {
            let mut chunk = [MaybeUninit::uninit(); 2048];
            let room = chunk.len().min(EARLY - early.len());
            let mut chunk = ReadBuf::uninit(&mut chunk[..room]);
            match ready!(Pin::new(&mut *client).poll_read(cx, &mut chunk)) {
                Ok(()) if chunk.filled().is_empty() => self.ended = true,
                Ok(()) => early.extend_from_slice(chunk.filled()),
                Err(error) => return Poll::Ready(error),
            }
        }
        // A client that has sent data need not stay until it arrives.
        let ended = self.ended && early.is_empty();
        self.check.poll(cx, client, ended).map(|gone| match gone {
            Gone::Broken(error) => error,
            Gone::Closed => io::ErrorKind::ConnectionAborted.into(),
        })
    }
}

/// Why the client is gone.
pub(crate) enum Gone {
    Broken(io::Error),
    /// The client's program has closed its socket after its end of file.
    Closed,
}

/// Checks once every [`CHECK`] whether a client that is not being read is still there.
///
/// A client that has ended its stream is also checked at once, and soon again: programs that close often end their writing
/// first, and the kernel sends the end before it releases the socket.
#[derive(Default)]
pub(crate) struct ClientCheck {
    timer: Option<Pin<Box<Sleep>>>,
    /// Number of checks since its end of file.
    asked: u32,
    is_unknown: bool,
}

impl ClientCheck {
    /// Ready when the client is gone. `ended`: its end of file was read.
    pub(crate) fn poll<C: ClientIo>(
        &mut self,
        cx: &mut Context<'_>,
        client: &C,
        ended: bool,
    ) -> Poll<Gone> {
        if ended && self.asked == 0 {
            self.timer = None;
            if let Some(gone) = self.look(client, ended) {
                return Poll::Ready(gone);
            }
        }
        loop {
            let wait = match self.asked {
                0 => CHECK,
                n => CHECK.min(Duration::from_millis(10_u64.saturating_pow(n))),
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            if let Some(gone) = self.look(client, ended) {
                return Poll::Ready(gone);
            }
        }
    }

    /// Whether the last check could not tell if a client that has ended its stream still reads.
    pub(crate) fn is_unknown(&self) -> bool {
        self.is_unknown
    }

    fn look<C: ClientIo>(&mut self, client: &C, ended: bool) -> Option<Gone> {
        if ended {
            self.asked = self.asked.saturating_add(1);
            let closed = client.closed();
            self.is_unknown = closed.is_none();
            // Checked first: a socket that the kernel still knows was not reset, and most clients close.
            if closed == Some(true) {
                return Some(Gone::Closed);
            }
        }
        client.broken().map(Gone::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::io::ErrorKind;

    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use crate::mock::{mock, settle};

    #[tokio::test(start_paused = true)]
    async fn a_reset_gives_the_work_up_at_once() {
        let (mut client, control) = mock();
        control.give("early");
        control.fail_read(ErrorKind::ConnectionReset);
        let (held, given_up) = oneshot::channel::<()>();
        let work = async move {
            let _held = held;
            pending::<()>().await;
        };
        let mut early = BytesMut::from("more ");
        let gone = while_connected(&mut client, &mut early, work).await;
        assert_eq!(gone.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(given_up.await.is_err(), "the work was dropped");
        assert_eq!(early, "more early");
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_of_file_is_no_reason_to_give_up() {
        let (mut client, control) = mock();
        control.give("all");
        control.end();
        let work = tokio::time::sleep(Duration::from_secs(3600));
        let mut early = BytesMut::new();
        while_connected(&mut client, &mut early, work)
            .await
            .unwrap();
        assert_eq!(early, "all");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_after_the_end_of_file_is_noticed_within_a_second() {
        let (mut client, control) = mock();
        control.end();
        let waiting = tokio::spawn(async move {
            let mut early = BytesMut::new();
            while_connected(&mut client, &mut early, pending::<()>()).await
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        control.break_quietly(ErrorKind::ConnectionReset);
        let broken = Instant::now();
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(broken.elapsed() <= CHECK);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_read_than_the_limit() {
        let (mut client, control) = mock();
        control.give(vec![b'x'; EARLY]);
        control.give("beyond");
        let (done, work) = oneshot::channel();
        let waiting = tokio::spawn(async move {
            let mut early = BytesMut::new();
            while_connected(&mut client, &mut early, work)
                .await
                .unwrap()
                .unwrap();
            early
        });
        settle().await;
        done.send(()).unwrap();
        assert_eq!(waiting.await.unwrap().len(), EARLY);
        assert!(!control.all_read());
    }
}
