//! How connections share one line of 20 Mbit/s in each direction, with a round trip of 50 ms, on a paused clock.

#![expect(clippy::print_stdout, reason = "the figures")]

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use kubevpn_target::Connect as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep};

use crate::rounds::{Far, TRIP, get, quiet};
use crate::support::target;

/// Bytes a second.
const NARROW: u64 = 2_500_000;

const SERVICE: &str = "reviews:80";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

/// A narrow line in use.
async fn narrow() -> Far {
    let far = Far::start().await;
    connection(&far).await;
    quiet().await;
    far.line.narrow(NARROW);
    far
}

/// A new connection, and the time until the answer over it begins.
async fn connection(far: &Far) -> Duration {
    let begun = Instant::now();
    let mut stream = far.connect.clone().connect(target(SERVICE)).await.unwrap();
    get(&mut stream).await;
    begun.elapsed()
}

/// A transfer without end; counts what the client has read or written.
async fn transfer(far: &Far, way: Way, moved: &AtomicU64) -> Infallible {
    let mut stream = far.connect.clone().connect(target(SERVICE)).await.unwrap();
    let asked = match way {
        Way::Down => "GET /bytes?n=1000000000000 HTTP/1.1\r\nHost: any\r\n\r\n",
        Way::Up => "POST /sink HTTP/1.1\r\nHost: any\r\nContent-Length: 1000000000000\r\n\r\n",
    };
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut piece = vec![0; 64 << 10];
    loop {
        let n = match way {
            Way::Down => stream.read(&mut piece).await.unwrap(),
            Way::Up => stream.write(&piece).await.unwrap(),
        };
        assert!(n > 0);
        moved.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Runs `run` beside this many transfers, which end with it; returns the bytes of each.
async fn beside<T>(
    far: &Far,
    way: Way,
    transfers: usize,
    run: impl Future<Output = T>,
) -> (T, Vec<u64>) {
    let moved: Vec<_> = (0..transfers).map(|_| AtomicU64::new(0)).collect();
    let all = join_all(moved.iter().map(|moved| transfer(far, way, moved)));
    let done = tokio::select! {
        _ = all => unreachable!("they have no end"),
        done = run => done,
    };
    (done, moved.into_iter().map(AtomicU64::into_inner).collect())
}

#[tokio::test(start_paused = true)]
async fn new_connections_beside_a_transfer_are_answered_within_two_round_trips() {
    for way in [Way::Down, Way::Up] {
        let far = narrow().await;
        let run = async {
            quiet().await;
            let mut took = Vec::new();
            for _ in 0..40 {
                took.push(connection(&far).await);
            }
            took.sort_unstable();
            took
        };
        let (took, moved) = beside(&far, way, 1, run).await;
        assert!(moved[0] > NARROW, "the line is full");
        assert!(took[20] <= 2 * TRIP, "{way:?}: {took:?}");
        println!("{way:?}: p50 {:?}, longest {:?}", took[20], took[39]);
    }
}

#[tokio::test(start_paused = true)]
async fn two_transfers_get_as_much_each() {
    for way in [Way::Down, Way::Up] {
        let far = narrow().await;
        let ((), moved) = beside(&far, way, 2, sleep(Duration::from_secs(10))).await;
        let (less, more) = (moved[0].min(moved[1]), moved[0].max(moved[1]));
        println!("{way:?}: {less} and {more} bytes");
        assert!(10 * less >= 9 * more, "{way:?}: {moved:?}");
        assert!(less + more > 9 * NARROW, "the line is full");
    }
}

/// Bytes of an upload that wait if the client sends faster than the line: a frame being gathered and one being written (256 KiB
/// each at most, `backend/spdy/src/session/send.rs`), the buffer of the TLS connection, and its socket, which holds 256 KiB here.
const WAITS: u64 = (256 + 256 + 64 + 256) << 10;

#[tokio::test(start_paused = true)]
async fn little_of_an_upload_waits_for_the_line() {
    for uploads in [1, 16] {
        let far = narrow().await;
        let before = far.line.carried();
        let run = sleep(Duration::from_secs(5));
        let ((), moved) = beside(&far, Way::Up, uploads, run).await;
        let waits = moved
            .iter()
            .sum::<u64>()
            .saturating_sub(far.line.carried() - before);
        println!(
            "{uploads} uploads: {waits} bytes wait, over {:?} sessions",
            far.forwarder.stats().sessions
        );
        assert!(waits <= uploads as u64 * WAITS, "{uploads}: {waits}");
    }
}
