//! Selections: objects that are read together.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The objects of a selection at one moment.
pub(crate) type Objects<K> = Arc<Vec<Arc<K>>>;

/// A selection of objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Select {
    /// One object by its name; the namespace is empty for a cluster-wide kind.
    Named { namespace: String, name: String },
    /// The EndpointSlices of a Service.
    OfService { namespace: String, service: String },
    /// The Pods whose first address this is, everywhere or in one namespace.
    WithAddress {
        namespace: Option<String>,
        ip: IpAddr,
    },
    /// Objects with a label, in one namespace.
    WithLabel {
        namespace: String,
        label: &'static str,
    },
    /// All objects, everywhere or in one namespace.
    All { namespace: Option<String> },
}

/// The text after the kind, for messages.
impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let everywhere = |namespace: &Option<String>| match namespace {
            Some(namespace) => format!("in {namespace}"),
            None => "everywhere".into(),
        };
        match self {
            Self::Named { namespace, name } if namespace.is_empty() => f.write_str(name),
            Self::Named { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::OfService { namespace, service } => write!(f, "of {namespace}/{service}"),
            Self::WithAddress { namespace, ip } => {
                write!(f, "with address {ip} {}", everywhere(namespace))
            }
            Self::WithLabel { namespace, label } => write!(f, "with {label} in {namespace}"),
            Self::All { namespace } => f.write_str(&everywhere(namespace)),
        }
    }
}

impl Select {
    pub(crate) fn named(namespace: &str, name: &str) -> Self {
        Self::Named {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn of_service(namespace: &str, service: &str) -> Self {
        Self::OfService {
            namespace: namespace.into(),
            service: service.into(),
        }
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        match self {
            Self::Named { namespace, .. }
            | Self::OfService { namespace, .. }
            | Self::WithLabel { namespace, .. } => Some(namespace),
            Self::WithAddress { namespace, .. } | Self::All { namespace } => namespace.as_deref(),
        }
    }

    pub(crate) fn fields(&self) -> Option<String> {
        match self {
            Self::Named { name, .. } => Some(format!("metadata.name={name}")),
            Self::WithAddress { ip, .. } => Some(format!("status.podIP={ip}")),
            Self::OfService { .. } | Self::WithLabel { .. } | Self::All { .. } => None,
        }
    }

    pub(crate) fn labels(&self) -> Option<String> {
        match self {
            Self::OfService { service, .. } => {
                Some(format!("kubernetes.io/service-name={service}"))
            }
            Self::WithLabel { label, .. } => Some((*label).to_owned()),
            _ => None,
        }
    }
}
