//! Deployments and StatefulSets: the pods they want.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::services::default;
use super::{World, items, name_of, namespace_of, owner, pods, text};
use crate::kind::{DEPLOYMENT, POD, ResourceKind, STATEFUL_SET};
use crate::names::template_hash;
use crate::status::Status;
use crate::store::Object;

/// More replicas than this are a mistake of the test.
const MOST_REPLICAS: u64 = 5_000;

pub(super) fn admit(kind: &'static ResourceKind, object: &mut Value) -> Result<(), Status> {
    let name = name_of(object);
    let spec = &mut object["spec"];
    default(spec, "replicas", || json!(1));
    if spec["replicas"].as_u64().is_none_or(|n| n > MOST_REPLICAS) {
        let why = "must be greater than or equal to 0";
        return Err(Status::invalid(kind, &name, "spec.replicas", why));
    }
    if !spec["template"].is_object() || !spec["selector"].is_object() {
        return Err(Status::invalid(kind, &name, "spec", "Required value"));
    }
    Ok(())
}

impl World {
    /// Sets the replicas of a Deployment or StatefulSet.
    pub(crate) fn scale(
        &mut self,
        namespace: &str,
        name: &str,
        replicas: u32,
    ) -> Result<(), Status> {
        for kind in [&DEPLOYMENT, &STATEFUL_SET] {
            if let Some(object) = self.store.get(kind, namespace, name) {
                let mut object = (**object).clone();
                object["spec"]["replicas"] = replicas.into();
                self.update(kind, object)?;
                return Ok(());
            }
        }
        Err(Status::not_found(&DEPLOYMENT, name))
    }

    pub(super) fn reconcile_workloads(&mut self) {
        let list = |kind| self.store.list(kind, "").cloned().collect::<Vec<_>>();
        let (deployments, stateful_sets) = (list(&DEPLOYMENT), list(&STATEFUL_SET));
        let mut uids = BTreeSet::new();
        for deployment in deployments {
            uids.insert(set_uid(&deployment));
            self.reconcile_deployment(&deployment);
        }
        for set in stateful_sets {
            uids.insert(text(&set["metadata"]["uid"]));
            self.reconcile_stateful_set(&set);
        }
        // Pods whose owner is gone go as well.
        let orphan = |pod: &&Object| {
            let owner = &pod["metadata"]["ownerReferences"][0]["uid"];
            owner.as_str().is_some_and(|uid| !uids.contains(uid)) && !pods::is_terminating(pod)
        };
        let orphans: Vec<Object> = self.store.list(&POD, "").filter(orphan).cloned().collect();
        for pod in orphans {
            self.end_pod(&namespace_of(&pod), &name_of(&pod));
        }
    }

    fn reconcile_deployment(&mut self, deployment: &Value) {
        let (namespace, name) = (namespace_of(deployment), name_of(deployment));
        let spec = &deployment["spec"];
        let hash = template_hash(&spec["template"].to_string());
        let set = format!("{name}-{hash}");
        let mine = self.pods_of(&namespace, &set_uid(deployment));
        let (current, old): (Vec<_>, Vec<_>) = mine
            .into_iter()
            .partition(|p| p["metadata"]["labels"]["pod-template-hash"] == *hash);
        for pod in &old {
            self.end_pod(&namespace, &name_of(pod));
        }
        let replicas = spec["replicas"].as_u64().unwrap_or(1) as usize;
        // The youngest and the unready go first, as a ReplicaSet's do.
        let mut surplus = current.clone();
        surplus.sort_by_key(|p| (pods::is_ready(p), std::cmp::Reverse(revision(p))));
        surplus.reverse();
        for pod in surplus.iter().skip(replicas) {
            self.end_pod(&namespace, &name_of(pod));
        }
        for _ in current.len()..replicas {
            let mut pod = spec["template"].clone();
            let meta = &mut pod["metadata"];
            meta["generateName"] = format!("{set}-").into();
            meta["namespace"] = namespace.clone().into();
            meta["labels"]["pod-template-hash"] = hash.clone().into();
            let uid = json!(set_uid(deployment));
            meta["ownerReferences"] = owner("apps/v1", "ReplicaSet", &set, &uid);
            self.make(&POD, pod);
        }
        self.report(&DEPLOYMENT, deployment, &set_uid(deployment));
    }

    fn reconcile_stateful_set(&mut self, set: &Value) {
        let (namespace, name) = (namespace_of(set), name_of(set));
        let spec = &set["spec"];
        let uid = text(&set["metadata"]["uid"]);
        let hash = format!("{name}-{}", template_hash(&spec["template"].to_string()));
        let replicas = spec["replicas"].as_u64().unwrap_or(1);
        for pod in self.pods_of(&namespace, &uid) {
            let labels = &pod["metadata"]["labels"];
            let index = text(&labels["apps.kubernetes.io/pod-index"]).parse::<u64>();
            if index.is_ok_and(|i| i >= replicas) || labels["controller-revision-hash"] != *hash {
                self.end_pod(&namespace, &name_of(&pod));
            }
        }
        for index in 0..replicas {
            let pod_name = format!("{name}-{index}");
            // One of that name that is on its way out holds the name until it is gone.
            if self.store.get(&POD, &namespace, &pod_name).is_some() {
                continue;
            }
            let mut pod = spec["template"].clone();
            let meta = &mut pod["metadata"];
            meta["name"] = pod_name.clone().into();
            meta["generateName"] = format!("{name}-").into();
            meta["namespace"] = namespace.clone().into();
            meta["labels"]["apps.kubernetes.io/pod-index"] = index.to_string().into();
            meta["labels"]["controller-revision-hash"] = hash.clone().into();
            meta["labels"]["statefulset.kubernetes.io/pod-name"] = pod_name.clone().into();
            meta["ownerReferences"] =
                owner("apps/v1", "StatefulSet", &name, &set["metadata"]["uid"]);
            pod["spec"]["hostname"] = pod_name.into();
            pod["spec"]["subdomain"] = spec["serviceName"].clone();
            self.make(&POD, pod);
        }
        self.report(&STATEFUL_SET, set, &uid);
    }

    /// The pods of an owner, without those on their way out.
    fn pods_of(&self, namespace: &str, uid: &str) -> Vec<Object> {
        let mine = |pod: &&Object| {
            let owners = items(&pod["metadata"]["ownerReferences"]);
            owners.iter().any(|o| o["uid"] == *uid) && !pods::is_terminating(pod)
        };
        let all = self.store.list(&POD, namespace);
        all.filter(mine).cloned().collect()
    }

    fn report(&mut self, kind: &'static ResourceKind, object: &Value, uid: &str) {
        let pods = self.pods_of(&namespace_of(object), uid);
        let ready = pods.iter().filter(|p| pods::is_ready(p)).count();
        let mut object = object.clone();
        object["status"] = json!({
            "observedGeneration": object["metadata"]["generation"],
            "replicas": pods.len(),
            "updatedReplicas": pods.len(),
            "readyReplicas": ready,
            "availableReplicas": ready,
        });
        self.store.put(kind, object);
    }
}

/// The ReplicaSet behind a Deployment is no object here; its UID is made of the Deployment's.
fn set_uid(deployment: &Value) -> String {
    let uid = text(&deployment["metadata"]["uid"]);
    let flip = |c: char| c.to_digit(16).and_then(|d| char::from_digit(15 - d, 16));
    uid.chars().map(|c| flip(c).unwrap_or(c)).collect()
}

fn revision(object: &Value) -> u64 {
    text(&object["metadata"]["resourceVersion"])
        .parse()
        .unwrap_or_default()
}
