//! `--env-from`: the environment of a workload's container. `template.rs` builds it from objects, `file.rs` writes it to a
//! file.
//!
//! Values are in no message, no log and no `Debug`. Objects are parsed here: kube logs an answer that it cannot parse.

mod file;
mod quantity;
mod template;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, Request};
use kube::{Client, Resource as _};
use kubevpn_client::{Action, Env, KubeconfigArgs, classify_api, load};
use kubevpn_daemon::{ApiError, Code};
use kubevpn_target::Refusal;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::template::{DataSource, Sources, Template};
use super::kube::KubeArgs;
use super::reach::reach;
use crate::exit::Failure;
use crate::out;

/// The environment of a workload
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Environment")]
pub(crate) struct EnvFromArgs {
    /// Give the command the environment of a workload's container: deploy/NAME, sts/NAME, ds/NAME, job/NAME or pod/NAME,
    /// with :CONTAINER unless it is the default one. ConfigMaps and Secrets are read; values are never printed
    #[arg(long, value_name = "KIND/NAME[:CONTAINER]")]
    env_from: Option<WorkloadRef>,
    /// Write that environment to FILE, or to standard output for -, as lines NAME=VALUE for other tools. COMMAND is
    /// optional then
    #[arg(long, value_name = "FILE", requires = "env_from")]
    env_file: Option<PathBuf>,
}

/// Variables of a container, for a command.
#[derive(Default)]
pub(super) struct Variables(Vec<(String, OsString)>);

/// Variables whose values are valid only in the container's file system.
const OF_THE_IMAGE: [&str; 10] = [
    "CLASSPATH",
    "HOME",
    "JAVA_HOME",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "NODE_PATH",
    "PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    // Setting of this program's allocator, which is changed temporarily.
    "_RJEM_MALLOC_CONF",
];

impl Variables {
    /// The variables that are valid on this machine, too.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &OsString)> {
        let all = self.0.iter().map(|(name, value)| (name.as_str(), value));
        all.filter(|(name, _)| !OF_THE_IMAGE.contains(name))
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

impl EnvFromArgs {
    /// Reads the variables with its own client, for a command without one.
    pub(super) async fn read_alone(&self, kube: KubeArgs) -> Result<Variables, Failure> {
        if self.env_from.is_none() {
            return Ok(Variables::default());
        }
        let loaded = load(&KubeconfigArgs::from(kube), &Env::of_process())?;
        let (client, _) = reach(loaded.config).await?;
        self.read(&client, &loaded.namespace).await
    }

    /// Reads the variables in a namespace, and prints to standard error those that are not known.
    pub(super) async fn read(
        &self,
        client: &Client,
        namespace: &str,
    ) -> Result<Variables, Failure> {
        let Some(workload) = &self.env_from else {
            return Ok(Variables::default());
        };
        let cluster = NamespaceObjects { client, namespace };
        let template = workload.template(&cluster).await?;
        let container = workload.container(&template)?;
        let mut sources = Sources::new();
        for (source, name) in template::references(container) {
            let data = match source {
                DataSource::ConfigMap => cluster.config_map(&name).await?,
                DataSource::Secret => cluster.secret(&name).await?,
            };
            sources.insert((source, name), data);
        }
        let found = template::environment(&template, container, namespace, &sources);
        let found = found.map_err(|missing| {
            not_found(format!(
                "--env-from {workload}: container {} {missing}",
                container.name
            ))
        })?;
        let note = |text: &str| {
            if !out::is_hushed() {
                let text = format!("{workload}, container {}: {text}", container.name);
                out::aside(out::escaped(&text));
            }
        };
        found.unknown.iter().for_each(|text| note(text));
        let variables = Variables(found.variables);
        match &self.env_file {
            Some(path) => file::write(path, &variables.0, note)?,
            None => {
                let names = variables.0.iter().map(|(name, _)| name.as_str());
                for name in names.filter(|name| OF_THE_IMAGE.contains(name)) {
                    note(&format!(
                        "{name} is not set: it is about files of the image"
                    ));
                }
            }
        }
        Ok(variables)
    }
}

fn not_found(sentence: String) -> Failure {
    Failure::Api(ApiError::new(
        Code::Refused(Refusal::NameNotFound),
        sentence,
    ))
}

/// A kind of object that has a Pod template.
#[derive(Debug, PartialEq, Eq)]
struct WorkloadKind {
    /// Names in kubectl, the short one first.
    words: &'static [&'static str],
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    /// Path of its template (RFC 6901); empty for a Pod.
    template: &'static str,
}

const KINDS: [WorkloadKind; 7] = [
    kind(
        &["deploy", "deployment", "deployments"],
        "apps",
        "Deployment",
        "deployments",
    ),
    kind(
        &["sts", "statefulset", "statefulsets"],
        "apps",
        "StatefulSet",
        "statefulsets",
    ),
    kind(
        &["ds", "daemonset", "daemonsets"],
        "apps",
        "DaemonSet",
        "daemonsets",
    ),
    kind(
        &["rs", "replicaset", "replicasets"],
        "apps",
        "ReplicaSet",
        "replicasets",
    ),
    kind(&["job", "jobs"], "batch", "Job", "jobs"),
    WorkloadKind {
        template: "/spec/jobTemplate/spec/template",
        ..kind(
            &["cj", "cronjob", "cronjobs"],
            "batch",
            "CronJob",
            "cronjobs",
        )
    },
    WorkloadKind {
        template: "",
        ..kind(&["pod", "po", "pods"], "", "Pod", "pods")
    },
];

const fn kind(
    words: &'static [&'static str],
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> WorkloadKind {
    WorkloadKind {
        words,
        group,
        kind,
        plural,
        template: "/spec/template",
    }
}

/// `deploy/NAME[:CONTAINER]`
#[derive(Clone, Debug, PartialEq, Eq)]
struct WorkloadRef {
    kind: &'static WorkloadKind,
    name: String,
    container: Option<String>,
}

impl FromStr for WorkloadRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (workload, container) = match text.split_once(':') {
            Some((workload, container)) => (workload, Some(container)),
            None => (text, None),
        };
        let wrong = || {
            let kinds = KINDS.iter().map(|kind| kind.words[0]);
            format!(
                "write KIND/NAME or KIND/NAME:CONTAINER, with a KIND of {}",
                kinds.collect::<Vec<_>>().join(", ")
            )
        };
        let (kind, name) = workload.split_once('/').ok_or_else(wrong)?;
        let kind = kind.to_ascii_lowercase();
        let kind = KINDS
            .iter()
            .find(|known| known.words.contains(&kind.as_str()));
        // Names of objects and containers are DNS names (RFC 1123).
        let is_name = |name: &str| {
            let is_part =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_part)
        };
        match kind {
            Some(kind) if is_name(name) && container.is_none_or(is_name) => Ok(Self {
                kind,
                name: name.to_owned(),
                container: container.map(str::to_owned),
            }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.words[0], self.name)
    }
}

impl WorkloadRef {
    async fn template(&self, cluster: &NamespaceObjects<'_>) -> Result<Template, Failure> {
        let WorkloadKind {
            group,
            kind,
            plural,
            ..
        } = *self.kind;
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
        let object: Option<serde_json::Value> = cluster.object(&resource, &self.name).await?;
        let namespace = cluster.namespace;
        let Some(mut object) = object else {
            return Err(not_found(format!(
                "--env-from {self}: there is no {kind} {} in namespace {namespace}",
                self.name
            )));
        };
        let template = object.pointer_mut(self.kind.template).map(|t| t.take());
        template
            .and_then(|template| Template::deserialize(template).ok())
            .ok_or_else(|| {
                Failure::value(format!(
                    "--env-from {self}: its Pod template cannot be read: the API server may be too new for this program"
                ))
            })
    }

    /// The named container, or kubectl's default.
    fn container<'t>(&self, template: &'t Template) -> Result<&'t Container, Failure> {
        const DEFAULT: &str = "kubectl.kubernetes.io/default-container";
        let init = template.spec.init_containers.iter().flatten();
        let mut all = template.spec.containers.iter().chain(init);
        let annotations = template.metadata.annotations.as_ref();
        let named = self.container.as_ref();
        let wanted = named.or_else(|| annotations?.get(DEFAULT));
        let found = match wanted {
            Some(wanted) => all.clone().find(|container| container.name == *wanted),
            None => all.next(),
        };
        found.ok_or_else(|| {
            let names: Vec<_> = all.map(|container| container.name.as_str()).collect();
            not_found(format!(
                "--env-from {self}: it has no container {}: it has {}",
                wanted.map_or("", String::as_str),
                names.join(", ")
            ))
        })
    }
}

/// Objects of one namespace, each read by name, because listing needs another right.
struct NamespaceObjects<'c> {
    client: &'c Client,
    namespace: &'c str,
}

type ObjectData = BTreeMap<String, Vec<u8>>;

impl NamespaceObjects<'_> {
    async fn config_map(&self, name: &str) -> Result<Option<ObjectData>, Failure> {
        let map: Option<ConfigMap> = self
            .object(&ApiResource::erase::<ConfigMap>(&()), name)
            .await?;
        let bytes = |(key, text): (String, String)| (key, text.into_bytes());
        Ok(map.map(|map| map.data.into_iter().flatten().map(bytes).collect()))
    }

    async fn secret(&self, name: &str) -> Result<Option<ObjectData>, Failure> {
        let secret: Option<Secret> = self
            .object(&ApiResource::erase::<Secret>(&()), name)
            .await?;
        let bytes = |(key, text): (String, k8s_openapi::ByteString)| (key, text.0);
        Ok(secret.map(|secret| secret.data.into_iter().flatten().map(bytes).collect()))
    }

    /// `None` if the object does not exist.
    async fn object<T: DeserializeOwned>(
        &self,
        resource: &ApiResource,
        name: &str,
    ) -> Result<Option<T>, Failure> {
        let action = Action {
            verb: "get",
            resource: &resource.plural,
            api_group: &resource.group,
            namespace: Some(self.namespace),
            name: Some(name),
        };
        let failed = |error| Failure::from(classify_api(error, &action));
        let url = DynamicObject::url_path(resource, Some(self.namespace));
        let request = Request::new(url).get(name, &Default::default());
        let request = request.map_err(|error| failed(kube::Error::BuildRequest(error)))?;
        let text = match self.client.request_text(request).await {
            Ok(text) => text,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let object = serde_json::from_str(&text);
        object
            .map(Some)
            .map_err(|error| failed(kube::Error::SerdeError(error)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workloads_are_named_as_for_kubectl() {
        let read = |text: &str| {
            let workload: WorkloadRef = text.parse().ok()?;
            Some((workload.kind.kind, workload.name, workload.container))
        };
        for (text, kind, name, container) in [
            ("deploy/web", "Deployment", "web", None),
            ("deployment/web:app", "Deployment", "web", Some("app")),
            ("Deployments/web", "Deployment", "web", None),
            ("sts/db", "StatefulSet", "db", None),
            ("ds/agent", "DaemonSet", "agent", None),
            ("rs/web-5d4", "ReplicaSet", "web-5d4", None),
            ("job/import", "Job", "import", None),
            ("cj/nightly", "CronJob", "nightly", None),
            ("pod/web-0.a:side-car", "Pod", "web-0.a", Some("side-car")),
        ] {
            let wanted = (kind, name.to_owned(), container.map(str::to_owned));
            assert_eq!(read(text), Some(wanted), "{text}");
        }
        for text in [
            "",
            "web",
            "deploy",
            "deploy/",
            "/web",
            "svc/web",
            "deploy/web:",
            "deploy/../x",
            "pod/a/b",
            "pod/a?b",
            "pod/a:b:c",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn containers_are_chosen_as_by_kubectl() {
        let template = |annotation: Option<&str>| -> Template {
            let annotations =
                annotation.map(|name| json!({"kubectl.kubernetes.io/default-container": name}));
            serde_json::from_value(json!({
                "metadata": {"annotations": annotations},
                "spec": {
                    "initContainers": [{"name": "migrate"}],
                    "containers": [{"name": "proxy"}, {"name": "app"}],
                },
            }))
            .unwrap()
        };
        for (asked, annotation, wanted) in [
            ("deploy/web", None, Ok("proxy")),
            ("deploy/web", Some("app"), Ok("app")),
            ("deploy/web:proxy", Some("app"), Ok("proxy")),
            ("deploy/web:migrate", None, Ok("migrate")),
            (
                "deploy/web:x",
                None,
                Err("it has no container x: it has proxy, app, migrate"),
            ),
        ] {
            let workload: WorkloadRef = asked.parse().unwrap();
            let template = template(annotation);
            match (workload.container(&template), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found.name, wanted, "{asked}"),
                (Err(error), Err(wanted)) => {
                    let said = error.message();
                    assert!(said.ends_with(wanted), "{asked}: {said}");
                }
                (found, _) => panic!("{asked}: {found:?}"),
            }
        }
    }

    #[test]
    fn variables_are_shown_by_name_alone() {
        let variables = Variables(vec![("TOKEN".to_owned(), "canary".into())]);
        assert_eq!(format!("{variables:?}"), r#"["TOKEN"]"#);
    }
}
