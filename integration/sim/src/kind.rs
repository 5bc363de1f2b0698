//! The kinds of object the API server knows.

use serde_json::Value;

/// One kind, as discovery describes it.
#[derive(Debug)]
pub(crate) struct ResourceKind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) namespaced: bool,
    /// The minor version of Kubernetes that serves it first.
    pub(crate) since: u32,
    /// Whether its status can be patched by itself.
    pub(crate) has_status: bool,
    /// Field selectors beside the object's own name and namespace.
    pub(crate) fields: &'static [&'static str],
}

pub(crate) static NAMESPACE: ResourceKind = ResourceKind {
    fields: &["status.phase"],
    ..ResourceKind::cluster("", "v1", "Namespace", "namespaces", &["ns"])
};
pub(crate) static SERVICE: ResourceKind = ResourceKind {
    fields: &["spec.clusterIP", "spec.type"],
    has_status: true,
    ..ResourceKind::namespaced("", "v1", "Service", "services", &["svc"])
};
pub(crate) static CONFIG_MAP: ResourceKind =
    ResourceKind::namespaced("", "v1", "ConfigMap", "configmaps", &["cm"]);
pub(crate) static SECRET: ResourceKind =
    ResourceKind::namespaced("", "v1", "Secret", "secrets", &[]);
pub(crate) static SERVICE_ACCOUNT: ResourceKind =
    ResourceKind::namespaced("", "v1", "ServiceAccount", "serviceaccounts", &["sa"]);
pub(crate) static ENDPOINTS: ResourceKind =
    ResourceKind::namespaced("", "v1", "Endpoints", "endpoints", &["ep"]);
pub(crate) static POD: ResourceKind = ResourceKind {
    fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    has_status: true,
    ..ResourceKind::namespaced("", "v1", "Pod", "pods", &["po"])
};
pub(crate) static DEPLOYMENT: ResourceKind =
    ResourceKind::namespaced("apps", "v1", "Deployment", "deployments", &["deploy"]);
pub(crate) static STATEFUL_SET: ResourceKind =
    ResourceKind::namespaced("apps", "v1", "StatefulSet", "statefulsets", &["sts"]);
pub(crate) static ENDPOINT_SLICE: ResourceKind = ResourceKind::namespaced(
    "discovery.k8s.io",
    "v1",
    "EndpointSlice",
    "endpointslices",
    &[],
);
pub(crate) static IP_ADDRESS: ResourceKind = ResourceKind {
    since: 33,
    ..ResourceKind::cluster(
        "networking.k8s.io",
        "v1",
        "IPAddress",
        "ipaddresses",
        &["ip"],
    )
};
pub(crate) static SERVICE_CIDR: ResourceKind = ResourceKind {
    since: 33,
    ..ResourceKind::cluster(
        "networking.k8s.io",
        "v1",
        "ServiceCIDR",
        "servicecidrs",
        &[],
    )
};

/// Every kind.
pub(crate) static ALL: [&ResourceKind; 12] = [
    &NAMESPACE,
    &CONFIG_MAP,
    &SECRET,
    &SERVICE_ACCOUNT,
    &SERVICE,
    &ENDPOINTS,
    &POD,
    &DEPLOYMENT,
    &STATEFUL_SET,
    &ENDPOINT_SLICE,
    &IP_ADDRESS,
    &SERVICE_CIDR,
];

impl ResourceKind {
    const fn namespaced(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        short: &'static [&'static str],
    ) -> Self {
        Self {
            group,
            version,
            kind,
            plural,
            short,
            namespaced: true,
            has_status: false,
            since: 0,
            fields: &[],
        }
    }

    const fn cluster(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        short: &'static [&'static str],
    ) -> Self {
        Self {
            namespaced: false,
            ..Self::namespaced(group, version, kind, plural, short)
        }
    }

    /// `apps/v1`, or `v1` for the core group.
    pub(crate) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.into(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The kind of that plural in that group and version, if this minor version of Kubernetes has it.
    pub(crate) fn served(
        group: &str,
        version: &str,
        plural: &str,
        minor: u32,
    ) -> Option<&'static Self> {
        let same = |k: &&&'static Self| {
            k.group == group && k.version == version && k.plural == plural && k.since <= minor
        };
        ALL.iter().find(same).copied()
    }

    /// The kind an object says it is of.
    pub(crate) fn of(object: &Value) -> Option<&'static Self> {
        let kind = object["kind"].as_str()?;
        let version = object["apiVersion"].as_str()?;
        let same = |k: &&&'static Self| k.kind == kind && k.api_version() == version;
        ALL.iter().find(same).copied()
    }

    /// The kind of that name in the singular, as it stands in an object.
    pub(crate) fn named(kind: &str) -> Option<&'static Self> {
        ALL.iter().find(|k| k.kind == kind).copied()
    }
}

impl PartialEq for ResourceKind {
    fn eq(&self, other: &Self) -> bool {
        self.plural == other.plural
    }
}

impl Eq for ResourceKind {}
