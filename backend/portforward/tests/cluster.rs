//! The crate's promises, against a real cluster. The kubeconfig is found as kubectl finds it.
//!
//! ```text
//! cargo test -p kubevpn-portforward --test cluster -- --ignored --test-threads 1
//! ```

mod common;

use std::time::Duration;

use common::{ECHO, HTTP, Lab, NOTHING, close, request};
use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_portforward::{Config, TransportChoice};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

fn cluster() -> kube::Config {
    let loaded = load(&KubeconfigArgs::default(), &Env::of_process());
    loaded.unwrap().config
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn every_transport_carries_a_request() {
    common::every_transport_carries_a_request(&cluster()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_port_nothing_listens_on_is_refused() {
    common::a_port_nothing_listens_on_is_refused(&cluster()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_half_closed_client_gets_its_slow_answer() {
    common::a_half_closed_client_gets_its_slow_answer(&cluster()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_half_closed_client_gets_all_of_a_large_answer() {
    common::a_half_closed_client_gets_all_of_a_large_answer(&cluster(), 300_000_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_reset_by_the_pod_is_an_error_of_its_stream_alone() {
    common::a_reset_by_the_pod_is_an_error_of_its_stream_alone(&cluster()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_thousand_connections_cost_few_upgrades() {
    common::a_thousand_connections_cost_few_upgrades(&cluster()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn stalled_readers_disturb_nobody() {
    common::stalled_readers_disturb_nobody(&cluster()).await;
}

/// Data on a forward that has ended stops a worker of the server for good. The Pod closes while data is in flight: the
/// crate cannot prevent that, and has to notice it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn a_wedged_session_is_noticed_and_replaced() {
    let lab = Lab::new(&cluster(), TransportChoice::Auto).await;
    let mut lost = Vec::new();
    for _ in 0..20 {
        let mut stream = lab.dial(HTTP).await.unwrap();
        // Not HTTP: the Pod answers 400 and closes.
        stream.write_all(b"x\r\n\r\n").await.unwrap();
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until && stream.write_all(b"more").await.is_ok() {
            tokio::task::yield_now().await;
        }
        drop(stream);
        // New connections work, whatever the state of the session.
        let mut gets = JoinSet::new();
        let lab = &lab;
        for _ in 0..5 {
            let dial = lab.dial(HTTP);
            let mut stream = dial.await.unwrap();
            gets.spawn(async move {
                let within = Duration::from_secs(20);
                let got = timeout(within, request(&mut stream, "/ready")).await;
                got.expect("an answer or an error").map(drop)
            });
        }
        lost.extend(gets.join_all().await.into_iter().filter_map(Result::err));
    }
    sleep(Duration::from_secs(5)).await;
    let stats = lab.forwarder.stats();
    assert!(
        stats.wedged + stats.evicted > 0,
        "nothing was provoked: {stats:?}"
    );
    assert!(
        lost.is_empty(),
        "lost to a wedged session: {lost:?} {stats:?}"
    );
}

/// 64 clients that do not read their 500 KiB, first on as few sessions as possible, then on one each: the process grows by no
/// more than `Config::unread` and `Config::unread_per_session` allow.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster, and a process of its own"]
#[expect(clippy::print_stderr, reason = "the figures")]
async fn unread_bytes_stay_within_the_formula() {
    const MIB: usize = 1 << 20;
    for sessions_per_pod in [1, 64] {
        // As many connections in a second never share, and each waits for a session of its own.
        let config = Config {
            sessions_per_pod,
            hurry: 64,
            share_after: Duration::from_secs(10),
            ..Config::default()
        };
        let (of_session, in_all) = (config.unread_per_session, config.unread);
        let lab = Lab::with(&cluster(), config).await;
        lab.get("/ready").await.unwrap();
        let before = resident();
        let mut streams = Vec::new();
        for _ in 0..64 {
            let mut stream = lab.dial(HTTP).await.unwrap();
            let ask = b"GET /bytes?n=512000 HTTP/1.0\r\n\r\n";
            stream.write_all(ask).await.unwrap();
            streams.push(stream);
        }
        let mut stats = lab.forwarder.stats();
        let mut same = 0;
        while same < 20 {
            sleep(Duration::from_millis(50)).await;
            let now = lab.forwarder.stats();
            same = if now.unread == stats.unread {
                same + 1
            } else {
                0
            };
            stats = now;
        }
        let sessions: usize = stats.sessions.iter().sum();
        let grown = resident().saturating_sub(before);
        let by_session = sessions * (of_session + 9 * MIB / 4);
        let bound = by_session.min(2 * in_all + sessions * MIB / 4);
        eprintln!(
            "{sessions} sessions: {} KiB unread, {} KiB more resident, at most {} KiB",
            stats.unread / 1024,
            grown / 1024,
            bound / 1024
        );
        assert!(stats.unread > 0, "{stats:?}");
        assert!(
            grown <= bound,
            "{grown} bytes more, {bound} at most: {stats:?}"
        );
    }
}

/// Prints the figures of `docs/decisions/0003-sessions.md`. Asserts nothing about time.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster, and a quiet machine"]
#[expect(clippy::print_stderr, reason = "it is there to be read")]
async fn figures() {
    let lab = Lab::new(&cluster(), TransportChoice::Auto).await;
    let began = Instant::now();
    lab.get("/ready").await.unwrap();
    eprintln!(
        "first GET, with an upgrade and an unknown port: {:?}",
        began.elapsed()
    );

    let (dials, gets) = rounds(&lab, 500).await;
    eprintln!(
        "dial to a good port: {}; with the GET: {}",
        spread(dials),
        spread(gets)
    );

    let mut busy = Vec::new();
    for (what, read) in [("stalled", false), ("reading", true)] {
        for _ in 0..4 {
            let mut stream = lab.dial(HTTP).await.unwrap();
            stream
                .write_all(b"GET /bytes?n=100000000000 HTTP/1.0\r\n\r\n")
                .await
                .unwrap();
            busy.push(tokio::spawn(async move {
                let mut buf = vec![0; 256 * 1024];
                while stream.read(&mut buf).await.is_ok_and(|n| n > 0) {
                    if !read {
                        std::future::pending().await
                    }
                }
            }));
        }
        sleep(Duration::from_secs(2)).await;
        let (_, gets) = rounds(&lab, 300).await;
        eprintln!("GETs beside four {what} downloads: {}", spread(gets));
        busy.drain(..).for_each(|b| b.abort());
        sleep(Duration::from_secs(3)).await;
    }

    let mut refused = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        lab.dial(NOTHING).await.unwrap_err();
        refused.push(began.elapsed());
    }
    eprintln!("dial to a closed port: {}", spread(refused));
    eprintln!("{:?}", lab.forwarder.stats());

    let lab = Lab::new(&cluster(), TransportChoice::Auto).await;
    let before = resident();
    let mut held = Vec::new();
    let began = Instant::now();
    for _ in 0..2000 {
        let mut stream = lab.dial(ECHO).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        held.push(stream);
    }
    let each = (resident() - before) / 2000;
    eprintln!(
        "2,000 held: opened in {:?}, {each} bytes each",
        began.elapsed()
    );
    eprintln!("{:?}", lab.forwarder.stats());
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100];
    format!("p50 {:?}, p99 {:?}", at(50), at(99))
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// This many requests, one after another, each on a connection of its own: durations of the dials, and of the requests.
async fn rounds(lab: &Lab, n: usize) -> (Vec<Duration>, Vec<Duration>) {
    let (mut dials, mut gets) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let began = Instant::now();
        let mut stream = lab.dial(HTTP).await.unwrap();
        dials.push(began.elapsed());
        request(&mut stream, "/ready").await.unwrap();
        gets.push(began.elapsed());
        close(stream);
    }
    (dials, gets)
}
