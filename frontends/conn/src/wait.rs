//! Dialing for a client, as long as there is one.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::ReadBuf;
use tokio::time::Sleep;

use crate::ClientIo;

/// How often a client that is not being read is asked whether its connection is broken.
pub(crate) const CHECK: Duration = Duration::from_secs(1);

/// How much a client may send ahead while its target is being dialled; the rest waits in the socket.
const EARLY: usize = 16 * 1024;

/// Does `work` until it is done or the client is gone, whose error is then the answer.
///
/// What the client sends meanwhile is appended to `early`, up to 16 KiB. An end of file is no reason to
/// stop: the client may have closed its writing side alone. Reading notices a reset at once; after an end of
/// file, or with `early` full, nothing is read and a reset is noticed within a second, on transports whose
/// [`ClientIo::broken`] knows.
///
/// Cancellation: dropping the future drops `work`; what was read is in `early`.
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
    let mut watch = Watch {
        ended: false,
        timer: None,
    };
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        watch.poll(cx, client, early).map(Err)
    })
    .await
}

struct Watch {
    /// The client has sent its end of file.
    ended: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    /// Ready with what broke the connection.
    fn poll<C: ClientIo>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        early: &mut BytesMut,
    ) -> Poll<io::Error> {
        while !self.ended && early.len() < EARLY {
            let mut chunk = [0; 2048];
            let room = chunk.len().min(EARLY - early.len());
            let mut chunk = ReadBuf::new(&mut chunk[..room]);
            match ready!(Pin::new(&mut *client).poll_read(cx, &mut chunk)) {
                Ok(()) if chunk.filled().is_empty() => self.ended = true,
                Ok(()) => early.extend_from_slice(chunk.filled()),
                Err(error) => return Poll::Ready(error),
            }
        }
        poll_broken(cx, client, &mut self.timer)
    }
}

/// Asks a client that is not being read whether it is broken, once every [`CHECK`].
pub(crate) fn poll_broken<C: ClientIo>(
    cx: &mut Context<'_>,
    client: &C,
    timer: &mut Option<Pin<Box<Sleep>>>,
) -> Poll<io::Error> {
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(CHECK)));
    loop {
        ready!(timer.as_mut().poll(cx));
        if let Some(error) = client.broken() {
            return Poll::Ready(error);
        }
        timer.as_mut().reset(tokio::time::Instant::now() + CHECK);
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
