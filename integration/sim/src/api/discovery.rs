//! What the API server says of itself: its version, its groups, what it serves.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::path::Info;
use crate::cluster::SimOptions;
use crate::kind;

/// The answer for a path that is no resource; `None` if there is nothing.
pub(super) fn answer(options: &SimOptions, info: &Info) -> Option<Value> {
    let parts: Vec<&str> = info.path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        ["version"] => Some(version(options)),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "10.245.0.2:6443"}]})),
        ["apis"] => Some(json!({"kind": "APIGroupList", "apiVersion": "v1",
            "groups": groups().into_iter().map(group).collect::<Vec<_>>()})),
        ["apis", name] if groups().contains(name) => {
            let mut group = group(name);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Some(group)
        }
        ["api", "v1"] => Some(resources(options, "")),
        ["apis", name, "v1"] if groups().contains(name) => Some(resources(options, name)),
        _ => None,
    }
}

fn version(options: &SimOptions) -> Value {
    let minor = options.minor.to_string();
    json!({
        "major": "1",
        "minor": minor,
        "gitVersion": format!("v1.{minor}.0"),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "gc",
        "platform": "linux/amd64",
    })
}

fn groups() -> BTreeSet<&'static str> {
    let named = kind::ALL.iter().map(|k| k.group).filter(|g| !g.is_empty());
    named.chain(["authorization.k8s.io"]).collect()
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn resources(options: &SimOptions, group: &str) -> Value {
    let verbs = [
        "create", "delete", "get", "list", "patch", "update", "watch",
    ];
    let mut resources = Vec::new();
    let served = kind::ALL
        .iter()
        .filter(|k| k.group == group && k.since <= options.minor);
    for kind in served {
        let mut resource = json!({
            "name": kind.plural,
            "singularName": kind.kind.to_lowercase(),
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": verbs,
        });
        if !kind.short.is_empty() {
            resource["shortNames"] = kind.short.into();
        }
        resources.push(resource);
        if **kind == kind::POD {
            resources.push(
                json!({"name": "pods/portforward", "singularName": "", "namespaced": true,
                "kind": "PodPortForwardOptions", "verbs": ["create", "get"]}),
            );
        }
    }
    if group == "authorization.k8s.io" {
        resources.push(
            json!({"name": "selfsubjectaccessreviews", "singularName": "selfsubjectaccessreview",
            "namespaced": false, "kind": "SelfSubjectAccessReview", "verbs": ["create"]}),
        );
    }
    let version = match group {
        "" => "v1".to_owned(),
        group => format!("{group}/v1"),
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
}

/// Whether there is such a group in such a version; what is in it is another question.
pub(super) fn has_group(group: &str, version: &str) -> bool {
    group.is_empty() || version == "v1" && groups().contains(group)
}
