//! EndpointSlices and Endpoints of Services with a selector, as their controllers write them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{World, items, name_of, namespace_of, now, owner, pods, text};
use crate::kind::{ENDPOINT_SLICE, ENDPOINTS, POD};
use crate::selector::selects;
use crate::store::Object;

/// A slice holds no more endpoints than this.
const PER_SLICE: usize = 100;
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl World {
    pub(super) fn reconcile_endpoints(&mut self, services: &[Object]) {
        let mut pods: BTreeMap<String, Vec<Object>> = BTreeMap::new();
        for pod in self.store.list(&POD, "") {
            pods.entry(namespace_of(pod)).or_default().push(pod.clone());
        }
        let mut owned = BTreeSet::new();
        for service in services {
            let selector = &service["spec"]["selector"];
            let (namespace, name) = (namespace_of(service), name_of(service));
            owned.insert((namespace.clone(), name.clone()));
            if !selector.is_object() || service["spec"]["type"] == "ExternalName" {
                continue;
            }
            let selected: Vec<Object> = pods
                .get(&namespace)
                .into_iter()
                .flatten()
                .filter(|p| selects(selector, &p["metadata"]["labels"]) && pods::has_address(p))
                .cloned()
                .collect();
            self.write_slices(service, &selected);
            self.write_endpoints(service, &selected);
        }
        self.sweep(&owned);
    }

    fn write_slices(&mut self, service: &Value, pods: &[Object]) {
        let mut wanted = Vec::new();
        for family in items(&service["spec"]["ipFamilies"]) {
            wanted.extend(slices_of(service, pods, &text(family)));
        }
        let mut existing: Vec<Object> = self.slices_of_service(service);
        for (family, ports, endpoints) in wanted {
            // Keep the name of a slice for the same ports, so that a change of its endpoints is one.
            let same = existing
                .iter()
                .position(|s| s["addressType"] == family && s["ports"] == ports)
                .or_else(|| existing.iter().position(|s| s["addressType"] == family));
            match same.map(|i| existing.remove(i)) {
                Some(old) => self.update_slice(&old, &ports, &endpoints),
                None => self.create_slice(service, &family, ports, endpoints),
            }
        }
        for slice in existing {
            let (namespace, name) = (namespace_of(&slice), name_of(&slice));
            self.store.remove(&ENDPOINT_SLICE, &namespace, &name);
        }
    }

    fn slices_of_service(&self, service: &Value) -> Vec<Object> {
        let mine = |slice: &&Object| {
            let labels = &slice["metadata"]["labels"];
            labels[MANAGED_BY] == CONTROLLER && labels[SERVICE_NAME] == service["metadata"]["name"]
        };
        let namespace = namespace_of(service);
        let all = self.store.list(&ENDPOINT_SLICE, &namespace);
        all.filter(mine).cloned().collect()
    }

    fn create_slice(&mut self, service: &Value, family: &str, ports: Value, endpoints: Value) {
        let name = name_of(service);
        let mut labels = json!({MANAGED_BY: CONTROLLER, SERVICE_NAME: name});
        if service["spec"]["clusterIP"] == "None" {
            labels["service.kubernetes.io/headless"] = "".into();
        }
        self.make(
            &ENDPOINT_SLICE,
            json!({
                "metadata": {
                    "generateName": format!("{name}-"),
                    "namespace": namespace_of(service),
                    "labels": labels,
                    "annotations": {TRIGGER_TIME: now()},
                    "ownerReferences": owner("v1", "Service", &name, &service["metadata"]["uid"]),
                },
                "addressType": family,
                "endpoints": endpoints,
                "ports": ports,
            }),
        );
    }

    fn update_slice(&mut self, old: &Value, ports: &Value, endpoints: &Value) {
        if old["ports"] == *ports && old["endpoints"] == *endpoints {
            return;
        }
        let mut slice = old.clone();
        slice["ports"] = ports.clone();
        slice["endpoints"] = endpoints.clone();
        slice["metadata"]["annotations"][TRIGGER_TIME] = now().into();
        let generation = old["metadata"]["generation"].as_u64().unwrap_or(1);
        slice["metadata"]["generation"] = (generation + 1).into();
        self.store.put(&ENDPOINT_SLICE, slice);
    }

    fn write_endpoints(&mut self, service: &Value, pods: &[Object]) {
        let (namespace, name) = (namespace_of(service), name_of(service));
        let subsets = subsets_of(service, pods);
        if let Some(old) = self.store.get(&ENDPOINTS, &namespace, &name) {
            if old["subsets"] == subsets {
                return;
            }
            let mut object = (**old).clone();
            object["metadata"]["annotations"][TRIGGER_TIME] = now().into();
            set_subsets(&mut object, subsets);
            self.store.put(&ENDPOINTS, object);
            return;
        }
        let mut labels = json!({"endpoints.kubernetes.io/managed-by": "endpoint-controller"});
        if service["spec"]["clusterIP"] == "None" {
            labels["service.kubernetes.io/headless"] = "".into();
        }
        let mut object = json!({"metadata": {"name": name, "namespace": namespace,
            "labels": labels, "annotations": {TRIGGER_TIME: now()}}});
        set_subsets(&mut object, subsets);
        self.make(&ENDPOINTS, object);
    }

    /// Removes what Services left behind.
    fn sweep(&mut self, services: &BTreeSet<(String, String)>) {
        let mut gone = Vec::new();
        for slice in self.store.list(&ENDPOINT_SLICE, "") {
            let labels = &slice["metadata"]["labels"];
            let service = (namespace_of(slice), text(&labels[SERVICE_NAME]));
            if labels[MANAGED_BY] == CONTROLLER && !services.contains(&service) {
                gone.push((&ENDPOINT_SLICE, service.0, name_of(slice)));
            }
        }
        for endpoints in self.store.list(&ENDPOINTS, "") {
            let service = (namespace_of(endpoints), name_of(endpoints));
            if !services.contains(&service) {
                gone.push((&ENDPOINTS, service.0, service.1));
            }
        }
        for (kind, namespace, name) in gone {
            self.store.remove(kind, &namespace, &name);
        }
    }
}

/// What the slices of one family should be: family, ports, endpoints.
fn slices_of(service: &Value, pods: &[Object], family: &str) -> Vec<(String, Value, Value)> {
    let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    for pod in pods {
        let Some(address) = pods::address(pod, family) else {
            continue;
        };
        let ports = ports_of(service, pod);
        let group = groups.entry(ports.to_string());
        let group = group.or_insert_with(|| (ports, Vec::new()));
        group.1.push(endpoint(service, pod, &address));
    }
    let mut slices = Vec::new();
    for (ports, endpoints) in groups.into_values() {
        for chunk in endpoints.chunks(PER_SLICE) {
            slices.push((family.to_owned(), ports.clone(), json!(chunk)));
        }
    }
    if slices.is_empty() {
        // As the real controller: one slice says that there is nothing, with nulls for lists.
        slices.push((family.to_owned(), Value::Null, Value::Null));
    }
    slices
}

fn endpoint(service: &Value, pod: &Value, address: &str) -> Value {
    let terminating = pods::is_terminating(pod);
    let serving = pods::is_ready(pod);
    let published = service["spec"]["publishNotReadyAddresses"] == true;
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {
            "ready": published || serving && !terminating,
            "serving": serving,
            "terminating": terminating,
        },
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": reference(pod),
    });
    if let Some(hostname) = hostname(service, pod) {
        endpoint["hostname"] = hostname;
    }
    endpoint
}

fn reference(pod: &Value) -> Value {
    let meta = &pod["metadata"];
    json!({"kind": "Pod", "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]})
}

/// A pod has a name under the Service that it names as its subdomain.
fn hostname(service: &Value, pod: &Value) -> Option<Value> {
    let spec = &pod["spec"];
    let named = spec["hostname"].is_string() && spec["subdomain"] == service["metadata"]["name"];
    named.then(|| spec["hostname"].clone())
}

/// The Service's ports as this pod has them; a named port the pod does not have is left out.
fn ports_of(service: &Value, pod: &Value) -> Value {
    let mut ports = Vec::new();
    for port in items(&service["spec"]["ports"]) {
        let target = &port["targetPort"];
        let number = match target.as_str() {
            Some(name) => pods::named_port(pod, name, &port["protocol"]),
            None => target.as_u64(),
        };
        let Some(number) = number else { continue };
        let mut found = json!({
            "name": port["name"].as_str().unwrap_or_default(),
            "port": number,
            "protocol": port["protocol"],
        });
        if port["appProtocol"].is_string() {
            found["appProtocol"] = port["appProtocol"].clone();
        }
        ports.push(found);
    }
    json!(ports)
}

fn subsets_of(service: &Value, pods: &[Object]) -> Value {
    let published = service["spec"]["publishNotReadyAddresses"] == true;
    let family = text(&service["spec"]["ipFamilies"][0]);
    let mut groups: BTreeMap<String, Value> = BTreeMap::new();
    for pod in pods
        .iter()
        .filter(|p| published || !pods::is_terminating(p))
    {
        let Some(ip) = pods::address(pod, &family) else {
            continue;
        };
        let mut ports = ports_of(service, pod);
        for port in ports.as_array_mut().into_iter().flatten() {
            if port["name"] == ""
                && let Some(fields) = port.as_object_mut()
            {
                fields.remove("name");
            }
        }
        let mut address =
            json!({"ip": ip, "nodeName": pod["spec"]["nodeName"], "targetRef": reference(pod)});
        if let Some(hostname) = hostname(service, pod) {
            address["hostname"] = hostname;
        }
        let ready = published || pods::is_ready(pod);
        let list = if ready {
            "addresses"
        } else {
            "notReadyAddresses"
        };
        let group = groups.entry(ports.to_string());
        let group = group.or_insert_with(|| json!({"ports": ports}));
        match group[list].as_array_mut() {
            Some(addresses) => addresses.push(address),
            None => group[list] = json!([address]),
        }
    }
    if groups.is_empty() {
        return Value::Null;
    }
    groups.into_values().collect()
}

fn set_subsets(object: &mut Value, subsets: Value) {
    if !subsets.is_null() {
        object["subsets"] = subsets;
    } else if let Some(fields) = object.as_object_mut() {
        fields.remove("subsets");
    }
}
