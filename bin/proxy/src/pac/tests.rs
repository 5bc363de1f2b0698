//! The file, run by a JavaScript engine for a table of hosts.

use rquickjs::{Context, Function, Runtime};

use super::*;

fn facts() -> PacFacts {
    PacFacts {
        http: Some("127.0.0.1:3128".into()),
        socks: Some("127.0.0.1:1080".into()),
        endings: vec!["cluster.local".into(), "corp.test".into()],
        namespace: "dev".into(),
        services: KnownList::Listed(vec!["web".into(), "db".into()], None),
        elsewhere: KnownList::Listed(
            ["api.team-a", "google.com", "web.io"]
                .map(Into::into)
                .into(),
            None,
        ),
        service_ranges: KnownList::Listed(
            vec!["10.96.0.0/12".into(), "fd00:10:96::/112".into()],
            None,
        ),
        ranges: vec!["10.244.0.0/16".parse().unwrap()],
        upstream: None,
    }
}

/// The proxy for each host. Functions that resolve names fail the test.
fn run(facts: &PacFacts, hosts: &[&str]) -> Vec<String> {
    let runtime = Runtime::new().unwrap();
    let context = Context::full(&runtime).unwrap();
    context.with(|js| {
        js.eval::<(), _>(
            "function dnsResolve() { throw 'resolves'; } var isInNet = dnsResolve, isResolvable = dnsResolve;",
        )
        .unwrap();
        js.eval::<(), _>(text(facts)).unwrap();
        let find: Function<'_> = js.globals().get("FindProxyForURL").unwrap();
        let hosts = hosts.iter();
        hosts
            .map(|host| find.call((format!("http://{host}/"), *host)).unwrap())
            .collect()
    })
}

const CLUSTER: &str = "PROXY 127.0.0.1:3128; SOCKS5 127.0.0.1:1080";

#[test]
fn the_truth_table() {
    let cluster = [
        "web",
        "WEB",
        "web.",
        "db",
        "web.dev",
        "db-0.db.dev",
        "web.dev.svc",
        "api.team-a",
        "API.team-a.",
        "web.other.svc",
        "10-0-0-1.other.pod",
        "web.dev.svc.cluster.local",
        "Web.Dev.SVC.Cluster.Local.",
        "cluster.local",
        "anything.cluster.local",
        "git.corp.test",
        "10.96.0.1",
        "10.111.255.255",
        "10.244.3.4",
        "fd00:10:96::1",
        "[fd00:10:96::1]",
        "FD00:10:96:0:0:0:0:ffff",
        "::ffff:10.96.0.1",
    ];
    let outside = [
        "localhost",
        "a.localhost",
        "127.0.0.1",
        "::1",
        "nosuch",
        "go.dev",
        // Services of other namespaces do not capture names below them, nor names of web sites.
        "api",
        "x.api.team-a",
        "web.team-a",
        "google.com",
        "web.io",
        "web.dev.example",
        "example.com",
        "xcluster.local",
        "cluster.local.example",
        "corp.test.example",
        "svc",
        "10.95.255.255",
        "10.112.0.0",
        "10.245.0.1",
        "192.168.0.1",
        "fd00:10:97::1",
        "fd00:10:96::1:1",
        "300.96.0.1",
        "10.96.0.1.example.com",
        "1:2:3",
        "fe80::1::2",
        "",
    ];
    let facts = facts();
    for (host, way) in cluster.iter().zip(run(&facts, &cluster)) {
        assert_eq!(way, CLUSTER, "{host}");
    }
    for (host, way) in outside.iter().zip(run(&facts, &outside)) {
        assert_eq!(way, "DIRECT", "{host}");
    }
}

/// A host that could belong to the cluster goes to the proxy while the list is not known, and the file says so.
#[test]
fn an_unknown_list_is_a_comment() {
    let unknown = PacFacts {
        services: KnownList::Not("cannot list services\n: alert(1)\u{2028}alert(2)".into()),
        elsewhere: KnownList::Not("cannot list services at the cluster scope".into()),
        service_ranges: KnownList::Not("cannot list servicecidrs".into()),
        ranges: Vec::new(),
        ..facts()
    };
    let file = text(&unknown);
    assert!(
        file.contains(
            "// Not known: the Services of namespace dev (cannot list services : alert(1) alert(2))"
        ),
        "{file}"
    );
    assert!(file.contains("// Not known: the Services of other namespaces (cannot list"));
    assert!(file.contains("// Not known: the ranges of ClusterIPs (cannot list servicecidrs)"));
    let ways = run(
        &unknown,
        &["web.dev", "x.y.dev", "web", "10.96.0.1", "web.dev.svc"],
    );
    assert_eq!(ways, [CLUSTER, CLUSTER, "DIRECT", "DIRECT", CLUSTER]);
    assert!(run(&facts(), &["web"]).iter().all(|way| way == CLUSTER));
    assert!(!text(&facts()).contains("Not known"));
}

/// An outage keeps the last list, and the file says so.
#[test]
fn the_last_list_is_kept() {
    let old = |known: KnownList| match known {
        KnownList::Listed(found, _) => {
            KnownList::Listed(found, Some("the API server is away".into()))
        }
        KnownList::Not(_) => unreachable!(),
    };
    let away = PacFacts {
        services: old(facts().services),
        elsewhere: old(facts().elsewhere),
        service_ranges: old(facts().service_ranges),
        ..facts()
    };
    let hosts = ["web", "api.team-a", "10.96.0.1", "nosuch", "192.0.2.1"];
    assert_eq!(run(&away, &hosts), run(&facts(), &hosts));
    let comments = text(&away);
    let seen = comments.matches("those last seen (the API server is away)");
    assert_eq!(seen.count(), 3);
}

#[test]
fn the_ways_there_are() {
    let only = |http: bool, socks: bool| {
        let facts = PacFacts {
            http: facts().http.filter(|_| http),
            socks: facts().socks.filter(|_| socks),
            upstream: Some("proxy.corp:8080".into()),
            ..facts()
        };
        run(&facts, &["web", "example.com", "localhost"]).join(" | ")
    };
    assert_eq!(
        only(true, false),
        "PROXY 127.0.0.1:3128 | PROXY proxy.corp:8080 | DIRECT"
    );
    assert_eq!(
        only(false, true),
        "SOCKS5 127.0.0.1:1080 | PROXY proxy.corp:8080 | DIRECT"
    );
}

/// A name stays a string, whatever it contains.
#[test]
fn names_are_quoted() {
    let odd = "x\"; throw 1; //\u{2028}</script>";
    let facts = PacFacts {
        services: KnownList::Listed(vec![odd.into()], None),
        ..facts()
    };
    assert_eq!(run(&facts, &["example.com", odd]), ["DIRECT", CLUSTER]);
}

#[test]
fn ranges() {
    for bad in [
        "",
        "10.0.0.0",
        "10.0.0.0/33",
        "::/129",
        "x/8",
        "10.0.0.0/-1",
        "/8",
    ] {
        assert!(bad.parse::<AddressRange>().is_err(), "{bad}");
    }
    let all = PacFacts {
        service_ranges: KnownList::Listed(
            vec!["0.0.0.0/0".into(), "10.0.0.1/32".into(), "no range".into()],
            None,
        ),
        ..facts()
    };
    assert_eq!(
        run(&all, &["192.0.2.1", "2001:db8::1"]),
        [CLUSTER, "DIRECT"]
    );
}
