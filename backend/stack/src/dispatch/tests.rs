use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kubevpn_cluster::Readiness;
use kubevpn_portforward::PodSessionState;
use tokio::io::DuplexStream;
use tower::service_fn;

use super::*;

const ATTEMPT: Duration = Duration::from_secs(10);

fn endpoint(name: &str, readiness: Readiness) -> Endpoint {
    Endpoint {
        pod: PodRef {
            namespace: "shop".into(),
            name: name.into(),
            uid: None,
        },
        port: 80,
        readiness,
        addresses: Vec::new(),
    }
}

fn of(endpoints: Vec<Endpoint>) -> Subscription {
    Candidates::new("service shop/web port 80", endpoints).into()
}

fn candidates(pods: &[&str]) -> Subscription {
    of(pods
        .iter()
        .map(|name| endpoint(name, Readiness::Ready))
        .collect())
}

/// A service that answers each Pod's dials as configured, and counts them.
#[derive(Clone, Default)]
struct Leaf {
    dials: Arc<Mutex<HashMap<String, usize>>>,
    refuses: Arc<Mutex<HashMap<String, Refusal>>>,
    hangs: Arc<Mutex<Vec<String>>>,
}

impl Leaf {
    fn service(
        &self,
    ) -> impl Service<PodPort, Response = DuplexStream, Error = ConnectError, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
    + use<> {
        let leaf = self.clone();
        service_fn(move |to: PodPort| {
            let leaf = leaf.clone();
            async move {
                *leaf
                    .dials
                    .lock()
                    .unwrap()
                    .entry(to.pod.clone())
                    .or_default() += 1;
                let hangs = leaf.hangs.lock().unwrap().contains(&to.pod);
                if hangs {
                    std::future::pending::<()>().await;
                }
                match leaf.refuses.lock().unwrap().get(&to.pod) {
                    Some(refusal) => Err(ConnectError::new(*refusal, format!("{to} said no"))),
                    None => Ok(tokio::io::duplex(1).0),
                }
            }
        })
    }

    fn dials(&self, pod: &str) -> usize {
        self.dials.lock().unwrap().get(pod).copied().unwrap_or(0)
    }

    fn refuse(&self, pod: &str, refusal: Refusal) {
        self.refuses.lock().unwrap().insert(pod.into(), refusal);
    }

    fn hang(&self, pod: &str) {
        self.hangs.lock().unwrap().push(pod.into());
    }
}

fn layer() -> DispatchLayer {
    DispatchLayer::new(ATTEMPT)
}

#[tokio::test]
async fn replicas_are_used_evenly_under_uneven_lifetimes() {
    let leaf = Leaf::default();
    let dial = layer().layer(leaf.service());
    let pods = ["a", "b", "c"];
    let mut long = Vec::new();
    for n in 0..30 {
        let stream = dial.clone().oneshot(candidates(&pods)).await.unwrap();
        // Every third stream stays open, the others end at once.
        if n % 3 == 0 {
            long.push(stream);
        }
    }
    let open = |pod: &str| leaf.dials(pod);
    assert_eq!(pods.iter().map(|p| open(p)).sum::<usize>(), 30);
    let dials = leaf.dials.lock().unwrap().clone();
    assert!(dials.values().all(|n| *n >= 8), "{dials:?}");
}

/// Pods with open sessions, and those whose session was requested.
#[derive(Clone, Default)]
struct Open {
    ways: Arc<Mutex<Vec<(String, PodSessionState)>>>,
    warmed: Arc<Mutex<Vec<String>>>,
}

impl Ahead for Open {
    fn expect(&self) {}

    fn warm(&self, to: &PodPort) {
        self.warmed.lock().unwrap().push(to.pod.clone());
    }

    fn way(&self, to: &PodPort) -> PodSessionState {
        let ways = self.ways.lock().unwrap();
        match ways.iter().find(|(pod, _)| *pod == to.pod) {
            Some((_, way)) => *way,
            None => PodSessionState::Closed,
        }
    }

    fn is_far(&self) -> bool {
        true
    }
}

impl Open {
    fn open(&self, pod: &str) {
        self.set(pod, PodSessionState::Open);
    }

    fn set(&self, pod: &str, way: PodSessionState) {
        self.ways.lock().unwrap().insert(0, (pod.into(), way));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.warmed.lock().unwrap())
    }
}

#[tokio::test]
async fn a_pod_with_a_session_serves_while_another_session_is_opened() {
    let (leaf, ways) = (Leaf::default(), Open::default());
    let dial = layer().ahead(ways.clone()).layer(leaf.service());
    let next = || dial.clone().oneshot(candidates(&["a", "b"]));
    let mut held = vec![next().await.unwrap()];
    assert_eq!((leaf.dials("a"), leaf.dials("b")), (1, 0));
    assert!(ways.asked().is_empty(), "a dial opens its own way");
    ways.open("a");
    held.push(next().await.unwrap());
    assert_eq!((leaf.dials("a"), leaf.dials("b")), (2, 0));
    assert_eq!(ways.asked(), ["b"]);
    ways.open("b");
    for _ in 0..2 {
        held.push(next().await.unwrap());
    }
    assert_eq!((leaf.dials("a"), leaf.dials("b")), (2, 2));
    assert!(ways.asked().is_empty());
}

#[tokio::test]
async fn many_at_once_do_not_all_go_to_the_first_session() {
    let (leaf, ways) = (Leaf::default(), Open::default());
    let dial = layer().ahead(ways.clone()).layer(leaf.service());
    ways.open("a");
    let mut held = Vec::new();
    for _ in 0..100 {
        let dial = dial.clone().oneshot(candidates(&["a", "b"]));
        held.push(dial.await.unwrap());
    }
    let (a, b) = (leaf.dials("a"), leaf.dials("b"));
    assert!(a.abs_diff(b) <= 10, "{a} and {b}");
}

#[tokio::test]
async fn a_pod_whose_way_is_being_opened_is_not_given_another_ones_beside() {
    let (leaf, ways) = (Leaf::default(), Open::default());
    let dial = layer().ahead(ways.clone()).layer(leaf.service());
    let next = || dial.clone().oneshot(candidates(&["a", "b"]));
    ways.set("b", PodSessionState::Opening);
    let _held = next().await.unwrap();
    assert_eq!((leaf.dials("a"), leaf.dials("b")), (0, 1));
    assert!(ways.asked().is_empty());
    // A connection has it now.
    ways.set("b", PodSessionState::Closed);
    next().await.unwrap();
    assert_eq!((leaf.dials("a"), leaf.dials("b")), (1, 1));
}

#[tokio::test]
async fn a_pod_that_fails_is_not_preferred_for_its_open_way() {
    let (leaf, ways) = (Leaf::default(), Open::default());
    let dial = layer().ahead(ways.clone()).layer(leaf.service());
    ways.open("a");
    leaf.refuse("a", Refusal::Refused);
    for _ in 0..3 {
        dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap();
    }
    assert_eq!((leaf.dials("a"), leaf.dials("b")), (1, 3));
}

#[tokio::test]
async fn a_failed_dial_takes_the_next_and_avoids_the_first_for_a_while() {
    let leaf = Leaf::default();
    leaf.refuse("a", Refusal::Refused);
    let dial = layer().layer(leaf.service());
    for _ in 0..4 {
        dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap();
    }
    assert_eq!((leaf.dials("a"), leaf.dials("b")), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_gives_way() {
    let leaf = Leaf::default();
    leaf.hang("a");
    let dial = layer().layer(leaf.service());
    let begun = Instant::now();
    for _ in 0..2 {
        dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap();
    }
    assert_eq!((leaf.dials("a"), leaf.dials("b")), (1, 2));
    assert_eq!(begun.elapsed(), ATTEMPT, "nothing was known of b");
}

/// The emptier of two replicas is on a node that answers nothing: it does not attract connections, and none waits for it
/// if the other is known to answer.
#[tokio::test(start_paused = true)]
async fn a_pod_that_answers_nothing_attracts_no_connections() {
    let leaf = Leaf::default();
    let dial = layer().layer(leaf.service());
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(dial.clone().oneshot(candidates(&["b"])).await.unwrap());
    }
    leaf.hang("a");
    let begun = Instant::now();
    let mut waited = Duration::ZERO;
    for i in 0..30 {
        sleep_until(begun + Duration::from_secs(2 * i)).await;
        let asked = Instant::now();
        open.push(dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap());
        waited += asked.elapsed();
    }
    // At 0 s, and after back-offs of 5, 10, 20 and 40 s.
    assert!((2..=4).contains(&leaf.dials("a")), "{}", leaf.dials("a"));
    assert!(waited <= BESIDE * 4, "{waited:?}");
}

/// Of many simultaneous connections one probes the failed Pod, and the others do not wait for it.
#[tokio::test(start_paused = true)]
async fn a_pod_that_failed_is_probed_by_one_connection_at_a_time() {
    let leaf = Leaf::default();
    let dial = layer().layer(leaf.service());
    let _open = dial.clone().oneshot(candidates(&["b"])).await.unwrap();
    leaf.hang("a");
    dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap();
    assert_eq!(leaf.dials("a"), 1);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let begun = Instant::now();
    let many = (0..200).map(|_| async {
        let stream = dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap();
        (begun.elapsed(), stream)
    });
    let many = futures_util::future::join_all(many).await;
    assert_eq!(leaf.dials("a"), 2);
    assert_eq!(many.iter().filter(|(took, _)| !took.is_zero()).count(), 1);
    // The Pod answers again and gets its share.
    drop(many);
    leaf.hangs.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(11)).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap());
    }
    assert!(leaf.dials("a") >= 10, "{}", leaf.dials("a"));
}

/// A dial that its deadline ends counts as a failure.
#[tokio::test(start_paused = true)]
async fn a_dial_that_its_deadline_drops_leaves_a_mark() {
    let leaf = Leaf::default();
    leaf.hang("a");
    let dial = layer().layer(leaf.service());
    let alone = dial.clone().oneshot(candidates(&["a"]));
    assert!(timeout(Duration::from_secs(30), alone).await.is_err());
    let begun = Instant::now();
    dial.clone().oneshot(candidates(&["a", "b"])).await.unwrap();
    assert_eq!((leaf.dials("a"), begun.elapsed()), (1, Duration::ZERO));
}

#[tokio::test]
async fn a_failure_common_to_all_endpoints_ends_the_dial() {
    for refusal in Refusal::ALL {
        let leaf = Leaf::default();
        for pod in ["a", "b"] {
            leaf.refuse(pod, refusal);
        }
        let error = layer()
            .layer(leaf.service())
            .oneshot(candidates(&["a", "b"]))
            .await
            .unwrap_err();
        assert_eq!(error.refusal(), refusal);
        let dials = leaf.dials("a") + leaf.dials("b");
        let shared = [
            Refusal::ClusterAway,
            Refusal::Forbidden,
            Refusal::Denied,
            Refusal::Overloaded,
            Refusal::Unauthenticated,
        ];
        assert_eq!(
            dials,
            if shared.contains(&refusal) { 1 } else { 2 },
            "{refusal}"
        );
        assert!(
            dials == 1 || error.to_string().contains("none of 2 endpoints"),
            "{error}"
        );
    }
}

/// Every Pod's dial ends with one of these errors, in turn.
async fn all_fail(errors: Vec<ForwardError>, service: Option<&str>) -> ConnectError {
    let pods: Vec<_> = (0..errors.len()).map(|i| format!("web-{i}")).collect();
    let errors = Arc::new(Mutex::new(errors));
    let leaf = service_fn(move |_: PodPort| {
        let error = errors.lock().unwrap().pop().unwrap();
        async move { Err::<DuplexStream, _>(error) }
    });
    let pods: Vec<_> = pods.iter().map(String::as_str).collect();
    let mut candidates = candidates(&pods);
    candidates.service = service.map(str::to_owned);
    layer().layer(leaf).oneshot(candidates).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_gone_are_a_service_that_is_not_ready() {
    let gone = || ForwardError::PodNotFound {
        pod: "shop/web-0".into(),
    };
    let refused = || ForwardError::Refused {
        to: "shop/web-0:80".into(),
        said: String::new(),
    };
    for n in 1..3 {
        let gone = (0..n).map(|_| gone()).collect();
        let error = all_fail(gone, Some("shop/web")).await;
        assert_eq!(error.refusal(), Refusal::NotReady);
        let begin = "service shop/web port 80 has no ready endpoint";
        assert!(error.to_string().starts_with(begin), "{error}");
    }
    // A Pod that was requested directly.
    let error = all_fail(vec![gone()], None).await;
    assert_eq!(error.refusal(), Refusal::NameNotFound);
    // The error of an existing Pod takes precedence over those of missing ones.
    for errors in [vec![gone(), refused()], vec![refused(), gone()]] {
        let error = all_fail(errors, Some("shop/web")).await;
        assert_eq!(error.refusal(), Refusal::Refused);
        assert!(error.to_string().contains("none of 2 endpoints"), "{error}");
    }
}

#[tokio::test]
async fn a_headless_services_port_is_told() {
    let leaf = Leaf::default();
    leaf.refuse("web-0", Refusal::Refused);
    let mut candidates = candidates(&["web-0"]);
    candidates.service = Some("shop/web".into());
    candidates.behind = Some(8080);
    let error = layer().layer(leaf.service()).oneshot(candidates).await;
    let error = error.map(drop).unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused);
    let said = error.to_string();
    assert!(said.contains("said no") && said.contains("8080"), "{said}");
}

/// A limit of this program does not concern the Pods: another may have room, none is marked as failed, and the call does not
/// wait for others.
#[tokio::test(start_paused = true)]
async fn a_limit_of_ones_own_is_not_the_pods_fault() {
    let full = || ForwardError::Overloaded {
        what: "pod shop/web-0".into(),
        limit: 1,
        of: "connections",
    };
    let begun = Instant::now();
    let error = all_fail(vec![full(), full()], Some("shop/web")).await;
    assert_eq!(
        (error.refusal(), begun.elapsed()),
        (Refusal::Overloaded, Duration::ZERO)
    );
    assert!(error.to_string().contains("none of 2 endpoints"), "{error}");
}

#[tokio::test]
async fn no_endpoint_is_a_refusal_and_not_a_panic() {
    for layer in [layer(), layer().also_unready()] {
        let dial = layer.layer(Leaf::default().service());
        let error = dial.oneshot(candidates(&[])).await.unwrap_err();
        assert_eq!(error.refusal(), Refusal::NotReady);
    }
}

async fn dialled(
    layer: DispatchLayer,
    endpoints: Vec<Endpoint>,
) -> Result<Vec<String>, ConnectError> {
    let leaf = Leaf::default();
    layer.layer(leaf.service()).oneshot(of(endpoints)).await?;
    let dials = leaf.dials.lock().unwrap();
    Ok(dials.keys().cloned().collect())
}

#[tokio::test]
async fn the_ready_ones_else_those_that_still_serve_else_none() {
    let ready = endpoint("a", Readiness::Ready);
    let serving = endpoint("b", Readiness::ServingTerminating);
    let not = endpoint("c", Readiness::NotReady);
    let all = vec![not.clone(), serving.clone(), ready];
    assert_eq!(dialled(layer(), all).await.unwrap(), ["a"]);
    let serve = dialled(layer(), vec![not.clone(), serving]).await;
    assert_eq!(serve.unwrap(), ["b"]);
    let error = dialled(layer(), vec![not.clone()]).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::NotReady);
    assert!(
        error.to_string().contains("service shop/web port 80"),
        "{error}"
    );
    let any = dialled(layer().also_unready(), vec![not]).await;
    assert_eq!(any.unwrap(), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends() {
    let before = Instant::now();
    let minute = Duration::from_secs(60);
    let ready = vec![endpoint("a", Readiness::Ready)];
    assert_eq!(
        dialled(layer().waiting(minute), ready).await.unwrap(),
        ["a"]
    );
    assert!(before.elapsed().is_zero());
    let not = vec![endpoint("c", Readiness::NotReady)];
    let error = dialled(layer().waiting(minute), not).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::TimedOut);
    assert_eq!(
        error.to_string(),
        "service shop/web port 80 has no ready endpoint: 1 exists: 1 not ready, \
         and that did not change within 60s"
    );
    assert_eq!(before.elapsed(), minute);
}

/// `sessionAffinity: ClientIP`: one endpoint while it is ready and reachable, for the Service's time.
#[tokio::test(start_paused = true)]
async fn a_service_with_an_affinity_keeps_to_one_pod() {
    let leaf = Leaf::default();
    let dial = layer().layer(leaf.service());
    let lasts = Duration::from_secs(100);
    let to = |pods: &[&str]| {
        let mut candidates = candidates(pods);
        candidates.affinity = Some(lasts);
        dial.clone().oneshot(candidates)
    };
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(to(&["a", "b", "c"]).await.unwrap());
        tokio::time::sleep(lasts / 2).await;
    }
    let first = ["a", "b", "c"]
        .into_iter()
        .find(|p| leaf.dials(p) == 10)
        .expect("one had all");
    // If it is not ready, another takes its place and keeps it.
    let rest: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .filter(|p| *p != first)
        .collect();
    open.push(to(&rest).await.unwrap());
    let second = rest.iter().find(|p| leaf.dials(p) == 1).unwrap();
    open.push(to(&["a", "b", "c"]).await.unwrap());
    assert_eq!(leaf.dials(second), 2);
    // If that one refuses, the third is used.
    leaf.refuse(second, Refusal::Refused);
    open.push(to(&rest).await.unwrap());
    assert_eq!(
        rest.iter()
            .map(|p| leaf.dials(p))
            .collect::<Vec<_>>()
            .iter()
            .sum::<usize>(),
        4
    );
    // After the affinity's time the emptiest is used.
    tokio::time::sleep(lasts).await;
    leaf.refuses.lock().unwrap().clear();
    let before = leaf.dials(second);
    open.push(to(&rest).await.unwrap());
    assert_eq!(leaf.dials(second), before, "it has two, the other one");
}
