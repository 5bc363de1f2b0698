//! One row for each problem and warning.

use std::net::IpAddr;

use kubevpn_client::ShownCredentials;
use kubevpn_proxy::probe::AccessRight;

use super::super::facts::{AddressFacts, ListenerFacts, Lookup, RangeFacts, Ranges};
use super::super::{document, text};
use super::*;

/// Time relative to the current time of these tests.
fn at(seconds: i64) -> SystemTime {
    const PRESENT: i64 = 1_800_000_000;
    SystemTime::UNIX_EPOCH + Duration::from_secs((PRESENT + seconds).unsigned_abs())
}

fn rights(without: &[(&str, &str)]) -> Vec<(AccessRight, bool)> {
    let all = [
        ("", "pods/portforward", &["create", "get"][..]),
        ("", "services", &["get", "list", "watch"]),
        (
            "discovery.k8s.io",
            "endpointslices",
            &["get", "list", "watch"],
        ),
        ("", "endpoints", &["get"]),
        ("", "pods", &["get", "list", "watch"]),
    ];
    let mut rights = Vec::new();
    for (group, resource, verbs) in all {
        for &verb in verbs {
            let right = AccessRight {
                group,
                resource,
                verb,
            };
            rights.push((right, !without.contains(&(verb, resource))));
        }
    }
    rights
}

fn open(transport: &str) -> Tried {
    Tried {
        transport: transport.to_owned(),
        came: Ok(PortForwardAccess::Open {
            to: "web-0:80".to_owned(),
        }),
    }
}

fn trouble(code: u8, sentence: &str) -> CheckFailure {
    CheckFailure {
        code,
        sentence: sentence.to_owned(),
    }
}

/// A cluster and a machine without problems.
fn good() -> CheckFacts {
    let token = ShownCredentials {
        token: true,
        expires: Some(at(9 * 3600)),
        ..ShownCredentials::default()
    };
    let range = |cidr: &str| RangeFacts {
        cidr: cidr.to_owned(),
        routed_by: None,
    };
    CheckFacts {
        now: Some(at(0)),
        kubeconfig: Some(Ok(KubeconfigFacts {
            files: vec!["/home/jane/.kube/config".to_owned()],
            context: Some("lab".to_owned()),
            user: Some("jane".to_owned()),
            namespace: "shop".to_owned(),
            server: "https://api.test:6443".to_owned(),
            notes: Vec::new(),
            trust: Trust::Kubeconfig,
            proxy: None,
            proxy_of_env: false,
        })),
        server: Some(Ok(ServerFacts {
            version: Some("v1.34.4".to_owned()),
            minor: Some(34),
            first: Duration::from_micros(9800),
            round_trip: Duration::from_micros(1200),
            ahead: Some(0),
        })),
        addresses: vec![AddressFacts {
            ip: IpAddr::from([192, 0, 2, 7]),
            routed: true,
        }],
        credentials: Some(CredentialFacts {
            shown: Some(token),
            trouble: None,
        }),
        rights: Some(Ok(rights(&[]))),
        transports: vec![open("spdy"), open("spdy-ws"), open("ws")],
        names: Some(NameFacts {
            domain: "cluster.local".to_owned(),
            dns: Some(Ok(2)),
        }),
        ranges: Some(Ranges {
            services: Ok(vec![range("10.96.0.0/12")]),
            pods: Ok(vec![range("10.244.0.0/24")]),
        }),
        listener: Some(ListenerFacts {
            address: "127.0.0.1:1080".to_owned(),
            state: PortHolder::Free,
        }),
        proxies: Vec::new(),
        lookup: Some(Lookup {
            name: "kubernetes.default.svc.cluster.local".to_owned(),
            addresses: Vec::new(),
            real: Some(IpAddr::from([10, 96, 0, 1])),
        }),
        files: Some(None),
        isolated: Some(Ok(())),
    }
}

/// After a failure, there are no further probes.
fn without_cluster(facts: &mut CheckFacts) {
    facts.rights = None;
    facts.transports.clear();
    facts.names = None;
    facts.ranges = None;
}

fn kubeconfig(facts: &mut CheckFacts) -> &mut KubeconfigFacts {
    facts.kubeconfig.as_mut().unwrap().as_mut().unwrap()
}

fn server(facts: &mut CheckFacts) -> &mut ServerFacts {
    facts.server.as_mut().unwrap().as_mut().unwrap()
}

fn shown(facts: &mut CheckFacts) -> &mut ShownCredentials {
    facts.credentials.as_mut().unwrap().shown.as_mut().unwrap()
}

fn held(facts: &mut CheckFacts, state: PortHolder) {
    facts.listener.as_mut().unwrap().state = state;
}

fn variable(name: &'static str, url: &str, held: Option<PortHolder>, known: bool) -> ProxyVariable {
    ProxyVariable {
        name,
        url: url.to_owned(),
        held,
        known,
    }
}

fn kubevpn() -> PortHolder {
    PortHolder::Process {
        pid: 7,
        name: "kubevpn".to_owned(),
    }
}

type Row = (
    &'static str,
    fn(&mut CheckFacts),
    u8,
    &'static [&'static str],
);

/// Name of the row, change to a good machine, exit code, and parts of lines in order.
#[rustfmt::skip]
const ROWS: [Row; 42] = [
    ("nothing", |_| {}, 0, &[
        "ok       kubeconfig   /home/jane/.kube/config: context lab, user jane, namespace shop",
        "ok       tls ", "certificate-authority",
        "runs v1.34.4; a round trip takes 1.2 ms, the first answer took 9.8 ms (8 of them)",
        "ok       credentials  the API server accepts the token of user jane, until ", "(in 9h)",
        "ok       access       you may forward ports of Pods in shop",
        "ok       transport    spdy: port-forward works (tried with pod web-0:80)",
        "ok       names        names of the cluster end in cluster.local",
        "ok       ranges       Services have addresses of 10.96.0.0/12",
        "ok       listener     127.0.0.1:1080 is free",
        "ok       isolation    run --isolated can give a command a network of its own",
        "All is well",
    ]),
    ("no kubeconfig", |f| {
        f.kubeconfig = Some(Err(trouble(20, "no kubeconfig found: pass --kubeconfig, or set KUBECONFIG")));
        (f.server, f.credentials, f.lookup) = (None, None, None);
        without_cluster(f);
    }, 20, &["problem  kubeconfig   no kubeconfig found", "ok       listener", "1 problem\n"]),
    ("an entry that is broken and not used", |f| kubeconfig(f).notes = vec!["user old is broken".into()], 0,
        &["warning  kubeconfig   user old is broken", "try: nothing now", "1 warning\n"]),
    ("an expired token", |f| {
        shown(f).expires = Some(at(-7200));
        f.credentials.as_mut().unwrap().trouble = Some(trouble(32, "401"));
        without_cluster(f);
    }, 32, &["problem  credentials  the token of user jane expired 120m ago", "try: log in again, or ask"]),
    ("an expired certificate", |f| {
        *shown(f) = ShownCredentials { certificate: true, expires: Some(at(-86_400 * 9)), ..ShownCredentials::default() };
        f.credentials.as_mut().unwrap().trouble = Some(trouble(32, "does not accept our certificate"));
        f.server = None;
        without_cluster(f);
    }, 32, &["problem  credentials  the client certificate of user jane expired 9d ago"]),
    ("an expired certificate that is passed over", |f| {
        *shown(f) = ShownCredentials { certificate: true, expires: Some(at(-86_400 * 9)), ..ShownCredentials::default() };
        f.rights = Some(Err(trouble(31, "system:anonymous cannot create selfsubjectaccessreviews")));
    }, 32, &["problem  credentials  the client certificate of user jane expired 9d ago: the API server takes you for anonymous",
        "try: log in again"]),
    ("a token that is not accepted", |f| {
        shown(f).expires = None;
        f.credentials.as_mut().unwrap().trouble = Some(trouble(32, "the API server does not accept our credentials (401)"));
        without_cluster(f);
    }, 32, &["problem  credentials  the API server does not accept our credentials (401)"]),
    ("an expired token that is accepted", |f| shown(f).expires = Some(at(-60)), 0,
        &["warning  credentials  the token of user jane expired 60s ago, and the API server takes it: one of the two clocks is wrong"]),
    ("a token that is about to expire", |f| shown(f).expires = Some(at(300)), 0,
        &["warning  credentials", "(in 5m)", "try: log in again"]),
    ("a plugin's token that is about to expire", |f| {
        shown(f).expires = Some(at(300));
        shown(f).plugin = Some("aws".into());
    }, 0, &["ok       credentials", "the plugin aws renews it"]),
    ("no credentials", |f| *shown(f) = ShownCredentials::default(), 0, &["warning  credentials  user jane has none"]),
    ("a server without TLS", |f| {
        kubeconfig(f).trust = Trust::Plain;
        *shown(f) = ShownCredentials::default();
    }, 0, &["warning  tls ", "the kubeconfig's credentials are not sent at all",
        "warning  credentials  no token, password or certificate of user jane is sent over plain http, as kubectl sends none"]),
    ("no credentials, and no access", |f| {
        *shown(f) = ShownCredentials::default();
        f.rights = Some(Err(trouble(31, "system:anonymous cannot create selfsubjectaccessreviews")));
    }, 32, &["problem  credentials  user jane has none: the API server takes you for anonymous, who may do nothing here"]),
    ("a login that failed", |f| {
        f.credentials = Some(CredentialFacts { shown: None, trouble: Some(trouble(32, "the credential plugin \"aws\" failed")) });
        f.server = None;
        without_cluster(f);
    }, 32, &["problem  credentials  the credential plugin \"aws\" failed"]),
    ("no create pods/portforward", |f| f.rights = Some(Ok(rights(&[("create", "pods/portforward")]))), 0,
        &["warning  access       you may get and not create pods/portforward in shop: WebSocket works until",
          "kind: Role", "namespace: shop", "resources: [\"pods/portforward\"]\n  verbs: [\"create\"]"]),
    ("no create pods/portforward on 1.35", |f| {
        f.rights = Some(Ok(rights(&[("create", "pods/portforward")])));
        server(f).minor = Some(35);
    }, 31, &["problem  access       you may get and not create pods/portforward in shop: Kubernetes 1.35 asks for create"]),
    ("no get pods/portforward", |f| f.rights = Some(Ok(rights(&[("get", "pods/portforward")]))), 0,
        &["warning  access       you may create and not get pods/portforward in shop: SPDY works", "verbs: [\"get\"]"]),
    ("neither", |f| f.rights = Some(Ok(rights(&[("get", "pods/portforward"), ("create", "pods/portforward")]))), 31,
        &["problem  access       you may not forward ports of Pods in shop", "verbs: [\"create\", \"get\"]", "kubectl create rolebinding"]),
    ("Services cannot be read", |f| f.rights = Some(Ok(rights(&[("get", "services"), ("list", "services"), ("watch", "services")]))), 31,
        &["problem  access       you may not read services in shop: a Service cannot be found", "resources: [\"services\"]\n  verbs: [\"get\", \"list\", \"watch\"]"]),
    ("Services cannot be watched", |f| f.rights = Some(Ok(rights(&[("watch", "services")]))), 0,
        &["warning  access       you may read and not list and watch services", "verbs: [\"watch\"]"]),
    ("Pods cannot be read", |f| f.rights = Some(Ok(rights(&[("get", "pods"), ("list", "pods"), ("watch", "pods")]))), 0,
        &["warning  access       you may not read pods in shop"]),
    ("Endpoints alone", |f| f.rights = Some(Ok(rights(&[("list", "endpointslices"), ("watch", "endpointslices"), ("get", "endpointslices")]))), 0,
        &["warning  access       you may read and not list and watch endpointslices"]),
    ("access that cannot be asked for", |f| f.rights = Some(Err(trouble(31, "you cannot create selfsubjectaccessreviews"))), 0,
        &["warning  access       not known: you cannot create selfsubjectaccessreviews"]),
    ("the API server is away", |f| {
        f.server = Some(Err(trouble(40, "the API server https://api.test:6443 cannot be reached: the connection was refused")));
        f.credentials = None;
        without_cluster(f);
    }, 40, &["problem  api-server   the API server https://api.test:6443 cannot be reached"]),
    ("another authority", |f| {
        f.server = Some(Err(trouble(40, "the certificate of the API server is signed by nobody we trust: check certificate-authority")));
        f.credentials = None;
        without_cluster(f);
    }, 40, &["problem  api-server   the certificate of the API server is signed by nobody we trust"]),
    ("a certificate that is not verified", |f| kubeconfig(f).trust = Trust::Nobody, 0, &["warning  tls", "insecure-skip-tls-verify"]),
    ("a far API server", |f| server(f).round_trip = Duration::from_millis(400), 0, &["warning  api-server", "400.0 ms"]),
    ("a skewed clock", |f| server(f).ahead = Some(-3600), 0,
        &["warning  clock        this machine's clock is 60m behind the API server's", "try: set the clock"]),
    ("a corporate proxy", |f| kubeconfig(f).proxy = Some("http://proxy.corp:3128".into()), 0,
        &["ok       proxy        to the API server through http://proxy.corp:3128, which the kubeconfig names"]),
    ("the proxy is kubevpn itself", |f| {
        kubeconfig(f).proxy = Some("http://127.0.0.1:3128".into());
        kubeconfig(f).proxy_of_env = true;
        f.proxies = vec![variable("HTTPS_PROXY", "http://127.0.0.1:3128", Some(kubevpn()), false)];
        f.server = Some(Err(trouble(40, "the proxy does not connect to the API server")));
        f.credentials = None;
        without_cluster(f);
    }, 40, &["problem  proxy        the API server is asked through HTTPS_PROXY=http://127.0.0.1:3128, which is a proxy of kubevpn's own",
             "try: unset HTTPS_PROXY"]),
    ("ALL_PROXY is kubevpn itself", |f| f.proxies = vec![variable("ALL_PROXY", "socks5h://127.0.0.1:1080", Some(kubevpn()), false)], 0,
        &["warning  environment  ALL_PROXY=socks5h://127.0.0.1:1080 is kubevpn's own", "eval \"$(kubevpn env)\""]),
    ("ALL_PROXY by kubevpn env", |f| f.proxies = vec![variable("ALL_PROXY", "http://127.0.0.1:3128", Some(kubevpn()), true)], 0,
        &["ok       environment  ALL_PROXY=http://127.0.0.1:3128 is kubevpn's own, which it leaves out itself"]),
    ("ALL_PROXY behind http_proxy", |f| f.proxies = vec![
        variable("ALL_PROXY", "http://127.0.0.1:3128", Some(kubevpn()), true),
        variable("http_proxy", "http://proxy.corp:3128", None, false),
    ], 0, &["warning  environment  http_proxy=http://proxy.corp:3128 goes before ALL_PROXY"]),
    ("a proxy that is gone", |f| f.proxies = vec![variable("http_proxy", "http://127.0.0.1:9", Some(PortHolder::Free), false)], 0,
        &["warning  environment  http_proxy=http://127.0.0.1:9, and nothing listens there", "try: unset http_proxy"]),
    ("a port that is in use", |f| held(f, PortHolder::Process { pid: 4711, name: "dante".into() }), 53,
        &["problem  listener     127.0.0.1:1080 is in use by dante (process 4711)", "--listen-socks"]),
    ("a port that a connection has", |f| held(f, PortHolder::Connection("03dc50feb8c3".into())), 0,
        &["ok       listener     127.0.0.1:1080 is the listener of connection 03dc50feb8c3"]),
    ("fake addresses", |f| f.lookup.as_mut().unwrap().addresses = vec![IpAddr::from([198, 18, 0, 4])], 0,
        &["warning  dns          this machine's DNS says 198.18.0.4 to kubernetes.default.svc.cluster.local, a made-up address (fake-ip)"]),
    ("another VPN's DNS", |f| f.lookup.as_mut().unwrap().addresses = vec![IpAddr::from([10, 43, 0, 1])], 0,
        &["warning  dns          this machine's DNS says 10.43.0.1 to kubernetes.default.svc.cluster.local, which another VPN"]),
    ("no route for IPv6", |f| f.addresses.push(AddressFacts { ip: "2001:db8::7".parse().unwrap(), routed: false }), 0,
        &["warning  route        there is no route to 2001:db8::7, an address of the API server"]),
    ("no transport but one", |f| {
        f.transports[0].came = Err(trouble(40, "403: something before the API server"));
        f.transports[1].came = Err(trouble(40, "403: something before the API server"));
    }, 0, &["warning  transport    spdy does not work: 403", "ok       transport    ws:"]),
    ("no Pod", |f| f.transports.iter_mut().for_each(|tried| tried.came = Ok(PortForwardAccess::NoneReady { namespace: "shop".into() })), 0,
        &["warning  transport    port-forward was not tried: no Pod of shop is ready", "1 warning\n"]),
    ("no user namespaces", |f| f.isolated = Some(Err("an isolated network cannot be made here: set this".into())), 0,
        &["warning  isolation    an isolated network cannot be made here: set this", "try: nothing, unless", "1 warning\n"]),
];

#[test]
fn every_row() {
    let schema =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/check.schema.json");
    let schema = serde_json::from_slice(&std::fs::read(schema).unwrap()).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    for (name, change, code, lines) in ROWS {
        let mut facts = good();
        change(&mut facts);
        let report = report(&facts);
        let said = text(&report);
        assert_eq!(report.code(), code, "{name}: {said}");
        let mut rest = &*said;
        for line in lines {
            let found = rest.split_once(line);
            rest = found
                .unwrap_or_else(|| panic!("{name}: no {line:?} in\n{rest}"))
                .1;
        }
        let document = document(&report, None);
        let errors: Vec<_> = schema
            .iter_errors(&document)
            .map(|e| e.to_string())
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:?} in {document}");
        let levels = |level| report.count(level);
        assert_eq!(
            document["problems"],
            levels(FindingLevel::Problem),
            "{name}"
        );
        // Every warning and problem has advice, in the finding or in its error.
        for finding in &report.findings {
            let advised = finding.advice.is_some() || finding.level == FindingLevel::Ok;
            let is_failure =
                finding.level == FindingLevel::Problem || finding.text.starts_with("not known");
            assert!(advised || is_failure, "{name}: {finding:?}");
        }
    }
}

/// A failed transport decides the exit code; all failed ones are reported.
#[test]
fn no_transport_at_all() {
    let mut facts = good();
    for tried in &mut facts.transports {
        tried.came = Err(trouble(40, "no way"));
    }
    let report = report(&facts);
    assert_eq!(
        (report.code(), report.count(FindingLevel::Problem)),
        (40, 3)
    );
}

#[test]
fn texts_from_outside_are_escaped() {
    let mut facts = good();
    kubeconfig(&mut facts).notes = vec!["\u{1b}[2J".to_owned()];
    assert!(!text(&report(&facts)).contains('\u{1b}'));
}
