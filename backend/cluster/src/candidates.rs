//! What could serve a target, and the rule for which of it may.

use std::fmt;
use std::future::pending;
use std::net::IpAddr;
use std::time::Duration;

use kubevpn_target::{Host, Name};

use crate::objects::Asked;
use crate::store::Validity;
use crate::{Cluster, LookupError};

/// What a host and port turned out to be.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Pods that serve it, or would if they were ready.
    Pods(Candidates),
    /// The API server itself, to be dialled as the kubeconfig does.
    ApiServer,
    /// Nothing of this cluster: whether it may be reached, and how, is for a policy to say.
    Outside(Outside),
    /// A name of this cluster that no object answers: its DNS may.
    Dns(Question),
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
    /// [`Candidates::map_port`] was called.
    is_mapped: bool,
    /// How long the Service keeps a client to one Pod (`sessionAffinity: ClientIP`), counted from its last connection.
    pub affinity: Option<Duration>,
    /// Why there is neither, or why some are not ready, where more is known than that.
    pub(crate) because: Option<String>,
    /// The Service publishes its Pods whether they are ready or not.
    pub(crate) publishes_unready: bool,
    pub(crate) source: Option<Source>,
}

/// One Pod and the port to dial on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub pod: PodRef,
    /// 0 where no port was asked for and none follows from the Service.
    pub port: u16,
    pub readiness: Readiness,
    /// The Pod's addresses as far as they were seen, for explanations; nobody dials them.
    pub addresses: Vec<IpAddr>,
}

/// Which Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    pub namespace: String,
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

/// What became of Pods since they were looked up; where they differ, the last of these that is one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// They are what they were.
    Same,
    /// It may not be asked, the API server did not answer, or the answer is neither of the others.
    Unclear,
    /// One is gone or on its way out, and was not known to be.
    Ended,
}

/// An endpoint that is not a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Its address as the slice has it: an IP, or a host name in an FQDN slice.
    pub address: String,
    pub port: u16,
    pub readiness: Readiness,
    /// Why it cannot be dialled.
    pub reason: String,
}

impl Candidates {
    /// Candidates that nothing keeps fresh: [`Candidates::changed`] never returns.
    pub fn new(asked: impl Into<String>, endpoints: Vec<Endpoint>) -> Self {
        Self {
            asked: asked.into(),
            endpoints,
            strays: Vec::new(),
            service: None,
            behind: None,
            is_mapped: false,
            affinity: None,
            because: None,
            publishes_unready: false,
            source: None,
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

    /// Takes the port for the Service's, as `kubectl port-forward` does, where a headless Service has another one behind
    /// it.
    pub fn map_port(&mut self) {
        self.is_mapped = true;
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

    /// Asks the API server for the usable Pods, whatever the watches have told: one call each, all at once, and for a
    /// handful at most, which speak for the others.
    ///
    /// Cancellation: the calls are given up.
    pub async fn fate(&self) -> Fate {
        match &self.source {
            Some(source) => source.cluster.fate(self).await,
            None => Fate::Unclear,
        }
    }

    /// Waits until the objects behind these candidates may have changed.
    ///
    /// It may return without a change, and returns at once when there was one since the lookup.
    /// Cancellation: nothing is lost by dropping the future.
    pub async fn changed(&self) {
        match &self.source {
            Some(source) => source.validity.over().await,
            None => pending().await,
        }
    }

    /// Waits like [`Candidates::changed`], then looks up the same once more.
    ///
    /// Errors: those of the lookup, among them `NameNotFound` for what no longer is any Pod's.
    pub async fn refreshed(&self) -> Result<Self, LookupError> {
        let Some(source) = &self.source else {
            return pending().await;
        };
        source.validity.over().await;
        match source.cluster.ask(&source.query).await? {
            Answer::Pods(mut candidates) => {
                if self.is_mapped {
                    candidates.map_port();
                }
                Ok(candidates)
            }
            Answer::Dns(question) => Err(question.otherwise),
            Answer::ApiServer | Answer::Outside(_) => Err(LookupError::NameNotFound {
                name: self.asked.clone(),
                because: "it was there a moment ago".into(),
            }),
        }
    }
}

/// What was looked up.
#[derive(Clone, Debug)]
pub(crate) enum Query {
    Target { host: Host, port: Asked },
    Dns,
}

/// Where candidates come from, and what would tell that they are out of date.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) cluster: Cluster,
    pub(crate) query: Query,
    pub(crate) validity: Validity,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.query.fmt(f)
    }
}
