//! The policy: how hosts are resolved and dialled. State files contain it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use kubevpn_stack::{
    ClusterSettings, ForwarderConfig, Outside, OwnListeners, Settings, TransportChoice,
};
use kubevpn_target::Name;
use serde::{Deserialize, Serialize};

use crate::text;

/// Names of the cluster, and the handling of other hosts. The serialised form is part of the daemon's state files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// DNS domain of the cluster; `None` to read it from CoreDNS's configuration.
    pub cluster_domain: Option<DomainName>,
    /// Further suffixes of names that the cluster's DNS resolves.
    pub cluster_suffix: Vec<DomainName>,
    /// Service of the cluster's DNS; `None` for `kube-system/kube-dns`.
    pub cluster_dns: Option<DnsService>,
    /// Whether hosts outside the cluster are dialled from this machine.
    #[serde(with = "outside")]
    pub outside: Outside,
    /// Wait for a Service without a ready endpoint; `None` refuses the connection at once.
    pub wait_ready: Option<Duration>,
    /// Transport of port-forwards.
    #[serde(with = "text")]
    pub transport: TransportChoice,
}

/// A domain name in settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DomainName(#[serde(with = "text")] NameText);

#[derive(Clone, Debug, PartialEq, Eq)]
struct NameText(Name);

impl fmt::Display for NameText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NameText {
    type Err = kubevpn_target::TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Name::parse(text).map(Self)
    }
}

impl From<Name> for DomainName {
    fn from(name: Name) -> Self {
        Self(NameText(name))
    }
}

/// A Service, as `NAMESPACE/SERVICE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DnsService {
    namespace: String,
    service: String,
}

/// The text is not `NAMESPACE/SERVICE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write NAMESPACE/SERVICE, as in kube-system/kube-dns")]
pub struct NotAService;

impl FromStr for DnsService {
    type Err = NotAService;

    fn from_str(text: &str) -> Result<Self, NotAService> {
        let is_label = |label: &str| Name::parse(label).is_ok() && !label.contains('.');
        let (namespace, service) = text.split_once('/').ok_or(NotAService)?;
        if !is_label(namespace) || !is_label(service) {
            return Err(NotAService);
        }
        Ok(Self {
            namespace: namespace.into(),
            service: service.into(),
        })
    }
}

impl TryFrom<String> for DnsService {
    type Error = NotAService;

    fn try_from(text: String) -> Result<Self, NotAService> {
        text.parse()
    }
}

impl From<DnsService> for String {
    fn from(DnsService { namespace, service }: DnsService) -> Self {
        format!("{namespace}/{service}")
    }
}

/// `deny` or `direct`.
mod outside {
    use kubevpn_stack::Outside;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum OutsideText {
        Deny,
        Direct,
    }

    pub(super) fn serialize<S: Serializer>(outside: &Outside, to: S) -> Result<S::Ok, S::Error> {
        match outside {
            Outside::Deny => OutsideText::Deny,
            Outside::Direct => OutsideText::Direct,
        }
        .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Outside, D::Error> {
        Ok(match OutsideText::deserialize(from)? {
            OutsideText::Deny => Outside::Deny,
            OutsideText::Direct => Outside::Direct,
        })
    }
}

impl Policy {
    /// Settings of the stack, for names in `namespace`; `own` are addresses that must not be dialled.
    pub fn stack(&self, namespace: &str, own: OwnListeners) -> StackConfig {
        let mut cluster = ClusterSettings {
            namespace: namespace.to_owned(),
            domain: self.cluster_domain.clone().map(|name| name.0.0),
            suffixes: self
                .cluster_suffix
                .iter()
                .map(|name| name.0.0.clone())
                .collect(),
            unseen_is_outside: self.outside == Outside::Direct,
            ..ClusterSettings::default()
        };
        if let Some(dns) = &self.cluster_dns {
            cluster.dns = (dns.namespace.clone(), dns.service.clone());
        }
        StackConfig {
            cluster,
            forwarder: ForwarderConfig {
                transport: self.transport,
                ..ForwarderConfig::default()
            },
            outside: self.outside,
            own,
            settings: Settings {
                wait_ready: self.wait_ready.unwrap_or_default(),
                ..Settings::default()
            },
        }
    }
}

/// Settings of the stack.
#[derive(Debug, Default)]
pub struct StackConfig {
    /// Resolution of names and addresses.
    pub cluster: ClusterSettings,
    /// Port-forwards.
    pub forwarder: ForwarderConfig,
    /// Whether hosts outside the cluster are dialled from this machine.
    pub outside: Outside,
    /// Listeners of this program, which must not be dialled.
    pub own: OwnListeners,
    /// Time limits.
    pub settings: Settings,
}
