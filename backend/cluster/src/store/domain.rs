//! The cluster's domain: given, or read once from the configuration of CoreDNS; and whether CoreDNS has names beyond those of
//! objects, which is read again when it is a minute old.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kubevpn_target::Name;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::entry::RIGHTS;
use super::validity::lock;
use crate::Domain;
use crate::corefile::{adds_names, cluster_zones};
use crate::fetch::{CallFailure, LimitedApi, get, is_forbidden};
use crate::settings::Settings;

/// How long a finding about CoreDNS's own names is believed: CoreDNS reads its configuration again once in 30 s
/// (coredns.io, plugin `reload`).
const ADDITIONS: Duration = Duration::from_secs(60);

/// The domain: known from the start if it was given, otherwise read once, when a name first depends on it.
pub(super) struct DomainCell {
    known: OnceCell<Arc<Domain>>,
    /// The usual domain.
    usual: Arc<Domain>,
    /// Whether CoreDNS is the DNS that is asked and its configuration defines the domain.
    is_coredns: bool,
    additions: Mutex<Option<Additions>>,
    /// Held while the configuration is read for the additions only.
    reading: tokio::sync::Mutex<()>,
}

/// Whether the DNS may know names that no object has, with its expiry.
#[derive(Clone, Copy)]
struct Additions {
    any: bool,
    until: Instant,
}

impl DomainCell {
    pub(super) fn new(settings: &Settings) -> Self {
        let of = |name: &Name| Arc::new(Domain::new(name.clone(), settings.suffixes.clone()));
        let given = settings.domain.as_ref().map(of);
        Self {
            is_coredns: given.is_none() && settings.dns == Settings::default().dns,
            known: OnceCell::new_with(given),
            usual: of(&Domain::usual()),
            additions: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the additions have to be read again.
    pub(super) fn is_due(&self) -> bool {
        self.known.initialized() && self.additions().is_none()
    }

    /// Whether the DNS may know names that no object has; `None` once expired.
    pub(super) fn additions(&self) -> Option<bool> {
        if !self.is_coredns {
            return Some(true);
        }
        let additions = (*lock(&self.additions))?;
        (Instant::now() < additions.until).then_some(additions.any)
    }

    fn adds(&self, any: bool, believed: Duration) {
        let until = Instant::now() + believed;
        *lock(&self.additions) = Some(Additions { any, until });
    }

    /// Whether the DNS may know names under the domain that no object has; true if that is unknown.
    ///
    /// Cancellation: the next caller asks again.
    pub(super) async fn adds_names(&self, server: &LimitedApi) -> bool {
        let Some(domain) = self.known.get() else {
            return true;
        };
        if let Some(any) = self.additions() {
            return any;
        }
        let _reading = self.reading.lock().await;
        if let Some(any) = self.additions() {
            return any;
        }
        match corefile(server).await {
            Ok(corefile) => {
                let any = corefile.is_none_or(|text| adds_names(&text, domain.cluster()));
                self.adds(any, ADDITIONS);
                any
            }
            Err(failure) => {
                tracing::debug!("{failure}");
                if is_forbidden(&failure) {
                    self.adds(true, RIGHTS);
                }
                true
            }
        }
    }

    /// The domain as far as it is known without a call.
    pub(super) fn guess(&self) -> Arc<Domain> {
        self.known.get().unwrap_or(&self.usual).clone()
    }

    /// The domain, and whether it is certain. If CoreDNS's configuration is forbidden or missing, it is the usual domain.
    /// If the call failed, it is the usual domain for now.
    pub(super) async fn get(
        &self,
        server: &LimitedApi,
        settings: &Settings,
    ) -> (Arc<Domain>, bool) {
        let found = self.known.get_or_try_init(|| self.find(server, settings));
        match found.await {
            Ok(domain) => (domain.clone(), true),
            Err(failure) => {
                let usual = &self.usual;
                tracing::debug!("assuming the cluster's domain is {usual}: {failure}");
                (usual.clone(), false)
            }
        }
    }

    async fn find(
        &self,
        server: &LimitedApi,
        settings: &Settings,
    ) -> Result<Arc<Domain>, CallFailure> {
        let corefile = match corefile(server).await {
            Ok(corefile) => corefile.unwrap_or_default(),
            Err(failure) if is_forbidden(&failure) => {
                tracing::debug!("{failure}");
                String::new()
            }
            Err(failure) => return Err(failure),
        };
        let mut zones = cluster_zones(&corefile).into_iter();
        let Some(first) = zones.next() else {
            self.adds(true, RIGHTS);
            tracing::debug!("assuming the cluster's domain is {}", self.usual);
            return Ok(self.usual.clone());
        };
        // Objects are looked up under one domain; names under other zones are left to the cluster's DNS.
        let suffixes = settings.suffixes.iter().cloned().chain(zones);
        self.adds(adds_names(&corefile, &first), ADDITIONS);
        let domain = Domain::new(first, suffixes);
        tracing::debug!("the cluster's domain is {domain}, by the configuration of CoreDNS");
        Ok(Arc::new(domain))
    }
}

/// Reads CoreDNS's configuration; `None` if there is none.
async fn corefile(server: &LimitedApi) -> Result<Option<String>, CallFailure> {
    let config = get::<ConfigMap>(server, Some("kube-system"), "coredns").await?;
    let data = config.and_then(|config| config.data);
    Ok(data.and_then(|mut data| data.remove("Corefile")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_dns_is_asked_whatever_corednss_configuration_says() {
        let mut settings = Settings::default();
        let of_coredns = DomainCell::new(&settings);
        settings.dns = ("corp".to_owned(), "dns".to_owned());
        let of_another = DomainCell::new(&settings);
        for (cell, additions) in [(of_coredns, Some(false)), (of_another, Some(true))] {
            cell.adds(false, ADDITIONS);
            assert_eq!(cell.additions(), additions);
        }
    }
}
