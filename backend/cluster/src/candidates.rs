//! Endpoints that could serve a target, and the rule which of them may be used.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use kubevpn_target::{Host, Name};

use crate::LookupError;

/// A question to the cluster: the meaning of a host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    pub(crate) host: Host,
    pub(crate) port: Option<NonZeroU16>,
    pub(crate) is_mapped: bool,
}

impl Query {
    /// Without a port, a Service is resolved by its first TCP port, and a target without ports of its own gets
    /// [`Endpoint::port`] 0.
    pub fn new(host: &Host, port: impl Into<Option<NonZeroU16>>) -> Self {
        Self {
            host: host.clone(),
            port: port.into(),
            is_mapped: false,
        }
    }

    /// Reads the port as a Service's, as `kubectl port-forward` does: if a headless Service maps it to another port of
    /// its Pods, that port is dialled.
    #[must_use]
    pub fn mapped(mut self) -> Self {
        self.is_mapped = true;
        self
    }
}

/// The answer to a query.
#[derive(Clone, Debug)]
pub enum Resolution<P> {
    /// Pods that serve the target, or would if they were ready.
    Pods(P),
    /// The API server itself, to be dialled as the kubeconfig does.
    ApiServer,
    /// A host outside this cluster. A policy decides whether and how it is reached.
    Outside(OutsideHost),
    /// A name of this cluster that no object has. The cluster's DNS may know it.
    Dns(DnsQuestion),
}

impl<P> Resolution<P> {
    pub(crate) fn map<Q>(self, pods: impl FnOnce(P) -> Q) -> Resolution<Q> {
        match self {
            Self::Pods(found) => Resolution::Pods(pods(found)),
            Self::ApiServer => Resolution::ApiServer,
            Self::Outside(outside) => Resolution::Outside(outside),
            Self::Dns(question) => Resolution::Dns(question),
        }
    }
}

/// A query for the cluster's DNS.
#[derive(Clone, Debug)]
pub struct DnsQuestion {
    /// The names in search order: the first that exists is meant. At least one; all are absolute and belong to the
    /// cluster.
    pub names: Vec<Name>,
    /// The object that named the host, as in [`OutsideHost`].
    pub learned_from: Option<String>,
    /// The error of the lookup if the DNS knows none of the names.
    pub otherwise: LookupError,
    /// Whether no object can have such a name, so that only the DNS can know it.
    pub only_dns: bool,
}

/// A host that no object of the cluster has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideHost {
    /// The host to reach; for an ExternalName the one it points to.
    pub host: Host,
    /// The object that named this host, e.g. `service default/external`; `None` if the client named it. A policy must
    /// not let a cluster direct us to our own loopback or link.
    pub learned_from: Option<String>,
}

/// All endpoints that could serve one target, ready or not.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// The target in words for messages: `service default/web port 80`.
    pub asked: String,
    /// The Pods, each once.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that are not Pods: they exist and cannot be dialled.
    pub strays: Vec<Stray>,
    /// The Service of the endpoints, `namespace/name`; `None` for a Pod that was requested directly.
    pub service: Option<String>,
    /// The Pods' port to which a headless Service maps the requested one, if they differ. DNS does not tell clients
    /// this port.
    pub behind: Option<u16>,
    /// How long the Service keeps a client to one Pod (`sessionAffinity: ClientIP`), counted from its last connection.
    pub affinity: Option<Duration>,
    /// Why there are no endpoints, or why some are not ready, as far as it is known.
    pub(crate) because: Option<String>,
    /// The Service publishes its Pods whether they are ready or not.
    pub(crate) publishes_unready: bool,
}

/// One Pod and the port to dial on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The Pod.
    pub pod: PodRef,
    /// The port; 0 if none was requested and none follows from the Service.
    pub port: u16,
    /// Whether it may be given new connections.
    pub readiness: Readiness,
    /// The Pod's known addresses, for messages; they are not dialled.
    pub addresses: Vec<IpAddr>,
}

/// Identity of a Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// The Pod's namespace.
    pub namespace: String,
    /// The Pod's name.
    pub name: String,
    /// UID, which distinguishes a StatefulSet's Pod from its successor of the same name; `None` if unknown.
    pub uid: Option<String>,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether an endpoint may be given new connections; better ones order first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Readiness {
    /// Ready, or published whether ready or not.
    Ready,
    /// Terminating and still serving: used if nothing is ready, as kube-proxy does.
    ServingTerminating,
    /// Terminating and no longer serving.
    Terminating,
    /// Not ready.
    NotReady,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::ServingTerminating => "terminating, still serving",
            Self::Terminating => "terminating",
            Self::NotReady => "not ready",
        })
    }
}

/// An endpoint that is not a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Its address in the slice: an IP address, or a host name in an FQDN slice.
    pub address: String,
    /// Its port; 0 as for [`Endpoint::port`].
    pub port: u16,
    /// Whether it may be given new connections.
    pub readiness: Readiness,
    /// Why it cannot be dialled.
    pub reason: String,
}

impl Candidates {
    /// Candidates from Pods, with the target in words.
    pub fn new(asked: impl Into<String>, endpoints: Vec<Endpoint>) -> Self {
        Self {
            asked: asked.into(),
            endpoints,
            strays: Vec::new(),
            service: None,
            behind: None,
            affinity: None,
            because: None,
            publishes_unready: false,
        }
    }

    /// The endpoints that may get a new connection: the ready ones; if there are none, those that still serve while
    /// they terminate.
    ///
    /// Errors: `NotReady`, or `Unreachable` when only endpoints that are not Pods could serve.
    pub fn usable(&self) -> Result<Vec<&Endpoint>, LookupError> {
        for wanted in [Readiness::Ready, Readiness::ServingTerminating] {
            let found: Vec<_> = self.with(wanted).collect();
            if !found.is_empty() {
                return Ok(found);
            }
            if let Some(stray) = self.strays.iter().find(|s| s.readiness == wanted) {
                return Err(LookupError::NotAPod {
                    asked: self.asked.clone(),
                    address: stray.address.clone(),
                    reason: stray.reason.clone(),
                });
            }
        }
        Err(LookupError::NotReady {
            asked: self.asked.clone(),
            census: self.census(),
        })
    }

    /// Dials the Pods' port behind the Service's.
    pub(crate) fn map_port(&mut self) {
        if let Some(port) = self.behind.take() {
            self.endpoints.iter_mut().for_each(|e| e.port = port);
        }
    }

    fn with(&self, readiness: Readiness) -> impl Iterator<Item = &Endpoint> {
        self.endpoints
            .iter()
            .filter(move |e| e.readiness == readiness)
    }

    /// How many endpoints there are and what is wrong with them: `2 exist: 1 not ready, 1 terminating`.
    fn census(&self) -> String {
        use Readiness as R;
        let readiness = || {
            let pods = self.endpoints.iter().map(|e| e.readiness);
            pods.chain(self.strays.iter().map(|s| s.readiness))
        };
        let total = readiness().count();
        if total == 0 {
            let known = self.because.as_deref();
            return known.unwrap_or("none exists").into();
        }
        let parts: Vec<_> = [R::Ready, R::ServingTerminating, R::NotReady, R::Terminating]
            .into_iter()
            .map(|r| (r, readiness().filter(|x| *x == r).count()))
            .filter(|(_, n)| *n > 0)
            .map(|(r, n)| format!("{n} {r}"))
            .collect();
        let verb = if total == 1 { "exists" } else { "exist" };
        let because = self.because.iter().map(|b| format!(" ({b})"));
        let because: String = because.collect();
        format!("{total} {verb}: {}{because}", parts.join(", "))
    }
}
