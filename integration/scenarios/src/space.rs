//! A namespace of a scenario's own, and what it makes there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::Context;
use crate::cluster::client;
use crate::proxy::PATIENCE;

/// What all namespaces of scenarios are labelled with: for a person who cleans up.
const LABEL: &str = "kubevpn.test/scenario";

/// A namespace under a name that nobody else has. Dropping it deletes it, and with it what was made in it.
pub(crate) struct Space {
    pub(crate) name: String,
    pub(crate) api: kube::Client,
    kubeconfig: PathBuf,
}

impl Space {
    pub(crate) async fn new(cx: &Context) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("t-{:x}-{:x}-{number}", now.as_millis(), std::process::id());
        let kubeconfig = cx.cluster.kubeconfig();
        let api = client(&kubeconfig).await?;
        let namespace = json!({"metadata": {"name": name, "labels": {LABEL: ""}}});
        Api::<Namespace>::all(api.clone())
            .create(&PostParams::default(), &serde_json::from_value(namespace)?)
            .await
            .context("making a namespace")?;
        let space = Self {
            name,
            api,
            kubeconfig,
        };
        // No Pod is admitted before this is there.
        let accounts = Api::<ServiceAccount>::namespaced(space.api.clone(), &space.name);
        until("the namespace's ServiceAccount", async || {
            Ok(accounts.get_opt("default").await?)
        })
        .await?;
        Ok(space)
    }

    /// The flags that make this the active namespace.
    pub(crate) fn flags(&self) -> [&str; 2] {
        ["--namespace", &self.name]
    }

    /// Creates the objects of a YAML text of one or more documents.
    pub(crate) async fn create(&self, yaml: &str) -> anyhow::Result<()> {
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let object = Value::deserialize(document)?;
            if object.is_null() {
                continue;
            }
            let (api, object) = self.dynamic(object)?;
            let name = object.metadata.name.clone().unwrap_or_default();
            api.create(&PostParams::default(), &object)
                .await
                .with_context(|| format!("creating {name}"))?;
        }
        Ok(())
    }

    fn dynamic(&self, object: Value) -> anyhow::Result<(Api<DynamicObject>, DynamicObject)> {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let api = Api::namespaced_with(self.api.clone(), &self.name, &resource);
        Ok((api, serde_json::from_value(object)?))
    }

    /// Gives a Service another status.
    pub(crate) async fn set_status(&self, service: &str, status: Value) -> anyhow::Result<()> {
        let services = Api::<Service>::namespaced(self.api.clone(), &self.name);
        let patch = Patch::Merge(json!({"status": status}));
        services
            .patch_status(service, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    pub(crate) async fn scale(&self, deployment: &str, replicas: u32) -> anyhow::Result<()> {
        let deployments = Api::<Deployment>::namespaced(self.api.clone(), &self.name);
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        deployments
            .patch(deployment, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.api.clone(), &self.name)
    }

    /// The Pod's address, as soon as it runs and is ready.
    pub(crate) async fn pod_ip(&self, name: &str) -> anyhow::Result<String> {
        let pods = self.pods();
        until(&format!("pod {name} to be ready"), async || {
            let status = pods.get(name).await?.status.unwrap_or_default();
            let mut conditions = status.conditions.iter().flatten();
            let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
            Ok(status.pod_ip.filter(|_| ready))
        })
        .await
    }

    /// Waits until the Service has so many ready endpoints, each Pod counted once; their Pods' names, in order.
    pub(crate) async fn ready(&self, service: &str, count: usize) -> anyhow::Result<Vec<String>> {
        until(
            &format!("{count} ready endpoints of {service}"),
            async || {
                let pods = self.endpoints(service).await?;
                let ready: Vec<_> = pods
                    .into_iter()
                    .filter_map(|(p, r)| r.then_some(p))
                    .collect();
                Ok((ready.len() == count).then_some(ready))
            },
        )
        .await
    }

    /// The Pods of the Service's endpoints, and whether they are ready.
    pub(crate) async fn endpoints(&self, service: &str) -> anyhow::Result<BTreeMap<String, bool>> {
        let slices = Api::<EndpointSlice>::namespaced(self.api.clone(), &self.name);
        let params = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let mut pods = BTreeMap::new();
        for endpoint in slices
            .list(&params)
            .await?
            .items
            .into_iter()
            .flat_map(|s| s.endpoints)
        {
            if let Some(pod) = endpoint.target_ref.and_then(|r| r.name) {
                let ready = endpoint.conditions.is_none_or(|c| c.ready.unwrap_or(true));
                pods.insert(pod, ready);
            }
        }
        Ok(pods)
    }
}

impl Drop for Space {
    /// From a thread and with a client of its own: the runtime may be on its way out.
    fn drop(&mut self) {
        let (name, kubeconfig) = (self.name.clone(), self.kubeconfig.clone());
        let deleting = std::thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let namespaces = Api::<Namespace>::all(client(&kubeconfig).await?);
                let params = DeleteParams::default();
                let deleted = namespaces.delete(&name, &params);
                tokio::time::timeout(PATIENCE, deleted).await??;
                Ok(())
            })
        });
        // A namespace that is left is found by its label; the scenario's own result matters more.
        let _left_behind = deleting.join();
    }
}

/// Looks until there is something to see, for as long as patience lasts.
pub(crate) async fn until<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let looking = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            if let Some(seen) = look().await? {
                return anyhow::Ok(seen);
            }
        }
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(seen) => seen,
        Err(_) => bail!("waited in vain for {what}"),
    }
}

/// A Pod of the lab's echo program as YAML, its fields in flow style.
pub(crate) struct Echo<'a> {
    pub(crate) name: &'a str,
    /// The label `app`.
    pub(crate) app: &'a str,
    /// Where it speaks HTTP; its readiness is asked on the first.
    pub(crate) ports: &'a [u16],
    /// A port's name and number, as its container declares it.
    pub(crate) declares: &'a [(&'a str, u16)],
    /// More environment: `NEVER_READY=1`.
    pub(crate) env: &'a [(&'a str, &'a str)],
    /// More of the spec, from one brace to the next: `hostNetwork: true`.
    pub(crate) spec: &'a str,
    /// More of the container.
    pub(crate) container: &'a str,
}

impl Default for Echo<'_> {
    fn default() -> Self {
        Self {
            name: "web",
            app: "web",
            ports: &[8080],
            declares: &[],
            env: &[],
            spec: "",
            container: "",
        }
    }
}

impl Echo<'_> {
    /// A Pod.
    pub(crate) fn pod(&self) -> String {
        let Self { name, app, .. } = self;
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\nspec: {}\n",
            self.spec()
        )
    }

    /// The same behind a Deployment or a StatefulSet.
    pub(crate) fn workload(&self, kind: &str, replicas: u32) -> String {
        let Self { name, app, .. } = self;
        let more = match kind {
            "StatefulSet" => format!("serviceName: {name}, podManagementPolicy: Parallel, "),
            _ => String::new(),
        };
        format!(
            "---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{more}replicas: {replicas}, \
             selector: {{matchLabels: {{app: {app}}}}}, template: {{metadata: {{labels: {{app: {app}}}}}, spec: {}}}}}\n",
            self.spec()
        )
    }

    fn spec(&self) -> String {
        let Self { name, ports, .. } = self;
        let numbers: Vec<_> = ports.iter().map(u16::to_string).collect();
        let numbers = numbers.join(",");
        let declares: Vec<_> = self
            .declares
            .iter()
            .map(|(name, number)| format!("{{name: {name}, containerPort: {number}}}"))
            .collect();
        let declares = declares.join(", ");
        let env: Vec<_> = self
            .env
            .iter()
            .map(|(name, value)| format!(", {{name: {name}, value: \"{value}\"}}"))
            .collect();
        let env = env.concat();
        let probe = ports.first().copied().unwrap_or_default();
        let more = |text: &str| match text {
            "" => String::new(),
            text => format!(", {text}"),
        };
        format!(
            "{{automountServiceAccountToken: false, enableServiceLinks: false{}, containers: [{{name: echo, \
             image: \"lab.local/echo:1\", imagePullPolicy: Never, ports: [{declares}], \
             env: [{{name: NAME, value: {name}}}, {{name: PORTS, value: \"{numbers}\"}}{env}], \
             readinessProbe: {{httpGet: {{path: /ready, port: {probe}}}, periodSeconds: 1}}{}}}]}}",
            match self.spec {
                "" => ", terminationGracePeriodSeconds: 1".to_owned(),
                spec => more(spec),
            },
            more(self.container),
        )
    }
}

/// A Service with the selector `app`, its ports in flow style: `{port: 80, targetPort: web}`.
pub(crate) fn service(name: &str, app: &str, ports: &str) -> String {
    service_with(name, app, ports, "")
}

/// The same with more in its spec: `clusterIP: None`.
pub(crate) fn service_with(name: &str, app: &str, ports: &str, spec: &str) -> String {
    let selector = match app {
        "" => String::new(),
        app => format!(", selector: {{app: {app}}}"),
    };
    let comma = if spec.is_empty() { "" } else { ", " };
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{ports}]{selector}{comma}{spec}}}\n"
    )
}

/// An EndpointSlice of a Service, written by hand, with one endpoint in flow style.
pub(crate) fn slice(
    name: &str,
    service: &str,
    family: &str,
    endpoint: &str,
    ports: &str,
) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: {family}\nendpoints: [{endpoint}]\nports: [{ports}]\n"
    )
}
