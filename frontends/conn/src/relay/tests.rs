mod closed;
mod ends;
mod errors;
mod flow;
mod resets;

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
