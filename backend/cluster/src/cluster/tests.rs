mod check;
#[cfg(feature = "watch")]
mod churn;
#[cfg(feature = "watch")]
mod keeping;
#[cfg(feature = "watch")]
mod sharing;
#[cfg(feature = "watch")]
mod watching;

use kubevpn_target::{ConnectError, Refusal};

use super::*;
use crate::fake::FakeApi;
use crate::resolve::tests::{CLUSTER, FAILURES, TARGETS, said};
use crate::{Candidates, NameRecord, Readiness, Records};

fn api() -> FakeApi {
    let api = FakeApi::default();
    api.apply(CLUSTER);
    api
}

fn cluster(api: &FakeApi) -> Cluster {
    Cluster::new(api.client(), Settings::default())
}

async fn ask(cluster: &Cluster, target: &str) -> Result<Answer, LookupError> {
    let target = kubevpn_target::Target::parse(target, Default::default()).unwrap();
    cluster.lookup(&target.host, target.port).await
}

#[tokio::test]
async fn every_kind_of_target() {
    let cluster = cluster(&api());
    for (target, wanted) in TARGETS.iter().chain(&FAILURES) {
        assert_eq!(said(ask(&cluster, target).await), *wanted, "{target}");
    }
}

/// DNS has no ports: the requested one is dialled, and the other one is named.
#[tokio::test]
async fn a_headless_service_tells_its_pods_port() {
    let cluster = cluster(&api());
    for (host, port, behind) in [
        ("rpc", 80, Some(8080)),
        ("rpc", 81, None),
        ("rpc", 8080, None),
        ("web", 80, None),
    ] {
        let query = Query::new(&Host::parse(host).unwrap(), NonZeroU16::new(port));
        match cluster.subscribe(query.clone()).await {
            Ok(Answer::Pods(pods)) => assert_eq!(pods.behind, behind, "{host}:{port}"),
            other => panic!("{host}:{port}: {other:?}"),
        }
        match cluster.subscribe(query.mapped()).await {
            Ok(Answer::Pods(pods)) => {
                let asked = if port == 81 { 81 } else { 8080 };
                assert_eq!(pods.endpoints[0].port, asked, "{host}:{port}");
            }
            other => panic!("{host}:{port}: {other:?}"),
        }
    }
    assert_eq!(said(ask(&cluster, "rpc:80").await), "default/web-1:80");
}

#[tokio::test]
async fn short_names_are_the_active_namespaces() {
    let settings = Settings {
        namespace: "team".into(),
        domain: Some(Name::parse("corp.example").unwrap()),
        ..Settings::default()
    };
    let cluster = Cluster::new(api().client(), settings);
    for (target, wanted) in [
        ("api:80", "team/api-1:8080"),
        ("api.team.svc.corp.example:80", "team/api-1:8080"),
        ("web.default:81", "default/web-1:9090 default/web-2:9090"),
        // Not this cluster's domain.
        (
            "api.team.svc.cluster.local:80",
            "outside: api.team.svc.cluster.local",
        ),
    ] {
        assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_whose_page_of_slices_could_not_be_read_is_read_again() {
    let api = api();
    let cluster = cluster(&api);
    let neighbours = &cluster.resolver.store.neighbours;
    api.away(true);
    assert!(neighbours.is_due("default"));
    neighbours.read(cluster.server(), "default").await;
    assert!(
        !neighbours.is_due("default"),
        "it is left alone for a while"
    );
    api.away(false);
    tokio::time::advance(std::time::Duration::from_secs(5 * 60)).await;
    assert!(neighbours.is_due("default"));
    neighbours.read(cluster.server(), "default").await;
    assert!(neighbours.pod("default", "web").is_some());
    tokio::time::advance(std::time::Duration::from_secs(60 * 60)).await;
    assert!(!neighbours.is_due("default"));
}

#[tokio::test]
async fn the_first_that_exists_wins() {
    let api = api();
    let cluster = cluster(&api);
    api.apply(
        "
kind: Service
metadata: {name: db-0, namespace: db}
spec: {clusterIP: 10.96.0.77, ports: [{port: 5432}]}
---
kind: EndpointSlice
metadata: {name: db-0-x, namespace: db, labels: {kubernetes.io/service-name: db-0}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.77], targetRef: {kind: Pod, name: other}}]
ports: [{port: 5432}]
",
    );
    assert_eq!(
        said(ask(&cluster, "db-0.db:5432").await),
        "default/db-0:5432"
    );
    assert_eq!(
        said(ask(&cluster, "db-0.db.svc:5432").await),
        "db/other:5432"
    );
}

#[tokio::test]
async fn candidates_say_what_they_are() {
    let cluster = cluster(&api());
    let Ok(Answer::Pods(candidates)) = ask(&cluster, "web:80").await else {
        panic!("web has pods");
    };
    assert_eq!(candidates.asked, "service default/web port 80");
    assert_eq!(candidates.endpoints.len(), 3);
    assert_eq!(candidates.endpoints[2].readiness, Readiness::NotReady);
    let Ok(Answer::Pods(candidates)) = ask(&cluster, "10.244.0.40:80").await else {
        panic!("a pod has the address");
    };
    assert_eq!(candidates.asked, "pod team/api-1 (10.244.0.40) port 80");
}

#[tokio::test]
async fn the_endpoints_object_will_do() {
    let api = api();
    api.allow_only(&["get services default", "get endpoints default"]);
    let cluster = cluster(&api);
    api.apply(
        "
kind: Endpoints
metadata: {name: web}
subsets:
- addresses: [{ip: 10.244.0.11, targetRef: {kind: Pod, namespace: default, name: web-1}}]
  ports: [{name: http, port: 8080}]
",
    );
    assert_eq!(said(ask(&cluster, "web:80").await), "default/web-1:8080");
}

#[tokio::test]
async fn refusals_name_the_missing_rule() {
    let api = api();
    api.allow_only(&["get pods default", "list pods default", "get services team"]);
    let cluster = cluster(&api);
    // Pods are reachable without any right on Services.
    assert_eq!(
        said(ask(&cluster, "web-1.default.pod:8080").await),
        "default/web-1:8080"
    );
    assert_eq!(
        said(ask(&cluster, "10.244.0.11:1").await),
        "default/web-1:1"
    );
    for (target, wanted) in [
        (
            "web:80",
            "forbidden: cannot tell whether service default/web exists: jane cannot get services web in \
             namespace default: ask for a Role with apiGroups [\"\"], resources [\"services\"], verbs [\"get\"]",
        ),
        (
            "example.com:443",
            "forbidden: example.com is service com/example, or a host outside the cluster, and we may not look \
             which: jane cannot get services example in namespace com: ask for a Role with apiGroups [\"\"], \
             resources [\"services\"], verbs [\"get\"]",
        ),
        (
            "api.team.svc.cluster.local:80",
            "forbidden: jane cannot list endpointslices.discovery.k8s.io in namespace team: ask for a Role \
             with apiGroups [\"discovery.k8s.io\"], resources [\"endpointslices\"], verbs [\"list\"]; \
             or: jane cannot get endpoints api in namespace team: ask for a Role with apiGroups [\"\"], \
             resources [\"endpoints\"], verbs [\"get\"]",
        ),
        (
            "192.0.2.7:80",
            "forbidden: 192.0.2.7 is no service or pod that may be seen from namespace default: it is \
             another namespace's, or a host outside the cluster; jane cannot list services in namespace default: \
             ask for a Role with apiGroups [\"\"], resources [\"services\"], verbs [\"list\"]; \
             jane cannot list pods in all namespaces: \
             ask for a ClusterRole with apiGroups [\"\"], resources [\"pods\"], verbs [\"list\"]",
        ),
    ] {
        assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
    }
    // A name with more labels than any object has does not need the namespace.
    assert_eq!(
        said(ask(&cluster, "a.b.example.com:443").await),
        "outside: a.b.example.com"
    );
}

/// An outage keeps the last good list.
#[tokio::test]
async fn a_survey_that_fails_keeps_the_last_good_one() {
    let api = api();
    api.apply("{kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/12]}}");
    let cluster = cluster(&api);
    let first = cluster.survey().await;
    assert!(
        first
            .services
            .found
            .as_ref()
            .is_some_and(|s| s.contains(&"web".to_owned()))
    );
    assert!(first.services.failed.is_none() && first.service_ranges.failed.is_none());
    api.away(true);
    let away = cluster.survey().await;
    for (listed, before) in [
        (&away.services, &first.services),
        (&away.service_ranges, &first.service_ranges),
    ] {
        assert_eq!(listed.found, before.found);
        let failed = listed.failed.as_ref().expect("it says why");
        assert_eq!(failed.refusal(), Refusal::ClusterAway);
    }
    // A list that is now forbidden is dropped.
    api.away(false);
    api.allow_only(&["list servicecidrs *"]);
    let forbidden = cluster.survey().await;
    assert!(forbidden.services.found.is_none() && forbidden.services.failed.is_some());
    assert_eq!(forbidden.service_ranges.found, first.service_ranges.found);
    assert!(forbidden.service_ranges.failed.is_none());
}

/// A user with a Role in one namespace reaches hosts outside, if the policy allows them.
#[tokio::test]
async fn what_may_not_be_seen_is_outside_if_told_so() {
    let api = api();
    api.allow_only(&[
        "get services default",
        "list services default",
        "get endpoints default",
    ]);
    let settings = |unseen_is_outside| Settings {
        unseen_is_outside,
        ..Settings::default()
    };
    let cautious = Cluster::new(api.client(), settings(false));
    let direct = Cluster::new(api.client(), settings(true));
    for host in [
        "github.com:443",
        "www.example.com:443",
        "140.82.121.4:443",
        "[2606:4700::1]:443",
    ] {
        let outside = said(ask(&direct, host).await);
        assert!(outside.starts_with("outside: "), "{host}: {outside}");
        let refused = said(ask(&cautious, host).await);
        assert!(refused.starts_with("forbidden: "), "{host}: {refused}");
    }
    for host in [
        "10.9.9.9:443",
        "100.64.1.1:443",
        "[fd00::9]:443",
        "api.team.svc:80",
        "x.default:80",
    ] {
        let said = said(ask(&direct, host).await);
        assert!(!said.starts_with("outside"), "{host}: {said}");
    }
}

#[tokio::test]
async fn a_cluster_without_ip_addresses_is_listed() {
    let api = api();
    api.without("ipaddresses");
    let cluster = cluster(&api);
    assert_eq!(
        said(ask(&cluster, "10.96.0.40:80").await),
        "team/api-1:8080"
    );
    assert!(api.asked().contains(&"list services".to_owned()));
}

#[tokio::test]
async fn an_ip_address_object_spares_the_list() {
    let api = api();
    let cluster = cluster(&api);
    ask(&cluster, "10.96.0.10:80").await.unwrap();
    assert!(!api.asked().iter().any(|call| call == "list services"));
}

#[tokio::test]
async fn an_api_server_that_is_away() {
    let api = api();
    let cluster = cluster(&api);
    api.away(true);
    for target in ["web:80", "10.96.0.10:80", "web-1.default.pod:80"] {
        let error = ask(&cluster, target).await.unwrap_err();
        let error = ConnectError::from(error);
        assert_eq!(error.refusal(), Refusal::ClusterAway, "{target}: {error}");
    }
}

#[tokio::test]
async fn steps_are_told() {
    let cluster = cluster(&api());
    crate::log::begin();
    ask(&cluster, "web.default:80").await.unwrap();
    assert_eq!(
        crate::log::lines(),
        [
            "endpoint web of service default/default does not exist",
            "service default/web has port 80 (http)",
            "service default/web port 80 has default/web-1:8080 ready, default/web-2:8080 ready, \
             default/web-3:8181 not ready",
        ]
    );
}

#[tokio::test]
async fn the_port_need_not_be_told() {
    let cluster = cluster(&api());
    for (host, wanted) in [
        ("web", "default/web-1:8080 default/web-2:8080"),
        ("10.96.0.10", "default/web-1:8080 default/web-2:8080"),
        ("db", "default/db-0:0"),
        ("web-1.default.pod", "default/web-1:0"),
        ("10.244.0.40", "team/api-1:0"),
        ("10.245.0.2", "team/node-agent:0 team/node-exporter:0"),
        ("kubernetes", "the API server"),
        ("www.example.com", "outside: www.example.com"),
        (
            "empty",
            "not_ready: service default/empty has no ready endpoint: \
             no running pod matches its selector app=no-such",
        ),
    ] {
        let host_of = Host::parse(host).unwrap();
        assert_eq!(said(cluster.lookup(&host_of, None).await), wanted, "{host}");
    }
}

#[tokio::test]
async fn pods_are_followed() {
    let api = api();
    let cluster = cluster(&api);
    let Ok(Answer::Pods(mut pods)) = ask(&cluster, "api.team:80").await else {
        panic!("api has a pod");
    };
    assert_eq!(pods.service.as_deref(), Some("team/api"));
    let asked = pods.asked.clone();
    api.delete("endpointslices", "team", "api-x");
    pods.next().await.unwrap();
    assert_eq!(pods.asked, asked);
    assert!(pods.endpoints.is_empty());
    api.delete("services", "team", "api");
    let gone = said(pods.next().await.map(|()| Answer::Pods(pods)));
    assert!(gone.starts_with("name_not_found"), "{gone}");
    let Ok(Answer::Pods(pod)) = ask(&cluster, "api-1.team.pod:80").await else {
        panic!("the pod is there");
    };
    assert_eq!(pod.service, None);
}

/// The names that the DNS is asked for; empty if it is not asked.
fn asked_of_dns(answer: Result<Answer, LookupError>) -> String {
    match answer {
        Ok(Answer::Dns(question)) => {
            let names: Vec<_> = question.names.iter().map(Name::to_string).collect();
            let from = question
                .learned_from
                .iter()
                .map(|from| format!(" by {from}"));
            let only = if question.only_dns { " only" } else { "" };
            names.join(" ") + &from.collect::<String>() + only
        }
        _ => String::new(),
    }
}

#[tokio::test]
async fn what_is_left_to_the_dns() {
    let settings = Settings {
        suffixes: vec![
            Name::parse("corp.test").unwrap(),
            Name::parse("example.test").unwrap(),
        ],
        ..Settings::default()
    };
    let api = api();
    let cluster = Cluster::new(api.client(), settings);
    let searched = |name: &str| {
        let domains = [
            "default.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
        ];
        domains.map(|domain| format!("{name}.{domain}.")).join(" ")
    };
    for (target, wanted) in [
        ("nosuch:80", searched("nosuch")),
        ("nosuch.team:80", searched("nosuch.team")),
        (
            "nosuch.cluster.local:80",
            "nosuch.cluster.local. only".into(),
        ),
        (
            "nosuch.team.svc.cluster.local:80",
            "nosuch.team.svc.cluster.local.".into(),
        ),
        (
            "198-51-100-1.team.pod.cluster.local:80",
            "198-51-100-1.team.pod.cluster.local.".into(),
        ),
        ("db.corp.test:80", "db.corp.test. only".into()),
        (
            "outside:443",
            "outside.example.test. by service default/outside only".into(),
        ),
        // Existing names, outside names, and names that are never asked for.
        ("web:80", String::new()),
        ("empty:80", String::new()),
        ("web:82", String::new()),
        ("www.example.com:443", String::new()),
        ("192.0.2.1:443", String::new()),
        ("web.:80", String::new()),
    ] {
        assert_eq!(
            asked_of_dns(ask(&cluster, target).await),
            wanted,
            "{target}"
        );
    }
    // With everything forbidden, a name that an object may have is not asked for; a name that no object can have is.
    api.allow_only(&["get configmaps kube-system"]);
    let settings = Settings {
        suffixes: vec![Name::parse("example.test").unwrap()],
        ..Settings::default()
    };
    let cluster = Cluster::new(api.client(), settings);
    assert!(said(ask(&cluster, "web:80").await).starts_with("forbidden"));
    assert_eq!(asked_of_dns(ask(&cluster, "web:80").await), "");
    let only = asked_of_dns(ask(&cluster, "db.example.test:80").await);
    assert_eq!(only, "db.example.test. only");
}

/// The name contains the namespace: no other namespace is read, and no other right is needed.
#[tokio::test]
async fn the_address_of_a_pod_in_a_namespace() {
    let api = api();
    api.apply(
        "
kind: Pod
metadata: {name: dual, namespace: team}
spec: {containers: []}
status: {phase: Running, podIP: 10.244.0.41, podIPs: [{ip: 10.244.0.41}, {ip: fd00::41}]}
",
    );
    api.allow_only(&["list pods team"]);
    let cluster = cluster(&api);
    for (target, wanted) in [
        ("10-244-0-40.team.pod:1", "team/api-1:1"),
        ("10-244-0-40.team.pod.cluster.local:1", "team/api-1:1"),
        ("fd00--41.team.pod:1", "team/dual:1"),
        (
            "10-244-0-99.team.pod.cluster.local:1",
            "name_not_found: nothing in the cluster is named 10-244-0-99.team.pod.cluster.local: \
             there is no pod team/10-244-0-99; try kubectl get services,pods -n team",
        ),
        (
            "10-244-0-11.default.pod.cluster.local:1",
            "forbidden: cannot tell whether pod default/10-244-0-11 exists: jane cannot get pods 10-244-0-11 in \
             namespace default: ask for a Role with apiGroups [\"\"], resources [\"pods\"], verbs [\"get\"]",
        ),
    ] {
        assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
    }
    for (name, wanted) in [
        ("10-244-0-40.team.pod.cluster.local", "10.244.0.40"),
        (
            "10-244-0-99.team.pod.cluster.local",
            "ask, or name_not_found",
        ),
        ("10-244-0-11.default.pod.cluster.local", "ask, or forbidden"),
    ] {
        let found = cluster
            .records(&Name::parse(name).unwrap(), RecordKind::A)
            .await;
        assert_eq!(known(found), wanted, "{name}");
    }
}

const COREFILE: &str = "
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        kubernetes corp.example other.example in-addr.arpa ip6.arpa {
            pods insecure
        }
    }
";

#[tokio::test]
async fn the_domain_is_found_once() {
    let api = api();
    api.apply(COREFILE);
    let cluster = cluster(&api);
    ask(&cluster, "web.default:80").await.unwrap();
    let config = "get configmaps kube-system coredns";
    assert!(
        !api.asked().contains(&config.to_owned()),
        "nothing depends on it"
    );
    for (target, wanted) in [
        (
            "web.default.svc.corp.example:81",
            "default/web-1:9090 default/web-2:9090",
        ),
        ("web-1.default.pod.corp.example:8080", "default/web-1:8080"),
        (
            "web.default.svc.cluster.local:80",
            "outside: web.default.svc.cluster.local",
        ),
        ("www.example.com:443", "outside: www.example.com"),
    ] {
        assert_eq!(said(ask(&cluster, target).await), wanted, "{target}");
    }
    // Objects are looked up under one domain; names under others are asked of the DNS.
    let other = ask(&cluster, "web.default.svc.other.example:80").await;
    assert_eq!(asked_of_dns(other), "web.default.svc.other.example. only");
    let times = api.asked().iter().filter(|call| *call == config).count();
    assert_eq!(times, 1);
    assert_eq!(cluster.domain().await.to_string(), "corp.example");
}

#[tokio::test]
async fn a_domain_that_is_told_is_not_looked_for() {
    let api = api();
    api.apply(COREFILE);
    let settings = Settings {
        domain: Some(Name::parse("cluster.local.").unwrap()),
        ..Settings::default()
    };
    let cluster = Cluster::new(api.client(), settings);
    let web = ask(&cluster, "web.default.svc.cluster.local:80").await;
    assert_eq!(said(web), "default/web-1:8080 default/web-2:8080");
    assert!(!api.asked().iter().any(|call| call.contains("configmaps")));
}

#[tokio::test]
async fn a_domain_that_may_not_be_read_is_the_usual_one() {
    let api = api();
    api.apply(COREFILE)
        .allow_only(&["list services default", "list endpointslices default"]);
    let cluster = cluster(&api);
    for _ in 0..3 {
        let web = ask(&cluster, "web.default.svc.cluster.local:80").await;
        assert_eq!(said(web), "default/web-1:8080 default/web-2:8080");
    }
    let asked = api.asked();
    let asked = asked.iter().filter(|call| call.contains("configmaps"));
    assert_eq!(asked.count(), 1);
}

#[tokio::test]
async fn an_api_server_that_is_away_leaves_the_domain_open() {
    let api = api();
    api.apply(COREFILE);
    let cluster = cluster(&api);
    api.away(true);
    assert!(
        ask(&cluster, "web.default.svc.corp.example:80")
            .await
            .is_err()
    );
    api.away(false);
    let web = ask(&cluster, "web.default.svc.corp.example:80").await;
    assert_eq!(said(web), "default/web-1:8080 default/web-2:8080");
}

const KUBE_DNS: &str = "
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: 10.96.0.3
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, targetPort: 1053}]
---
kind: EndpointSlice
metadata: {name: kube-dns-x, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.2], targetRef: {kind: Pod, name: coredns-1}}]
ports: [{name: dns, port: 1053, protocol: UDP}, {name: dns-tcp, port: 1053}]
";

const DNS_POD: &str = "
kind: Pod
metadata: {name: coredns-9, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  containers:
  - {name: metrics, ports: [{containerPort: 9153}]}
  - {name: dns, ports: [{name: dns, containerPort: 5353, protocol: UDP}, {name: dns-tcp, containerPort: 5354}]}
status: {phase: Running, podIP: 10.244.0.3}
";

#[tokio::test]
async fn the_pods_of_the_dns() {
    let found = async |cluster: &Cluster| said(cluster.dns().await.map(Answer::Pods));
    let api = api();
    assert_eq!(
        found(&cluster(&api)).await,
        "name_not_found: nothing in the cluster is named service kube-system/kube-dns: \
         and no pod in kube-system has the label k8s-app=kube-dns"
    );
    api.apply(DNS_POD);
    assert_eq!(found(&cluster(&api)).await, "kube-system/coredns-9:5354");
    api.apply(KUBE_DNS);
    let cluster = cluster(&api);
    assert_eq!(found(&cluster).await, "kube-system/coredns-1:1053");
    let mut pods = cluster.dns().await.unwrap();
    assert_eq!(pods.service.as_deref(), Some("kube-system/kube-dns"));
    api.delete("endpointslices", "kube-system", "kube-dns-x");
    pods.next().await.unwrap();
    assert!(pods.endpoints.is_empty());
    // Another place, by a setting.
    let settings = Settings {
        dns: ("default".into(), "web".into()),
        ..Settings::default()
    };
    let elsewhere = found(&Cluster::new(api.client(), settings)).await;
    assert!(
        elsewhere.starts_with("no_such_port: service default/web has no TCP port 53"),
        "{elsewhere}"
    );
}

/// A node's address may be a Service's too; kube-proxy gives it to the Service.
#[tokio::test]
async fn an_external_address_goes_before_the_pods_of_the_node() {
    let api = api();
    assert_eq!(
        said(ask(&cluster(&api), "10.245.0.2:9100").await),
        "team/node-exporter:9100"
    );
    api.apply(
        "
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, externalIPs: [10.245.0.2], ports: [{name: http, port: 9100}]}
",
    );
    assert_eq!(
        said(ask(&cluster(&api), "10.245.0.2:9100").await),
        "default/web-1:8080 default/web-2:8080"
    );
}

/// One line for the records of a name.
fn known(known: Result<KnownRecords, LookupError>) -> String {
    let answers = |records: Records| {
        let answers = records.answers.iter().map(|record| match record {
            NameRecord::Address(ip) => ip.to_string(),
            NameRecord::Pointer(name) | NameRecord::Alias(name) => name.to_string(),
            NameRecord::Service { port, target, .. } => format!("{target}:{port}"),
        });
        answers.collect::<Vec<_>>().join(" ")
    };
    match known {
        Ok(KnownRecords::Records(records)) => answers(records),
        Ok(KnownRecords::Ask { otherwise: None }) => "ask".into(),
        Ok(KnownRecords::Ask {
            otherwise: Some(Ok(records)),
        }) => format!("ask, or {}", answers(records)),
        Ok(KnownRecords::Ask {
            otherwise: Some(Err(error)),
        }) => format!("ask, or {}", error.refusal()),
        Ok(KnownRecords::Missing) => "missing".into(),
        Ok(KnownRecords::Outside) => "outside".into(),
        Err(error) => format!("{}: {error}", error.refusal()),
    }
}

#[tokio::test]
async fn what_a_dns_would_say() {
    use RecordKind::{A, Aaaa, Other, Srv};
    let cluster = cluster(&api());
    for (name, wanted, said) in [
        ("web.default.svc.cluster.local", A, "10.96.0.10"),
        ("kubernetes.default.svc.cluster.local", A, "10.96.0.1"),
        ("db.default.svc.cluster.local", A, "10.244.0.20"),
        ("db-0.db.default.svc.cluster.local", A, "10.244.0.20"),
        (
            "_pg._tcp.db.default.svc.cluster.local",
            Srv,
            "db-0.db.default.svc.cluster.local:5432",
        ),
        ("leaving.default.svc.cluster.local", Aaaa, ""),
        ("cluster.local", A, ""),
        ("cluster.local", Other, "ask"),
        ("team.svc.cluster.local", A, ""),
        ("nosuch.svc.cluster.local", A, "ask, or name_not_found"),
        (
            "nosuch.default.svc.cluster.local",
            A,
            "ask, or name_not_found",
        ),
        (
            "outside.default.svc.cluster.local",
            A,
            "ask, or outside.example.test.",
        ),
        ("10-244-0-11.default.pod.cluster.local", A, "10.244.0.11"),
        (
            "10-244-0-11.team.pod.cluster.local",
            A,
            "ask, or name_not_found",
        ),
        ("web-1.default.pod.cluster.local", A, "10.244.0.11"),
        ("web-1.default.pod.cluster.local", Aaaa, "fd00:10:244::11"),
        ("else.cluster.local", A, "ask"),
        ("example.com", A, "outside"),
        // No search list applies: a name in a DNS query is fully qualified.
        ("web.default", A, "outside"),
    ] {
        let name = Name::parse(name).unwrap();
        assert_eq!(
            known(cluster.records(&name, wanted).await),
            said,
            "{name} {wanted:?}"
        );
    }
    for (ip, said) in [
        ("10.96.0.10", "web.default.svc.cluster.local"),
        ("fd00:10:96::a", "web.default.svc.cluster.local"),
        ("10.244.0.11", "ask, or name_not_found"),
        ("203.0.113.7", "outside"),
        ("192.0.2.1", "outside"),
    ] {
        assert_eq!(
            known(cluster.pointers(ip.parse().unwrap()).await),
            said,
            "{ip}"
        );
    }
}

#[tokio::test]
async fn the_names_of_a_pods_address_cost_no_list_of_services() {
    let api = api();
    let cluster = cluster(&api);
    for (ip, wanted) in [
        ("10.244.0.11", "ask, or name_not_found"),
        ("10.96.0.10", "web.default.svc.cluster.local"),
    ] {
        assert_eq!(known(cluster.pointers(ip.parse().unwrap()).await), wanted);
    }
    assert!(!api.asked().contains(&"list services".to_owned()));
    // There is no IPAddress object.
    let known = known(cluster.pointers("10.96.0.40".parse().unwrap()).await);
    assert_eq!(known, "api.team.svc.cluster.local");
    // With the right to Pods only, it is unknown whether a Service has the address.
    api.allow_only(&["list pods *"]);
    let cluster = self::cluster(&api);
    let known = self::known(cluster.pointers("10.96.0.40".parse().unwrap()).await);
    assert_eq!(known, "ask, or forbidden");
}
