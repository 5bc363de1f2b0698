//! Names that the DNS of the cluster is asked for, its domain, its Pods, and records of names.

use super::*;

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
async fn names_that_the_clusters_dns_is_asked_for() {
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
async fn a_configured_domain_is_not_looked_up() {
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

#[tokio::test]
async fn records_of_names() {
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
