//! The pool against a node in memory, on a paused clock.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use kubevpn_target::{Refusal, Stream as _};
use tokio::io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt, split};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::dial::{self, ATTEMPTS};
use crate::pod::{PodPort, PodSessionState};
use crate::stream::PodStream;
use crate::testing::*;

const S: Duration = Duration::from_secs(1);

fn quick() -> Config {
    Config::default()
}

async fn dial(pool: &Arc<Pool>, port: u16) -> Result<PodStream, ForwardError> {
    dial::dial(pool.clone(), to(port)).await
}

/// Dials, and checks that both directions work.
async fn open(pool: &Arc<Pool>) -> PodStream {
    let mut stream = dial(pool, ECHO).await.unwrap();
    echo(&mut stream, b"hello").await.unwrap();
    stream
}

/// Ends the client's side and reads the rest, as a relay does. An end by the runtime's clock is an expected error.
async fn close(stream: PodStream) -> Vec<u8> {
    let (mut read, mut write) = split(stream);
    let mut rest = Vec::new();
    let both = async { tokio::join!(write.shutdown(), read.read_to_end(&mut rest)) };
    let (shut, got) = soon(both).await;
    shut.unwrap();
    if let Err(error) = got {
        assert!(error.to_string().contains("silent too long"), "{error}");
    }
    rest
}

// === sessions ===

#[tokio::test(start_paused = true)]
async fn a_thousand_one_after_another_cost_few_upgrades() {
    let (node, pool) = TestNode::start(quick());
    for _ in 0..1000 {
        let mut stream = open(&pool).await;
        assert_eq!(stream.via().to_string(), "shop/web-0:7 (spdy)");
        assert!(stream.shutdown().now_or_never().is_none(), "it lingers");
        tokio::spawn(close(stream));
        settle().await;
    }
    // Within this second, most of them still wait for the other side's end.
    let most = 1000 / quick().streams_per_session + 2;
    assert!(node.upgrades() <= most, "{}", node.upgrades());
    assert_eq!(pool.stats().opened, 1000);
    // The last one may not have been silent yet when it was counted.
    let lingering = pool.stats().lingering;
    assert!(lingering <= quick().lingering + 1, "{lingering}");
    // The one that was cut short last is closed by the runtime 1 s later.
    sleep(quick().linger + 2 * S).await;
    assert_eq!((pool.stats().streams, node.forwards()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn while_few_each_has_a_session_of_its_own() {
    let (node, pool) = TestNode::start(quick());
    node.upgrade_ms.store(13, SeqCst);
    let mut streams = Vec::new();
    for n in 1..=8 {
        streams.push(open(&pool).await);
        // From the second on, one more is kept ready.
        let spare = usize::from(n > 1);
        sleep(S).await;
        assert_eq!(node.upgrades(), n + spare);
    }
}

#[tokio::test(start_paused = true)]
async fn under_pressure_they_share() {
    let (node, pool) = TestNode::start(quick());
    node.upgrade_ms.store(13, SeqCst);
    let mut streams = Vec::new();
    for _ in 0..10 * quick().sessions_per_pod {
        streams.push(open(&pool).await);
        sleep(S / 5).await;
    }
    assert_eq!(node.upgrades(), quick().sessions_per_pod);
    let state = pool.state();
    let sessions = state.pods.values().flat_map(|p| &p.sessions);
    for session in sessions {
        let held = session.connections.len();
        assert!((9..=11).contains(&held), "{held} is uneven");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_from_cold_shares_few_upgrades() {
    let (node, pool) = TestNode::start(quick());
    node.upgrade_ms.store(1000, SeqCst);
    let mut dials = JoinSet::new();
    for _ in 0..200 {
        let pool = pool.clone();
        dials.spawn(async move { open(&pool).await });
    }
    let began = Instant::now();
    let streams = dials.join_all().await;
    assert_eq!(streams.len(), 200);
    assert!(
        node.upgrades() <= 2 * quick().upgrades_at_once,
        "{}",
        node.upgrades()
    );
    assert!(
        began.elapsed() < 2 * S,
        "none waited for an upgrade of its own"
    );
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_outlives_the_dial_that_asked_for_it() {
    let (node, pool) = TestNode::start(quick());
    node.upgrade_ms.store(1000, SeqCst);
    assert!(timeout(S / 2, dial(&pool, ECHO)).await.is_err());
    open(&pool).await;
    assert_eq!(node.upgrades(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_upgrade_fails_all_who_waited_for_it() {
    let (node, pool) = TestNode::start(quick());
    node.upgrade_ms.store(100, SeqCst);
    *node.refuse.lock().unwrap() = Some(ForwardError::PodNotFound {
        pod: "shop/web-0".into(),
    });
    let mut dials = JoinSet::new();
    for _ in 0..50 {
        let pool = pool.clone();
        dials.spawn(async move { dial(&pool, ECHO).await.unwrap_err().refusal() });
    }
    let refusals = dials.join_all().await;
    assert!(refusals.iter().all(|r| *r == Refusal::NameNotFound));
    assert!(node.upgrades() <= quick().upgrades_at_once);
    // The failure does not affect the next dial.
    *node.refuse.lock().unwrap() = None;
    open(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn one_failed_upgrade_of_several_fails_nobody() {
    let (node, pool) = TestNode::start(quick());
    let pod = "shop/web-0".to_owned();
    *node.refuse.lock().unwrap() = Some(ForwardError::PodNotFound { pod });
    let mut dials = JoinSet::new();
    for n in 0..50 {
        // The first upgrade fails after 100 ms, the others do not.
        node.upgrade_ms
            .store(if n == 0 { 100 } else { 200 }, SeqCst);
        let pool = pool.clone();
        dials.spawn(async move { open(&pool).await });
        settle().await;
    }
    sleep(Duration::from_millis(150)).await;
    *node.refuse.lock().unwrap() = None;
    assert_eq!(dials.join_all().await.len(), 50);
    assert_eq!(node.upgrades(), quick().upgrades_at_once, "no further one");
}

#[tokio::test(start_paused = true)]
async fn where_no_session_can_be_had_a_busy_one_is_shared() {
    let (node, pool) = TestNode::start(quick());
    let mut bulk = dial(&pool, FLOOD).await.unwrap();
    bulk.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    let reader = tokio::spawn(async move {
        while bulk.read_exact(&mut vec![0; 1 << 18]).await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    *node.refuse.lock().unwrap() = Some(ForwardError::Rejected {
        pod: "shop/web-0".into(),
        tried: Vec::new(),
    });
    open(&pool).await;
    assert_eq!(node.upgrades(), 2);
    reader.abort();
}

/// A Pod is in the map from a dial's first step, and unused until its second.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pod_forgotten_while_it_is_dialled_costs_nobody_the_upgrade() {
    let (node, pool) = TestNode::start(quick());
    // Longer than a dial waits before it checks again by itself.
    node.upgrade_ms.store(60, SeqCst);
    let keeper = tokio::task::spawn_blocking({
        let pool = Arc::downgrade(&pool);
        move || {
            while let Some(pool) = pool.upgrade() {
                pool.tick();
            }
        }
    });
    let dials = (0..200).map(|n| {
        let to = PodPort {
            pod: format!("web-{n}"),
            ..to(ECHO)
        };
        dial::dial(pool.clone(), to)
    });
    let dials: JoinSet<_> = dials.collect();
    for dialed in dials.join_all().await {
        dialed.unwrap();
    }
    pool.shutdown().await;
    drop(pool);
    keeper.await.unwrap();
}

/// The same where upgrades fail: failures of the forgotten Pod are not held against its successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pod_forgotten_after_a_failure_is_dialled_as_any_other() {
    let (node, pool) = TestNode::start(quick());
    let keeper = tokio::task::spawn_blocking({
        let pool = Arc::downgrade(&pool);
        move || {
            while let Some(pool) = pool.upgrade() {
                pool.tick();
            }
        }
    });
    *node.refuse.lock().unwrap() = Some(ForwardError::Rejected {
        pod: "shop/web-0".into(),
        tried: Vec::new(),
    });
    let dials: JoinSet<_> = (0..200)
        .map(|n| {
            let pool = pool.clone();
            async move {
                for _ in 0..50 {
                    let to = of(&format!("web-{n}"), ECHO);
                    let error = dial::dial(pool.clone(), to).await.unwrap_err();
                    assert!(matches!(error, ForwardError::Rejected { .. }), "{error}");
                }
            }
        })
        .collect();
    dials.join_all().await;
    pool.shutdown().await;
    drop(pool);
    keeper.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn limits_are_told() {
    let config = Config {
        streams_per_pod: 3,
        ..quick()
    };
    let (_node, pool) = TestNode::start(config);
    let streams = [open(&pool).await, open(&pool).await, open(&pool).await];
    let error = dial(&pool, ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Overloaded);
    assert!(error.retryable(), "another pod may have room");
    drop(streams);
    open(&pool).await;
}

/// A port of another Pod.
fn of(pod: &str, port: u16) -> PodPort {
    PodPort {
        pod: pod.into(),
        ..to(port)
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_session_of_a_pod_is_always_to_be_had() {
    let config = Config {
        sessions: 2,
        ..quick()
    };
    let (node, pool) = TestNode::start(config);
    let mut held = Vec::new();
    for pod in ["a", "a", "a", "b", "c", "d"] {
        let mut stream = dial::dial(pool.clone(), of(pod, ECHO)).await.unwrap();
        echo(&mut stream, b"hello").await.unwrap();
        held.push(stream);
        sleep(S).await;
    }
    assert_eq!(node.upgrades(), 5, "a second one for the first Pod alone");
}

#[tokio::test(start_paused = true)]
async fn pods_in_use_share_what_there_is_of_sessions() {
    let (node, pool) = TestNode::start(quick());
    let mut held = Vec::new();
    for pod in 0..100 {
        for _ in 0..20 {
            let to = of(&format!("web-{pod}"), ECHO);
            held.push(dial::dial(pool.clone(), to).await.unwrap());
            sleep(Duration::from_millis(100)).await;
        }
    }
    for stream in &mut held {
        echo(stream, b"each of them works").await.unwrap();
    }
    let (most, sessions) = (100 + quick().sessions, pool.stats().sessions[0]);
    assert!(sessions <= most, "{sessions}");
    assert!(node.upgrades() <= most, "{}", node.upgrades());
}

#[tokio::test(start_paused = true)]
async fn short_connections_by_the_dozen_share_one_session() {
    let (node, pool) = TestNode::start(quick());
    node.upgrade_ms.store(13, SeqCst);
    let client = || async {
        for _ in 0..50 {
            let mut stream = open(&pool).await;
            sleep(Duration::from_millis(20)).await;
            echo(&mut stream, b"bye").await.unwrap();
        }
    };
    futures_util::future::join_all((0..16).map(|_| client())).await;
    let most = quick().upgrades_at_once + 1;
    assert!(node.upgrades() <= most, "{}", node.upgrades());
    // A session with a lasting connection gets no later ones.
    let mut staying = open(&pool).await;
    sleep(2 * S).await;
    let others: Vec<_> = (0..40).map(|_| open(&pool)).collect();
    let others = futures_util::future::join_all(others).await;
    let shared: Vec<_> = {
        let state = pool.state();
        let sessions = state.pods.values().flat_map(|p| &p.sessions);
        let counts = sessions.map(|e| e.connections.len());
        counts.filter(|&n| n > 0).collect()
    };
    assert!(shared.contains(&1), "{shared:?}");
    echo(&mut staying, b"alone").await.unwrap();
    drop(others);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_ended_is_started_again() {
    let (node, pool) = TestNode::start(quick());
    let elsewhere = tokio::task::spawn_blocking({
        let pool = pool.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { pool.start_keeping() });
        }
    });
    elsewhere.await.unwrap();
    let mut stream = open(&pool).await;
    node.link(0).black_hole();
    stream.write_all(b"anyone?").await.unwrap();
    let lost = timeout(20 * S, stream.read(&mut [0; 1])).await;
    assert!(lost.expect("the keeper looks").is_err());
}

#[tokio::test(start_paused = true)]
async fn idle_sessions_make_room_for_other_pods() {
    let config = Config {
        sessions: 2,
        ..quick()
    };
    let (_node, pool) = TestNode::start(config);
    let mut held = Vec::new();
    for pod in ["a", "b", "c"] {
        let to = PodPort {
            pod: pod.into(),
            ..to(ECHO)
        };
        let stream = dial::dial(pool.clone(), to).await.unwrap();
        if pod == "b" {
            held.push(stream);
        }
        settle().await;
    }
    let names: Vec<_> = pool
        .state()
        .pods
        .iter()
        .filter(|(_, p)| !p.sessions.is_empty())
        .map(|(id, _)| id.pod.clone())
        .collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"b".to_owned()), "it is in use: {names:?}");
}

#[tokio::test(start_paused = true)]
async fn unused_sessions_are_closed() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    sleep(quick().idle - 2 * S).await;
    assert_eq!(pool.stats().sessions, [1, 0, 0]);
    sleep(4 * S).await;
    assert_eq!(pool.stats().sessions, [0, 0, 0]);
    open(&pool).await;
    assert_eq!(node.upgrades(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_session_opened_ahead_serves_the_first_connection() {
    let (node, pool) = TestNode::start(quick());
    assert_eq!(pool.way(&to(ECHO)), PodSessionState::Closed);
    for _ in 0..3 {
        pool.warm(&to(ECHO));
    }
    assert_eq!(pool.way(&to(ECHO)), PodSessionState::Opening);
    settle().await;
    assert_eq!(pool.way(&to(ECHO)), PodSessionState::Open);
    pool.warm(&to(ECHO));
    let first = open(&pool).await;
    assert_eq!(node.upgrades(), 1);
    // From now on it is kept as any other.
    drop(first);
    sleep(quick().idle_ahead + 4 * S).await;
    assert_eq!(pool.stats().sessions, [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_dial_waits_for_the_session_that_is_opened_ahead() {
    let (node, pool) = TestNode::start(quick());
    node.upgrade_ms.store(100, SeqCst);
    pool.warm(&to(ECHO));
    open(&pool).await;
    assert_eq!(node.upgrades(), 1);
}

#[tokio::test(start_paused = true)]
async fn sessions_opened_ahead_are_few_and_go_unused() {
    let (node, pool) = TestNode::start(quick());
    let pods = (0..100).map(|n| PodPort {
        pod: format!("pod-{n}"),
        ..to(ECHO)
    });
    for pod in pods {
        pool.warm(&pod);
    }
    settle().await;
    let bound = quick().ahead;
    assert_eq!((node.upgrades(), pool.stats().sessions[0]), (bound, bound));
    sleep(quick().idle_ahead + 4 * S).await;
    assert_eq!(pool.stats().sessions, [0, 0, 0]);
    pool.warm(&to(ECHO));
    settle().await;
    assert_eq!(
        pool.way(&to(ECHO)),
        PodSessionState::Open,
        "there is room again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_session_to_be_had_is_left_alone_for_a_while() {
    let (node, pool) = TestNode::start(quick());
    *node.refuse.lock().unwrap() = Some(ForwardError::session_lost("web-0".into(), "no"));
    for _ in 0..8 {
        pool.warm(&to(ECHO));
        settle().await;
    }
    assert_eq!(node.upgrades(), 1);
    sleep(6 * S).await;
    pool.warm(&to(ECHO));
    settle().await;
    assert_eq!(node.upgrades(), 2);
    // A dial does not count as one of these attempts.
    *node.refuse.lock().unwrap() = None;
    open(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn where_upgrades_take_long_nobody_waits_for_one_in_vain() {
    let (node, pool) = TestNode::start(quick());
    node.upgrade_ms.store(100, SeqCst);
    let first = open(&pool).await;
    let began = Instant::now();
    let second = open(&pool).await;
    assert_eq!(began.elapsed(), Duration::ZERO, "it is shared");
    sleep(S).await;
    assert_eq!(node.upgrades(), 2, "and one more is opened beside");
    let third = open(&pool).await;
    let state = pool.state();
    let sessions = state.pods.values().flat_map(|p| &p.sessions);
    let mut connections: Vec<_> = sessions.map(|s| s.connections.len()).collect();
    connections.sort_unstable();
    assert_eq!(connections[..2], [1, 2]);
    drop(state);
    drop((first, second, third));
}

#[tokio::test(start_paused = true)]
async fn what_a_burst_leaves_unused_is_closed_but_for_one() {
    let (_node, pool) = TestNode::start(quick());
    let burst = (open(&pool).await, open(&pool).await, open(&pool).await);
    let sessions = pool.stats().sessions[0];
    assert!(sessions > 1, "{sessions}");
    drop(burst);
    sleep(quick().idle_spare + 4 * S).await;
    assert_eq!(pool.stats().sessions, [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_name_is_another_one() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    let reborn = PodPort {
        uid: Some("2f".into()),
        ..to(ECHO)
    };
    dial::dial(pool.clone(), reborn).await.unwrap();
    assert_eq!(node.upgrades(), 2);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_everything() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = open(&pool).await;
    pool.shutdown().await;
    assert!(stream.read(&mut [0; 1]).await.is_err());
    assert_eq!(pool.stats().sessions, [0, 0, 0]);
    let error = dial(&pool, ECHO).await.unwrap_err();
    assert!(matches!(error, ForwardError::ShutDown), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_pool_ends_with_its_last_user() {
    let (node, pool) = TestNode::start(quick());
    let mut stream = open(&pool).await;
    let gone = Arc::downgrade(&pool);
    drop(pool);
    echo(&mut stream, b"streams outlive the forwarder")
        .await
        .unwrap();
    drop(stream);
    sleep(2 * S).await;
    assert!(gone.upgrade().is_none());
    assert_eq!(node.forwards(), 0);
}

// === the fate of a forward ===

#[tokio::test(start_paused = true)]
async fn a_closed_port_is_refused_and_the_session_lives() {
    let (node, pool) = TestNode::start(quick());
    let mut other = open(&pool).await;
    let error = dial(&pool, CLOSED).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused);
    for _ in 0..20 {
        dial(&pool, CLOSED).await.unwrap_err();
    }
    assert_eq!(
        node.upgrades(),
        3,
        "one for the open stream, one for these, one spare"
    );
    assert_eq!(pool.stats().refused, 21);
    sleep(10 * S).await;
    echo(&mut other, b"untouched").await.unwrap();
    assert_eq!(pool.stats().sessions, [3, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn only_the_first_dial_to_a_port_waits_for_its_fate() {
    let (_node, pool) = TestNode::start(quick());
    let began = Instant::now();
    let first = dial(&pool, SINK).await.unwrap();
    assert_eq!(began.elapsed(), quick().fate_wait);
    let began = Instant::now();
    let second = dial(&pool, SINK).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "the port is known");
    // A Pod that speaks first needs no wait.
    let began = Instant::now();
    let mut greeted = dial(&pool, GREET).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    let mut line = [0; 11];
    soon(greeted.read_exact(&mut line)).await.unwrap();
    assert_eq!(&line, b"220 hello\r\n", "nothing of it is lost");
    drop((first, second));
    sleep(quick().good_for).await;
    let began = Instant::now();
    dial(&pool, SINK).await.unwrap();
    assert_eq!(began.elapsed(), quick().fate_wait, "it was forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_a_busy_machine_delays_is_waited_for() {
    let (node, pool) = TestNode::start(quick());
    close(open(&pool).await).await;
    sleep(2 * S).await;
    node.link(0).slow_down();
    node.refusal_ms.store(30, SeqCst);
    let began = Instant::now();
    let error = dial(&pool, CLOSED).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused, "{error}");
    assert!(began.elapsed() > 2 * quick().fate_wait, "it came late");
    // Without a refusal the wait is as long as the round trip.
    let began = Instant::now();
    drop(dial(&pool, SINK).await.unwrap());
    assert!(began.elapsed() < S, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_accepts_and_closes_was_there() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, CLOSE).await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test(start_paused = true)]
async fn a_late_refusal_is_an_error_of_the_stream_and_forgets_the_port() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    node.close_port(ECHO);
    let mut stream = dial(&pool, ECHO).await.unwrap();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains("connection refused"), "{error}");
    let error = stream.write(b"x").await.unwrap_err();
    assert_eq!(
        error.kind(),
        io::ErrorKind::ConnectionRefused,
        "and stays one"
    );
    let error = dial(&pool, ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused);
}

#[tokio::test(start_paused = true)]
async fn the_port_of_a_pod_that_is_gone_is_good_no_longer() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    node.gone.store(true, SeqCst);
    let mut stream = dial(&pool, ECHO).await.unwrap();
    stream.read(&mut [0; 1]).await.unwrap_err();
    let error = dial(&pool, ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Unreachable, "{error}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_to_a_forward_that_has_ended() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, CLOSE).await.unwrap();
    sleep(2 * S).await;
    // The forward's end has arrived and was not read.
    let error = stream.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

// === the end of a stream ===

#[tokio::test(start_paused = true)]
async fn an_answer_after_the_clients_end_arrives_whole() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, SLOW).await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    let began = Instant::now();
    assert_eq!(close(stream).await, b"0123456789");
    // 3 s for the answer, 1 s until the runtime reports the Pod's end, and no linger after it.
    assert_eq!(began.elapsed(), 4 * S);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_answer_keeps_its_session_to_itself() {
    let (node, pool) = TestNode::start(quick());
    let mut asking = dial(&pool, SLOW).await.unwrap();
    asking.write_all(b"ask").await.unwrap();
    let answer = tokio::spawn(close(asking));
    settle().await;
    drop(open(&pool).await);
    assert_eq!(node.upgrades(), 3, "another, and a spare");
    answer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_pod_has_ended_is_forgotten_at_once() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, CLOSE).await.unwrap();
    soon(stream.read(&mut [0; 1])).await.unwrap();
    let open = pool
        .state()
        .entries()
        .next()
        .unwrap()
        .handle
        .stats()
        .streams;
    assert_eq!(open, 0, "nothing queued for it is sent any more");
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn a_silent_pod_is_given_up_after_the_linger() {
    let (node, pool) = TestNode::start(quick());
    let stream = open(&pool).await;
    let began = Instant::now();
    close(stream).await;
    let (after, least) = (began.elapsed(), quick().linger + S);
    // An end alone is not sent at once.
    assert!(after >= least && after < least + S / 10, "{after:?}");
    assert_eq!((pool.stats().streams, node.forwards()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_clients_end_may_have_cut_is_not_taken_for_whole() {
    let soon_over = Config {
        linger: S,
        ..quick()
    };
    let (_node, pool) = TestNode::start(soon_over);
    // The Pod would answer after 3 s; the runtime closes 1 s after the client's end was passed on.
    let mut stream = dial(&pool, SLOW).await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    let (mut read, mut write) = split(stream);
    let mut answer = Vec::new();
    let (shut, cut) =
        soon(async { tokio::join!(write.shutdown(), read.read_to_end(&mut answer)) }).await;
    shut.unwrap();
    let error = cut.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(error.to_string().contains("silent too long"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn half_closed_client_is_sent_all_while_hundreds_of_others_come_and_go() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, EVENTS).await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    let (mut read, mut write) = split(stream);
    let reader = tokio::spawn(async move {
        let mut events = Vec::new();
        let (_, got) = tokio::join!(write.shutdown(), read.read_to_end(&mut events));
        got.map(|_| events)
    });
    // Each has its answer, ends, and sends nothing more, like clients that close where the system does not know.
    for _ in 0..4 * quick().lingering {
        let stream = open(&pool).await;
        tokio::spawn(close(stream));
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(soon(reader).await.unwrap().unwrap(), b"123456");
}

#[tokio::test(start_paused = true)]
async fn every_byte_of_the_pod_begins_the_linger_anew() {
    let (_node, pool) = TestNode::start(quick());
    let stream = dial(&pool, FLOOD).await.unwrap();
    let (mut read, mut write) = split(stream);
    let shut = tokio::spawn(async move { write.shutdown().await });
    for _ in 0..10 {
        sleep(quick().linger - S).await;
        read.read_exact(&mut [0; 4096]).await.unwrap();
    }
    assert!(!shut.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_vanished_clients_leave_nothing() {
    let (node, pool) = TestNode::start(quick());
    let mut tasks = JoinSet::new();
    for _ in 0..1000 {
        let stream = dial(&pool, SINK).await.unwrap();
        tasks.spawn(close(stream));
    }
    let held = quick().lingering;
    settle().await;
    assert!(pool.stats().lingering <= held);
    sleep(2 * S).await;
    assert!(
        node.forwards() <= held,
        "the runtime's part is bounded: {}",
        node.forwards()
    );
    tasks.join_all().await;
    settle().await;
    assert_eq!(
        (
            pool.stats().streams,
            pool.stats().lingering,
            node.forwards()
        ),
        (0, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_is_gone_at_once() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    assert_eq!(pool.stats().streams, 0);
    sleep(2 * S).await;
    assert_eq!(node.forwards(), 0);
}

// === stalled clients ===

/// Fills what the session may hold for a client that does not read.
async fn stall(pool: &Arc<Pool>) -> PodStream {
    let mut stream = dial(pool, FLOOD).await.unwrap();
    stream.read_exact(&mut [0; 1]).await.unwrap();
    settle().await;
    stream
}

fn one_session() -> Config {
    Config {
        sessions_per_pod: 1,
        sessions: 1,
        ..quick()
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_alone_may_do_so_for_ever() {
    let (_node, pool) = TestNode::start(quick());
    let mut stalled = stall(&pool).await;
    sleep(3600 * S).await;
    for _ in 0..1000 {
        stalled.read_exact(&mut [0; 8192]).await.unwrap();
    }
    assert_eq!(pool.stats().evicted, 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_reset_when_others_wait() {
    let (_node, pool) = TestNode::start(one_session());
    let mut other = open(&pool).await;
    let mut stalled = stall(&pool).await;
    let began = Instant::now();
    echo(&mut other, b"waits").await.unwrap();
    assert!(
        began.elapsed() <= quick().stall_wanted + 2 * S,
        "{:?}",
        began.elapsed()
    );
    assert_eq!(pool.stats().stalled, 1);
    let mut rest = Vec::new();
    let error = soon(stalled.read_to_end(&mut rest)).await.unwrap_err();
    assert!(error.to_string().contains("not read"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn two_who_do_not_read_do_not_hurt_each_other_until_one_reads() {
    let (_node, pool) = TestNode::start(one_session());
    let (one, two) = tokio::join!(dial(&pool, FLOOD), dial(&pool, FLOOD));
    let (mut one, two) = (one.unwrap(), two.unwrap());
    sleep(3600 * S).await;
    assert_eq!(pool.stats().stalled, 0);
    // It continues reading, as far as the other stalled client allows.
    let began = Instant::now();
    one.read_exact(&mut vec![0; 2 * quick().unread_per_stream])
        .await
        .unwrap();
    assert!(began.elapsed() <= 2 * S, "{:?}", began.elapsed());
    assert_eq!(pool.stats().stalled, 1);
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn four_stalled_readers_disturb_nobody() {
    let (_node, pool) = TestNode::start(quick());
    let mut stalled = Vec::new();
    for _ in 0..4 {
        stalled.push(stall(&pool).await);
    }
    for _ in 0..100 {
        let began = Instant::now();
        let stream = open(&pool).await;
        assert!(began.elapsed() <= quick().fate_wait);
        drop(stream);
    }
    assert_eq!(pool.stats().stalled, 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_somebody_does_not_read_is_not_shared_while_an_upgrade_takes_long() {
    let (node, pool) = TestNode::start(quick());
    let stalled = stall(&pool).await;
    node.upgrade_ms.store(1000, SeqCst);
    open(&pool).await;
    let state = pool.state();
    let sessions = state.pods.values().flat_map(|p| &p.sessions);
    let streams: Vec<_> = sessions.map(|s| s.request).collect();
    assert_eq!(streams, [1, 1], "one each");
    drop(state);
    drop(stalled);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_reads_is_bounded_in_all() {
    let config = Config {
        unread: 8 << 20,
        ..quick()
    };
    let (_node, pool) = TestNode::start(config.clone());
    let mut stalled = Vec::new();
    for pod in 0..64 {
        let mut stream = dial::dial(pool.clone(), of(&format!("web-{pod}"), FLOOD))
            .await
            .unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap();
        settle().await;
        stalled.push(stream);
    }
    let unread = pool.stats().unread;
    // One read may exceed the limit.
    let most = config.unread + 64 * 128 * 1024;
    assert!(unread <= most, "{unread}");
    // Clients that read are not delayed.
    let mut buf = vec![0; 1 << 20];
    soon(stalled[63].read_exact(&mut buf)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bulk_that_was_cut_off_takes_its_session_with_it() {
    let (node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, FLOOD).await.unwrap();
    stream.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    drop(stream);
    settle().await;
    assert_eq!(pool.stats().sessions, [0, 0, 0]);
    open(&pool).await;
    assert_eq!(node.upgrades(), 2);
}

// === liveness ===

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_found_while_something_is_awaited() {
    let (node, pool) = TestNode::start(quick());
    let mut stream = open(&pool).await;
    sleep(20 * S).await;
    node.link(0).black_hole();
    let began = Instant::now();
    stream.write_all(b"anyone?").await.unwrap();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert!(began.elapsed() < 10 * S, "{:?}", began.elapsed());
    assert!(error.to_string().contains("stopped answering"), "{error}");
    assert_eq!(pool.stats().evicted, 1);
    open(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_found_while_nothing_happens() {
    let (node, pool) = TestNode::start(quick());
    let mut stream = open(&pool).await;
    node.link(0).black_hole();
    let began = Instant::now();
    stream.read(&mut [0; 1]).await.unwrap_err();
    let found = quick().ping_every + quick().probe_timeout + 3 * S;
    assert!(began.elapsed() < found, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dial_into_a_black_hole_takes_another_session() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    sleep(20 * S).await;
    node.link(0).black_hole();
    let began = Instant::now();
    open(&pool).await;
    assert!(began.elapsed() <= 2 * S, "{:?}", began.elapsed());
    assert_eq!(node.upgrades(), 2);
}

/// Clients that give up after a second, one after another, as on a dead line.
#[tokio::test(start_paused = true)]
async fn a_session_whose_clients_gave_up_gets_no_more_of_them() {
    let (node, pool) = TestNode::start(quick());
    drop(open(&pool).await);
    sleep(S).await;
    node.link(0).black_hole();
    let mut stream = dial(&pool, ECHO).await.unwrap();
    stream.write_all(b"anyone?").await.unwrap();
    assert_eq!(node.upgrades(), 1, "nothing is known yet");
    sleep(S).await;
    stream.no_reader();
    stream.shutdown().await.unwrap();
    drop(stream);
    let began = Instant::now();
    open(&pool).await;
    assert!(began.elapsed() < S, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn idle_streams_live_for_days() {
    let (node, pool) = TestNode::start(quick());
    let mut stream = open(&pool).await;
    node.link(0).behind_nat();
    sleep(48 * 3600 * S).await;
    echo(&mut stream, b"good morning").await.unwrap();
    assert_eq!(node.upgrades(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_finds_the_dead_at_once() {
    let (node, pool) = TestNode::start(quick());
    let mut living = open(&pool).await;
    node.link(0).black_hole();
    pool.probe_all();
    sleep(quick().probe_timeout + 2 * S).await;
    assert_eq!(pool.stats().evicted, 1);
    assert!(living.read(&mut [0; 1]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumped_probes_at_once() {
    // Only the jump gives a reason for a probe.
    let config = Config {
        ping_every: 24 * 3600 * S,
        ..quick()
    };
    let (node, pool) = TestNode::start(config);
    let mut stream = open(&pool).await;
    sleep(20 * S).await;
    node.link(0).black_hole();
    tokio::time::advance(3600 * S).await;
    let woken = Instant::now();
    stream.read(&mut [0; 1]).await.unwrap_err();
    assert!(woken.elapsed() < 10 * S, "{:?}", woken.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_mute_session_is_given_up() {
    let config = Config {
        dial_timeout: 60 * S,
        ..quick()
    };
    let (node, pool) = TestNode::start(config);
    let error = dial(&pool, MUTE).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::TimedOut);
    assert!(error.retryable());
    // Each attempt had a session of its own, which is not used again.
    assert_eq!(node.upgrades(), ATTEMPTS);
    settle().await;
    assert_eq!(pool.stats().sessions, [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_mute_stream_takes_none_of_its_siblings_with_it() {
    let (_node, pool) = TestNode::start(one_session());
    let mut stream = open(&pool).await;
    dial(&pool, MUTE).await.unwrap_err();
    sleep(60 * S).await;
    echo(&mut stream, b"untouched").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wedged_session_is_found_when_a_forward_ends_under_a_write() {
    let config = Config {
        sessions: 2,
        ..one_session()
    };
    let (node, pool) = TestNode::start(config);
    let mut idle = open(&pool).await;
    let mut writer = open(&pool).await;
    let mut ending = dial(&pool, SLOW).await.unwrap();
    ending.write_all(b"ask").await.unwrap();
    sleep(2 * S).await;
    ending.write_all(b"more").await.unwrap();
    node.link(0).wedge();
    let mut answer = Vec::new();
    // The Pod ends shortly after it was written to: the session is probed, and found wedged.
    soon(ending.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"0123456789");
    writer.write_all(b"lost?").await.unwrap();
    sleep(5 * S).await;
    assert_eq!(pool.stats().wedged, 1);
    // A connection that wrote meanwhile fails; one that did not may keep reading, but not write.
    let mut rest = Vec::new();
    soon(writer.read_to_end(&mut rest)).await.unwrap_err();
    let nothing = timeout(60 * S, idle.read(&mut [0; 1])).await;
    assert!(nothing.is_err(), "it still listens");
    let error = idle.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    drop((idle, writer));
    open(&pool).await;
    assert_eq!(node.upgrades(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_end_by_the_runtimes_clock_is_no_reason_for_doubt() {
    let soon_over = Config {
        linger: S / 2,
        ..quick()
    };
    let (_node, pool) = TestNode::start(soon_over);
    let proven = || {
        let state = pool.state();
        let mut sessions = state.pods.values().flat_map(|p| &p.sessions);
        sessions.next().map(|e| e.probe.proven())
    };
    let stream = open(&pool).await;
    let before = proven();
    // The client ends, the runtime's clock runs, the Pod's end comes: all within 3 s of a write.
    close(stream).await;
    settle().await;
    assert_eq!(proven(), before, "it was probed");
    // The Pod ends while the client has not: that is a reason.
    let mut stream = dial(&pool, SLOW).await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    sleep(2 * S).await;
    stream.write_all(b"more").await.unwrap();
    soon(stream.read_to_end(&mut Vec::new())).await.unwrap();
    settle().await;
    assert!(proven() > before, "it was not probed");
}

#[tokio::test(start_paused = true)]
async fn what_is_wedged_is_still_watched() {
    let (node, pool) = TestNode::start(quick());
    let mut listener = open(&pool).await;
    node.link(0).wedge();
    pool.probe_all();
    sleep(quick().probe_timeout + 2 * S).await;
    assert_eq!(pool.stats().wedged, 1);
    sleep(3600 * S).await;
    assert_eq!(pool.stats().evicted, 0, "it is alive, in part");
    node.link(0).black_hole();
    let began = Instant::now();
    soon(listener.read(&mut [0; 1])).await.unwrap_err();
    let found = 200 * S + quick().probe_timeout + 3 * S;
    assert!(began.elapsed() <= found, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_read_is_waited_for() {
    let (_node, pool) = TestNode::start(quick());
    let mut stream = dial(&pool, DEAF).await.unwrap();
    let filled = poll_fn(|cx| {
        loop {
            match std::pin::Pin::new(&mut stream).poll_write(cx, &[0; 8192]) {
                Poll::Ready(n) => drop(n.unwrap()),
                Poll::Pending => return Poll::Ready(()),
            }
        }
    });
    filled.await;
    sleep(120 * S).await;
    assert_eq!(pool.stats().evicted, 0);
    // Meanwhile other connections use another session.
    open(&pool).await;
}

#[test]
fn a_stream_dropped_outside_of_a_runtime_has_its_session_probed() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let (node, pool) = TestNode::start(quick());
    let stream = runtime.block_on(open(&pool));
    drop(stream);
    runtime.block_on(async {
        sleep(10 * S).await;
        open(&pool).await;
    });
    assert_eq!((pool.stats().evicted, node.upgrades()), (0, 1));
}
