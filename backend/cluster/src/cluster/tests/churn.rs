//! Whatever happened to the objects, and to the watches meanwhile: who followed it knows what a newcomer finds.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::sleep;

use super::*;

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Service {
        name: usize,
        shape: usize,
    },
    Slice {
        name: usize,
        of: usize,
        pods: usize,
        shape: usize,
    },
    Pod {
        name: usize,
        shape: usize,
    },
    Delete {
        kind: usize,
        name: usize,
    },
    /// Somebody asks, and so it is kept from here on.
    Ask(usize),
    /// Everybody does what they have to do.
    Settle,
    Pass(u64),
    Cut,
    Break,
    Forget {
        as_event: bool,
    },
    Bookmark,
    Away(bool),
}

const SERVICES: [&str; 3] = ["a", "b", "default"];
const SLICES: [&str; 4] = ["a-1", "a-2", "b-1", "x"];
const PODS: [&str; 4] = ["p0", "p1", "p2", "10-1-0-0"];
const KINDS: [(&str, &[&str]); 3] = [
    ("services", &SERVICES),
    ("endpointslices", &SLICES),
    ("pods", &PODS),
];

/// Names that depend on more than one object, and whose meaning moves from one to another.
const TARGETS: [&str; 14] = [
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

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 0..6_usize).prop_map(|(name, shape)| Step::Service { name, shape }),
        6 => (0..4_usize, 0..3_usize, 0..16_usize, 0..6_usize)
            .prop_map(|(name, of, pods, shape)| Step::Slice { name, of, pods, shape }),
        3 => (0..4_usize, 0..3_usize).prop_map(|(name, shape)| Step::Pod { name, shape }),
        3 => (0..3_usize, 0..4_usize).prop_map(|(kind, name)| Step::Delete { kind, name }),
        6 => (0..TARGETS.len()).prop_map(Step::Ask),
        4 => Just(Step::Settle),
        2 => (0..8_000_u64).prop_map(Step::Pass),
        1 => Just(Step::Cut),
        1 => Just(Step::Break),
        1 => any::<bool>().prop_map(|as_event| Step::Forget { as_event }),
        1 => Just(Step::Bookmark),
        1 => any::<bool>().prop_map(Step::Away),
    ]
}

fn service(name: usize, shape: usize) -> String {
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

fn slice(name: usize, of: usize, pods: usize, shape: usize) -> String {
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

fn pod(name: usize, shape: usize) -> String {
    let phase = ["Running", "Pending", "Succeeded"][shape];
    format!(
        "{{kind: Pod, metadata: {{name: {}}}, spec: {{containers: []}}, \
         status: {{phase: {phase}, podIP: 10.1.0.{name}, podIPs: [{{ip: 10.1.0.{name}}}]}}}}",
        PODS[name]
    )
}

async fn happen(api: &Api, cluster: &Cluster, step: Step) {
    match step {
        Step::Service { name, shape } => drop(api.apply(&service(name, shape))),
        Step::Slice {
            name,
            of,
            pods,
            shape,
        } => drop(api.apply(&slice(name, of, pods, shape))),
        Step::Pod { name, shape } => drop(api.apply(&pod(name, shape))),
        Step::Delete { kind, name } => {
            let (kind, names) = KINDS[kind];
            api.delete(kind, "default", names[name % names.len()]);
        }
        Step::Ask(target) => drop(ask(cluster, TARGETS[target]).await),
        Step::Settle => sleep(Duration::from_millis(5)).await,
        Step::Pass(ms) => sleep(Duration::from_millis(ms)).await,
        Step::Cut => api.cut_watches(),
        Step::Break => api.break_watches(),
        Step::Forget { as_event } => api.forget_history(as_event),
        Step::Bookmark => api.bookmark(),
        Step::Away(away) => api.away(away),
    }
}

/// All there is to an answer, readiness and reasons included.
fn all(answer: Result<Answer, LookupError>) -> String {
    format!("{answer:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn who_followed_it_knows_what_a_newcomer_finds(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let api = Api::default();
            let old = cluster(&api);
            for step in steps.clone() {
                happen(&api, &old, step).await;
            }
            api.away(false);
            // Longer than any pause, and than anything is believed that is not watched.
            sleep(Duration::from_secs(11)).await;
            let new = cluster(&api);
            for target in TARGETS {
                let (known, found) = (all(ask(&old, target).await), all(ask(&new, target).await));
                assert_eq!(known, found, "{target} after {steps:#?}");
            }
        });
    }
}
