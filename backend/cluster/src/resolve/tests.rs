//! Resolution of objects to answers, without an API server.

use std::collections::BTreeSet;
use std::ops::Deref;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::IPAddress;
use k8s_openapi::serde::Deserialize as _;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::ResourceExt as _;
use kubevpn_target::{ConnectError, Refusal, Target};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::Settings;
use crate::snapshot::{Hints, Needs, Search, Second};

/// A small cluster with every kind of target.
pub(crate) const CLUSTER: &str = include_str!("../../tests/fixtures/cluster.yaml");

const BOTH: &str = "default/web-1:8080 default/web-2:8080";

/// Each kind of target in [`CLUSTER`], and its resolution.
pub(crate) const TARGETS: [(&str, &str); 37] = [
    // Service names.
    ("web:80", BOTH),
    ("web.default:80", BOTH),
    ("web.default.svc:80", BOTH),
    ("Web.Default.SVC.Cluster.Local:80", BOTH),
    (
        "web.default.svc.cluster.local.:81",
        "default/web-1:9090 default/web-2:9090",
    ),
    ("api.team:80", "team/api-1:8080"),
    ("leaving:80", "default/leaving-1:8080"),
    // Service addresses.
    ("10.96.0.10:80", BOTH),
    ("[fd00:10:96::a]:80", BOTH),
    ("203.0.113.7:80", BOTH),
    ("203.0.113.8:80", BOTH),
    ("10.96.0.40:80", "team/api-1:8080"),
    // Headless: the port as asked.
    ("db:9999", "default/db-0:9999"),
    ("peers:5432", "default/db-1:5432"),
    // Endpoints.
    ("db-0.db:5432", "default/db-0:5432"),
    ("db-0.db.default.svc.cluster.local:1", "default/db-0:1"),
    ("10-244-0-12.web.default.svc:1", "default/web-2:1"),
    // Pods.
    ("web-1.default.pod:8080", "default/web-1:8080"),
    ("web-1.default.pod.cluster.local:8080", "default/web-1:8080"),
    ("10-244-0-40.team.pod.cluster.local:1", "team/api-1:1"),
    (
        "fd00-10-244--11.default.pod.cluster.local:1",
        "default/web-1:1",
    ),
    ("10.244.0.40:1", "team/api-1:1"),
    ("[fd00:10:244::11]:1", "default/web-1:1"),
    ("10.244.0.50:1", "default/next:1"),
    ("10.245.0.2:9100", "team/node-exporter:9100"),
    // Other names for what is here.
    ("alias:80", BOTH),
    ("manual:80", "default/web-1:8080"),
    ("kubernetes:443", "the API server"),
    ("kubernetes.default.svc.cluster.local:443", "the API server"),
    ("10.96.0.1:443", "the API server"),
    // Outside.
    ("www.example.com:443", "outside: www.example.com"),
    ("example.com:443", "outside: example.com"),
    ("a.b.example.com:443", "outside: a.b.example.com"),
    ("db-7.db:5432", "outside: db-7.db"),
    ("192.0.2.1:443", "outside: 192.0.2.1"),
    ("127.0.0.1:443", "outside: 127.0.0.1"),
    (
        "outside:443",
        "outside: outside.example.test. by service default/outside",
    ),
];

/// Targets that cannot be resolved, and their errors.
pub(crate) const FAILURES: [(&str, &str); 18] = [
    (
        "nosuch:80",
        "name_not_found: nothing in the cluster is named nosuch: there is no service default/nosuch; \
         try kubectl get services,pods -n default",
    ),
    (
        "nosuch.team:80",
        "name_not_found: nothing in the cluster is named nosuch.team: there is no service team/nosuch; \
         try kubectl get services,pods -n team",
    ),
    (
        "web.nowhere.svc:80",
        "name_not_found: nothing in the cluster is named web.nowhere.svc: there is no namespace nowhere",
    ),
    (
        "a.b.c.d.team:80",
        "name_not_found: nothing in the cluster is named a.b.c.d.team: \
         it has the form of no service, endpoint or pod",
    ),
    (
        "web.:80",
        "name_not_found: nothing in the cluster is named web.: names with a trailing dot are not \
         searched for: write it without the dot, or in full",
    ),
    (
        "_http._tcp.web.default.svc.cluster.local:80",
        "name_not_found: nothing in the cluster is named _http._tcp.web.default.svc.cluster.local: \
         it has the form of no service, endpoint or pod",
    ),
    (
        "nosuch.team.pod:80",
        "name_not_found: nothing in the cluster is named nosuch.team.pod: there is no pod team/nosuch; \
         try kubectl get services,pods -n team",
    ),
    (
        "web:82",
        "no_such_port: service default/web has no TCP port 82, it has 80 (http), 81 (admin)",
    ),
    (
        "kubernetes:80",
        "no_such_port: service default/kubernetes has no TCP port 80, it has 443 (https)",
    ),
    (
        "empty:80",
        "not_ready: service default/empty port 80 has no ready endpoint: \
         no running pod matches its selector app=no-such",
    ),
    (
        "db-1.db:5432",
        "not_ready: endpoint db-1 of service default/db port 5432 has no ready endpoint: 1 exists: \
         1 not ready (pod default/db-1: container db waits, CrashLoopBackOff)",
    ),
    (
        "job-1.default.pod:80",
        "not_ready: pod default/job-1 port 80 has no ready endpoint: the pod has run to its end",
    ),
    (
        "waiting.default.pod:80",
        "not_ready: pod default/waiting port 80 has no ready endpoint: 1 exists: 1 not ready",
    ),
    (
        "far:80",
        "unreachable: service default/far port 80 is served by 198.51.100.56, which port-forward cannot \
         reach: it is no pod's address, and only pods can be forwarded to",
    ),
    (
        "sly:80",
        "unreachable: service default/sly port 80 is served by 198.51.100.57, which port-forward cannot \
         reach: it is no pod's address, and only pods can be forwarded to",
    ),
    (
        "loop-a:80",
        "unreachable: service default/loop-a is an ExternalName that leads nowhere: \
         it points to loop-b.default.svc.cluster.local., after 2 others",
    ),
    (
        "number:80",
        "unreachable: service default/number is an ExternalName that leads nowhere: it points to \
         \"10.0.0.1\", and the name ends in a number but is no IPv4 address",
    ),
    (
        // An ExternalName is a DNS name: no search list applies.
        "short:80",
        "name_not_found: nothing in the cluster is named api.team. (where service default/short points): \
         it has the form of no service, endpoint or pod",
    ),
];

pub(crate) const SERVICES: [&str; 3] = ["a", "b", "default"];
pub(crate) const SLICES: [&str; 4] = ["a-1", "a-2", "b-1", "x"];
pub(crate) const PODS: [&str; 4] = ["p0", "p1", "p2", "10-1-0-0"];
/// Names that depend on several objects, and whose meaning moves from one object to another.
pub(crate) const CHANGING: [&str; 14] = [
    "a:80",
    "a:81",
    "b:80",
    "a.default:80",
    "a.default.svc.cluster.local:80",
    "b.default.svc:81",
    "host.a:80",
    "host.b.default.svc:80",
    "10-1-0-1.a.default.svc:80",
    "p1.default.pod:80",
    "10-1-0-0.default.pod.cluster.local:80",
    "10.96.0.0:80",
    "10.96.1.1:80",
    "default:80",
];

pub(crate) fn service_of(name: usize, shape: usize) -> String {
    let spec = [
        "clusterIP: 10.96.0.N, selector: {app: x}, ports: [{name: http, port: 80}]",
        "clusterIP: 10.96.1.N, selector: {app: x}, ports: [{name: http, port: 81}, {name: other, port: 80}]",
        "clusterIP: None, selector: {app: x}",
        "clusterIP: None, publishNotReadyAddresses: true, selector: {app: x}",
        "type: ExternalName, externalName: b.default.svc.cluster.local",
        "clusterIP: 10.96.0.N, ports: [{name: http, port: 80}]",
    ][shape];
    // No two have the same address at any time.
    let spec = spec.replace('N', &name.to_string());
    let name = SERVICES[name];
    format!("{{kind: Service, metadata: {{name: {name}}}, spec: {{{spec}}}}}")
}

pub(crate) fn slice_of(name: usize, of: usize, pods: usize, shape: usize) -> String {
    let conditions = [
        "{}",
        "{ready: true}",
        "{ready: false}",
        "{ready: false, serving: true, terminating: true}",
        "{ready: true}",
        "{ready: true}",
    ][shape];
    let ports = ["http", "other"][shape % 2];
    let reference = |pod: &str| match shape {
        4 => String::new(),
        _ => format!(", targetRef: {{kind: Pod, name: {pod}}}"),
    };
    let endpoints = PODS
        .iter()
        .enumerate()
        .filter(|(i, _)| pods >> i & 1 == 1)
        .map(|(i, pod)| {
            let hostname = if i == 0 { ", hostname: host" } else { "" };
            format!(
                "{{addresses: [10.1.0.{i}], conditions: {conditions}{hostname}{}}}",
                reference(pod)
            )
        });
    let endpoints = endpoints.collect::<Vec<_>>().join(", ");
    let (name, of) = (SLICES[name], SERVICES[of]);
    format!(
        "{{kind: EndpointSlice, metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {of}}}}}, \
         addressType: IPv4, endpoints: [{endpoints}], ports: [{{name: {ports}, port: 80{shape}}}]}}"
    )
}

pub(crate) fn pod_of(name: usize, shape: usize) -> String {
    let phase = ["Running", "Pending", "Succeeded"][shape];
    format!(
        "{{kind: Pod, metadata: {{name: {}}}, spec: {{containers: []}}, \
         status: {{phase: {phase}, podIP: 10.1.0.{name}, podIPs: [{{ip: 10.1.0.{name}}}]}}}}",
        PODS[name]
    )
}

/// All objects, and the forbidden reads.
#[derive(Default)]
struct World {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    pods: Vec<Arc<Pod>>,
    addresses: Vec<Arc<IPAddress>>,
    namespaces: Vec<Arc<Namespace>>,
    denied: Vec<&'static str>,
    settings: Settings,
    hints: Hints,
    /// Likely needs are read together with the first need.
    is_eager: bool,
}

impl World {
    fn new(yaml: &str) -> Self {
        let mut world = Self::default();
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let mut object = Value::deserialize(document).unwrap();
            let Some(kind) = object["kind"].as_str().map(str::to_owned) else {
                assert!(yaml.is_empty(), "{object}");
                continue;
            };
            let meta = &mut object["metadata"];
            if meta["namespace"].is_null() && !matches!(&*kind, "Namespace" | "IPAddress") {
                meta["namespace"] = "default".into();
            }
            fn read<T: DeserializeOwned>(object: Value, into: &mut Vec<Arc<T>>) {
                into.push(Arc::new(serde_json::from_value(object).unwrap()));
            }
            match &*kind {
                "Service" => read(object, &mut world.services),
                "EndpointSlice" => read(object, &mut world.slices),
                "Pod" => read(object, &mut world.pods),
                "IPAddress" => read(object, &mut world.addresses),
                "Namespace" => read(object, &mut world.namespaces),
                _ => {}
            }
        }
        world
    }

    fn read<K: kube::Resource>(
        &self,
        kind: &'static str,
        objects: &[Arc<K>],
        select: &Select,
    ) -> Result<Objects<K>, CallFailure> {
        if self.denied.contains(&kind) {
            return Err(Arc::new(ConnectError::new(Refusal::Forbidden, kind)));
        }
        let selected = |object: &&Arc<K>| {
            let namespace = object.namespace().unwrap_or_default();
            let label = |key: &str| object.labels().get(key).cloned();
            let within = select.namespace().is_none_or(|wanted| wanted == namespace);
            within
                && match select {
                    Select::Named { name, .. } => object.name_any() == *name,
                    Select::OfService { service, .. } => {
                        label("kubernetes.io/service-name").as_ref() == Some(service)
                    }
                    Select::WithLabel { label: text, .. } => {
                        let (key, value) = text.split_once('=').unwrap();
                        label(key).as_deref() == Some(value)
                    }
                    Select::WithAddress { .. } | Select::All { .. } => true,
                }
        };
        Ok(Arc::new(objects.iter().filter(selected).cloned().collect()))
    }

    fn fill(&self, snapshot: &mut Snapshot<'_>, need: Need) {
        match need {
            Need::Domain => snapshot.domain = Some(snapshot.guess.clone()),
            Need::Additions => snapshot.additions = Some(true),
            Need::Services(select) => {
                let found = self.read("services", &self.services, &select);
                snapshot.services.insert(select, found);
            }
            Need::Slices(select) => {
                let found = self.read("slices", &self.slices, &select);
                snapshot.slices.insert(select, found);
            }
            Need::Pods(select) => {
                let mut found = self.read("pods", &self.pods, &select);
                if let (Ok(found), Select::WithAddress { ip, .. }) = (&mut found, &select) {
                    let first = |pod: &Arc<Pod>| objects::pod_addresses(pod).next();
                    Arc::make_mut(found).retain(|pod| first(pod) == Some(*ip));
                }
                snapshot.pods.insert(select, found);
            }
            Need::Addresses(select) => {
                let found = self.read("addresses", &self.addresses, &select);
                snapshot.addresses.insert(select, found);
            }
            Need::Namespaces(select) => {
                let found = self.read("namespaces", &self.namespaces, &select);
                snapshot.namespaces.insert(select, found);
            }
            Need::Second(search) => {
                let found = self.second(&search).map(Arc::new);
                snapshot.second.insert(search, found);
            }
        }
    }

    fn second(&self, search: &Search) -> Result<Second, CallFailure> {
        let namespace = search.within.clone();
        let pods = self.read("pods", &self.pods, &Select::All { namespace })?;
        let mut second = Second::default();
        for pod in pods.iter() {
            let first = objects::pod_addresses(pod).next();
            for ip in objects::pod_addresses(pod).filter(|ip| Some(*ip) != first) {
                let name = (pod.namespace().unwrap_or_default(), pod.name_any());
                second.pods.insert(ip, name);
                second.networks.insert(Second::network(ip));
            }
        }
        Ok(second)
    }

    /// Resolves a target, reading nothing twice.
    fn resolve(&self, target: &str) -> Result<Resolution<Arc<Candidates>>, LookupError> {
        let target = Target::parse(target, Default::default()).unwrap();
        let subject = Subject::Target(Query::new(&target.host, target.port));
        let domain = Arc::new(Domain::default());
        let mut snapshot = Snapshot::new(&self.settings, domain, self.hints.clone());
        let mut needed = BTreeSet::new();
        loop {
            match resolve(&snapshot, &subject, &mut Notes::default()) {
                Ok(answer) => return Ok(answer.map(Arc::new)),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Failed(failure)) => return Err(failure.into()),
                Err(Stop::Needs(Needs { first, soon })) => {
                    assert!(needed.insert(format!("{first:?}")), "{first:?} again");
                    self.fill(&mut snapshot, first);
                    if self.is_eager {
                        for need in soon {
                            needed.insert(format!("{need:?}"));
                            self.fill(&mut snapshot, need);
                        }
                    }
                }
            }
        }
    }
}

/// One line for an answer or an error.
pub(crate) fn said<P: Deref<Target = Candidates>>(
    answer: Result<Resolution<P>, LookupError>,
) -> String {
    match answer {
        Ok(Resolution::Pods(candidates)) => match candidates.usable() {
            Ok(usable) => usable
                .iter()
                .map(|e| format!("{}:{}", e.pod, e.port))
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => format!("{}: {error}", error.refusal()),
        },
        Ok(Resolution::ApiServer) => "the API server".into(),
        Ok(Resolution::Outside(outside)) => match outside.learned_from {
            None => format!("outside: {}", outside.host),
            Some(from) => format!("outside: {} by {from}", outside.host),
        },
        // The result if the DNS does not know the name either.
        Ok(Resolution::Dns(question)) => said::<P>(Err(question.otherwise)),
        Err(error) => format!("{}: {error}", error.refusal()),
    }
}

#[test]
fn objects_to_answers() {
    for is_eager in [false, true] {
        let world = World {
            is_eager,
            ..World::new(CLUSTER)
        };
        for (target, wanted) in TARGETS.iter().chain(&FAILURES) {
            assert_eq!(said(world.resolve(target)), *wanted, "{target}");
        }
    }
}

/// Without a right, an address or name of a Pod or Service never counts as a host outside.
#[test]
fn what_may_not_be_seen_is_refused() {
    let kinds = ["services", "slices", "pods", "addresses", "namespaces"];
    for mask in 0..32 {
        let mut world = World::new(CLUSTER);
        let denied = kinds.iter().enumerate();
        let denied = denied.filter(|(i, _)| mask >> i & 1 == 1);
        world.denied = denied.map(|(_, kind)| *kind).collect();
        for (target, wanted) in &TARGETS {
            let said = said(world.resolve(target));
            let refused = said.starts_with("forbidden: ") || said.starts_with("unreachable: ");
            assert!(
                said == *wanted || refused,
                "{target} without {:?}: {said}",
                world.denied
            );
        }
    }
}

fn objects_of() -> impl Strategy<Value = String> {
    let services = prop::collection::vec((0..3_usize, 0..6_usize), 0..4);
    let slices = prop::collection::vec((0..4_usize, 0..3_usize, 0..16_usize, 0..6_usize), 0..5);
    let pods = prop::collection::vec((0..4_usize, 0..3_usize), 0..4);
    (services, slices, pods).prop_map(|(services, slices, pods)| {
        // The last object of each name is the existing one.
        let mut objects = std::collections::BTreeMap::new();
        for (name, shape) in services {
            objects.insert(("service", name), service_of(name, shape));
        }
        for (name, of, pods, shape) in slices {
            objects.insert(("slice", name), slice_of(name, of, pods, shape));
        }
        for (name, shape) in pods {
            objects.insert(("pod", name), pod_of(name, shape));
        }
        let objects: Vec<_> = objects.into_values().collect();
        objects.join("\n---\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })]

    /// The answer depends on the objects only, neither on additional reads nor on hints for an address. Nothing is read
    /// twice.
    #[test]
    fn hints_and_what_was_read_early_change_no_answer(
        objects in objects_of(),
        owner in 0..8_usize,
        target in 0..CHANGING.len(),
    ) {
        let target = CHANGING[target];
        let mut world = World::new(&objects);
        let plain = format!("{:?}", world.resolve(target));
        world.is_eager = true;
        let name = |name: &str| ("default".to_owned(), name.to_owned());
        world.hints.owner = match owner {
            0..3 => Some(AddressOwner::Service(name(SERVICES[owner]))),
            3..7 => Some(AddressOwner::Pod(name(PODS[owner - 3]))),
            _ => None,
        };
        prop_assert_eq!(plain, format!("{:?}", world.resolve(target)));
    }

    /// Every candidate is a Pod that a slice of the Service names, or that has the address or the name.
    #[test]
    fn usable_endpoints_are_pods_that_serve(objects in objects_of(), target in 0..CHANGING.len()) {
        let world = World::new(&objects);
        if let Ok(Resolution::Pods(candidates)) = world.resolve(CHANGING[target]) {
            let named = world.slices.iter().flat_map(|slice| &slice.endpoints);
            let named = named.filter_map(|e| e.target_ref.as_ref()?.name.clone());
            let known: BTreeSet<_> = named.chain(world.pods.iter().map(|p| p.name_any())).collect();
            for endpoint in candidates.usable().unwrap_or_default() {
                prop_assert!(known.contains(&endpoint.pod.name), "{}", endpoint.pod);
                prop_assert_eq!(&*endpoint.pod.namespace, "default");
            }
        }
    }
}
