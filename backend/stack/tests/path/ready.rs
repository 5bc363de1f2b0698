//! Services whose endpoints come and go while a connection waits for them.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kubevpn_portforward::{ForwardError, PodPort};
use kubevpn_sim::{FaultAnswer, Match, Sim};
use kubevpn_stack::{Cluster, ClusterSettings, DispatchLayer, ResolveLayer, Settings, stack};
use kubevpn_target::{Connect, Refusal, Stream};
use tokio::io::DuplexStream;
use tokio::time::Instant;
use tower::{ServiceBuilder, service_fn};

use crate::support::{cluster, cluster_in_memory, deny, forwarder, get, sim, target, until};

/// The only Pod of a Deployment.
fn pod(sim: &Sim, app: &str) -> String {
    let pods = sim.list("Pod", "default");
    let mut named = pods
        .iter()
        .filter(|p| p["metadata"]["labels"]["app"] == app);
    let pod = named.next().expect("the sample has it");
    assert!(named.next().is_none(), "one replica");
    pod["metadata"]["name"].as_str().unwrap().to_owned()
}

fn watched(sim: &Sim, service: &str) -> bool {
    let label = format!("service-name%3D{service}");
    let mut requests = sim.requests().into_iter();
    requests.any(|r| r.verb == "watch" && r.uri.contains(&label))
}

#[tokio::test]
async fn a_connection_is_let_through_the_moment_an_endpoint_is_ready() {
    let sim = sim().await;
    let settings = Settings {
        wait_ready: Duration::from_secs(60),
        ..Settings::default()
    };
    let connect = stack(
        cluster(&sim, ClusterSettings::default()),
        forwarder(&sim),
        deny(&sim),
        settings,
    );
    let pod = pod(&sim, "notready");
    let mut dial = pin!(connect.clone().connect(target("notready:80")));
    tokio::select! {
        _ = &mut dial => panic!("nothing is ready"),
        () = until(|| watched(&sim, "notready")) => {}
    }
    sim.set_ready("default", &pod, true).unwrap();
    let stream = dial.await.unwrap();
    assert_eq!(stream.via().to, format!("default/{pod}:9080"));
    assert!(get(stream).await.contains("notready"));

    // No Pod matches the selector yet; then one appears.
    let mut dial = pin!(connect.connect(target("empty:80")));
    tokio::select! {
        _ = &mut dial => panic!("there is no endpoint"),
        () = until(|| watched(&sim, "empty")) => {}
    }
    sim.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: late, labels: {app: no-such-pod}}
spec: {containers: [{name: echo, image: echo, env: [{name: PORTS, value: '80'}]}]}
",
    )
    .unwrap();
    let stream = dial.await.unwrap();
    assert_eq!(stream.via().to, "default/late:80");
}

#[tokio::test]
async fn what_is_wrong_for_good_is_not_waited_for() {
    let sim = sim().await;
    let settings = Settings {
        wait_ready: Duration::from_secs(600),
        ..Settings::default()
    };
    let cluster = cluster(&sim, ClusterSettings::default());
    let connect = stack(cluster, forwarder(&sim), deny(&sim), settings);
    for (asked, refusal) in [
        ("notready:81", Refusal::NoSuchPort),
        ("nosuch:80", Refusal::NameNotFound),
        ("manual:80", Refusal::Unreachable),
    ] {
        let error = connect.clone().connect(target(asked)).await.unwrap_err();
        assert_eq!(error.refusal(), refusal, "{error}");
    }
    // A Service that is deleted while a connection waits for it.
    let mut dial = pin!(connect.connect(target("notready:80")));
    tokio::select! {
        _ = &mut dial => panic!("nothing is ready"),
        () = until(|| watched(&sim, "notready")) => {}
    }
    sim.delete("Service", "default", "notready").unwrap();
    let error = dial.await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::NameNotFound, "{error}");
}

/// The result of a dial whose first attempt fails in this way.
struct Dialled {
    /// The Pods, in order.
    dials: Vec<String>,
    done: Result<(), Refusal>,
    took: Duration,
}

/// Dials `reviews`; no Pod is met, and `meanwhile` happens under the first attempt. For a paused clock.
async fn dialled(
    sim: &Arc<Sim>,
    cluster: Cluster,
    failed: fn(PodPort) -> ForwardError,
    meanwhile: impl Fn(&Sim) + Send + Sync + 'static,
) -> Dialled {
    let dials = Arc::new(Mutex::new(Vec::new()));
    let meanwhile = Arc::new(meanwhile);
    let leaf = {
        let (sim, dials) = (sim.clone(), dials.clone());
        service_fn(move |to: PodPort| {
            let first = {
                let mut dials = dials.lock().unwrap();
                dials.push(to.pod.clone());
                dials.len() == 1
            };
            let (sim, meanwhile) = (sim.clone(), meanwhile.clone());
            async move {
                if first {
                    meanwhile(&sim);
                    return Err::<DuplexStream, _>(failed(to));
                }
                Ok(tokio::io::duplex(1).0)
            }
        })
    };
    let connect = ServiceBuilder::new()
        .layer(ResolveLayer::new(cluster, deny(sim)))
        .layer(DispatchLayer::new(Duration::from_secs(10)))
        .service(leaf);
    let begun = Instant::now();
    let done = connect.connect(target("reviews:80")).await;
    let took = begun.elapsed();
    let dials = dials.lock().unwrap().clone();
    let done = done.map(drop).map_err(|e| e.refusal());
    Dialled { dials, done, took }
}

fn gone(to: PodPort) -> ForwardError {
    ForwardError::PodNotFound { pod: to.pod }
}

fn refused(to: PodPort) -> ForwardError {
    let (to, said) = (to.to_string(), "connection refused".into());
    ForwardError::Refused { to, said }
}

fn full(to: PodPort) -> ForwardError {
    let (what, of) = (to.to_string(), "connections");
    ForwardError::Overloaded { what, limit: 1, of }
}

fn answers_about_pods(sim: &Sim) -> usize {
    let requests = sim.requests().into_iter();
    let about = requests.filter(|r| r.verb == "get" && r.resource == "pods");
    about.filter(|r| r.subresource.is_empty()).count()
}

/// Also if the watch reports it later than a refused client would wait: then the Pod is read.
#[tokio::test(start_paused = true)]
async fn what_replaces_a_pod_that_fails_is_dialled() {
    let watches = || Match::any().verb("watch");
    for failed in [gone, refused] {
        for late in [Duration::ZERO, Duration::from_secs(2)] {
            let sim = Arc::new(sim().await);
            let old = pod(&sim, "reviews");
            sim.faults().answer(watches(), FaultAnswer::Delay(late));
            let ended = old.clone();
            let replace = move |sim: &Sim| sim.delete_pod("default", &ended).unwrap();
            let cluster = cluster_in_memory(&sim);
            let came = dialled(&sim, cluster, failed, replace).await;
            assert_eq!(came.done, Ok(()), "{late:?}");
            let new = sim.pods("default", "reviews").remove(0);
            assert_ne!(old, new);
            assert_eq!(came.dials, [old, new]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_nobody_listens_on_is_refused_at_once() {
    let sim = Arc::new(sim().await);
    let only = pod(&sim, "reviews");
    let cluster = cluster_in_memory(&sim);
    for asked in 1..3 {
        let came = dialled(&sim, cluster.clone(), refused, |_| {}).await;
        assert_eq!(came.done, Err(Refusal::Refused));
        assert_eq!(
            (&came.dials[..], came.took),
            (&[only.clone()][..], Duration::ZERO)
        );
        assert_eq!(answers_about_pods(&sim), asked);
    }
}

/// This program is at its own limit: no Pod is read, and the client does not wait.
#[tokio::test(start_paused = true)]
async fn a_limit_of_ones_own_is_refused_at_once() {
    let sim = Arc::new(sim().await);
    let cluster = cluster_in_memory(&sim);
    let came = dialled(&sim, cluster, full, |_| {}).await;
    assert_eq!(
        (came.done, came.took),
        (Err(Refusal::Overloaded), Duration::ZERO)
    );
    assert_eq!(answers_about_pods(&sim), 0);
}

#[tokio::test(start_paused = true)]
async fn who_may_not_ask_waits_for_the_watch() {
    let moments = Duration::from_millis(500);
    let get = || Match::any().verb("get").resource("pods");
    for (answer, answers) in [(FaultAnswer::Forbidden, 1), (FaultAnswer::Hang, 0)] {
        let sim = Arc::new(sim().await);
        sim.faults().answer(get(), answer);
        let cluster = cluster_in_memory(&sim);
        for _ in 0..2 {
            let came = dialled(&sim, cluster.clone(), refused, |_| {}).await;
            assert_eq!((came.done, came.took), (Err(Refusal::Refused), moments));
        }
        assert_eq!(answers_about_pods(&sim), answers, "{answer:?}");
        let old = pod(&sim, "reviews");
        let replace = move |sim: &Sim| sim.delete_pod("default", &old).unwrap();
        let came = dialled(&sim, cluster, refused, replace).await;
        assert_eq!((came.done, came.dials.len()), (Ok(()), 2));
    }
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_gone_for_good_are_not_ready() {
    let sim = Arc::new(sim().await);
    let old = pod(&sim, "reviews");
    let scale = |sim: &Sim| sim.scale("default", "reviews", 0).unwrap();
    let cluster = cluster_in_memory(&sim);
    let came = dialled(&sim, cluster, gone, scale).await;
    assert_eq!((came.dials, came.done), (vec![old], Err(Refusal::NotReady)));
}
