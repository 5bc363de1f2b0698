//! Buffers, flushes and turns.

use super::*;

#[tokio::test(start_paused = true)]
async fn buffers_grow_with_traffic() {
    let ((client, at_client), (upstream, at_upstream)) = (mock(), mock());
    at_client.give(pattern(2_000_000));
    let relayed = start(client, upstream);
    settle().await;
    let sizes = at_upstream.write_sizes();
    assert_eq!(sizes[..3], [16 * 1024, 64 * 1024, 256 * 1024]);
    assert!(sizes[3..].iter().all(|n| *n <= 256 * 1024));
    assert_eq!(at_upstream.written(), pattern(2_000_000));

    // and shrink when there is little.
    for _ in 0..3 {
        at_client.give("x");
        settle().await;
    }
    at_client.give(pattern(100_000));
    settle().await;
    assert_eq!(at_upstream.write_sizes()[sizes.len() + 3], 16 * 1024);
    relayed.abort();
}

#[tokio::test(start_paused = true)]
async fn small_pieces_that_wait_are_written_together() {
    let ((client, at_client), (upstream, at_upstream)) = (mock(), mock());
    for _ in 0..10 {
        at_client.give("piece ");
    }
    let relayed = start(client, upstream);
    settle().await;
    assert_eq!(at_upstream.write_sizes(), [60]);
    relayed.abort();
}

#[tokio::test(start_paused = true)]
async fn pending_bytes_are_flushed_when_no_more_can_be_read() {
    let (client, upstream, relayed) = mocks();
    upstream.hold_flush(true);
    client.give("first");
    settle().await;
    assert_eq!((upstream.written().len(), upstream.flushed()), (5, 0));
    // A flush that is slow keeps neither direction from going on.
    client.give("second");
    upstream.give("answer");
    settle().await;
    assert_eq!((upstream.written().len(), client.flushed()), (11, 6));
    upstream.hold_flush(false);
    settle().await;
    assert_eq!(upstream.flushed(), 11);
    relayed.abort();
}

/// Always has bytes and always takes them, and knows nothing of tokio's budget.
struct Endless(Arc<std::sync::atomic::AtomicU64>);

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buf.initialize_unfilled();
        buf.advance(buf.remaining());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0
            .fetch_add(buf.len() as u64, std::sync::atomic::Ordering::Relaxed);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl ClientIo for Endless {}

impl Stream for Endless {}

#[tokio::test]
async fn endless_streams_do_not_starve_other_tasks() {
    let counts = [(); 2].map(|()| Arc::default());
    let [client, upstream] = counts.clone().map(Endless);
    let options = RelayOptions::default();
    let traffic = Arc::clone(&options.traffic);
    let relayed = tokio::spawn(relay(client, upstream, options));
    // Comes back only if the relay lets this task have its turn.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    relayed.abort();
    assert!(relayed.await.unwrap_err().is_cancelled());
    let [down, up] = counts.map(|n| n.load(std::sync::atomic::Ordering::Relaxed));
    assert!(up > 0 && down > 0, "up {up}, down {down}");
    assert_eq!((traffic.up(), traffic.down()), (up, down));
}
