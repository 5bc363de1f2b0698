//! What there is to be named, and names for it and for what there is not.

use std::io::Write as _;
use std::time::Duration;

use anyhow::ensure;
use lab::Lab;
use tokio::time::{Instant, sleep};

use super::dns::PATIENCE;

/// A name to be asked for.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) form: Form,
    /// What stands where a Service's or a Pod's name would.
    pub(super) service: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Service,
    /// One endpoint of a Service, by hostname or dashed address.
    Endpoint,
    /// `10-244-0-5.ns.pod`
    PodAddress,
    /// `web-0.ns.pod`
    PodName,
    /// `_http._tcp.web`
    Srv,
    /// With more labels, or fewer, than anything has.
    Odd,
}

/// In two namespaces of their own.
pub(super) struct Objects {
    /// Where names are looked up.
    pub(super) here: String,
    there: String,
    /// The addresses of the Pods, dashed.
    dashed: Vec<String>,
}

const SERVICES: &[&str] = &[
    "front", "two", "dual", "six", "udp", "set", "early", "peers", "none", "out", "in", "chain",
    "dotted", "nosuch",
];
const HOSTNAMES: &[&str] = &[
    "set-0",
    "set-1",
    "late",
    "peer-0",
    "peer-1",
    "shared",
    "alone",
    "nosuch",
    "10-244-200-3",
    "10-244-200-2",
    "fd00-10-200--3",
    "10-244-200-1",
];
const PODS: &[&str] = &["web-0", "web-1", "late", "nosuch"];
const STRAY_ADDRESSES: &[&str] = &["10-244-200-3", "10-1-2-3", "fd00--9", "256-1-1-1", "10-1-2"];

impl Objects {
    /// Two namespaces of this process's own; nothing is created yet.
    pub(super) fn new() -> Self {
        let id = std::process::id();
        Self {
            here: format!("names-a-{id}"),
            there: format!("names-b-{id}"),
            dashed: Vec::new(),
        }
    }

    pub(super) async fn create(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let here = &self.here;
        let yaml = OBJECTS.replace("THERE", &self.there).replace("HERE", here);
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(yaml.as_bytes())?;
        lab.kubectl(&["apply", "-f", &file.path().display().to_string()])
            .await?;
        let ready = [
            "wait",
            "-n",
            here,
            "pod/web-0",
            "pod/web-1",
            "--for=condition=Ready",
            "--timeout=60s",
        ];
        lab.kubectl(&ready).await?;
        let running = [
            "wait",
            "-n",
            here,
            "pod/late",
            "--for=jsonpath={.status.phase}=Running",
            "--timeout=60s",
        ];
        lab.kubectl(&running).await?;
        for (service, ready) in [("front", 2), ("set", 2), ("early", 3)] {
            endpoints(lab, here, service, ready).await?;
        }
        let ips = [
            "get",
            "pods",
            "-n",
            here,
            "-o",
            "jsonpath={.items[*].status.podIP}",
        ];
        let ips = lab.kubectl(&ips).await?;
        // What CoreDNS learns last. It takes no Service for known before its endpoints are.
        file.reopen()?.set_len(0)?;
        file.reopen()?
            .write_all(LAST.replace("HERE", here).as_bytes())?;
        lab.kubectl(&["apply", "-f", &file.path().display().to_string()])
            .await?;
        self.dashed = ips.split(' ').map(|ip| ip.replace('.', "-")).collect();
        Ok(())
    }

    /// The name of what was created last.
    pub(super) fn last(&self) -> String {
        format!("last.{}.svc.cluster.local.", self.here)
    }

    pub(super) async fn delete(&self, lab: &Lab) -> anyhow::Result<()> {
        let words = [
            "delete",
            "namespace",
            &self.here,
            &self.there,
            "--ignore-not-found",
            "--wait=false",
        ];
        lab.kubectl(&words).await.map(drop)
    }

    /// One name of each kind, and `many` that chance makes.
    pub(super) fn cases(&self, seed: u64, many: usize) -> Vec<Case> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut cases = self.each();
        cases.extend((0..many).map(|_| self.any(&mut random)));
        cases
    }

    /// Everything that must be among them, whatever the seed.
    fn each(&self) -> Vec<Case> {
        let (here, there) = (&self.here, &self.there);
        let mut cases = Vec::new();
        let mut add = |form, service: &str, name: String| {
            let service = service.to_owned();
            cases.push(Case {
                name,
                form,
                service,
            });
        };
        for service in SERVICES {
            for name in [
                (*service).to_owned(),
                format!("{service}.{here}"),
                format!("{service}.{here}.svc"),
                format!("{service}.{here}.svc.cluster.local"),
                format!("{service}.{there}.svc.cluster.local."),
            ] {
                add(Form::Service, service, name);
            }
        }
        for hostname in HOSTNAMES {
            add(Form::Endpoint, "peers", format!("{hostname}.peers"));
            add(
                Form::Endpoint,
                "set",
                format!("{hostname}.set.{here}.svc.cluster.local"),
            );
        }
        // The nearer meaning first: an endpoint of a Service here, and a Service in the namespace of that name.
        add(Form::Service, "front", format!("front.{there}"));
        add(Form::Endpoint, "two", format!("two.{there}"));
        add(Form::Service, "kubernetes", "kubernetes.default".into());
        add(
            Form::Srv,
            "front",
            format!("_http._tcp.front.{here}.svc.cluster.local"),
        );
        add(Form::PodName, "web-0", format!("web-0.{here}.pod"));
        add(
            Form::PodAddress,
            "10-1-2-3",
            format!("10-1-2-3.{here}.pod.cluster.local"),
        );
        for dashed in &self.dashed {
            add(Form::PodAddress, dashed, format!("{dashed}.{here}.pod"));
            add(Form::Endpoint, dashed, format!("{dashed}.front.{here}.svc"));
            add(Form::Endpoint, dashed, format!("{dashed}.early"));
        }
        for odd in [
            "cluster.local",
            "svc.cluster.local",
            "pod.cluster.local.",
            "a.b.c.d.e.f",
            "front.",
        ] {
            add(Form::Odd, "", odd.into());
        }
        cases
    }

    fn any(&self, random: &mut fastrand::Rng) -> Case {
        let mut pick = |from: &[&str]| from[random.usize(..from.len())].to_owned();
        let (here, there) = (self.here.as_str(), self.there.as_str());
        let namespaces = [here, here, there, "default", "nowhere"];
        let (service, namespace) = (pick(SERVICES), pick(&namespaces));
        let (hostname, pod, stray) = (pick(HOSTNAMES), pick(PODS), pick(STRAY_ADDRESSES));
        let dashed: Vec<_> = self.dashed.iter().map(String::as_str).collect();
        let own = pick(&dashed);
        let address = if random.bool() { own.clone() } else { stray };
        let tail = ["", ".svc", ".svc.cluster.local", ".svc.cluster.local."];
        let tail = tail[random.usize(..tail.len())];
        let pods = [".pod", ".pod.cluster.local", ".pod.cluster.local."];
        let pods = pods[random.usize(..pods.len())];
        let (form, label, name) = match random.u8(..12) {
            0 => (Form::Service, service.clone(), service),
            1..5 => (
                Form::Service,
                service.clone(),
                format!("{service}.{namespace}{tail}"),
            ),
            5 => (
                Form::Endpoint,
                service.clone(),
                format!("{hostname}.{service}"),
            ),
            6..8 => (
                Form::Endpoint,
                service.clone(),
                format!("{hostname}.{service}.{namespace}{tail}"),
            ),
            8 => (
                Form::Endpoint,
                own.clone(),
                format!("{own}.{service}.{namespace}{tail}"),
            ),
            9 => (
                Form::PodAddress,
                address.clone(),
                format!("{address}.{namespace}{pods}"),
            ),
            10 => (
                Form::PodName,
                pod.clone(),
                format!("{pod}.{namespace}{pods}"),
            ),
            _ => {
                let port = ["http", "nosuch"][random.usize(..2)];
                (
                    Form::Srv,
                    service.clone(),
                    format!("_{port}._tcp.{service}.{namespace}.svc.cluster.local"),
                )
            }
        };
        let name = match random.u8(..4) {
            0 => name
                .chars()
                .map(|c| {
                    if random.bool() {
                        c.to_ascii_uppercase()
                    } else {
                        c
                    }
                })
                .collect(),
            _ => name,
        };
        Case {
            name,
            form,
            service: label,
        }
    }
}

/// Waits until the EndpointSlices of a Service have all three Pods, so many of them as ready: until then CoreDNS may
/// know less than we, or more.
async fn endpoints(lab: &Lab, namespace: &str, service: &str, ready: usize) -> anyhow::Result<()> {
    let label = format!("kubernetes.io/service-name={service}");
    let path = "jsonpath={.items[*].endpoints[*].conditions.ready}";
    let end = Instant::now() + PATIENCE;
    loop {
        let words = [
            "get",
            "endpointslices",
            "-n",
            namespace,
            "-l",
            &label,
            "-o",
            path,
        ];
        let said = lab.kubectl(&words).await?;
        let all: Vec<_> = said.split_whitespace().collect();
        if all.len() == 3 && all.iter().filter(|ready| **ready == "true").count() == ready {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "{ready} of 3 endpoints of {service} should be ready: {said}"
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// `HERE` and `THERE` become names of namespaces.
const OBJECTS: &str = include_str!("objects.yaml");

/// kubectl 1.30 takes a file that begins with a bracket for JSON.
const LAST: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: last, namespace: HERE}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: last, namespace: HERE, labels: {kubernetes.io/service-name: last}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.244.200.10], conditions: {ready: true}}]
"#;
