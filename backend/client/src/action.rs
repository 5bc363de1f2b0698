//! Requests to the API server in words, for error texts.

use std::fmt;

/// One request to the API server, in the terms of its access rules.
///
/// ```
/// use kubevpn_client::Action;
/// let action = Action {
///     verb: "list",
///     resource: "endpointslices",
///     api_group: "discovery.k8s.io",
///     namespace: Some("shop"),
///     name: None,
/// };
/// assert_eq!(action.to_string(), "list endpointslices.discovery.k8s.io in namespace shop");
/// let action = Action { verb: "get", resource: "/version", api_group: "", namespace: None, name: None };
/// assert_eq!(action.to_string(), "get /version");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action<'a> {
    /// `get`, `list`, `watch`, `create` …
    pub verb: &'a str,
    /// The resource in the plural, with its subresource: `services`, `pods/portforward`; or a non-resource path: `/version`.
    pub resource: &'a str,
    /// The API group; empty for the core group.
    pub api_group: &'a str,
    /// The namespace; `None` for all namespaces, or for a cluster-wide resource.
    pub namespace: Option<&'a str>,
    /// The object, if only one was requested.
    pub name: Option<&'a str>,
}

impl Action<'_> {
    /// The rule that an administrator has to grant.
    pub(crate) fn grant(&self) -> String {
        if self.is_path() {
            let (path, verb) = (self.resource, self.verb);
            return format!("a ClusterRole with nonResourceURLs [{path:?}], verbs [{verb:?}]");
        }
        let role = match self.namespace {
            Some(_) => "Role",
            None => "ClusterRole",
        };
        format!(
            "a {role} with apiGroups [{:?}], resources [{:?}], verbs [{:?}]",
            self.api_group, self.resource, self.verb
        )
    }

    fn is_path(&self) -> bool {
        self.resource.starts_with('/')
    }
}

/// `list services in namespace shop`, `get services web in namespace shop`, `list pods in all namespaces`.
impl fmt::Display for Action<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.api_group.is_empty() {
            write!(f, ".{}", self.api_group)?;
        }
        if let Some(name) = self.name {
            write!(f, " {name}")?;
        }
        match (self.namespace, self.name) {
            (Some(namespace), _) => write!(f, " in namespace {namespace}"),
            (None, Some(_)) => Ok(()),
            (None, None) if self.is_path() => Ok(()),
            (None, None) => f.write_str(" in all namespaces"),
        }
    }
}
