use k8s_openapi::serde::Deserialize as _;
use k8s_openapi::serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;

const CLUSTER: &str = include_str!("../../tests/fixtures/cluster.yaml");

/// The objects of a kind whose name, or whose Service, is that.
fn objects<T: DeserializeOwned>(kind: &str, name: &str) -> Vec<T> {
    let documents = serde_yaml_ng::Deserializer::from_str(CLUSTER);
    let documents = documents.map(|d| Value::deserialize(d).unwrap());
    let found = documents.filter(|object| {
        let meta = &object["metadata"];
        let of = &meta["labels"]["kubernetes.io/service-name"];
        object["kind"] == kind && (of == name || meta["name"] == name)
    });
    let in_namespace = |mut object: Value| {
        if object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = "default".into();
        }
        serde_json::from_value(object).unwrap()
    };
    found.map(in_namespace).collect()
}

/// The records of a name in the fixture's Services: answers, then additional records.
fn said(name: &str, wanted: RecordKind) -> Vec<String> {
    let domain = Domain::default();
    let name = Name::parse(&format!("{name}.cluster.local")).unwrap();
    let Some(Form::Service { name, part, .. }) = form(&name, &domain) else {
        panic!("{name} is of no service")
    };
    let service: Service = objects("Service", name).remove(0);
    let slices: Vec<EndpointSlice> = objects("EndpointSlice", name);
    let Some(records) = of_service(&service, &slices, part, wanted, &domain) else {
        return vec!["missing".into()];
    };
    let answers = records.answers.into_iter().map(|record| match record {
        NameRecord::Address(ip) => ip.to_string(),
        NameRecord::Service {
            weight,
            port,
            target,
        } => format!("{weight} {port} {target}"),
        NameRecord::Alias(name) | NameRecord::Pointer(name) => name.to_string(),
    });
    let additional = records.additional.into_iter();
    let additional = additional.map(|(name, ip)| format!("+ {name} {ip}"));
    answers.chain(additional).collect()
}

#[test]
fn a_service_has_its_cluster_ips() {
    use RecordKind::{A, Aaaa, Other};
    assert_eq!(said("web.default.svc", A), ["10.96.0.10"]);
    assert_eq!(said("web.default.svc", Aaaa), ["fd00:10:96::a"]);
    assert_eq!(said("web.default.svc", Other), Vec::<String>::new());
    assert_eq!(
        said("leaving.default.svc", Aaaa),
        Vec::<String>::new(),
        "it exists"
    );
    assert_eq!(said("_http._tcp.web.default.svc", A), ["10.96.0.10"]);
    assert_eq!(said("_http._udp.web.default.svc", A), ["missing"]);
    assert_eq!(
        said("outside.default.svc", A),
        ["missing"],
        "an alias is no address"
    );
}

#[test]
fn a_headless_service_has_its_ready_endpoints() {
    use RecordKind::{A, Aaaa};
    assert_eq!(said("db.default.svc", A), ["10.244.0.20"]);
    assert_eq!(said("db.default.svc", Aaaa), Vec::<String>::new());
    assert_eq!(said("peers.default.svc", A), ["10.244.0.21"], "published");
    assert_eq!(said("_pg._tcp.db.default.svc", A), ["10.244.0.20"]);
}

#[test]
fn endpoints_have_names() {
    use RecordKind::{A, Aaaa};
    assert_eq!(said("db-0.db.default.svc", A), ["10.244.0.20"]);
    assert_eq!(said("db-1.db.default.svc", A), ["missing"], "not ready");
    assert_eq!(said("db-1.peers.default.svc", A), ["10.244.0.21"]);
    assert_eq!(
        said("10-244-0-20.db.default.svc", A),
        ["missing"],
        "it has a hostname"
    );
    // Those of a Service with an address of its own, too.
    assert_eq!(said("10-244-0-12.web.default.svc", A), ["10.244.0.12"]);
    assert_eq!(
        said("fd00-10-244--11.web.default.svc", Aaaa),
        ["fd00:10:244::11"]
    );
    assert_eq!(said("nobody.db.default.svc", A), ["missing"]);
}

#[test]
fn services_by_port() {
    use RecordKind::Srv;
    assert_eq!(
        said("_admin._tcp.web.default.svc", Srv),
        [
            "50 81 web.default.svc.cluster.local",
            "+ web.default.svc.cluster.local 10.96.0.10",
            "+ web.default.svc.cluster.local fd00:10:96::a",
        ]
    );
    assert_eq!(
        said("_pg._tcp.db.default.svc", Srv),
        [
            "100 5432 db-0.db.default.svc.cluster.local",
            "+ db-0.db.default.svc.cluster.local 10.244.0.20",
        ]
    );
    assert_eq!(said("_no._tcp.web.default.svc", Srv), ["missing"]);
    let whole = said("web.default.svc", Srv);
    assert_eq!(whole.len(), 3 + 2, "a record for each port: {whole:?}");
}

#[test]
fn forms_of_names() {
    let domain = Domain::default();
    let of = |text: &str| {
        let name = Name::parse(text).unwrap();
        form(&name, &domain).map(|form| format!("{form:?}"))
    };
    let is = |form: Form<'_>| Some(format!("{form:?}"));
    assert_eq!(of("cluster.local"), is(Form::Branch));
    assert_eq!(of("svc.cluster.local"), is(Form::Branch));
    assert_eq!(of("shop.svc.cluster.local"), is(Form::Namespace("shop")));
    assert_eq!(of("shop.pod.cluster.local"), is(Form::Namespace("shop")));
    let pod = |label| {
        is(Form::Pod {
            namespace: "shop",
            label,
        })
    };
    assert_eq!(of("10-0-0-1.shop.pod.cluster.local"), pod("10-0-0-1"));
    assert_eq!(of("a.b.shop.pod.cluster.local"), pod("a.b"));
    for other in [
        "x.cluster.local",
        "dns-version.cluster.local",
        "a.b.c.d.shop.svc.cluster.local",
        "http._tcp.web.shop.svc.cluster.local",
        "-x.shop.svc.cluster.local",
        "web.shop.svc",
        "example.com",
    ] {
        assert_eq!(of(other), None, "{other}");
    }
}
