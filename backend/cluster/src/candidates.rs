//! What could serve a target, and the rule for which of it may.

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
    /// Without a port a Service is taken by its first TCP port, and what has no ports of its own gets
    /// [`Endpoint::port`] 0.
    pub fn new(host: &Host, port: impl Into<Option<NonZeroU16>>) -> Self {
        Self {
            host: host.clone(),
            port: port.into(),
            is_mapped: false,
        }
    }

    /// The port is a Service's, as for `kubectl port-forward`: where a headless Service has another one behind it, that
    /// is dialled.
    #[must_use]
    pub fn mapped(mut self) -> Self {
        self.is_mapped = true;
        self
    }
}

/// The answer to a query.
#[derive(Clone, Debug)]
pub enum Resolution<P> {
    /// Pods that serve it, or would if they were ready.
    Pods(P),
    /// The API server itself, to be dialled as the kubeconfig does.
    ApiServer,
    /// Nothing of this cluster: whether it may be reached, and how, is for a policy to say.
    Outside(Outside),
    /// A name of this cluster that no object answers: its DNS may.
    Dns(Question),
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

/// What to ask the cluster's DNS.
#[derive(Clone, Debug)]
pub struct Question {
    /// The names, in order: the first that exists is meant. There is one at least, all are absolute, and all
    /// are the cluster's.
    pub names: Vec<Name>,
    /// What in the cluster named the host, as in [`Outside`].
    pub learned_from: Option<String>,
    /// What the lookup comes to when the DNS knows none of them.
    pub otherwise: LookupError,
    /// Whether no object can have such a name, so that nothing is known without the DNS.
    pub only_dns: bool,
}

/// A host that no object of the cluster answers for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// The host to reach; for an ExternalName the one it points to.
    pub host: Host,
    /// What in the cluster named this host, e.g. `service default/external`; `None` when the client did.
    /// A policy must not let a cluster send us to our own loopback or link.
    pub learned_from: Option<String>,
}

/// Everything that could serve one target, ready or not.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// What was asked for, in words fit for messages: `service default/web port 80`.
    pub asked: String,
    /// The Pods, each once.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that are not Pods: they exist and cannot be dialled.
    pub strays: Vec<Stray>,
    /// The Service they serve, `namespace/name`; `None` for a Pod that was asked for by itself.
    pub service: Option<String>,
    /// The Pods' port that a headless Service has behind the asked one, where that is another: with DNS alone clients
    /// have to know it.
    pub behind: Option<u16>,
    /// How long the Service keeps a client to one Pod (`sessionAffinity: ClientIP`), counted from its last connection.
    pub affinity: Option<Duration>,
    /// Why there is neither, or why some are not ready, where more is known than that.
    pub(crate) because: Option<String>,
    /// The Service publishes its Pods whether they are ready or not.
    pub(crate) publishes_unready: bool,
}

/// One Pod and the port to dial on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The Pod.
    pub pod: PodRef,
    /// 0 where no port was asked for and none follows from the Service.
    pub port: u16,
    /// Whether it may be given new connections.
    pub readiness: Readiness,
    /// The Pod's addresses as far as they were seen, for explanations; nobody dials them.
    pub addresses: Vec<IpAddr>,
}

/// Which Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// The Pod's namespace.
    pub namespace: String,
    /// The Pod's name.
    pub name: String,
    /// Tells a StatefulSet's Pod from its successor of the same name; `None` where it was not said.
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
    /// On its way out and still serving: used when nothing is ready, as kube-proxy does.
    ServingTerminating,
    /// On its way out and no longer serving.
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
    /// Its address as the slice has it: an IP, or a host name in an FQDN slice.
    pub address: String,
    /// Its port; 0 as for [`Endpoint::port`].
    pub port: u16,
    /// Whether it may be given new connections.
    pub readiness: Readiness,
    /// Why it cannot be dialled.
    pub reason: String,
}

impl Candidates {
    /// Pods, and the words for what was asked.
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

    /// The endpoints that may be given a new connection: the ready ones; when there are none, those that
    /// still serve while they terminate.
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

    /// Takes the port for the Service's.
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
