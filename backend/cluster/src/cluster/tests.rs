mod addresses;
mod check;
#[cfg(feature = "watch")]
mod churn;
mod dns;
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
async fn every_kind_of_target() {
    let cluster = cluster(&api());
    for (target, wanted) in TARGETS.iter().chain(&FAILURES) {
        assert_eq!(said(ask(&cluster, target).await), *wanted, "{target}");
    }
}

/// DNS has no ports: the requested one is dialled, and the other one is named.
#[tokio::test]
async fn refusal_of_a_headless_service_names_its_pods_port() {
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
async fn candidates_have_their_kind_and_service() {
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
async fn forbidden_names_are_outside_if_the_policy_permits() {
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
async fn steps_are_reported() {
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
async fn a_target_without_a_port_is_resolved() {
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
