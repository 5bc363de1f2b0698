//! What belongs to the cluster, and who answers for its names.

use std::sync::Arc;

use kubevpn_target::Name;
use tokio::sync::OnceCell;

use super::{Hit, Settings, Shared};
use crate::corefile::cluster_zones;
use crate::fetch::{Failure, is_forbidden};
use crate::objects::{Asked, dns_endpoint};
use crate::store::Validity;
use crate::{Answer, Candidates, Domain, LookupError};

/// The port that DNS is spoken on (RFC 1035 section 4.2).
const DNS: Asked = Asked::port(53);

/// What the Pods of the cluster's DNS are labelled with in nearly every cluster, CoreDNS or not.
const LABEL: &str = "k8s-app=kube-dns";

/// Known from the start where it was given; else read once, when a name first depends on it.
pub(super) struct Whose {
    known: OnceCell<Arc<Domain>>,
    /// What most clusters have.
    guess: Arc<Domain>,
}

impl Whose {
    pub(super) fn new(settings: &Settings) -> Self {
        let of = |name: &Name| Arc::new(Domain::new(name.clone(), settings.suffixes.clone()));
        let given = settings.domain.as_ref().map(of);
        Self {
            known: OnceCell::new_with(given),
            guess: of(&Domain::usual()),
        }
    }

    /// The best that can be said without asking.
    pub(super) fn guess(&self) -> Arc<Domain> {
        self.known.get().unwrap_or(&self.guess).clone()
    }
}

impl Shared {
    /// What belongs to the cluster. Where CoreDNS's configuration may not be read, or is not there, it is the
    /// domain that most clusters have.
    pub(super) async fn domain(&self) -> Arc<Domain> {
        let found = self.whose.known.get_or_try_init(|| self.find_domain());
        match found.await {
            Ok(domain) => domain.clone(),
            // Not now: the next name asks again.
            Err(failure) => {
                tracing::debug!(
                    "the cluster's domain is taken to be {}: {failure}",
                    self.whose.guess
                );
                self.whose.guess.clone()
            }
        }
    }

    async fn find_domain(&self) -> Result<Arc<Domain>, Failure> {
        let zones = match self.view.corefile().await {
            Ok(corefile) => cluster_zones(&corefile.unwrap_or_default()),
            Err(failure) if is_forbidden(&failure) => {
                tracing::debug!("{failure}");
                Vec::new()
            }
            Err(failure) => return Err(failure),
        };
        let mut zones = zones.into_iter();
        let Some(first) = zones.next() else {
            tracing::debug!("the cluster's domain is taken to be {}", self.whose.guess);
            return Ok(self.whose.guess.clone());
        };
        // Objects are looked up under one domain; the names under others are for the cluster's DNS.
        let suffixes = self.settings.suffixes.iter().cloned().chain(zones);
        let domain = Domain::new(first, suffixes);
        tracing::debug!("the cluster's domain is {domain}, by the configuration of CoreDNS");
        Ok(Arc::new(domain))
    }

    /// The Pods of the cluster's DNS: those of its Service, else those with its label.
    pub(super) async fn dns(&self, trust: &mut Validity) -> Result<Answer, LookupError> {
        let (namespace, name) = &self.settings.dns;
        let Some(service) = self.view.service(namespace, name, trust).await? else {
            return Ok(Answer::Pods(self.labelled_dns(trust).await?));
        };
        match self.serve(&service, DNS, trust).await? {
            Hit::Answer(answer) => Ok(answer),
            Hit::Alias { service, to } => Err(LookupError::ExternalName {
                reason: format!("it points to {to}, and the cluster's DNS is asked in its pods"),
                service,
            }),
        }
    }

    async fn labelled_dns(&self, trust: &mut Validity) -> Result<Candidates, LookupError> {
        let (namespace, name) = &self.settings.dns;
        let pods = self.view.labelled(namespace, LABEL, trust).await?;
        let endpoints: Vec<_> = pods.iter().filter_map(|pod| dns_endpoint(pod)).collect();
        if endpoints.is_empty() {
            return Err(LookupError::NameNotFound {
                name: format!("service {namespace}/{name}"),
                because: format!("and no pod in {namespace} has the label {LABEL}"),
            });
        }
        let asked = format!("the pods in {namespace} with the label {LABEL}");
        Ok(Candidates::new(asked, endpoints))
    }
}
