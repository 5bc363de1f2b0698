use super::*;
use std::io::ErrorKind;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::Drain;
use crate::mock::{Mock, MockControl, mock, settle};

fn start(client: Mock, upstream: Mock) -> JoinHandle<Relayed> {
    tokio::spawn(relay(client, upstream, RelayOptions::default()))
}

/// A relay between two mocks.
fn mocks() -> (MockControl, MockControl, JoinHandle<Relayed>) {
    let ((client, at_client), (upstream, at_upstream)) = (mock(), mock());
    (at_client, at_upstream, start(client, upstream))
}

fn failed(end: &End) -> Option<(Side, ErrorKind)> {
    match end {
        End::Failed { side, error } => Some((*side, error.kind())),
        End::Eof | End::Idle | End::Cut => None,
    }
}

/// `n` bytes that tell their place.
fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

// === ends of file ===

#[tokio::test(start_paused = true)]
async fn the_clients_end_is_passed_on_at_once_and_the_answer_still_comes() {
    let (client, upstream, relayed) = mocks();
    client.give("question");
    client.end();
    settle().await;
    assert_eq!(upstream.written(), b"question");
    assert!(upstream.shutdown_asked());
    assert!(!relayed.is_finished());

    upstream.give("answer");
    settle().await;
    assert_eq!(client.written(), b"answer");
    assert!(!client.shutdown_asked());

    upstream.end();
    let relayed = relayed.await.unwrap();
    assert!(client.shutdown_asked());
    assert_eq!((relayed.up, relayed.down), (8, 6));
    assert!(matches!(relayed.end, End::Eof));
    assert!(!client.was_reset());
    assert!(client.dropped() && upstream.dropped());
}

#[tokio::test(start_paused = true)]
async fn the_upstreams_end_is_passed_on_at_once_and_the_upload_goes_on() {
    let (client, upstream, relayed) = mocks();
    upstream.give("greeting");
    upstream.end();
    settle().await;
    assert_eq!(client.written(), b"greeting");
    assert!(client.shutdown_asked());
    assert!(!relayed.is_finished());

    client.give("upload");
    client.end();
    let relayed = relayed.await.unwrap();
    assert_eq!(upstream.written(), b"upload");
    assert!(upstream.shutdown_asked());
    assert!(matches!(relayed.end, End::Eof));
}

#[tokio::test(start_paused = true)]
async fn an_end_waits_for_the_bytes_before_it() {
    let (client, upstream, relayed) = mocks();
    upstream.room(3);
    client.give(pattern(1000));
    client.end();
    settle().await;
    assert!(!upstream.shutdown_asked());
    upstream.room(1_000_000);
    settle().await;
    assert_eq!(upstream.written(), pattern(1000));
    assert!(upstream.shutdown_asked());
    upstream.end();
    assert_eq!(relayed.await.unwrap().up, 1000);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_slow_to_shut_down_holds_nothing_up() {
    let (client, upstream, relayed) = mocks();
    upstream.hold_shutdown(true);
    client.give("question");
    client.end();
    settle().await;
    assert!(upstream.shutdown_asked());

    // The other direction goes on meanwhile,
    upstream.give("answer");
    settle().await;
    assert_eq!(client.written(), b"answer");
    assert!(!relayed.is_finished());

    // and its end is the end.
    upstream.end();
    let relayed = relayed.await.unwrap();
    assert!(client.shutdown_asked());
    assert!(matches!(relayed.end, End::Eof));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_comes_through_late_does_not_end_the_other_direction() {
    let (client, upstream, relayed) = mocks();
    upstream.hold_shutdown(true);
    client.end();
    settle().await;
    upstream.hold_shutdown(false);
    settle().await;
    assert!(!relayed.is_finished());
    upstream.give("late");
    upstream.end();
    assert_eq!(relayed.await.unwrap().down, 4);
    assert_eq!(client.written(), b"late");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_delivered_yet_is_not_cut_by_both_ends() {
    let (client, upstream, relayed) = mocks();
    client.room(0);
    client.end();
    upstream.give("answer");
    upstream.end();
    settle().await;
    assert!(!relayed.is_finished());
    client.room(100);
    assert!(matches!(relayed.await.unwrap().end, End::Eof));
    assert_eq!(client.written(), b"answer");
}

// === errors ===

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
async fn what_came_before_an_error_is_delivered() {
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
async fn a_write_of_nothing_is_an_error_and_no_loop() {
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

// === a client that is not being read ===

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_while_the_upload_is_blocked_is_noticed_within_a_second() {
    let (client, upstream, relayed) = mocks();
    upstream.room(0);
    client.give(pattern(1_000_000));
    settle().await;
    assert!(
        !client.all_read(),
        "the relay took it all: this test tests nothing"
    );
    assert!(!relayed.is_finished());

    client.break_quietly(ErrorKind::ConnectionReset);
    let broken_at = Instant::now();
    let relayed = relayed.await.unwrap();
    assert!(broken_at.elapsed() <= CHECK);
    assert_eq!(
        failed(&relayed.end),
        Some((Side::Client, ErrorKind::ConnectionReset))
    );
    assert!(upstream.dropped());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_after_its_end_of_file_is_noticed_within_a_second() {
    let (client, upstream, relayed) = mocks();
    client.end();
    settle().await;
    assert!(upstream.shutdown_asked());
    client.break_quietly(ErrorKind::ConnectionReset);
    let broken_at = Instant::now();
    assert_eq!(
        failed(&relayed.await.unwrap().end),
        Some((Side::Client, ErrorKind::ConnectionReset))
    );
    assert!(broken_at.elapsed() <= CHECK);
}

// === clients that have closed ===

#[tokio::test(start_paused = true)]
async fn a_client_that_has_closed_ends_it_at_once() {
    let (client, upstream, relayed) = mocks();
    upstream.hold_shutdown(true);
    client.give("question");
    settle().await;
    upstream.give("answer");
    settle().await;
    client.close(true);
    client.end();
    let started = Instant::now();
    let relayed = relayed.await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert!(matches!(relayed.end, End::Eof), "{:?}", relayed.end);
    assert!(upstream.has_no_reader() && upstream.shutdown_asked() && upstream.dropped());
}

/// A program ends its writing before it closes.
#[tokio::test(start_paused = true)]
async fn a_client_that_closes_after_its_end_is_noticed() {
    let (client, upstream, relayed) = mocks();
    client.close(false);
    client.end();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!relayed.is_finished() && !upstream.has_no_reader());
    client.close(true);
    let closed = Instant::now();
    assert!(matches!(relayed.await.unwrap().end, End::Eof));
    assert!(closed.elapsed() <= CHECK);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_it_closed_arrives() {
    let (client, upstream, relayed) = mocks();
    upstream.room(3);
    client.give(pattern(1000));
    client.close(true);
    client.end();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!relayed.is_finished());
    upstream.room(1000);
    assert_eq!(relayed.await.unwrap().up, 1000);
    assert_eq!(upstream.written(), pattern(1000));
    assert_eq!(upstream.flushed(), 1000);
}

/// A client of which it is unknown whether it has closed returns its permit and does not delay the drain.
#[tokio::test(start_paused = true)]
async fn a_client_that_may_have_closed_after_its_answer_holds_no_place() {
    let (client, upstream, relayed) = mocks();
    client.give("question");
    settle().await;
    client.end();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!client.was_released(), "it waits for its answer");
    upstream.give("half an answer");
    settle().await;
    assert!(!client.was_released(), "there may be more of it");
    tokio::time::sleep(2 * CHECK).await;
    assert!(client.was_released());
    upstream.give("the rest");
    tokio::time::sleep(5 * CHECK).await;
    assert!(!relayed.is_finished());
    client.drain().stop();
    let relayed = relayed.await.unwrap();
    assert!(matches!(relayed.end, End::Cut));
    assert!(
        client.was_reset(),
        "what was sent cannot pass for the whole"
    );
    assert_eq!(client.written(), b"half an answerthe rest");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_half_closed_keeps_its_place_and_is_waited_for() {
    let (client, upstream, relayed) = mocks();
    client.close(false);
    client.give("question");
    client.end();
    settle().await;
    upstream.give("half an answer");
    tokio::time::sleep(5 * CHECK).await;
    client.drain().stop();
    tokio::time::sleep(5 * CHECK).await;
    assert!(!client.was_released() && !relayed.is_finished());
    upstream.end();
    assert!(matches!(relayed.await.unwrap().end, End::Eof));
}

/// The wait of decision 4 is not the client's time.
#[tokio::test(start_paused = true)]
async fn the_time_is_that_of_the_last_byte() {
    let started = Instant::now();
    let (client, upstream, relayed) = mocks();
    client.give("question");
    tokio::time::sleep(Duration::from_secs(2)).await;
    upstream.give("answer");
    settle().await;
    client.end();
    tokio::time::sleep(Duration::from_secs(30)).await;
    upstream.end();
    let relayed = relayed.await.unwrap();
    assert_eq!((relayed.last - started).as_secs(), 2);
}

// === resets ===

/// A process that is killed resets what it relays, and ends in order what was whole.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_relayed_client_lingers_for_nothing_until_it_has_the_whole() {
    let (mut app, client) = tcp_pair().await;
    let (upstream, mut server) = tcp_pair().await;
    let same = client.into_std().unwrap();
    let socket = same.try_clone().unwrap();
    let client = TcpStream::from_std(same).unwrap();
    let linger = || socket2::SockRef::from(&socket).linger().unwrap();
    let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
    server.write_all(b"half").await.unwrap();
    app.read_exact(&mut [0; 4]).await.unwrap();
    assert_eq!(linger(), Some(Duration::ZERO));
    app.shutdown().await.unwrap();
    drop(server);
    assert!(matches!(relayed.await.unwrap().end, End::Eof));
    assert_eq!(linger(), None);
}

/// The same over sockets, where the kernel is asked.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_program_that_closes_is_told_from_one_that_half_closes() {
    let listener = crate::Listener::bind(&"127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = crate::Addr::Unix(dir.path().join("socket"));
    let unix = crate::Listener::bind(&path).await.unwrap();
    for listener in [listener, unix] {
        let addr = listener.addr().clone();
        let (gate, drain) = (crate::Gate::new(crate::Limits::default()), Drain::new());
        let (give, mut ended) = tokio::sync::mpsc::channel(1);
        let serving = listener.serve(gate.clone(), drain.clone(), move |client| {
            let (upstream, server) = duplex(64);
            let give = give.clone();
            async move {
                let relayed = relay(client, upstream, RelayOptions::default()).await;
                give.send((relayed, server)).await.unwrap();
            }
        });
        let serving = tokio::spawn(serving);
        for half in [true, false] {
            let mut app: Box<dyn ClientIo> = match &addr {
                crate::Addr::Tcp(addr) => Box::new(TcpStream::connect(addr).await.unwrap()),
                crate::Addr::Unix(path) => {
                    Box::new(tokio::net::UnixStream::connect(path).await.unwrap())
                }
            };
            app.write_all(b"question").await.unwrap();
            app.shutdown().await.unwrap();
            if half {
                // Longer than it takes to ask twice.
                let early = tokio::time::timeout(3 * CHECK, ended.recv()).await;
                assert!(early.is_err(), "{addr}: a half-closed client was let go");
            }
            drop(app);
            let (relayed, mut server) = ended.recv().await.unwrap();
            assert!(matches!(relayed.end, End::Eof), "{addr}: {:?}", relayed.end);
            let mut got = String::new();
            server.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "question");
        }
        drain.stop();
        serving.await.unwrap();
        drain.drain(Duration::from_secs(5)).await;
        assert_eq!(gate.open(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_being_read_is_not_asked() {
    let (client, _upstream, relayed) = mocks();
    client.give("x");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(client.asked_whether_broken(), 0);
    assert!(!relayed.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_reset_over_tcp_is_noticed_while_the_upload_is_blocked() {
    let (mut app, client) = tcp_pair().await;
    let (upstream, at_upstream) = mock();
    at_upstream.room(0);
    // More than the relay takes while it cannot write, less than the sockets hold.
    app.write_all(&[0; 64 * 1024]).await.unwrap();
    let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
    while at_upstream.writes_held() == 0 {
        settle().await;
    }
    app.reset_on_drop();
    drop(app);
    let relayed = relayed.await.unwrap();
    assert_eq!(
        failed(&relayed.end),
        Some((Side::Client, ErrorKind::ConnectionReset))
    );
}

// === what the client sees of an end that is none ===

#[tokio::test]
async fn a_truncated_answer_cannot_pass_for_a_whole_one() {
    // Cut by the upstream's reset, and by dropping the relay.
    for drop_relay in [false, true] {
        let ((mut app, client), (upstream, mut server)) = (tcp_pair().await, tcp_pair().await);
        let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
        server.write_all(b"half of").await.unwrap();
        let mut half = [0; 7];
        app.read_exact(&mut half).await.unwrap();
        if drop_relay {
            relayed.abort();
        } else {
            server.reset_on_drop();
            drop(server);
        }
        let error = app.read(&mut half).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

// === the idle limit ===

#[tokio::test(start_paused = true)]
async fn there_is_no_idle_limit_by_default() {
    let (_client, _upstream, relayed) = mocks();
    tokio::time::sleep(Duration::from_secs(7 * 24 * 3600)).await;
    assert!(!relayed.is_finished());
}

#[tokio::test(start_paused = true)]
async fn the_idle_limit_counts_from_the_last_byte() {
    let ((client, at_client), (upstream, at_upstream)) = (mock(), mock());
    let options = RelayOptions {
        idle: Some(Duration::from_secs(60)),
        ..RelayOptions::default()
    };
    let relayed = tokio::spawn(relay(client, upstream, options));
    for (control, seconds) in [(&at_client, 50), (&at_upstream, 59), (&at_client, 30)] {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        assert!(!relayed.is_finished());
        control.give("x");
        settle().await;
    }
    let last = Instant::now();
    let relayed = relayed.await.unwrap();
    assert!(matches!(relayed.end, End::Idle));
    // The clock ticks in milliseconds.
    assert_eq!(last.elapsed().as_secs_f64().round(), 60.0);
    assert!(at_client.was_reset());
}

// === buffers, flushes, turns ===

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
async fn everything_is_flushed_when_no_more_is_there() {
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
async fn endless_streams_starve_nobody() {
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

// === whole, whatever the pieces ===

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (connected, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (connected.unwrap(), accepted.unwrap().0)
}

async fn send_and_end(mut to: impl AsyncWrite + Unpin, bytes: Vec<u8>, piece: usize) {
    for piece in bytes.chunks(piece) {
        to.write_all(piece).await.unwrap();
    }
    to.shutdown().await.unwrap();
}

async fn read_all(mut from: impl AsyncRead + Unpin, piece: usize) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), vec![0; piece]);
    loop {
        match from.read(&mut chunk).await.unwrap() {
            0 => return all,
            n => all.extend_from_slice(&chunk[..n]),
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn bytes_arrive_whole_and_in_order(
        (up, down) in (0usize..300_000, 0usize..300_000),
        pieces in proptest::array::uniform4(1usize..40_000),
        rooms in proptest::array::uniform2(1usize..100_000),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (app, client): (DuplexStream, DuplexStream) = duplex(rooms[0]);
            let (upstream, server) = duplex(rooms[1]);
            let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
            let (from_app, to_app) = tokio::io::split(app);
            let (from_server, to_server) = tokio::io::split(server);
            let (_, _, got_down, got_up) = tokio::join!(
                send_and_end(to_app, pattern(up), pieces[0]),
                send_and_end(to_server, pattern(down), pieces[1]),
                read_all(from_app, pieces[2]),
                read_all(from_server, pieces[3]),
            );
            assert!(got_up == pattern(up) && got_down == pattern(down));
            let relayed = relayed.await.unwrap();
            assert_eq!((relayed.up, relayed.down), (up as u64, down as u64));
            assert!(matches!(relayed.end, End::Eof));
        });
    }
}

#[tokio::test]
async fn many_megabytes_each_way_over_tcp() {
    const N: usize = 32 << 20;
    let ((app, client), (upstream, server)) = (tcp_pair().await, tcp_pair().await);
    let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
    let ((from_app, to_app), (from_server, to_server)) = (app.into_split(), server.into_split());
    let sending = [
        tokio::spawn(send_and_end(to_app, pattern(N), 100_000)),
        tokio::spawn(send_and_end(to_server, pattern(N), 1_000_000)),
    ];
    let (down, up) = tokio::join!(read_all(from_app, 65_536), read_all(from_server, 30_000));
    assert!(up == pattern(N) && down == pattern(N));
    for sent in sending {
        sent.await.unwrap();
    }
    assert!(matches!(relayed.await.unwrap().end, End::Eof));
}

#[tokio::test]
async fn a_unix_client_that_leaves_bytes_unread_is_noticed() {
    let (mut app, client) = tokio::net::UnixStream::pair().unwrap();
    let (upstream, mut server) = tcp_pair().await;
    let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
    app.write_all(b"question").await.unwrap();
    let mut question = [0; 8];
    server.read_exact(&mut question).await.unwrap();
    server.write_all(b"answer").await.unwrap();
    app.readable().await.unwrap();
    drop(app); // with the answer unread
    let relayed = relayed.await.unwrap();
    assert!(
        matches!(
            relayed.end,
            End::Failed {
                side: Side::Client,
                ..
            }
        ),
        "{:?}",
        relayed.end
    );
}
