//! Builds the environment of a container from its Pod template and the objects it refers to, like the kubelet
//! (`makeEnvironmentVariables` in `pkg/kubelet/kubelet_pods.go`), as far as possible without a Pod. Pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;

use k8s_openapi::api::core::v1::{
    Container, EnvVarSource, PodSpec, PodStatus, ResourceFieldSelector,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::quantity::divided;

/// A Pod template, or a Pod.
#[derive(Debug, Deserialize)]
pub(super) struct Template {
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    pub(super) spec: PodSpec,
    /// Only a Pod has a status.
    status: Option<PodStatus>,
}

/// An object with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DataSource {
    ConfigMap,
    Secret,
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        })
    }
}

/// The data of each referenced object; `None` if it does not exist.
pub(super) type Sources = BTreeMap<(DataSource, String), Option<BTreeMap<String, Vec<u8>>>>;

/// An environment.
#[derive(Default)]
pub(super) struct Environment {
    /// Variables, with unique names.
    pub(super) variables: Vec<(String, OsString)>,
    /// A sentence for each variable that is missing or incomplete, without values.
    pub(super) unknown: Vec<String>,
}

/// A required object or key is missing. The kubelet would not start the container either.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MissingObject {
    Object(DataSource, String),
    Key(DataSource, String, String),
}

impl fmt::Display for MissingObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(source, name) => write!(
                f,
                "refers to {source} {name}, which does not exist: create it, or mark the reference as optional"
            ),
            Self::Key(source, name, key) => write!(
                f,
                "refers to key {key} of {source} {name}, which has none: add it, or mark the reference as optional"
            ),
        }
    }
}

/// The objects that a container refers to.
pub(super) fn references(container: &Container) -> BTreeSet<(DataSource, String)> {
    let mut found = BTreeSet::new();
    for from in container.env_from.iter().flatten() {
        let map = from.config_map_ref.as_ref();
        found.extend(map.map(|map| (DataSource::ConfigMap, map.name.clone())));
        let secret = from.secret_ref.as_ref();
        found.extend(secret.map(|secret| (DataSource::Secret, secret.name.clone())));
    }
    let env = container.env.iter().flatten();
    for from in env.filter_map(|variable| variable.value_from.as_ref()) {
        let map = from.config_map_key_ref.as_ref();
        found.extend(map.map(|map| (DataSource::ConfigMap, map.name.clone())));
        let secret = from.secret_key_ref.as_ref();
        found.extend(secret.map(|secret| (DataSource::Secret, secret.name.clone())));
    }
    found
}

/// The environment of a container of this template, in this namespace.
pub(super) fn environment(
    template: &Template,
    container: &Container,
    namespace: &str,
    sources: &Sources,
) -> Result<Environment, MissingObject> {
    let mut made = Making {
        template,
        container,
        namespace,
        sources,
        values: BTreeMap::new(),
        unknown: BTreeMap::new(),
    };
    made.add_objects()?;
    made.add_list()?;
    let variables = made
        .values
        .into_iter()
        .map(|(name, value)| (name, OsString::from_vec(value)));
    Ok(Environment {
        variables: variables.collect(),
        unknown: made
            .unknown
            .into_iter()
            .map(|(name, why)| format!("{name} {why}"))
            .collect(),
    })
}

struct Making<'a> {
    template: &'a Template,
    container: &'a Container,
    namespace: &'a str,
    sources: &'a Sources,
    values: BTreeMap<String, Vec<u8>>,
    /// Names without a complete value, and the reason.
    unknown: BTreeMap<String, String>,
}

/// The value of one variable.
enum VariableValue {
    Is(Vec<u8>),
    /// A value with an unknown part, and the reason.
    Partly(Vec<u8>, String),
    /// An optional value that does not exist.
    None,
    Unknown(String),
}

impl VariableValue {
    fn text(text: Option<impl Into<String>>, field: &str) -> Self {
        match text {
            Some(text) => Self::Is(text.into().into_bytes()),
            None => Self::Unknown(format!(
                "is not set: {field} is known of a Pod that runs: --env-from pod/NAME"
            )),
        }
    }
}

impl<'a> Making<'a> {
    /// `envFrom`: later ones win.
    fn add_objects(&mut self) -> Result<(), MissingObject> {
        for from in self.container.env_from.iter().flatten() {
            let map = from.config_map_ref.as_ref();
            let map = map.map(|map| (DataSource::ConfigMap, &map.name, map.optional));
            let secret = from.secret_ref.as_ref();
            let secret = secret.map(|secret| (DataSource::Secret, &secret.name, secret.optional));
            let Some((source, name, optional)) = map.or(secret) else {
                continue;
            };
            let data = match self.data(source, name) {
                Some(data) => data,
                None if optional == Some(true) => continue,
                None => return Err(MissingObject::Object(source, name.clone())),
            };
            let prefix = from.prefix.as_deref().unwrap_or_default();
            for (key, value) in data {
                self.set(format!("{prefix}{key}"), VariableValue::Is(value.clone()));
            }
        }
        Ok(())
    }

    /// `env`: later ones win, and may refer to earlier ones.
    fn add_list(&mut self) -> Result<(), MissingObject> {
        for variable in self.container.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (Some(text), _) if !text.is_empty() => self.expanded(text),
                (_, Some(from)) => self.value_from(from)?,
                _ => VariableValue::Is(Vec::new()),
            };
            self.set(variable.name.clone(), value);
        }
        Ok(())
    }

    fn set(&mut self, name: String, value: VariableValue) {
        let no_name = name.is_empty() || name.contains(['=', '\0']);
        let (value, why) = match value {
            VariableValue::None => return,
            VariableValue::Unknown(why) => (None, Some(why)),
            VariableValue::Is(value) => (Some(value), None),
            VariableValue::Partly(value, why) => (Some(value), Some(why)),
        };
        // An earlier variable of this name is replaced, with its reason.
        self.values.remove(&name);
        self.unknown.remove(&name);
        match value {
            _ if no_name => {
                let why = "is not set: no variable can have this name".to_owned();
                self.unknown.insert(format!("{name:?}"), why);
            }
            Some(value) if value.contains(&0) => {
                let why = "is not set: it has a zero byte".to_owned();
                self.unknown.insert(name, why);
            }
            value => {
                self.unknown.extend(why.map(|why| (name.clone(), why)));
                self.values.extend(value.map(|value| (name, value)));
            }
        }
    }

    fn data(&self, source: DataSource, name: &str) -> Option<&'a BTreeMap<String, Vec<u8>>> {
        self.sources.get(&(source, name.to_owned()))?.as_ref()
    }

    fn value_from(&self, from: &EnvVarSource) -> Result<VariableValue, MissingObject> {
        if let Some(field) = &from.field_ref {
            return Ok(self.field(&field.field_path));
        }
        if let Some(field) = &from.resource_field_ref {
            return Ok(self.resource(field));
        }
        let map = from.config_map_key_ref.as_ref();
        let map = map.map(|map| (DataSource::ConfigMap, &map.name, &map.key, map.optional));
        let secret = from.secret_key_ref.as_ref();
        let secret = secret.map(|of| (DataSource::Secret, &of.name, &of.key, of.optional));
        let Some((source, name, key, optional)) = map.or(secret) else {
            return Ok(VariableValue::Unknown(
                "is not set: it comes of a file of the Pod".to_owned(),
            ));
        };
        let data = self.data(source, name);
        match data.and_then(|data| data.get(key)) {
            Some(value) => Ok(VariableValue::Is(value.clone())),
            None if optional == Some(true) => Ok(VariableValue::None),
            None if data.is_none() => Err(MissingObject::Object(source, name.clone())),
            None => Err(MissingObject::Key(source, name.clone(), key.clone())),
        }
    }

    /// A field of the Pod, if the template has it.
    fn field(&self, path: &str) -> VariableValue {
        let metadata = &self.template.metadata;
        let spec = &self.template.spec;
        let status = self.template.status.as_ref();
        let text = |text: Option<&String>| VariableValue::text(text, path);
        let joined = |ips: Option<Vec<&str>>| {
            let ips = ips.filter(|ips| !ips.is_empty());
            VariableValue::text(ips.map(|ips| ips.join(",")), path)
        };
        match path {
            "metadata.name" => text(metadata.name.as_ref()),
            "metadata.uid" => text(metadata.uid.as_ref()),
            "metadata.namespace" => VariableValue::Is(self.namespace.as_bytes().to_vec()),
            "spec.nodeName" => text(spec.node_name.as_ref()),
            "spec.serviceAccountName" => {
                let account = spec.service_account_name.as_deref();
                let account = account.filter(|name| !name.is_empty());
                VariableValue::text(Some(account.unwrap_or("default")), path)
            }
            "status.hostIP" => text(status.and_then(|status| status.host_ip.as_ref())),
            "status.podIP" => text(status.and_then(|status| status.pod_ip.as_ref())),
            "status.hostIPs" => joined(status.map(|status| {
                let ips = status.host_ips.iter().flatten();
                ips.map(|ip| ip.ip.as_str()).collect()
            })),
            "status.podIPs" => joined(status.map(|status| {
                let ips = status.pod_ips.iter().flatten();
                ips.map(|ip| ip.ip.as_str()).collect()
            })),
            _ => self.mapped(path),
        }
    }

    /// `metadata.labels['KEY']` and `metadata.annotations['KEY']`. Controllers add some to a Pod, which a template lacks.
    fn mapped(&self, path: &str) -> VariableValue {
        let metadata = &self.template.metadata;
        let key = |map: &str| {
            path.strip_prefix(map)?
                .strip_prefix("['")?
                .strip_suffix("']")
        };
        let label = key("metadata.labels").map(|key| (&metadata.labels, key));
        let annotation = || key("metadata.annotations").map(|key| (&metadata.annotations, key));
        let Some((map, key)) = label.or_else(annotation) else {
            return VariableValue::Unknown(format!("is not set: {path} is not known here"));
        };
        let found = map.as_ref().and_then(|map| map.get(key));
        let of_a_pod = self.template.status.is_some().then(String::new);
        VariableValue::text(found.cloned().or(of_a_pod), path)
    }

    /// Limits and requests, in units of the divisor. The default limit is the node's, and known only for a Pod.
    fn resource(&self, field: &ResourceFieldSelector) -> VariableValue {
        let unknown = |why: &str| {
            let resource = &field.resource;
            VariableValue::Unknown(format!("is not set: {resource} {why}"))
        };
        let container = match &field.container_name {
            Some(name) if !name.is_empty() => {
                let init = self.template.spec.init_containers.iter().flatten();
                let mut all = self.template.spec.containers.iter().chain(init);
                all.find(|container| container.name == *name)
            }
            _ => Some(self.container),
        };
        let Some(container) = container else {
            return unknown("is of a container that does not exist");
        };
        let resources = container.resources.as_ref();
        let of = |limits: bool, name: &str| {
            let map = resources.and_then(|resources| match limits {
                true => resources.limits.as_ref(),
                false => resources.requests.as_ref(),
            });
            map.and_then(|map| map.get(name)).map(|found| &*found.0)
        };
        let quantity = match field.resource.split_once('.') {
            Some(("limits", name)) => match of(true, name) {
                Some(limit) => limit,
                None => return unknown("is the node's, as the container has none"),
            },
            // The API server sets a missing request to the limit.
            Some(("requests", name)) => of(false, name).or_else(|| of(true, name)).unwrap_or("0"),
            _ => return unknown("is not known here"),
        };
        let divisor = field.divisor.as_ref().map(|divisor| &*divisor.0);
        match divided(quantity, divisor) {
            Some(number) => VariableValue::Is(number.to_string().into_bytes()),
            None => unknown("is no number"),
        }
    }

    /// `$(NAME)` is the value of an earlier variable, `$$` is `$`. A reference to an unknown name is kept.
    fn expanded(&self, text: &str) -> VariableValue {
        let mut value = Vec::new();
        let mut left = None;
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            value.extend_from_slice(before.as_bytes());
            let named = after
                .strip_prefix('(')
                .and_then(|name| name.split_once(')'));
            if let Some(after) = after.strip_prefix('$') {
                value.push(b'$');
                rest = after;
            } else if let Some((name, after)) = named {
                match self.values.get(name) {
                    Some(found) => value.extend_from_slice(found),
                    None if self.unknown.contains_key(name) => {
                        return VariableValue::Unknown(format!(
                            "is not set: {name}, a part of it, is not"
                        ));
                    }
                    None => {
                        let why =
                            format!("refers to $({name}), which is no variable of the template");
                        left.get_or_insert(why);
                        value.extend_from_slice(format!("$({name})").as_bytes());
                    }
                }
                rest = after;
            } else {
                value.push(b'$');
                rest = after;
            }
        }
        value.extend_from_slice(rest.as_bytes());
        match left {
            None => VariableValue::Is(value),
            Some(why) => VariableValue::Partly(value, why),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A template with these lists of its container, and objects: ConfigMap `settings`, Secret `db`, nothing else.
    fn made(
        env: serde_json::Value,
        env_from: serde_json::Value,
        pod: Option<serde_json::Value>,
    ) -> Result<(Vec<String>, Vec<String>), String> {
        let mut metadata = json!({"labels": {"app": "web"}, "annotations": {"a/b": "c"}});
        if pod.is_some() {
            metadata["name"] = "web-0".into();
            metadata["uid"] = "0-1".into();
        }
        let resources = json!({"limits": {"memory": "128Mi"}, "requests": {"cpu": "250m"}});
        let template: Template = serde_json::from_value(json!({
            "metadata": metadata,
            "spec": {
                "nodeName": pod.as_ref().map(|_| "node-1"),
                "containers": [
                    {"name": "app", "env": env, "envFrom": env_from, "resources": resources},
                    {"name": "other", "resources": {"limits": {"cpu": "2"}}},
                ],
            },
            "status": pod,
        }))
        .unwrap();
        let container = &template.spec.containers[0];
        let data = |pairs: &[(&str, &[u8])]| {
            let owned = pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.to_vec()));
            Some(owned.collect::<BTreeMap<_, _>>())
        };
        let mut sources = Sources::new();
        for (source, name) in references(container) {
            let found = match (source, name.as_str()) {
                (DataSource::ConfigMap, "settings") => data(&[("MODE", b"prod"), ("level", b"3")]),
                (DataSource::Secret, "db") => {
                    data(&[("password", b"p w"), ("raw", b"\xff"), ("zero", b"a\0b")])
                }
                _ => None,
            };
            sources.insert((source, name), found);
        }
        match environment(&template, container, "shop", &sources) {
            Ok(made) => {
                let shown = made.variables.iter().map(|(name, value)| {
                    let value = value.as_encoded_bytes().escape_ascii();
                    format!("{name}={value}")
                });
                Ok((shown.collect(), made.unknown))
            }
            Err(missing) => Err(missing.to_string()),
        }
    }

    fn field(path: &str) -> serde_json::Value {
        json!([{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}])
    }

    fn resource(resource: &str, divisor: &str, of: &str) -> serde_json::Value {
        let field = json!({"resource": resource, "divisor": divisor, "containerName": of});
        json!([{"name": "X", "valueFrom": {"resourceFieldRef": field}}])
    }

    fn key(source: &str, name: &str, key: &str, optional: bool) -> serde_json::Value {
        let from = json!({"name": name, "key": key, "optional": optional});
        json!([{"name": "X", "valueFrom": {source: from}}])
    }

    #[test]
    fn variables_as_the_kubelet_makes_them() {
        let no = || json!([]);
        let from = |source: &str, name: &str| json!([{source: {"name": name}}]);
        for (env, env_from, variables) in [
            (no(), no(), vec![]),
            (
                json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
                no(),
                vec!["A=2"],
            ),
            (
                json!([{"name": "A"}, {"name": "B", "value": ""}]),
                no(),
                vec!["A=", "B="],
            ),
            (
                no(),
                from("configMapRef", "settings"),
                vec!["MODE=prod", "level=3"],
            ),
            (
                no(),
                json!([{"prefix": "DB_", "secretRef": {"name": "db"}}]),
                vec!["DB_password=p w", "DB_raw=\\xff"],
            ),
            (
                json!([{"name": "MODE", "value": "test"}]),
                from("configMapRef", "settings"),
                vec!["MODE=test", "level=3"],
            ),
            (
                no(),
                json!([{"configMapRef": {"name": "no", "optional": true}}]),
                vec![],
            ),
            (
                key("configMapKeyRef", "settings", "level", false),
                no(),
                vec!["X=3"],
            ),
            (
                key("secretKeyRef", "db", "raw", false),
                no(),
                vec!["X=\\xff"],
            ),
            (key("secretKeyRef", "db", "no", true), no(), vec![]),
            (key("secretKeyRef", "no", "no", true), no(), vec![]),
            // A missing optional key does not change an earlier variable.
            (
                json!([{"name": "X", "value": "1"}, key("secretKeyRef", "db", "no", true)[0]]),
                no(),
                vec!["X=1"],
            ),
            (
                json!([
                    {"name": "A", "value": "a"},
                    {"name": "B", "value": "$(A)-$(MODE)-$$(A)-$A-$(A-$"},
                    {"name": "C", "value": "$(B)$$$(A)"},
                ]),
                from("configMapRef", "settings"),
                vec![
                    "A=a",
                    "B=a-prod-$(A)-$A-$(A-$",
                    "C=a-prod-$(A)-$A-$(A-$$a",
                    "MODE=prod",
                    "level=3",
                ],
            ),
            // Variables are in the order of the list.
            (
                json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)"}, {"name": "A", "value": "2"}]),
                no(),
                vec!["A=2", "B=1"],
            ),
            (field("metadata.namespace"), no(), vec!["X=shop"]),
            (field("metadata.labels['app']"), no(), vec!["X=web"]),
            (field("metadata.annotations['a/b']"), no(), vec!["X=c"]),
            (field("spec.serviceAccountName"), no(), vec!["X=default"]),
            (resource("limits.memory", "1Mi", ""), no(), vec!["X=128"]),
            (
                resource("limits.memory", "0", ""),
                no(),
                vec!["X=134217728"],
            ),
            (resource("requests.memory", "1Mi", ""), no(), vec!["X=128"]),
            (resource("requests.cpu", "1", ""), no(), vec!["X=1"]),
            (resource("requests.cpu", "1m", ""), no(), vec!["X=250"]),
            (
                resource("requests.ephemeral-storage", "1", ""),
                no(),
                vec!["X=0"],
            ),
            (resource("limits.cpu", "1", "other"), no(), vec!["X=2"]),
        ] {
            let (found, _) = made(env.clone(), env_from.clone(), None).unwrap();
            assert_eq!(found, variables, "{env} {env_from}");
        }
    }

    #[test]
    fn unknown_ones_are_named() {
        for (env, variables, said) in [
            (
                field("metadata.name"),
                vec![],
                "X is not set: metadata.name is known of a Pod that runs",
            ),
            (field("metadata.uid"), vec![], "X is not set: metadata.uid"),
            (
                field("spec.nodeName"),
                vec![],
                "X is not set: spec.nodeName",
            ),
            (field("status.podIP"), vec![], "X is not set: status.podIP"),
            (
                field("status.podIPs"),
                vec![],
                "X is not set: status.podIPs",
            ),
            (
                field("status.hostIP"),
                vec![],
                "X is not set: status.hostIP",
            ),
            // A controller may add this one.
            (
                field("metadata.labels['pod-template-hash']"),
                vec![],
                "X is not set: metadata.labels",
            ),
            (
                field("spec.new"),
                vec![],
                "X is not set: spec.new is not known here",
            ),
            (
                resource("limits.cpu", "1", ""),
                vec![],
                "X is not set: limits.cpu is the node's",
            ),
            (
                resource("limits.cpu", "1", "no"),
                vec![],
                "X is not set: limits.cpu is of a container",
            ),
            (
                resource("x", "1", ""),
                vec![],
                "X is not set: x is not known here",
            ),
            (
                resource("limits.memory", "?", ""),
                vec![],
                "X is not set: limits.memory is no number",
            ),
            (
                json!([{"name": "X", "valueFrom": {"fileKeyRef": {"key": "a", "path": "b", "volumeName": "c"}}}]),
                vec![],
                "X is not set: it comes of a file",
            ),
            (
                key("secretKeyRef", "db", "zero", false),
                vec![],
                "X is not set: it has a zero byte",
            ),
            (
                json!([{"name": "a=b", "value": "1"}]),
                vec![],
                r#""a=b" is not set: no variable"#,
            ),
            (
                json!([{"name": "X", "value": "http://$(REDIS_SERVICE_HOST)/"}]),
                vec!["X=http://$(REDIS_SERVICE_HOST)/"],
                "X refers to $(REDIS_SERVICE_HOST), which is no variable of the template",
            ),
            (
                json!([field("metadata.name")[0], {"name": "Y", "value": "a $(X)"}]),
                vec![],
                "Y is not set: X, a part of it, is not",
            ),
            // An unknown value replaces an earlier one of its name.
            (
                json!([{"name": "X", "value": "1"}, field("metadata.name")[0]]),
                vec![],
                "X is not set: metadata.name",
            ),
        ] {
            let (found, unknown) = made(env.clone(), json!([]), None).unwrap();
            assert_eq!(found, variables, "{env}");
            assert!(
                unknown.iter().any(|why| why.starts_with(said)),
                "{env}: {unknown:?}"
            );
        }
        let later = json!([field("metadata.name")[0], {"name": "X", "value": "1"}]);
        assert_eq!(
            made(later, json!([]), None),
            Ok((vec!["X=1".to_owned()], vec![]))
        );
    }

    #[test]
    fn a_pod_knows_itself() {
        let status = json!({
            "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd00::2"}],
            "hostIP": "10.2.0.1", "hostIPs": [{"ip": "10.2.0.1"}],
        });
        for (path, value) in [
            ("metadata.name", "web-0"),
            ("metadata.uid", "0-1"),
            ("spec.nodeName", "node-1"),
            ("status.podIP", "10.1.0.2"),
            ("status.podIPs", "10.1.0.2,fd00::2"),
            ("status.hostIP", "10.2.0.1"),
            ("status.hostIPs", "10.2.0.1"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['no']", ""),
        ] {
            let found = made(field(path), json!([]), Some(status.clone()));
            assert_eq!(found, Ok((vec![format!("X={value}")], vec![])), "{path}");
        }
        let pending = made(field("status.podIPs"), json!([]), Some(json!({})));
        assert_eq!(pending.unwrap().0, Vec::<String>::new());
    }

    /// Neither names a value.
    #[test]
    fn missing_objects_and_keys() {
        for (env, env_from, said) in [
            (
                json!([]),
                json!([{"secretRef": {"name": "no"}}]),
                "refers to Secret no, which does not exist: create it, or mark the reference as optional",
            ),
            (
                key("configMapKeyRef", "no", "a", false),
                json!([]),
                "refers to ConfigMap no, which does not exist: create it, or mark the reference as optional",
            ),
            (
                key("secretKeyRef", "db", "no", false),
                json!([]),
                "refers to key no of Secret db, which has none: add it, or mark the reference as optional",
            ),
        ] {
            assert_eq!(made(env, env_from, None), Err(said.to_owned()));
        }
    }
}
