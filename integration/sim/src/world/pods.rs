//! Pods: how they come to run, turn ready or not, and go.

use std::time::Duration;

use serde_json::{Value, json};

use super::services::default;
use super::{NODE, NODE_IP, World, items, name_of, namespace_of, now, text};
use crate::kind::{CONFIG_MAP, POD};
use crate::pod::{Hosts, PodInfo, Ports, hosts_of};
use crate::status::Status;
use crate::store::Object;

/// When the object of a pod that was deleted says that its programs have ended (they end at once)…
const ENDED_AFTER: Duration = Duration::from_millis(500);
/// …and when it is gone. Both as seen of the real one.
const GONE_AFTER: Duration = Duration::from_secs(1);

/// Something that happens to a pod after a while.
#[derive(Clone, Debug)]
pub(crate) struct Later {
    pub(crate) after: Duration,
    namespace: String,
    name: String,
    uid: String,
    what: PodChange,
}

#[derive(Clone, Copy, Debug)]
enum PodChange {
    Ready,
    /// The programs are told to end.
    Stopped,
    Ended,
    Gone,
}

impl World {
    /// Makes a new pod a running one; of an old one, keeps what the API does not let change.
    pub(super) fn admit_pod(&mut self, pod: &mut Value, old: Option<&Object>) {
        if let Some(old) = old {
            pod["status"] = old["status"].clone();
            pod["spec"] = old["spec"].clone();
            return;
        }
        let spec = &mut pod["spec"];
        for (field, value) in [
            ("restartPolicy", json!("Always")),
            ("dnsPolicy", json!("ClusterFirst")),
            ("nodeName", json!(NODE)),
            ("schedulerName", json!("default-scheduler")),
            ("serviceAccountName", json!("default")),
            ("terminationGracePeriodSeconds", json!(30)),
        ] {
            default(spec, field, || value);
        }
        for container in spec["containers"].as_array_mut().into_iter().flatten() {
            for port in container["ports"].as_array_mut().into_iter().flatten() {
                default(port, "protocol", || json!("TCP"));
            }
            if container["ports"].is_null()
                && let Some(fields) = container.as_object_mut()
            {
                fields.remove("ports");
            }
        }
        let start = start_of(pod);
        let given = std::mem::take(&mut pod["status"]);
        let host_network = pod["spec"]["hostNetwork"] == true;
        let phase = given["phase"].as_str().unwrap_or("Running").to_owned();
        let ips = match items(&given["podIPs"]) {
            [] if phase == "Pending" => Value::Null,
            [] if host_network => json!([{"ip": NODE_IP}]),
            [] => json!([{"ip": self.pod_ip()}]),
            // A test may choose the addresses, for dual-stack pods for instance.
            given => json!(given),
        };
        pod["status"] = json!({"phase": phase, "qosClass": "BestEffort", "startTime": now()});
        let status = &mut pod["status"];
        status["hostIP"] = NODE_IP.into();
        status["hostIPs"] = json!([{"ip": NODE_IP}]);
        if ips.is_array() {
            status["podIP"] = ips[0]["ip"].clone();
            status["podIPs"] = ips;
        }
        let ready = phase == "Running" && start == Start::Ready;
        write_readiness(pod, ready);
        let namespace = namespace_of(pod);
        if phase != "Running" {
            return;
        }
        let (name, uid) = (name_of(pod), text(&pod["metadata"]["uid"]));
        self.network.start(PodInfo {
            hostname: pod["spec"]["hostname"].as_str().unwrap_or(&name).into(),
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.clone(),
            ip: text(&pod["status"]["podIP"]),
            service: env(pod, "NAME"),
            sandbox: self.names.id(),
            netns: self.names.uid(),
            ports: Ports {
                http: numbers(&env(pod, "PORTS")),
                tcp: numbers(&env(pod, "TCP_PORTS")),
                stream: numbers(&env(pod, "STREAM_PORTS")),
                greet: numbers(&env(pod, "GREET_PORTS")),
                reset: numbers(&env(pod, "RESET_PORTS")),
                close: numbers(&env(pod, "CLOSE_PORTS")),
            },
            dns: self.dns_of(pod),
        });
        self.network.set_ready(&uid, ready);
        if let Start::After(after) = start {
            self.later.push(Later {
                after,
                namespace,
                name,
                uid,
                what: PodChange::Ready,
            });
        }
    }

    /// What a CoreDNS in the pod reads: the Corefile of the ConfigMap that is mounted.
    fn dns_of(&self, pod: &Value) -> Option<Hosts> {
        let spec = &pod["spec"];
        let image = text(&spec["containers"][0]["image"]);
        let name = image.rsplit('/').next()?.split(':').next()?;
        if name != "coredns" {
            return None;
        }
        let volumes = items(&spec["volumes"]).iter();
        let mut mounted = volumes.filter_map(|v| v["configMap"]["name"].as_str());
        let config = self
            .store
            .get(&CONFIG_MAP, &namespace_of(pod), mounted.next()?)?;
        Some(hosts_of(config["data"]["Corefile"].as_str()?))
    }

    /// Makes a pod's readiness probe succeed or fail.
    pub(crate) fn set_ready(
        &mut self,
        namespace: &str,
        name: &str,
        ready: bool,
    ) -> Result<(), Status> {
        let pod = self.store.get(&POD, namespace, name);
        let pod = pod.ok_or_else(|| Status::not_found(&POD, name))?;
        let mut pod = (**pod).clone();
        write_readiness(&mut pod, ready);
        self.network
            .set_ready(&text(&pod["metadata"]["uid"]), ready);
        self.store.put(&POD, pod);
        Ok(())
    }

    /// Marks a pod as on its way out while its programs run on, as for one that drains.
    pub(crate) fn terminate_pod(&mut self, namespace: &str, name: &str) -> Option<Object> {
        let mut pod = (**self.store.get(&POD, namespace, name)?).clone();
        if !is_terminating(&pod) {
            let grace = pod["spec"]["terminationGracePeriodSeconds"].clone();
            pod["metadata"]["deletionGracePeriodSeconds"] = grace;
            pod["metadata"]["deletionTimestamp"] = now().into();
        }
        Some(self.store.put(&POD, pod))
    }

    /// Deletes a pod: its programs end now, or when its `preStop` has slept; its object goes a little later.
    pub(super) fn end_pod(&mut self, namespace: &str, name: &str) -> Option<Object> {
        let pod = self.terminate_pod(namespace, name)?;
        let drain = drain_of(&pod);
        let stopped = if drain.is_zero() {
            self.network.stop(&text(&pod["metadata"]["uid"]));
            None
        } else {
            Some((drain, PodChange::Stopped))
        };
        let ended = [
            (drain + ENDED_AFTER, PodChange::Ended),
            (drain + GONE_AFTER, PodChange::Gone),
        ];
        for (after, what) in stopped.into_iter().chain(ended) {
            self.later.push(Later {
                after,
                namespace: namespace.into(),
                name: name.into(),
                uid: text(&pod["metadata"]["uid"]),
                what,
            });
        }
        Some(pod)
    }

    /// Removes a pod at once.
    pub(super) fn remove_pod(&mut self, namespace: &str, name: &str) {
        if let Some(pod) = self.store.remove(&POD, namespace, name) {
            self.network.remove(&text(&pod["metadata"]["uid"]));
        }
    }

    /// What has come to wait since the last call.
    pub(crate) fn take_later(&mut self) -> Vec<Later> {
        std::mem::take(&mut self.later)
    }

    /// The time has come.
    pub(crate) fn happen(&mut self, later: &Later) {
        let (namespace, name) = (&later.namespace, &later.name);
        let pod = self.store.get(&POD, namespace, name);
        let Some(pod) = pod.filter(|p| p["metadata"]["uid"] == *later.uid) else {
            return;
        };
        match later.what {
            PodChange::Ready if !is_terminating(pod) => {
                // The pod was looked up just now.
                let _ = self.set_ready(namespace, name, true);
            }
            PodChange::Ready => {}
            PodChange::Stopped => self.network.stop(&later.uid),
            PodChange::Ended => {
                let mut pod = (**pod).clone();
                pod["status"]["phase"] = "Succeeded".into();
                write_readiness(&mut pod, false);
                self.store.put(&POD, pod);
            }
            PodChange::Gone => self.remove_pod(namespace, name),
        }
    }

    /// The next address of the pods' /16, as the node's allocator gives them: in order.
    fn pod_ip(&mut self) -> String {
        let [high, low] = self.next_pod_ip.to_be_bytes();
        self.next_pod_ip = self.next_pod_ip.checked_add(1).unwrap_or(2);
        format!("10.244.{high}.{low}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    Ready,
    Never,
    After(Duration),
}

/// When the pod's readiness probe would succeed. Without a probe a pod is ready as it runs.
fn start_of(pod: &Value) -> Start {
    let containers = items(&pod["spec"]["containers"]);
    if !containers.iter().any(|c| c["readinessProbe"].is_object()) {
        return Start::Ready;
    }
    if !env(pod, "NEVER_READY").is_empty() {
        return Start::Never;
    }
    match duration(&env(pod, "READY_AFTER")) {
        Some(after) if !after.is_zero() => Start::After(after),
        _ => Start::Ready,
    }
}

/// How long a pod serves on while its containers' `preStop` sleeps, which its grace period bounds.
fn drain_of(pod: &Value) -> Duration {
    let sleeps = items(&pod["spec"]["containers"])
        .iter()
        .filter_map(|c| c["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64());
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64();
    Duration::from_secs(sleeps.max().unwrap_or(0).min(grace.unwrap_or(0)))
}

/// `300ms`, `1.5s`, `2m`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let number: f64 = number.parse().ok()?;
    let unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * unit).ok()
}

fn env(pod: &Value, name: &str) -> String {
    let containers = items(&pod["spec"]["containers"]);
    let mut all = containers.iter().flat_map(|c| items(&c["env"]));
    let found = all.find(|e| e["name"] == name);
    found.map_or_else(String::new, |e| text(&e["value"]))
}

fn numbers(list: &str) -> Vec<u16> {
    let parts = list.split([',', ' ']);
    parts.filter_map(|p| p.parse().ok()).collect()
}

fn write_readiness(pod: &mut Value, ready: bool) {
    let containers = items(&pod["spec"]["containers"]);
    let names: Vec<String> = containers.iter().map(|c| text(&c["name"])).collect();
    let ended = pod["status"]["phase"] == "Succeeded";
    let condition = |kind: &str, status: bool| {
        let mut condition = json!({
            "type": kind,
            "status": if status { "True" } else { "False" },
            "lastProbeTime": null,
            "lastTransitionTime": now(),
        });
        if !status {
            let reason = if ended {
                "PodCompleted"
            } else {
                "ContainersNotReady"
            };
            condition["reason"] = reason.into();
            if !ended {
                let list = names.join(" ");
                condition["message"] = format!("containers with unready status: [{list}]").into();
            }
        }
        condition
    };
    let before = is_ready(pod);
    if before == ready && pod["status"]["conditions"].is_array() {
        return;
    }
    let started = pod["status"]["startTime"].clone();
    let running = pod["status"]["phase"] == "Running";
    let state = if running {
        json!({"running": {"startedAt": started}})
    } else if ended {
        json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": started, "finishedAt": now()}})
    } else {
        json!({"waiting": {"reason": "ContainerCreating"}})
    };
    pod["status"]["containerStatuses"] = items(&pod["spec"]["containers"])
        .iter()
        .map(|c| {
            json!({
                "name": c["name"], "image": c["image"], "imageID": "", "ready": ready,
                "started": running, "restartCount": 0, "state": state, "lastState": {},
            })
        })
        .collect();
    pod["status"]["conditions"] = json!([
        condition("PodReadyToStartContainers", true),
        condition("Initialized", true),
        condition("Ready", ready),
        condition("ContainersReady", ready),
        condition("PodScheduled", true),
    ]);
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = items(&pod["status"]["conditions"]);
    conditions
        .iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

pub(crate) fn is_terminating(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_string()
}

/// Whether endpoints may name the pod at all.
pub(super) fn has_address(pod: &Value) -> bool {
    let phase = &pod["status"]["phase"];
    phase != "Succeeded" && phase != "Failed" && !text(&pod["status"]["podIP"]).is_empty()
}

/// The pod's first address of a family (`IPv4`, `IPv6`).
pub(super) fn address(pod: &Value, family: &str) -> Option<String> {
    let ips = items(&pod["status"]["podIPs"])
        .iter()
        .map(|ip| text(&ip["ip"]));
    ips.into_iter()
        .find(|ip| ip.contains(':') == (family == "IPv6"))
}

/// The number of a container port by its name and protocol.
pub(super) fn named_port(pod: &Value, name: &str, protocol: &Value) -> Option<u64> {
    let containers = items(&pod["spec"]["containers"]);
    let mut ports = containers.iter().flat_map(|c| items(&c["ports"]));
    let port = ports.find(|p| p["name"] == name && p["protocol"] == *protocol)?;
    port["containerPort"].as_u64()
}
