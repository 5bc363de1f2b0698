//! Round trips to the API server, counted: on a line in memory each byte takes half of [`TRIP`] each way, and the clock
//! is paused, so that nothing else takes time. A count is the time in round trips; the pause of 25 ms before a port is
//! taken to be good is half of one.
//!
//! `--nocapture` prints each row, and the steps with the time at which they were taken.

#![expect(clippy::print_stdout, reason = "the rows, and their steps")]

use std::collections::BTreeMap;
use std::time::Duration;

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use kubevpn_client::{ApiServer, Dialer, Options, build_renewable};
use kubevpn_sim::{Line, Sim};
use kubevpn_stack::{
    Cluster, ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Outside, Settings,
    Stack, stack,
};
use kubevpn_target::{Connect as _, Refusal, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::dns::KUBE_DNS;
use crate::support::target;

/// A round trip.
pub(crate) const TRIP: Duration = Duration::from_millis(50);

/// A configuration of CoreDNS without names beyond those of objects.
const COREDNS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        errors
        health {
           lameduck 5s
        }
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa {
           pods insecure
           fallthrough in-addr.arpa ip6.arpa
           ttl 30
        }
        prometheus :9153
        forward . /etc/resolv.conf {
           max_concurrent 1000
        }
        cache 30 {
           disable success cluster.local
           disable denial cluster.local
        }
        loop
        reload
        loadbalance
    }
";

type Connect = Stack<Egress<ApiServer>>;

/// The whole data path over a long line.
pub(crate) struct Far {
    sim: Sim,
    pub(crate) line: Line,
    pub(crate) forwarder: Forwarder,
    pub(crate) connect: Connect,
}

impl Far {
    pub(crate) async fn start() -> Self {
        let sim = Sim::builder().sample().seed(7).start().await.unwrap();
        sim.apply(KUBE_DNS).unwrap();
        sim.apply(COREDNS).unwrap();
        let line = sim.line(TRIP / 2);
        let dial = line.clone();
        let dialer = Dialer::new(move |_| {
            let line = dial.clone();
            async move { line.dial().await }
        });
        let options = Options {
            dialer: Some(dialer),
            ..Options::new("test")
        };
        let (client, renewal) = build_renewable(sim.config(), &options).unwrap();
        let api_server = renewal.api_server();
        let expected = api_server.clone();
        let forwarder = Forwarder::new(client.clone(), ForwarderConfig::default())
            .expecting(move || expected.expect_upgrade());
        let connect = stack(
            Cluster::new(client, ClusterSettings::default()),
            forwarder.clone(),
            Egress::new(api_server, Outside::Deny, FromHost::default()),
            Settings::default(),
        );
        Self {
            sim,
            line,
            forwarder,
            connect,
        }
    }

    /// The same after one Service was used, with all background work done.
    async fn warm() -> Self {
        let far = Self::start().await;
        far.answered("productpage:9080").await;
        quiet().await;
        far
    }

    /// A connection, and the first bytes of the answer over it.
    async fn answered(&self, asked: &str) -> Answered {
        let begun = Instant::now();
        let mut stream = self.connect.clone().connect(target(asked)).await.unwrap();
        let connected = begun.elapsed();
        let pod = stream.via().to;
        get(&mut stream).await;
        Answered {
            connected: trips(connected),
            answered: trips(begun.elapsed()),
            pod,
            stream: Box::new(stream),
        }
    }

    async fn refused(&self, asked: &str) -> (String, Refusal) {
        let begun = Instant::now();
        let refused = self.connect.clone().connect(target(asked)).await;
        let refusal = refused.unwrap_err().refusal();
        (trips(begun.elapsed()), refusal)
    }

    async fn addresses(&self, name: &str) -> (String, usize) {
        let begun = Instant::now();
        let query = Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        let answer = self.connect.get_ref().answer(&query).await.unwrap();
        (trips(begun.elapsed()), answer.answers.len())
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

struct Answered {
    connected: String,
    answered: String,
    pod: String,
    stream: Box<dyn Io>,
}

/// A Service with a Pod.
fn many(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec: {{containers: [{{name: echo, image: echo, env: [{{name: PORTS, value: '80'}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80}}]}}
"
    )
}

/// Sends a request, and waits for the first byte of its answer.
pub(crate) async fn get(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let request = b"GET / HTTP/1.1\r\nHost: any\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = vec![0; 4096];
    assert!(stream.read(&mut answer).await.unwrap() > 0);
}

/// Lets all started work finish; shorter than any lifetime.
pub(crate) async fn quiet() {
    sleep(Duration::from_secs(2)).await;
}

fn trips(took: Duration) -> String {
    format!("{:.1}", took.as_secs_f64() / TRIP.as_secs_f64())
}

/// Prefix of each step: round trips since the row began.
struct Trips(Instant);

impl FormatTime for Trips {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{:>6}", trips(self.0.elapsed()))
    }
}

/// Prints what follows, under this title, until it is dropped.
fn row(title: &str) -> tracing::subscriber::DefaultGuard {
    println!("\n{title}");
    let crates = ["client", "cluster", "portforward", "stack", "sim"];
    let filter = crates.map(|name| format!("kubevpn_{name}=debug")).join(",");
    let steps = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_timer(Trips(Instant::now()))
        .with_ansi(false)
        .with_level(false)
        .with_test_writer()
        .finish();
    tracing::subscriber::set_default(steps)
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_from_the_start() {
    for asked in ["productpage:9080", "reviews.default.svc.cluster.local:80"] {
        let far = Far::start().await;
        let _steps = row(&format!("start to the first answer of {asked}"));
        let first = far.answered(asked).await;
        println!(
            "= {} connected, {} answered",
            first.connected, first.answered
        );
        assert_eq!((&*first.connected, &*first.answered), ("5.5", "6.5"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_of_a_further_service() {
    let far = Far::warm().await;
    let _steps = row("first connection to a further Service");
    let first = far.answered("reviews:80").await;
    println!(
        "= {} connected, {} answered",
        first.connected, first.answered
    );
    assert_eq!((&*first.connected, &*first.answered), ("2.5", "3.5"));
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_of_a_further_service_of_two_pods() {
    let far = Far::start().await;
    far.answered("reviews:80").await;
    quiet().await;
    let _steps = row("first connection to a further Service with two Pods");
    let first = far.answered("productpage:9080").await;
    println!(
        "= {} connected, {} answered",
        first.connected, first.answered
    );
    assert_eq!((&*first.connected, &*first.answered), ("2.5", "3.5"));
    assert_eq!(far.forwarder.stats().upgrades, 2, "one for each Service");
}

/// The guessed Pod is gone: another serves.
#[tokio::test(start_paused = true)]
async fn a_wrong_guess_costs_one_upgrade_and_a_round_trip() {
    let far = Far::warm().await;
    let guessed = far.sim.pods("default", "reviews").remove(0);
    far.sim.delete_pod("default", &guessed).unwrap();
    quiet().await;
    let _steps = row("first connection to a further Service whose Pod is another by now");
    let first = far.answered("reviews:80").await;
    println!(
        "= {} connected, {} answered",
        first.connected, first.answered
    );
    assert!(!first.pod.contains(&guessed), "{}", first.pod);
    assert_eq!(far.forwarder.stats().upgrades, 3);
    // The guess used the spare connection: the next takes a round trip for TCP and one for TLS.
    assert_eq!((&*first.connected, &*first.answered), ("4.5", "5.5"));
}

/// The page of a namespace's EndpointSlices is read once.
#[tokio::test(start_paused = true)]
async fn neighbours_are_looked_at_once_for_each_namespace() {
    let far = Far::start().await;
    let pages = || {
        let requests = far.sim.requests().into_iter();
        let page = |uri: &str| uri.contains("/endpointslices?") && !uri.contains("labelSelector");
        let pages = requests.filter(|r| r.verb == "list" && page(&r.uri));
        pages
            .map(|r| {
                assert!(r.uri.contains("limit=64"), "{}", r.uri);
                r.namespace
            })
            .collect::<Vec<_>>()
    };
    far.addresses("reviews.default.svc.cluster.local.").await;
    far.refused("nosuch:80").await;
    quiet().await;
    assert!(pages().is_empty(), "no connection was opened");
    for _ in 0..3 {
        for asked in ["productpage:9080", "reviews:80", "api.team-a:80"] {
            far.answered(asked).await;
            quiet().await;
        }
    }
    assert_eq!(pages(), ["default", "team-a"]);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_of_a_host_that_a_forward_leads_to() {
    let far = Far::start().await;
    far.connect.get_ref().warm(target("reviews:80").host);
    quiet().await;
    let _steps = row("first connection to what a forward leads to");
    let first = far.answered("reviews:80").await;
    println!(
        "= {} connected, {} answered",
        first.connected, first.answered
    );
    assert_eq!((&*first.connected, &*first.answered), ("1.5", "2.5"));
    assert_eq!(far.forwarder.stats().upgrades, 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_of_a_service_that_a_dns_client_asked_for() {
    let far = Far::warm().await;
    far.addresses("reviews.default.svc.cluster.local.").await;
    quiet().await;
    let _steps = row("first connection to a further Service whose address was asked for");
    let first = far.answered("reviews:80").await;
    println!(
        "= {} connected, {} answered",
        first.connected, first.answered
    );
    assert_eq!((&*first.connected, &*first.answered), ("1.5", "2.5"));
}

#[tokio::test(start_paused = true)]
async fn a_spare_connection_that_was_closed_is_not_used() {
    let far = Far::warm().await;
    assert_eq!(far.sim.connections(), 3);
    assert_eq!(far.sim.faults().reset_connections(), 3);
    quiet().await;
    far.answered("reviews:80").await;
}

#[tokio::test(start_paused = true)]
async fn a_second_replica_is_opened_beside_the_one_that_serves() {
    let far = Far::start().await;
    let first = far.answered("productpage:9080").await;
    quiet().await;
    let steps = row("first connection after which a second replica is used");
    let second = far.answered("productpage:9080").await;
    println!(
        "= {} connected, {} answered",
        second.connected, second.answered
    );
    assert_eq!((&*second.connected, &*second.answered), ("0.0", "1.0"));
    drop(steps);
    quiet().await;
    let _steps = row("first connection to the second replica");
    let third = far.answered("productpage:9080").await;
    println!(
        "= {} connected, {} answered",
        third.connected, third.answered
    );
    assert_ne!(third.pod, first.pod, "replicas are used evenly");
    // Its port is not known to be good: a dial waits for its fate.
    assert_eq!((&*third.connected, &*third.answered), ("1.5", "2.5"));
}

/// Success is reported only when the Pod has accepted, whatever the line's length and behaviour.
#[tokio::test(start_paused = true)]
async fn a_closed_port_is_refused() {
    let far = Far::warm().await;
    far.answered("multi:80").await;
    quiet().await;
    let _steps = row("a port that nothing listens on");
    let (trips, refusal) = far.refused("multi:9999").await;
    println!("= {trips} {refusal:?}");
    assert_eq!((&*trips, refusal), ("2.0", Refusal::Refused));
    // Its node needs some time to find out.
    far.sim.faults().slow_pods(Duration::from_millis(20));
    let (trips, refusal) = far.refused("multi:9999").await;
    println!("= {trips} {refusal:?}, late");
    assert_eq!((&*trips, refusal), ("2.4", Refusal::Refused));
    // Data to it, and data from it, arrives in one piece.
    far.line.stall(4 * TRIP);
    let (trips, refusal) = far.refused("multi:9999").await;
    println!("= {trips} {refusal:?}, late and behind a lost packet");
    assert_eq!(refusal, Refusal::Refused);
}

#[tokio::test(start_paused = true)]
async fn later_connections() {
    let far = Far::start().await;
    for _ in 0..4 {
        far.answered("productpage:9080").await;
        quiet().await;
    }
    let _steps = row("later connections, one after the other");
    for pause in [0, 1, 4, 10, 40] {
        sleep(Duration::from_secs(pause)).await;
        let later = far.answered("productpage:9080").await;
        println!("= {} answered, after {pause} s", later.answered);
        assert_eq!(later.answered, "1.0", "after {pause} s");
    }
}

#[tokio::test(start_paused = true)]
async fn later_connections_beside_open_ones() {
    let far = Far::start().await;
    let mut open = vec![far.answered("reviews:80").await];
    quiet().await;
    let _steps = row("later connections, each beside those before");
    for n in 1..8 {
        let later = far.answered("reviews:80").await;
        println!("= {} answered, beside {n}", later.answered);
        assert_eq!(later.answered, "1.0", "beside {n}");
        open.push(later);
        quiet().await;
    }
    for open in &mut open {
        get(&mut open.stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_does_not_exist() {
    let far = Far::warm().await;
    let _steps = row("a name that does not exist");
    for (name, took) in [
        ("nosuch:80", "2.0"),
        ("nosuch:80", "0.0"),
        ("other:80", "1.0"),
        ("nosuch.team-a:80", "2.0"),
        ("other.team-a:80", "1.0"),
        ("nosuch.default.svc.cluster.local:80", "0.0"),
        ("third.default.svc.cluster.local:80", "1.0"),
    ] {
        let (trips, refusal) = far.refused(name).await;
        println!("= {trips} {refusal:?}, {name}");
        assert_eq!((&*trips, refusal), (took, Refusal::NameNotFound), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_does_not_exist() {
    let far = Far::warm().await;
    let _steps = row("a namespace that does not exist");
    let (trips, refusal) = far.refused("web.nosuch.svc:80").await;
    println!("= {trips} {refusal:?}, web.nosuch.svc");
    assert_eq!((&*trips, refusal), ("2.0", Refusal::NameNotFound));
    // It may be a host outside, which is denied here.
    let (trips, refusal) = far.refused("web.other:80").await;
    println!("= {trips} {refusal:?}, web.other");
    assert_eq!((&*trips, refusal), ("2.0", Refusal::Denied));
}

/// Everything made ahead: a connection for the next upgrade, kept for a minute; a session to a Pod of a Service that a DNS
/// client asked for, kept for another minute.
#[tokio::test(start_paused = true)]
async fn what_is_made_ahead_is_bounded_and_goes_when_unused() {
    let far = Far::start().await;
    let (_, answers) = far.addresses("reviews.default.svc.cluster.local.").await;
    assert_eq!(answers, 1);
    quiet().await;
    // The connections of the calls and of the session, and the spare.
    assert_eq!((far.sim.connections(), far.line.dialled()), (3, 3));
    assert_eq!(far.sim.sessions().len(), 1);
    assert_eq!(far.forwarder.stats().upgrades, 1);
    // It is queried repeatedly without a connection.
    for _ in 0..10 {
        far.addresses("reviews.default.svc.cluster.local.").await;
    }
    quiet().await;
    assert_eq!(far.forwarder.stats().upgrades, 1);
    sleep(Duration::from_secs(120)).await;
    assert_eq!((far.sim.connections(), far.sim.sessions().len()), (1, 0));
    // A hundred Services are queried at once, and none is used.
    for n in 0..100 {
        far.sim.apply(&many(&format!("many-{n}"))).unwrap();
    }
    far.sim.forget_requests();
    for n in 0..100 {
        let name = format!("many-{n}.default.svc.cluster.local.");
        assert_eq!(far.addresses(&name).await.1, 1);
    }
    quiet().await;
    let bound = ForwarderConfig::default().ahead;
    assert_eq!(far.sim.sessions().len(), bound);
    // Calls and watches use a few more connections.
    let with_sessions = far.sim.connections();
    sleep(Duration::from_secs(120)).await;
    assert_eq!(far.sim.sessions().len(), 0);
    assert_eq!(with_sessions - far.sim.connections(), bound + 1);
}

/// The calls of a typical day, in small: several Services one after the other, connections to them with pauses, mistyped
/// names, a DNS client. Work done ahead must not add calls.
#[tokio::test(start_paused = true)]
async fn a_day_of_use_asks_no_more_of_the_api_server() {
    let far = Far::start().await;
    for hour in 0..8 {
        for asked in [
            "productpage:9080",
            "reviews:80",
            "multi:80",
            "api.team-a:80",
        ] {
            far.addresses("reviews.default.svc.cluster.local.").await;
            for _ in 0..5 {
                far.answered(asked).await;
                sleep(Duration::from_secs(7)).await;
            }
        }
        far.refused(&format!("typo-{hour}:80")).await;
        far.refused(&format!("web.typo-{hour}.svc:80")).await;
        sleep(Duration::from_secs(3600)).await;
    }
    let mut asked = BTreeMap::<String, usize>::new();
    for request in far.sim.requests() {
        let what = format!(
            "{} {} {}",
            request.verb, request.resource, request.subresource
        );
        *asked.entry(what).or_default() += 1;
    }
    for (what, times) in &asked {
        println!("{times:>6} {what}");
    }
    let all: usize = asked.values().sum();
    println!("{all:>6} in all");
    assert!(
        all <= 466,
        "as many as there were before anything was asked ahead"
    );
}

#[tokio::test(start_paused = true)]
async fn names_asked_of_the_dns_listener() {
    let far = Far::warm().await;
    let _steps = row("a name asked of the DNS listener");
    for (name, took) in [
        ("reviews.default.svc.cluster.local.", "1.0"),
        ("reviews.default.svc.cluster.local.", "0.0"),
        ("productpage.default.svc.cluster.local.", "0.0"),
    ] {
        let (trips, answers) = far.addresses(name).await;
        println!("= {trips} {name}");
        assert_eq!((&*trips, answers), (took, 1), "{name}");
    }
}
