//! The cluster's state and its controllers.
//!
//! Objects come in through [`World::create`], [`World::update`] and [`World::delete`], from the API or from
//! the test. Each call leaves the controllers' work to [`World::reconcile`], which runs to its end at once:
//! what a caller sees afterwards has settled, except for pods on their way out and slow starters.

mod pods;
mod services;
mod slices;
mod workloads;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{self, ResourceKind};
use crate::names::NameSequence;
use crate::pod::Network;
use crate::status::Status;
use crate::store::{Object, ObjectStore};

pub(crate) use self::pods::{Later, is_ready, is_terminating};
use self::services::{IPV4_SERVICES, IPV6_SERVICES};

/// The address the API server says it has; nothing answers there.
pub(crate) const NODE_IP: &str = "10.245.0.2";
const NODE: &str = "node-1";

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: ObjectStore,
    names: NameSequence,
    network: Arc<Network>,
    next_pod_ip: u16,
    /// What is to happen after a while; [`World::take_later`] hands it out.
    later: Vec<Later>,
}

impl World {
    /// A cluster with what every cluster has: some namespaces, the `kubernetes` Service.
    pub(crate) fn new(seed: u64, network: Arc<Network>) -> Self {
        let mut world = Self {
            store: ObjectStore::new(),
            names: NameSequence::new(seed),
            network,
            next_pod_ip: 2,
            later: Vec::new(),
        };
        world.bootstrap();
        world
    }

    /// Creates an object that is not there yet. A name that ends the `generateName` is made up.
    pub(crate) fn create(
        &mut self,
        kind: &'static ResourceKind,
        mut object: Value,
    ) -> Result<Object, Status> {
        let meta = &mut object["metadata"];
        if let (None, Some(prefix)) = (meta["name"].as_str(), meta["generateName"].as_str()) {
            meta["name"] = format!("{prefix}{}", self.names.suffix()).into();
        }
        let (namespace, name) = place(kind, &mut object)?;
        if kind.namespaced && self.store.get(&kind::NAMESPACE, "", &namespace).is_none() {
            return Err(Status::not_found(&kind::NAMESPACE, &namespace));
        }
        if self.store.get(kind, &namespace, &name).is_some() {
            return Err(Status::already_exists(kind, &name));
        }
        object["metadata"]["uid"] = self.names.uid().into();
        object["metadata"]["creationTimestamp"] = now().into();
        if has_generation(kind) {
            object["metadata"]["generation"] = 1.into();
        }
        self.admit(kind, &mut object, None)?;
        Ok(self.store.put(kind, object))
    }

    /// Replaces an object. What belongs to the server (UID, addresses, most of the status) stays.
    pub(crate) fn update(
        &mut self,
        kind: &'static ResourceKind,
        mut object: Value,
    ) -> Result<Object, Status> {
        let (namespace, name) = place(kind, &mut object)?;
        let Some(old) = self.store.get(kind, &namespace, &name).cloned() else {
            return Err(Status::not_found(kind, &name));
        };
        let version = &object["metadata"]["resourceVersion"];
        if version.is_string() && *version != old["metadata"]["resourceVersion"] {
            return Err(Status::conflict(
                kind,
                &name,
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
        ] {
            match &old["metadata"][field] {
                Value::Null => {}
                value => object["metadata"][field] = value.clone(),
            }
        }
        self.admit(kind, &mut object, Some(&old))?;
        if has_generation(kind) && content(&object) != content(&old) {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or(1);
            object["metadata"]["generation"] = (generation + 1).into();
        }
        Ok(self.store.put(kind, object))
    }

    /// Deletes an object; a pod goes its way in time. Gives back what it was.
    pub(crate) fn delete(
        &mut self,
        kind: &'static ResourceKind,
        namespace: &str,
        name: &str,
    ) -> Result<Object, Status> {
        let missing = || Status::not_found(kind, name);
        if *kind == kind::POD {
            return self.end_pod(namespace, name).ok_or_else(missing);
        }
        let gone = self
            .store
            .remove(kind, namespace, name)
            .ok_or_else(missing)?;
        if *kind == kind::NAMESPACE {
            self.empty_namespace(name);
        }
        Ok(gone)
    }

    /// Creates an object or replaces the one of its name, as `kubectl apply` would.
    pub(crate) fn apply(&mut self, mut object: Value, namespace: &str) -> Result<(), Status> {
        let Some(kind) = ResourceKind::of(&object) else {
            return Err(Status::bad_request(format!(
                "no matches for kind {} in version {}",
                object["kind"], object["apiVersion"]
            )));
        };
        if kind.namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = namespace.into();
        }
        let (namespace, name) = place(kind, &mut object)?;
        match self.store.get(kind, &namespace, &name) {
            None => self.create(kind, object)?,
            Some(_) => self.update(kind, object)?,
        };
        Ok(())
    }

    /// Lets every controller finish its work.
    pub(crate) fn reconcile(&mut self) {
        self.reconcile_accounts();
        self.reconcile_workloads();
        self.reconcile_services();
    }

    /// Every namespace has its default ServiceAccount, which a client may wait for.
    fn reconcile_accounts(&mut self) {
        let namespaces = self.store.list(&kind::NAMESPACE, "").map(|o| name_of(o));
        let lacking: Vec<String> = namespaces
            .filter(|n| {
                self.store
                    .get(&kind::SERVICE_ACCOUNT, n, "default")
                    .is_none()
            })
            .collect();
        for namespace in lacking {
            let meta = json!({"metadata": {"name": "default", "namespace": namespace}});
            self.make(&kind::SERVICE_ACCOUNT, meta);
        }
    }

    fn admit(
        &mut self,
        kind: &'static ResourceKind,
        object: &mut Value,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind.into();
        if *kind == kind::NAMESPACE {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        } else if *kind == kind::SERVICE {
            self.admit_service(object, old)?;
        } else if *kind == kind::POD {
            self.admit_pod(object, old);
        } else if *kind == kind::DEPLOYMENT || *kind == kind::STATEFUL_SET {
            workloads::admit(kind, object)?;
        }
        Ok(())
    }

    fn empty_namespace(&mut self, namespace: &str) {
        for kind in kind::ALL.into_iter().filter(|k| k.namespaced) {
            let names: Vec<_> = self
                .store
                .list(kind, namespace)
                .map(|o| name_of(o))
                .collect();
            for name in names {
                if *kind == kind::POD {
                    self.remove_pod(namespace, &name);
                } else {
                    self.store.remove(kind, namespace, &name);
                }
            }
        }
    }

    fn bootstrap(&mut self) {
        for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            self.make(&kind::NAMESPACE, json!({"metadata": {"name": namespace}}));
        }
        self.make(
            &kind::SERVICE_CIDR,
            json!({
                "metadata": {"name": "kubernetes",
                    "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
                "spec": {"cidrs": [IPV4_SERVICES, IPV6_SERVICES]},
                "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "",
                    "message": "Kubernetes Service CIDR is ready", "lastTransitionTime": now()}]},
            }),
        );
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        self.make(
            &kind::SERVICE,
            json!({
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
                "spec": {"clusterIP": "10.96.0.1",
                    "ports": [{"name": "https", "port": 443, "targetPort": 6443}]},
            }),
        );
        self.make(
            &kind::ENDPOINT_SLICE,
            json!({
                "metadata": {"name": "kubernetes", "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "kubernetes"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": [NODE_IP], "conditions": {"ready": true}}],
                "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
            }),
        );
        self.make(
            &kind::ENDPOINTS,
            json!({
                "metadata": {"name": "kubernetes", "namespace": "default",
                    "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
                "subsets": [{"addresses": [{"ip": NODE_IP}],
                    "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]}],
            }),
        );
        self.reconcile();
    }

    /// For objects of our own making, which are valid.
    fn make(&mut self, kind: &'static ResourceKind, object: Value) -> Object {
        let made = self.create(kind, object);
        made.unwrap_or_else(|status| panic!("{}", status.message))
    }
}

/// Puts the object into its namespace, checks its name, and says both.
fn place(kind: &ResourceKind, object: &mut Value) -> Result<(String, String), Status> {
    if !object["metadata"].is_object() {
        return Err(Status::bad_request("the object has no metadata"));
    }
    let name = name_of(object);
    let label = |l: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !l.is_empty() && l.chars().all(inner) && !l.starts_with('-') && !l.ends_with('-')
    };
    let address = *kind == kind::IP_ADDRESS && name.contains(':');
    if !(address || name.len() <= 253 && name.split('.').all(label)) {
        return Err(Status::invalid(
            kind,
            &name,
            "metadata.name",
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'",
        ));
    }
    if !kind.namespaced {
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("namespace");
        }
        return Ok((String::new(), name));
    }
    let namespace = namespace_of(object);
    if namespace.is_empty() {
        return Err(Status::bad_request("the object has no namespace"));
    }
    Ok((namespace, name))
}

fn has_generation(kind: &ResourceKind) -> bool {
    [
        kind::POD.plural,
        kind::DEPLOYMENT.plural,
        kind::STATEFUL_SET.plural,
        kind::ENDPOINT_SLICE.plural,
    ]
    .contains(&kind.plural)
}

/// What a change of which makes a new generation.
fn content(object: &Value) -> Value {
    let mut content = object.clone();
    if let Some(fields) = content.as_object_mut() {
        fields.remove("metadata");
        fields.remove("status");
    }
    content
}

pub(crate) fn name_of(object: &Value) -> String {
    text(&object["metadata"]["name"])
}

pub(crate) fn namespace_of(object: &Value) -> String {
    text(&object["metadata"]["namespace"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

/// The elements of a list; none if it is none.
fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Now, in whole seconds, as objects state times.
pub(crate) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The reference of an object its controller owns.
fn owner(api_version: &str, kind: &str, name: &str, uid: &Value) -> Value {
    json!([{"apiVersion": api_version, "kind": kind, "name": name, "uid": uid,
        "controller": true, "blockOwnerDeletion": true}])
}
