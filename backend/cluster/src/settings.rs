//! How names are read.

use std::time::Duration;

use kubevpn_target::Name;

/// How names are read, and for how long what they led to is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The active namespace: where short names are looked up, and what is searched where the access rules
    /// do not let us search everywhere.
    pub namespace: String,
    /// The cluster's domain; `None` reads it from the configuration of CoreDNS (the ConfigMap
    /// `kube-system/coredns`) when a name first depends on it, and takes `cluster.local` where that cannot be.
    pub domain: Option<Name>,
    /// What belongs to the cluster beside its domain, though only its DNS knows it.
    pub suffixes: Vec<Name>,
    /// The Service of the cluster's DNS, by namespace and name. Where there is none, the Pods of that namespace
    /// with the label `k8s-app=kube-dns`.
    pub dns: (String, String),
    /// Takes a host for one outside the cluster where the access rules do not let us see whether it is one: a name
    /// that may be in a namespace other than the active one, and a public address. `false` refuses it, naming the right
    /// that is missing. For users with a Role in one namespace `github.com` may be the Service `github` in the
    /// namespace `com`.
    pub unseen_is_outside: bool,
    /// What nobody asked for in this time is no longer watched; a day at most.
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
    /// Where to look, the best place first: in one namespace, else anywhere, as far as that may be seen.
    pub(crate) fn places(&self, within: Option<&str>) -> Vec<Option<String>> {
        match within {
            Some(namespace) => vec![Some(namespace.to_owned())],
            None => vec![None, Some(self.namespace.clone())],
        }
    }
}
