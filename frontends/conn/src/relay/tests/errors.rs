//! Errors: the side they are assigned to, and what is delivered before them.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_error_names_its_side_and_ends_both() {
    use ErrorKind::{BrokenPipe, ConnectionReset, TimedOut};
    type Breaks = fn(&MockControl, &MockControl);
    let cases: [(Breaks, Side, ErrorKind); 6] = [
        (
            |c, _| c.fail_read(ConnectionReset),
            Side::Client,
            ConnectionReset,
        ),
        (|_, u| u.fail_read(TimedOut), Side::Upstream, TimedOut),
        (
            |c, u| {
                c.fail_write(BrokenPipe);
                u.give("x");
            },
            Side::Client,
            BrokenPipe,
        ),
        (
            |c, u| {
                u.fail_write(BrokenPipe);
                c.give("x");
            },
            Side::Upstream,
            BrokenPipe,
        ),
        (
            |c, u| {
                u.fail_shutdown(ConnectionReset);
                c.end();
            },
            Side::Upstream,
            ConnectionReset,
        ),
        (
            |c, u| {
                c.fail_shutdown(ConnectionReset);
                u.end();
            },
            Side::Client,
            ConnectionReset,
        ),
    ];
    for (i, (breaks, side, kind)) in cases.into_iter().enumerate() {
        let (client, upstream, relayed) = mocks();
        settle().await;
        breaks(&client, &upstream);
        settle().await;
        assert!(relayed.is_finished(), "case {i}");
        let relayed = relayed.await.unwrap();
        assert_eq!(failed(&relayed.end), Some((side, kind)), "case {i}");
        assert!(client.was_reset(), "case {i}");
        assert!(client.dropped() && upstream.dropped(), "case {i}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_before_an_error_are_delivered() {
    let (client, upstream, relayed) = mocks();
    upstream.give("last words");
    upstream.fail_read(ErrorKind::ConnectionReset);
    let relayed = relayed.await.unwrap();
    assert_eq!(client.written(), b"last words");
    assert_eq!(relayed.down, 10);
    assert_eq!(
        failed(&relayed.end),
        Some((Side::Upstream, ErrorKind::ConnectionReset))
    );
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_answers_and_takes_no_more_is_still_heard() {
    // An HTTP server that refuses a large upload: answers, closes, and the upload meets a reset.
    let (client, upstream, relayed) = mocks();
    upstream.fail_write(ErrorKind::BrokenPipe);
    upstream.give("413");
    upstream.end();
    client.give("upload");
    let relayed = relayed.await.unwrap();
    assert_eq!(client.written(), b"413");
    assert_eq!(
        failed(&relayed.end),
        Some((Side::Upstream, ErrorKind::BrokenPipe))
    );
}

#[tokio::test(start_paused = true)]
async fn a_late_reset_is_no_failure() {
    for late in [Side::Client, Side::Upstream] {
        let (client, upstream, relayed) = mocks();
        upstream.hold_shutdown(late == Side::Upstream);
        client.hold_shutdown(late == Side::Client);
        client.give("a");
        client.end();
        upstream.give("b");
        if late == Side::Upstream {
            upstream.fail_shutdown(ErrorKind::ConnectionReset);
            upstream.end();
        } else {
            upstream.end();
            settle().await;
            client.fail_shutdown(ErrorKind::ConnectionReset);
        }
        let relayed = relayed.await.unwrap();
        assert!(
            matches!(relayed.end, End::Eof),
            "{late:?}: {:?}",
            relayed.end
        );
        assert_eq!((relayed.up, relayed.down), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_of_zero_bytes_is_an_error() {
    struct TakesNothing;
    impl AsyncRead for TakesNothing {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }
    impl AsyncWrite for TakesNothing {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(0))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let (client, at_client) = mock();
    at_client.give("x");
    let relayed = relay(
        client,
        kubevpn_target::Plain(TakesNothing),
        RelayOptions::default(),
    )
    .await;
    assert_eq!(
        failed(&relayed.end),
        Some((Side::Upstream, ErrorKind::WriteZero))
    );
}
