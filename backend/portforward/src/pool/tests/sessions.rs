//! Sessions: how many are opened, shared, opened ahead and closed.

use super::*;

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
async fn a_failed_upgrade_fails_all_waiting_dials() {
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
async fn one_failed_upgrade_of_several_fails_no_dial() {
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
async fn a_busy_session_is_shared_if_no_other_can_be_opened() {
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
async fn a_pod_dropped_during_a_dial_does_not_lose_the_upgrade() {
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
async fn a_pod_dropped_after_a_failure_is_dialled_like_a_new_one() {
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
async fn a_dial_at_the_limit_is_overloaded_and_retryable() {
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

#[tokio::test(start_paused = true)]
async fn the_first_session_of_a_pod_is_always_permitted() {
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
async fn pods_share_the_limit_on_sessions() {
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
async fn no_session_is_opened_ahead_soon_after_a_failure() {
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
async fn a_slow_upgrade_does_not_delay_dials_that_can_share() {
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
async fn unused_sessions_of_a_burst_are_closed_except_one() {
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

/// A runtime that has ended drops what is spawned on it at once, on the thread that spawns it.
#[test]
fn a_dial_on_a_runtime_that_has_ended_keeps_no_lock() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let (_node, pool) = TestNode::start(quick());
    runtime.shutdown_background();
    let (done, over) = std::sync::mpsc::channel::<()>();
    std::thread::spawn({
        let pool = pool.clone();
        move || {
            let _done = done;
            let _entered = handle.enter();
            pool.warm(&to(ECHO));
            let _ = dial(&pool, ECHO).now_or_never();
        }
    });
    let over = over.recv_timeout(10 * S).unwrap_err();
    assert_eq!(
        over,
        std::sync::mpsc::RecvTimeoutError::Disconnected,
        "it locked itself out"
    );
    assert_eq!(pool.stats().sessions, [0, 0, 0]);
    let state = pool.state();
    assert_eq!(
        (state.sessions, state.warming, state.runtime.is_some()),
        (0, 0, false)
    );
}

#[tokio::test(start_paused = true)]
async fn no_keeper_is_started_after_shutdown() {
    let (_node, pool) = TestNode::start(quick());
    pool.shutdown().await;
    dial(&pool, ECHO).await.unwrap_err();
    pool.warm(&to(ECHO));
    assert!(pool.state().runtime.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pod_with_full_sessions_gets_another_within_the_limits() {
    let config = Config {
        streams_per_session: 1,
        sessions_per_pod: 2,
        ..quick()
    };
    let (_node, pool) = TestNode::start(config);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(open(&pool).await);
        sleep(S).await;
    }
    let error = dial(&pool, ECHO).await.unwrap_err().to_string();
    assert!(
        error.starts_with("pod shop/web-0 has 4 sessions open"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_beyond_the_limit_replaces_one_that_counts() {
    let config = Config {
        sessions: 1,
        ..quick()
    };
    let (_node, pool) = TestNode::start(config);
    let held = async |pod| dial::dial(pool.clone(), of(pod, ECHO)).await.unwrap();
    let firsts = [held("b").await, held("c").await, held("d").await];
    let mut of_a = vec![held("a").await];
    drop(firsts);
    for _ in 0..3 {
        sleep(S).await;
        of_a.push(held("a").await);
    }
    let extras = pool.state().extras;
    assert!(extras <= 1, "{extras}");
    // One that is idle, and not the first of its Pod, is given up for another Pod's second.
    drop(of_a);
    sleep(S).await;
    let _of_e = [held("e").await, held("e").await];
    settle().await;
    let state = pool.state();
    let of_pod = |name: &str| state.pods.iter().find(|(id, _)| id.pod == name).unwrap().1;
    let counts = ["a", "e"].map(|name| of_pod(name).sessions.len());
    assert_eq!((counts, state.extras), ([1, 2], 1));
}

#[tokio::test(start_paused = true)]
async fn retired_sessions_count_towards_the_limit_of_their_pod() {
    let (node, pool) = TestNode::start(one_session());
    let mut held = Vec::new();
    for n in 0..2 {
        held.push(open(&pool).await);
        node.link(n).wedge();
        pool.probe_all();
        sleep(quick().probe_timeout + 2 * S).await;
    }
    assert_eq!(pool.stats().wedged, 2);
    let error = dial(&pool, ECHO).await.unwrap_err().to_string();
    assert!(
        error.starts_with("pod shop/web-0 has 2 sessions open"),
        "{error}"
    );
}

/// A connection whose first read panics.
struct Panicking;

impl tokio::io::AsyncRead for Panicking {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        panic!("a read that panics");
    }
}

impl tokio::io::AsyncWrite for Panicking {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_task_panics_leaves_the_pool() {
    let (_node, pool) = TestNode::start(quick());
    let pod = Arc::new(PodId::from(&to(ECHO)));
    pool.add(&pod, Box::new(Panicking), Transport::Spdy, false);
    settle().await;
    assert_eq!(pool.stats().sessions, [0, 0, 0]);
    open(&pool).await;
    soon(pool.shutdown()).await;
}
