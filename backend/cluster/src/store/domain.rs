//! The cluster's domain: given, or found once in the configuration of CoreDNS.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kubevpn_target::Name;
use tokio::sync::OnceCell;

use crate::Domain;
use crate::corefile::cluster_zones;
use crate::fetch::{Failure, Server, get, is_forbidden};
use crate::settings::Settings;

/// Known from the start where it was given; else read once, when a name first depends on it.
pub(super) struct DomainCell {
    known: OnceCell<Arc<Domain>>,
    /// What most clusters have.
    usual: Arc<Domain>,
}

impl DomainCell {
    pub(super) fn new(settings: &Settings) -> Self {
        let of = |name: &Name| Arc::new(Domain::new(name.clone(), settings.suffixes.clone()));
        let given = settings.domain.as_ref().map(of);
        Self {
            known: OnceCell::new_with(given),
            usual: of(&Domain::usual()),
        }
    }

    /// The best that can be said without asking.
    pub(super) fn guess(&self) -> Arc<Domain> {
        self.known.get().unwrap_or(&self.usual).clone()
    }

    /// The domain, and whether it is known. Where CoreDNS's configuration may not be read, or is not there, it is the
    /// one that most clusters have; where the call failed it is taken to be that one for now.
    pub(super) async fn get(&self, server: &Server, settings: &Settings) -> (Arc<Domain>, bool) {
        let found = self.known.get_or_try_init(|| self.find(server, settings));
        match found.await {
            Ok(domain) => (domain.clone(), true),
            Err(failure) => {
                let usual = &self.usual;
                tracing::debug!("the cluster's domain is taken to be {usual}: {failure}");
                (usual.clone(), false)
            }
        }
    }

    async fn find(&self, server: &Server, settings: &Settings) -> Result<Arc<Domain>, Failure> {
        let zones = match corefile(server).await {
            Ok(corefile) => cluster_zones(&corefile.unwrap_or_default()),
            Err(failure) if is_forbidden(&failure) => {
                tracing::debug!("{failure}");
                Vec::new()
            }
            Err(failure) => return Err(failure),
        };
        let mut zones = zones.into_iter();
        let Some(first) = zones.next() else {
            tracing::debug!("the cluster's domain is taken to be {}", self.usual);
            return Ok(self.usual.clone());
        };
        // Objects are looked up under one domain; the names under others are for the cluster's DNS.
        let suffixes = settings.suffixes.iter().cloned().chain(zones);
        let domain = Domain::new(first, suffixes);
        tracing::debug!("the cluster's domain is {domain}, by the configuration of CoreDNS");
        Ok(Arc::new(domain))
    }
}

/// CoreDNS's configuration, read now; `None` where there is none.
async fn corefile(server: &Server) -> Result<Option<String>, Failure> {
    let config = get::<ConfigMap>(server, Some("kube-system"), "coredns").await?;
    let data = config.and_then(|config| config.data);
    Ok(data.and_then(|mut data| data.remove("Corefile")))
}
