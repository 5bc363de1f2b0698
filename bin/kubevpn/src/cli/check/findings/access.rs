//! Access rules: findings about the rights that are needed, and a Role with the missing ones.

use std::collections::BTreeMap;

use kubevpn_proxy::probe::{AccessRight, CREATE_PORT_FORWARD, GET_PORT_FORWARD};

use super::super::facts::KubeconfigFacts;
use super::Finding;

/// The first minor version whose API server requires `create` for a WebSocket, which is a GET.
const WEBSOCKET_NEEDS_CREATE: u32 = 35;

/// Findings about the access rules, and the rights that are missing.
pub(super) struct AccessFindings {
    pub(super) findings: Vec<Finding>,
    missing: BTreeMap<(&'static str, &'static str), Vec<&'static str>>,
}

impl AccessFindings {
    /// A Role with the missing rights, as YAML.
    pub(super) fn role(&self, kubeconfig: &KubeconfigFacts) -> Option<String> {
        if self.missing.is_empty() {
            return None;
        }
        let namespace = &kubeconfig.namespace;
        let mut role = format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n  name: kubevpn\n  namespace: {namespace}\nrules:\n"
        );
        for ((group, resource), verbs) in &self.missing {
            let verbs: Vec<_> = verbs.iter().map(|verb| format!("{verb:?}")).collect();
            role.push_str(&format!(
                "- apiGroups: [{group:?}]\n  resources: [{resource:?}]\n  verbs: [{}]\n",
                verbs.join(", ")
            ));
        }
        role.push_str(&format!(
            "# kubectl create rolebinding kubevpn -n {namespace} --role=kubevpn --user=NAME\n"
        ));
        Some(role)
    }

    fn lacks(&mut self, right: AccessRight) {
        let verbs = self
            .missing
            .entry((right.group, right.resource))
            .or_default();
        if !verbs.contains(&right.verb) {
            verbs.push(right.verb);
        }
    }
}

const TOPIC: &str = "access";

pub(super) fn of_rights(
    rights: &[(AccessRight, bool)],
    minor: Option<u32>,
    namespace: &str,
) -> AccessFindings {
    let mut access = AccessFindings {
        findings: Vec::new(),
        missing: BTreeMap::new(),
    };
    let may = |group, resource, verb| {
        rights.contains(&(
            AccessRight {
                group,
                resource,
                verb,
            },
            true,
        ))
    };
    forwards(&mut access, &may, minor, namespace);
    reads(&mut access, &may, namespace);
    access
}

type May<'a> = &'a dyn Fn(&'static str, &'static str, &'static str) -> bool;

fn forwards(access: &mut AccessFindings, may: May<'_>, minor: Option<u32>, namespace: &str) {
    let of = |right: AccessRight| may(right.group, right.resource, right.verb);
    let (create, get) = (of(CREATE_PORT_FORWARD), of(GET_PORT_FORWARD));
    let strict = minor.is_some_and(|minor| minor >= WEBSOCKET_NEEDS_CREATE);
    for (has, right) in [(create, CREATE_PORT_FORWARD), (get, GET_PORT_FORWARD)] {
        if !has {
            access.lacks(right);
        }
    }
    access.findings.push(match (create, get) {
        (true, true) => Finding::ok(TOPIC, format!("you may forward ports of Pods in {namespace}, over SPDY and WebSocket")),
        (true, false) => Finding::warning(
            TOPIC,
            format!("you may create and not get pods/portforward in {namespace}: SPDY works, WebSocket does not, which passes proxies that SPDY does not pass"),
        )
        .advice("nothing, unless the transports below fail: then ask for the Role below"),
        (false, true) if !strict => Finding::warning(
            TOPIC,
            format!("you may get and not create pods/portforward in {namespace}: WebSocket works until the cluster runs Kubernetes 1.35, SPDY does not"),
        )
        .advice("ask for the Role below"),
        (false, true) => Finding::problem(
            TOPIC,
            31,
            format!("you may get and not create pods/portforward in {namespace}: Kubernetes 1.35 asks for create, over WebSocket too"),
        )
        .advice("ask for the Role below"),
        (false, false) => Finding::problem(
            TOPIC,
            31,
            format!("you may not forward ports of Pods in {namespace} (create pods/portforward)"),
        )
        .advice("ask for the Role below, or choose another namespace with -n"),
    });
}

/// Findings about `get`, `list` and `watch` of the objects by which names are resolved.
fn reads(access: &mut AccessFindings, may: May<'_>, namespace: &str) {
    const SLICES: &str = "discovery.k8s.io";
    let resources = [
        ("", "services", "a Service cannot be found"),
        (
            SLICES,
            "endpointslices",
            "the Pods of a Service cannot be found",
        ),
        ("", "pods", "a Pod cannot be found by its name or address"),
    ];
    for (group, resource, without) in resources {
        let has = |verb| may(group, resource, verb);
        // An EndpointSlice has a generated name; the Endpoints have the Service's.
        let get = match resource {
            "endpointslices" => may("", "endpoints", "get"),
            _ => has("get"),
        };
        let (list, watch) = (has("list"), has("watch"));
        for verb in ["get", "list", "watch"] {
            if !has(verb) {
                access.lacks(AccessRight {
                    group,
                    resource,
                    verb,
                });
            }
        }
        let needed = resource != "pods";
        access.findings.push(match (get || list, list && watch) {
            (_, true) => Finding::ok(TOPIC, format!("you may list and watch {resource} in {namespace}")),
            (true, _) => Finding::warning(
                TOPIC,
                format!("you may read and not list and watch {resource} in {namespace}: changes are seen later, addresses perhaps not at all"),
            )
            .advice("nothing, or ask for the Role below"),
            (false, _) if needed => Finding::problem(
                TOPIC,
                31,
                format!("you may not read {resource} in {namespace}: {without}"),
            )
            .advice("ask for the Role below"),
            (false, _) => Finding::warning(
                TOPIC,
                format!("you may not read {resource} in {namespace}: {without}"),
            )
            .advice("nothing, if Services are enough; else ask for the Role below"),
        });
    }
}
