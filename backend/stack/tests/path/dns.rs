//! Names that only the cluster's DNS knows, queried from its Pods through port-forward.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use kubevpn_client::ApiServer;
use kubevpn_sim::{AccessRule, Sim, User};
use kubevpn_stack::{ClusterSettings, Egress, Outside, Settings, Stack, stack};
use kubevpn_target::{Connect, ConnectError, Refusal, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;

use crate::support::{cluster_as, egress, forwarder_as, get, sim, target};

pub(crate) const KUBE_DNS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  replicas: 1
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec: {containers: [{name: coredns, image: coredns, ports: [{name: dns-tcp, containerPort: 53}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
";

/// The server's records: addresses separated by spaces, `-> name` for an alias, `!` for SERVFAIL.
type Zone = HashMap<&'static str, String>;

/// A cluster with a DNS.
struct Dns {
    sim: Sim,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Dns {
    async fn start(names: &[(&'static str, &str)]) -> Self {
        let sim = sim().await;
        sim.apply(KUBE_DNS).unwrap();
        let pods = sim.list("Pod", "kube-system");
        let pod = pods[0]["metadata"]["name"].as_str().unwrap();
        let names = names.iter().map(|(name, data)| (*name, (*data).to_owned()));
        let zone = Arc::new(Mutex::new(names.collect()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (known, log) = (zone.clone(), asked.clone());
        let serve = move |stream| serve(stream, known.clone(), log.clone());
        sim.listen("kube-system", pod, 53, serve).unwrap();
        Self { sim, zone, asked }
    }

    fn knows(&self, name: &'static str, data: String) {
        self.zone.lock().unwrap().insert(name, data);
    }

    fn connect(&self, outside: Outside) -> Stack<Egress<ApiServer>> {
        self.connect_as(None, outside, &[])
    }

    fn connect_as(
        &self,
        token: Option<&str>,
        outside: Outside,
        own: &[SocketAddr],
    ) -> Stack<Egress<ApiServer>> {
        let settings = ClusterSettings {
            suffixes: vec![kubevpn_target::Name::parse("corp.test").unwrap()],
            ..ClusterSettings::default()
        };
        stack(
            cluster_as(&self.sim, token, settings),
            forwarder_as(&self.sim, token),
            egress(&self.sim, outside, own),
            Settings::default(),
        )
    }

    /// The names queried since the last call, each once.
    fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.dedup();
        asked
    }
}

async fn serve(mut stream: DuplexStream, zone: Arc<Mutex<Zone>>, log: Arc<Mutex<Vec<String>>>) {
    while let Ok(length) = stream.read_u16().await {
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await.unwrap();
        let question = Message::from_vec(&bytes).unwrap();
        let query = question.queries[0].clone();
        let name = query.name().to_ascii();
        log.lock().unwrap().push(name.clone());
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.add_query(query.clone());
        let record = |data| Record::from_rdata(query.name().clone(), 30, data);
        let known = zone.lock().unwrap().get(name.as_str()).cloned();
        match known.as_deref() {
            None => answer.metadata.response_code = ResponseCode::NXDomain,
            Some("!") => answer.metadata.response_code = ResponseCode::ServFail,
            Some(data) => match data.strip_prefix("-> ") {
                Some(to) => {
                    let to = Name::from_ascii(to).unwrap();
                    answer.add_answer(record(RData::CNAME(CNAME(to))));
                }
                None => {
                    for ip in data.split(' ') {
                        match (ip.parse().unwrap(), query.query_type()) {
                            (IpAddr::V4(ip), RecordType::A) => {
                                answer.add_answer(record(RData::A(A(ip))));
                            }
                            (IpAddr::V6(ip), RecordType::AAAA) => {
                                answer.add_answer(record(RData::AAAA(AAAA(ip))));
                            }
                            _ => {}
                        }
                    }
                }
            },
        }
        let bytes = answer.to_vec().unwrap();
        let length = u16::try_from(bytes.len()).unwrap();
        stream.write_u16(length).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    }
}

async fn refused(connect: &Stack<Egress<ApiServer>>, asked: &str) -> ConnectError {
    let stream = connect.clone().connect(target(asked)).await;
    stream.map(|s| s.via()).expect_err(asked)
}

fn cluster_ip(sim: &Sim, service: &str) -> String {
    let service = sim.get("Service", "default", service).unwrap();
    service["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

fn pod_ips(sim: &Sim, app: &str) -> Vec<String> {
    let pods = sim.list("Pod", "default");
    let of_app = pods
        .iter()
        .filter(|p| p["metadata"]["labels"]["app"] == app);
    let ip = |pod: &serde_json::Value| pod["status"]["podIP"].as_str().unwrap().to_owned();
    of_app.map(ip).collect()
}

#[tokio::test]
async fn names_that_lead_to_services_and_pods() {
    let dns = Dns::start(&[
        ("alias.corp.test.", "-> reviews.default.svc.cluster.local."),
        ("far.corp.test.", "-> near.corp.test."),
    ])
    .await;
    let service = cluster_ip(&dns.sim, "productpage");
    dns.knows("shop.cluster.local.", service.clone());
    dns.knows("near.corp.test.", service.clone());
    dns.knows("rewritten.default.svc.cluster.local.", service);
    dns.knows(
        "peers.corp.test.",
        pod_ips(&dns.sim, "productpage").join(" "),
    );
    let connect = dns.connect(Outside::Deny);
    for (asked, served, names) in [
        (
            "shop.cluster.local:9080",
            "productpage",
            vec!["shop.cluster.local."],
        ),
        (
            "peers.corp.test:9080",
            "productpage",
            vec!["peers.corp.test."],
        ),
        ("alias.corp.test:80", "reviews", vec!["alias.corp.test."]),
        (
            "far.corp.test:9080",
            "productpage",
            vec!["far.corp.test.", "near.corp.test."],
        ),
        // The names of a Pod's search list, all at once.
        (
            "rewritten:9080",
            "productpage",
            vec![
                "rewritten.default.svc.cluster.local.",
                "rewritten.svc.cluster.local.",
                "rewritten.cluster.local.",
            ],
        ),
    ] {
        let stream = connect.clone().connect(target(asked)).await.expect(asked);
        let answer = get(stream).await;
        assert!(answer.contains(served), "{asked}: {answer}");
        assert_eq!(dns.asked(), names, "{asked}");
    }
    // A Pod's address has no port mapping: the requested port is dialled.
    let error = refused(&connect, "peers.corp.test:1").await;
    assert_eq!(error.refusal(), Refusal::Refused, "{error}");
    // The Service's ports apply to its address too.
    let error = refused(&connect, "shop.cluster.local:81").await;
    assert_eq!(error.refusal(), Refusal::NoSuchPort, "{error}");
    assert!(dns.asked().is_empty(), "both answers are still good");
}

#[tokio::test]
async fn what_is_known_costs_nothing() {
    let dns = Dns::start(&[]).await;
    dns.knows("shop.cluster.local.", cluster_ip(&dns.sim, "productpage"));
    let connect = dns.connect(Outside::Deny);
    let mut first = None;
    for n in 0..20 {
        let asked = target("shop.cluster.local:9080");
        let stream = connect.clone().connect(asked).await.unwrap();
        first.get_or_insert(stream);
        if n == 1 {
            assert_eq!(dns.asked(), ["shop.cluster.local."]);
            dns.sim.forget_requests();
        }
    }
    assert!(dns.asked().is_empty());
    let calls = dns.sim.requests();
    let calls = calls.iter().filter(|r| r.subresource != "portforward");
    let calls: Vec<_> = calls.filter(|r| r.verb != "watch").collect();
    assert!(calls.is_empty(), "{calls:?}");
}

#[tokio::test]
async fn the_dns_hears_of_no_name_that_is_not_the_clusters() {
    let dns = Dns::start(&[]).await;
    let connect = dns.connect(Outside::Direct);
    for asked in [
        "productpage:9080",
        "productpage.default.svc.cluster.local:9080",
        "localhost.localdomain:1",
        "127.0.0.1:1",
        "notready:80",
        "productpage:1",
    ] {
        let _ = connect.clone().connect(target(asked)).await;
        assert_eq!(dns.asked(), Vec::<String>::new(), "{asked}");
    }
    let error = refused(&connect, "nosuch:80").await;
    assert_eq!(error.refusal(), Refusal::NameNotFound);
    assert!(
        error
            .to_string()
            .contains("there is no service default/nosuch")
    );
    assert_eq!(
        dns.asked(),
        [
            "nosuch.default.svc.cluster.local.",
            "nosuch.svc.cluster.local.",
            "nosuch.cluster.local.",
        ]
    );
}

#[tokio::test]
async fn addresses_outside_follow_the_rule() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    let dns = Dns::start(&[
        ("here.corp.test.", "127.0.0.1"),
        ("here6.corp.test.", "::1"),
        ("link.corp.test.", "169.254.169.254"),
        ("any.corp.test.", "0.0.0.0"),
        ("far.corp.test.", "192.0.2.1 2001:db8::1"),
        ("name.corp.test.", "-> outside.example."),
    ])
    .await;
    let deny = dns.connect(Outside::Deny);
    let direct = dns.connect_as(None, Outside::Direct, &[here]);
    let port = here.port();
    for host in ["here", "here6", "link", "any"] {
        for connect in [&deny, &direct] {
            let error = refused(connect, &format!("{host}.corp.test:{port}")).await;
            assert_eq!(error.refusal(), Refusal::Denied, "{error}");
        }
    }
    let error = refused(&direct, &format!("here.corp.test:{port}")).await;
    assert!(error.to_string().contains("proxy loop detected"), "{error}");
    for connect in [&deny, &direct] {
        let error = refused(connect, "here.corp.test:1").await;
        assert_eq!(
            error.to_string(),
            "here.corp.test:1 leads to 127.0.0.1 by the cluster's DNS: \
             no cluster is let reach this machine or its link"
        );
    }
    for (host, to) in [
        ("far", "192.0.2.1, 2001:db8::1"),
        ("name", "outside.example."),
    ] {
        let error = refused(&deny, &format!("{host}.corp.test:80")).await;
        assert_eq!(error.refusal(), Refusal::Denied);
        let said = format!("leads to {to} by the cluster's DNS: a host outside the cluster");
        assert!(error.to_string().contains(&said), "{error}");
    }
}

#[tokio::test]
async fn a_dns_that_fails() {
    let dns = Dns::start(&[
        ("broken.corp.test.", "!"),
        ("a.corp.test.", "-> b.corp.test."),
        ("b.corp.test.", "-> a.corp.test."),
    ])
    .await;
    let connect = dns.connect(Outside::Deny);
    let error = refused(&connect, "broken.corp.test:80").await;
    assert_eq!(error.refusal(), Refusal::Unreachable, "{error}");
    let said = error.to_string();
    assert!(said.contains("Server Failure"), "{said}");
    assert!(
        said.contains("only the cluster's DNS can know broken.corp.test"),
        "{said}"
    );
    let error = refused(&connect, "a.corp.test:80").await;
    assert_eq!(error.refusal(), Refusal::Unreachable, "{error}");
    assert!(
        error
            .to_string()
            .contains("leads from one name to the next"),
        "{error}"
    );
    let error = refused(&connect, "nosuch.corp.test:80").await;
    assert_eq!(error.refusal(), Refusal::NameNotFound);

    // There is no DNS.
    let sim = sim().await;
    let dns = Dns { sim, ..dns };
    let connect = dns.connect(Outside::Deny);
    let error = refused(&connect, "db.corp.test:80").await;
    assert_eq!(error.refusal(), Refusal::NameNotFound);
    let said = "nothing in the cluster is named service kube-system/kube-dns";
    assert!(error.to_string().contains(said), "{error}");
    let error = refused(&connect, "nosuch:80").await;
    assert!(!error.to_string().contains("DNS"), "{error}");
}

/// A Pod of the DNS that breaks the connection is tried once more, on another stream.
#[tokio::test]
async fn a_dns_that_breaks_off_is_asked_again() {
    let dns = Dns::start(&[]).await;
    dns.knows("shop.cluster.local.", cluster_ip(&dns.sim, "productpage"));
    let pods = dns.sim.list("Pod", "kube-system");
    let pod = pods[0]["metadata"]["name"].as_str().unwrap();
    let (zone, log) = (dns.zone.clone(), dns.asked.clone());
    let connections = Mutex::new(0);
    let serve_second = move |stream| {
        let (zone, log) = (zone.clone(), log.clone());
        let mut connections = connections.lock().unwrap();
        *connections += 1;
        let first = *connections == 1;
        async move {
            if !first {
                serve(stream, zone, log).await;
            }
        }
    };
    dns.sim
        .listen("kube-system", pod, 53, serve_second)
        .unwrap();
    let connect = dns.connect(Outside::Deny);
    let stream = connect
        .connect(target("shop.cluster.local:9080"))
        .await
        .unwrap();
    assert!(get(stream).await.contains("productpage"));
}

#[tokio::test]
async fn rights_that_are_missing_are_named() {
    let dns = Dns::start(&[("db.corp.test.", "192.0.2.1")]).await;
    let read = || AccessRule::new(&["get", "list", "watch"], &["", "discovery.k8s.io"], &["*"]);
    let kinds = [
        "services",
        "endpointslices",
        "pods",
        "namespaces",
        "configmaps",
    ];
    let users = [
        // No right to read the DNS Service.
        User::new("jane", "jane-token").may(read().namespaces(&["default"])),
        // The right to read its Pods, and not to forward their ports.
        User::new("joe", "joe-token").may(AccessRule::new(
            &["get", "list", "watch"],
            &["", "discovery.k8s.io"],
            &kinds,
        )),
    ];
    let sim = users
        .into_iter()
        .fold(Sim::builder().plain().sample(), |sim, user| sim.user(user));
    let sim = sim.start().await.unwrap();
    sim.apply(KUBE_DNS).unwrap();
    let dns = Dns { sim, ..dns };
    for (token, missing) in [
        ("jane-token", r#"resources ["services"], verbs ["get"]"#),
        (
            "joe-token",
            r#"resources ["pods/portforward"], verbs ["create", "get"]"#,
        ),
    ] {
        let connect = dns.connect_as(Some(token), Outside::Deny, &[]);
        let error = refused(&connect, "db.corp.test:80").await;
        assert_eq!(error.refusal(), Refusal::Forbidden, "{error}");
        let said = error.to_string();
        assert!(
            said.contains("only the cluster's DNS can know db.corp.test"),
            "{said}"
        );
        assert!(said.contains(missing), "{said}");
        // A name that is known not to exist does not, whatever the DNS would answer.
        let error = refused(&connect, "nosuch.default.svc.cluster.local:80").await;
        assert_eq!(error.refusal(), Refusal::NameNotFound, "{error}");
        let said = error.to_string();
        assert!(
            said.contains("the cluster's DNS could not be asked"),
            "{said}"
        );
    }
}

/// One query of a DNS client, and its answer in a line: code, records, source.
async fn asked_as_client(
    connect: &Stack<Egress<ApiServer>>,
    name: &str,
    kind: RecordType,
) -> String {
    let query = hickory_proto::op::Query::query(Name::from_ascii(name).unwrap(), kind);
    match connect.get_ref().answer(&query).await {
        Ok(answer) => {
            let records = answer.answers.iter().map(|record| record.data.to_string());
            let soa = answer
                .authorities
                .iter()
                .map(|record| record.record_type().to_string());
            let words = records.chain(soa).collect::<Vec<_>>();
            format!("{} {}", answer.metadata.response_code, words.join(" "))
        }
        Err(error) => error.refusal().to_string(),
    }
}

#[tokio::test]
async fn as_a_dns_client_asks() {
    let dns = Dns::start(&[
        ("git.corp.test.", "10.9.9.9"),
        ("broken.corp.test.", "!"),
        ("else.cluster.local.", "10.9.9.8"),
    ])
    .await;
    let services = dns.sim.list("Service", "default");
    let of = |name: &str| {
        let service = services
            .iter()
            .find(|s| s["metadata"]["name"] == name)
            .unwrap();
        service["spec"]["clusterIP"].as_str().unwrap().to_owned()
    };
    let ip = of("productpage");
    let connect = dns.connect(Outside::Deny);
    let ask = async |name: &str, kind| asked_as_client(&connect, name, kind).await;
    let name = "productpage.default.svc.cluster.local.";
    // From the objects alone.
    assert_eq!(ask(name, RecordType::A).await, format!("No Error {ip}"));
    assert_eq!(ask(name, RecordType::AAAA).await, "No Error SOA");
    assert_eq!(ask(name, RecordType::MX).await, "No Error SOA");
    assert_eq!(
        ask(
            "_http._tcp.productpage.default.svc.cluster.local.",
            RecordType::SRV
        )
        .await,
        format!("No Error 0 100 9080 {name}")
    );
    let mut reverse: Vec<_> = ip.split('.').collect();
    reverse.reverse();
    let reverse = format!("{}.in-addr.arpa.", reverse.join("."));
    assert_eq!(
        ask(&reverse, RecordType::PTR).await,
        format!("No Error {name}")
    );
    assert_eq!(dns.asked(), [""; 0]);
    // Names that no object has are asked of the DNS, and its answers are cached.
    for _ in 0..2 {
        assert_eq!(
            ask("git.corp.test.", RecordType::A).await,
            "No Error 10.9.9.9"
        );
        assert_eq!(
            ask("else.cluster.local.", RecordType::A).await,
            "No Error 10.9.9.8"
        );
    }
    assert_eq!(dns.asked(), ["git.corp.test.", "else.cluster.local."]);
    assert!(
        ask("nosuch.default.svc.cluster.local.", RecordType::A)
            .await
            .starts_with("Non-Existent")
    );
    assert_eq!(
        ask("broken.corp.test.", RecordType::A).await,
        "Server Failure "
    );
    // Names outside the cluster are not asked of it.
    dns.asked();
    assert_eq!(ask("example.com.", RecordType::A).await, "denied");
    assert_eq!(
        ask("1.2.0.192.in-addr.arpa.", RecordType::PTR).await,
        "denied"
    );
    assert_eq!(
        ask("2.0.192.in-addr.arpa.", RecordType::PTR).await,
        "denied"
    );
    assert_eq!(dns.asked(), [""; 0]);
}

/// If the DNS cannot be asked, the objects decide; without them nothing is known.
#[tokio::test]
async fn a_dns_client_while_the_dns_cannot_be_asked() {
    let sim = sim().await;
    let connect = stack(
        cluster_as(&sim, None, ClusterSettings::default()),
        forwarder_as(&sim, None),
        egress(&sim, Outside::Deny, &[]),
        Settings::default(),
    );
    let ask = async |name: &str| asked_as_client(&connect, name, RecordType::A).await;
    let missing = ask("nosuch.default.svc.cluster.local.").await;
    assert!(
        missing.starts_with("Non-Existent") && missing.ends_with("SOA"),
        "{missing}"
    );
    assert_eq!(
        ask("external.default.svc.cluster.local.").await,
        "No Error outside.example.test."
    );
    assert_eq!(ask("else.cluster.local.").await, "unreachable");
}
