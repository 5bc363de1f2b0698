//! Settings of resolution.

use std::time::Duration;

use kubevpn_target::Name;

/// How names are resolved, and how long objects are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The active namespace: short names are looked up in it, and searches are limited to it if the access rules do not
    /// allow searching everywhere.
    pub namespace: String,
    /// The cluster's domain. `None`: read from the configuration of CoreDNS (the ConfigMap `kube-system/coredns`) when a
    /// name first depends on it, or `cluster.local` if that fails.
    pub domain: Option<Name>,
    /// Further suffixes that belong to the cluster, although only its DNS knows their names.
    pub suffixes: Vec<Name>,
    /// Namespace and name of the Service of the cluster's DNS. If it does not exist, the Pods of that namespace with the
    /// label `k8s-app=kube-dns` are used.
    pub dns: (String, String),
    /// Whether a host counts as outside if the access rules do not show whether it is: a name that may be in a namespace
    /// other than the active one, or a public address. With `false` it is refused, and the error names the missing
    /// right. For users with a Role in one namespace `github.com` may be the Service `github` in the namespace `com`.
    pub unseen_is_outside: bool,
    /// How long an unused selection is watched; at most a day.
    pub idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            domain: None,
            suffixes: Vec::new(),
            dns: ("kube-system".into(), "kube-dns".into()),
            unseen_is_outside: false,
            idle: Duration::from_secs(600),
        }
    }
}

impl Settings {
    /// Namespaces to search, the best first: the given one, otherwise everywhere, then the active one.
    pub(crate) fn places(&self, within: Option<&str>) -> Vec<Option<String>> {
        match within {
            Some(namespace) => vec![Some(namespace.to_owned())],
            None => vec![None, Some(self.namespace.clone())],
        }
    }
}
