use k8s_openapi::serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;

const CLUSTER: &str = include_str!("../../tests/fixtures/cluster.yaml");

/// The objects of a kind whose name, or whose Service, is that.
fn objects<T: DeserializeOwned>(kind: &str, name: &str) -> Vec<T> {
    use k8s_openapi::serde::Deserialize;
    let documents = serde_yaml_ng::Deserializer::from_str(CLUSTER);
    let mut found = Vec::new();
    for mut object in documents.map(|d| Value::deserialize(d).unwrap()) {
        let meta = &mut object["metadata"];
        let of = &meta["labels"]["kubernetes.io/service-name"];
        if of != name && meta["name"] != name {
            continue;
        }
        if meta["namespace"].is_null() {
            meta["namespace"] = "default".into();
        }
        if object["kind"] == kind {
            found.push(serde_json::from_value(object).unwrap());
        }
    }
    assert!(!found.is_empty(), "no {kind} {name} in the fixture");
    found
}

fn service(name: &str) -> Service {
    objects("Service", name).remove(0)
}

fn slices(service: &str) -> Vec<EndpointSlice> {
    objects("EndpointSlice", service)
}

fn pods() -> Vec<Pod> {
    let names = [
        "web-1",
        "api-1",
        "waiting",
        "job-1",
        "next",
        "node-exporter",
        "node-agent",
    ];
    names.iter().flat_map(|n| objects("Pod", n)).collect()
}

fn said(found: &ServiceEndpoints) -> Vec<String> {
    let pods = found
        .pods
        .iter()
        .map(|e| format!("{}:{} {}", e.pod, e.port, e.readiness));
    pods.collect()
}

#[test]
fn port_and_address_come_from_the_same_slice() {
    let web = slices("web");
    let found = endpoints(&web, PortOf::Named("http"), None);
    assert_eq!(
        said(&found),
        [
            "default/web-1:8080 ready",
            "default/web-2:8080 ready",
            "default/web-3:8181 not ready"
        ]
    );
    assert_eq!(found.pods[0].addresses.len(), 2, "both families, one Pod");
    assert_eq!(found.pods[0].pod.uid.as_deref(), Some("u-web-1"));
    let admin = endpoints(&web, PortOf::Named("admin"), None);
    assert!(admin.pods.iter().all(|e| e.port == 9090));
    // The slices have it, for UDP.
    let dns = endpoints(&web, PortOf::Named("dns"), None);
    assert_eq!((dns.pods.len(), dns.portless), (0, 4));
}

#[test]
fn service_ports() {
    let web = service("web");
    assert_eq!(
        service_port(&web, RequestedPort::port(80))
            .unwrap()
            .name
            .as_deref(),
        Some("http")
    );
    let refused = |service: &Service, port| {
        service_port(service, RequestedPort::port(port))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refused(&web, 82),
        "service default/web has no TCP port 82, it has 80 (http), 81 (admin)"
    );
    assert_eq!(
        refused(&web, 53),
        "service default/web has no TCP port 53, it has 80 (http), 81 (admin); \
         53 (dns) is a UDP port, and port-forward carries TCP only"
    );
    assert_eq!(
        refused(&web, 9090),
        "service default/web has no TCP port 9090, it has 80 (http), 81 (admin); \
         9090 is the pod's port behind 81"
    );
    let mut udp = web.clone();
    udp.spec
        .as_mut()
        .unwrap()
        .ports
        .as_mut()
        .unwrap()
        .drain(..2);
    assert_eq!(
        refused(&udp, 80),
        "service default/web has no TCP port 80, it has none; \
         53 (dns) is UDP, and port-forward carries TCP only"
    );
    assert_eq!(
        service_port(&web, RequestedPort::port(82))
            .unwrap_err()
            .refusal(),
        kubevpn_target::Refusal::NoSuchPort
    );
}

#[test]
fn a_list_is_bounded() {
    let many = (1..=40).map(|i| i.to_string());
    let text = list(many.collect::<Vec<_>>().into_iter());
    assert_eq!(text, "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 28 more");
}

#[test]
fn kinds() {
    assert_eq!(kind(&service("web")), ServiceKind::Mapped);
    assert_eq!(kind(&service("db")), ServiceKind::Headless);
    assert_eq!(
        kind(&service("outside")),
        ServiceKind::External("Outside.example.test")
    );
}

#[test]
fn addresses_of_a_service() {
    let addresses: BTreeMap<_, _> = service_addresses(&service("web"))
        .map(|a| (a, ()))
        .collect();
    let wanted = ["10.96.0.10", "203.0.113.7", "203.0.113.8", "fd00:10:96::a"];
    let wanted: BTreeMap<_, _> = wanted.iter().map(|a| (a.parse().unwrap(), ())).collect();
    assert_eq!(addresses, wanted);
    assert_eq!(service_addresses(&service("db")).count(), 0);
}

#[test]
fn endpoints_by_hostname_or_dashed_address() {
    let db = slices("db");
    let named = |label| said(&endpoints(&db, PortOf::Number(7), Some(label)));
    assert_eq!(named("db-0"), ["default/db-0:7 ready"]);
    assert_eq!(named("db-1"), ["default/db-1:7 not ready"]);
    assert!(named("db-2").is_empty());
    // The one with a hostname has no other name.
    assert!(named("10-244-0-20").is_empty());
    let web = slices("web");
    let named = |label| said(&endpoints(&web, PortOf::Number(7), Some(label)));
    assert_eq!(named("10-244-0-12"), ["default/web-2:7 ready"]);
    assert_eq!(named("fd00-10-244--11"), ["default/web-1:7 ready"]);
}

#[test]
fn conditions() {
    let of = |service| said(&endpoints(&slices(service), PortOf::Number(7), None));
    assert_eq!(
        of("leaving"),
        [
            "default/leaving-1:7 terminating, still serving",
            "default/leaving-2:7 terminating"
        ]
    );
    assert_eq!(of("peers"), ["default/db-1:7 ready"]);
    assert!(of("empty").is_empty());
}

#[test]
fn addresses_without_a_pod() {
    let manual = endpoints(&slices("manual"), PortOf::Named("http"), None);
    assert!(manual.pods.is_empty());
    let bare: Vec<_> = manual.bare.iter().map(|b| b.ip.to_string()).collect();
    assert_eq!(bare, ["198.51.100.55", "10.244.0.11"]);
    let sly = endpoints(&slices("sly"), PortOf::Named(""), None);
    assert!(sly.pods.is_empty(), "a reference into another namespace");
    assert_eq!(sly.bare.len(), 1);

    let mut slice = slices("manual").remove(0);
    slice.endpoints[0].addresses = vec!["host.example.test".into()];
    slice.endpoints[1].target_ref = Some(ObjectReference {
        kind: Some("Node".into()),
        name: Some("n1".into()),
        ..Default::default()
    });
    let found = endpoints(&[slice], PortOf::Named("http"), None);
    let reasons: Vec<_> = found.strays.iter().map(|s| s.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "it is a host name, and only pods can be forwarded to",
            "it is the Node n1, and only pods can be forwarded to"
        ]
    );
}

#[test]
fn a_pod_in_two_slices_at_once_is_one_candidate() {
    let mut web = slices("web");
    let mut moved = web[0].endpoints[0].clone();
    moved.conditions = Some(EndpointConditions {
        ready: Some(false),
        ..Default::default()
    });
    web[1].endpoints.push(moved);
    for order in [vec![&web[0], &web[1]], vec![&web[1], &web[0]]] {
        let found = endpoints(order, PortOf::Named("http"), None);
        let web_1 = found.pods.iter().find(|e| e.pod.name == "web-1").unwrap();
        assert_eq!((web_1.port, web_1.readiness), (8080, Readiness::Ready));
        assert_eq!(found.pods.len(), 3);
    }
}

#[test]
fn why_there_is_none() {
    let of = |name, port| {
        let found = endpoints(&slices(name), port, None);
        why_none(&service(name), &found)
    };
    assert_eq!(
        of("empty", PortOf::Named("")),
        "no running pod matches its selector app=no-such"
    );
    assert_eq!(
        of("web", PortOf::Named("gone")),
        "4 endpoints exist, and none has the port that the service's port leads to"
    );
}

#[test]
fn the_endpoints_object_says_the_same() {
    let yaml = "
metadata: {name: web, namespace: default}
subsets:
- addresses: [{ip: 10.244.0.11, hostname: one, targetRef: {kind: Pod, namespace: default, name: web-1, uid: u}}]
  notReadyAddresses: [{ip: 10.244.0.12, targetRef: {kind: Pod, namespace: default, name: web-2}}]
  ports: [{name: http, port: 8080, protocol: TCP}]
- addresses: [{ip: 10.244.0.13, targetRef: {kind: Pod, namespace: default, name: web-3}}]
  ports: [{name: http, port: 8181}]
- {}
";
    let slices = slices_of(serde_yaml_ng::from_str(yaml).unwrap());
    assert_eq!(
        said(&endpoints(&slices, PortOf::Named("http"), None)),
        [
            "default/web-1:8080 ready",
            "default/web-2:8080 not ready",
            "default/web-3:8181 ready"
        ]
    );
    let one = endpoints(&slices, PortOf::Number(1), Some("one"));
    assert_eq!(said(&one), ["default/web-1:1 ready"]);
}

#[test]
fn pods_by_address() {
    let pods = pods();
    let at = |ip: &str, port| {
        let found = pods_at(&pods, ip.parse().unwrap(), RequestedPort::port(port))?;
        Ok::<_, LookupError>(found.into_iter().map(|e| e.pod.name).collect::<Vec<_>>())
    };
    assert_eq!(at("10.244.0.11", 80).unwrap(), ["web-1"]);
    assert_eq!(at("fd00:10:244::11", 80).unwrap(), ["web-1"]);
    assert_eq!(at("10.244.0.50", 80).unwrap(), ["next"]);
    assert!(at("10.244.0.99", 80).unwrap().is_empty());
    // On the node's network the declared port decides, also that of a sidecar.
    assert_eq!(at("10.245.0.2", 9100).unwrap(), ["node-exporter"]);
    assert_eq!(at("10.245.0.2", 9200).unwrap(), ["node-agent"]);
    let error = at("10.245.0.2", 22).unwrap_err();
    assert_eq!(
        error.to_string(),
        "10.245.0.2 is the node address of pods team/node-exporter, team/node-agent, none of which \
         declares TCP port 22: dial one as <pod-name>.<namespace>.pod"
    );
    assert_eq!(error.refusal(), kubevpn_target::Refusal::Unreachable);
}

#[test]
fn a_pod_by_itself() {
    let pod = |name| objects::<Pod>("Pod", name).remove(0);
    let readiness = |name| pod_endpoint(&pod(name), 80).map(|e| e.readiness);
    assert_eq!(readiness("web-1"), Some(Readiness::Ready));
    assert_eq!(readiness("waiting"), Some(Readiness::NotReady));
    assert_eq!(readiness("job-1"), None);
}

#[test]
fn why_a_pod_is_not_ready() {
    let of = |status: &str| {
        let pod = serde_yaml_ng::from_str(&format!("{{metadata: {{}}, status: {{{status}}}}}"));
        why_not_ready(&pod.unwrap())
    };
    let container = |state: &str| {
        of(&format!(
            "containerStatuses: [{{name: c, image: i, imageID: i, restartCount: 0, {state}}}]"
        ))
        .unwrap()
    };
    assert_eq!(
        container("ready: false, started: true, state: {running: {}}"),
        "container c runs, and its readiness probe does not succeed"
    );
    assert_eq!(
        container("ready: false, started: false, state: {running: {}}"),
        "container c has not finished starting"
    );
    assert_eq!(
        container("ready: false, state: {waiting: {reason: CrashLoopBackOff}}"),
        "container c waits, CrashLoopBackOff"
    );
    assert_eq!(
        container("ready: false, state: {terminated: {exitCode: 1, reason: Error}}"),
        "container c ended, Error"
    );
    let ready = "{name: c, image: i, imageID: i, restartCount: 0, ready: true}";
    let done = "{name: d, image: i, imageID: i, restartCount: 0, ready: false, state: {terminated: {exitCode: 0}}}";
    assert_eq!(
        of(&format!(
            "containerStatuses: [{ready}], initContainerStatuses: [{done}], \
             conditions: [{{type: Ready, status: 'False', reason: ReadinessGatesNotReady}}]"
        ))
        .unwrap(),
        "ReadinessGatesNotReady"
    );
    assert_eq!(
        of("conditions: [{type: PodScheduled, status: 'False', message: \"0/1 nodes\\nare available\"}]").unwrap(),
        "it is not scheduled, 0/1 nodes are available"
    );
    assert_eq!(of("phase: Running"), None);
    let long = of(&format!(
        "conditions: [{{type: Ready, status: 'False', message: {}}}]",
        "x".repeat(999)
    ));
    assert_eq!(long.unwrap().chars().count(), 201);
}

#[test]
fn how_long_a_client_keeps_to_a_pod() {
    let affinity = |spec: &str| {
        let service = format!("{{metadata: {{name: web}}, spec: {{{spec}}}}}");
        affinity(&serde_yaml_ng::from_str(&service).unwrap()).map(|d| d.as_secs())
    };
    assert_eq!(affinity("clusterIP: 10.0.0.1"), None);
    assert_eq!(affinity("clusterIP: 10.0.0.1, sessionAffinity: None"), None);
    assert_eq!(
        affinity("clusterIP: 10.0.0.1, sessionAffinity: ClientIP"),
        Some(10800)
    );
    assert_eq!(affinity("clusterIP: None, sessionAffinity: ClientIP"), None);
    let config = "sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}";
    let kept = format!("clusterIP: 10.0.0.1, sessionAffinity: ClientIP, {config}");
    assert_eq!(affinity(&kept), Some(60));
}
