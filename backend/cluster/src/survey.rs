//! Survey: a bounded list of names and ranges, for the PAC file and for suggestions.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kubevpn_target::ConnectError;

use crate::Cluster;
use crate::fetch::{CallFailure, first_page, is_forbidden};
use crate::select::Select;
use crate::store::lock;

/// Limits on the Services and the ranges of a survey.
const SERVICES: u32 = 500;
const RANGES: u32 = 16;

/// Names and ranges of a cluster, or why they could not be read.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The active namespace.
    pub namespace: String,
    /// The first 500 Services in it.
    pub services: SurveyedList,
    /// Services of other namespaces among the first 500 of all, as `web.shop`.
    pub elsewhere: SurveyedList,
    /// The ranges of ClusterIPs, as `10.96.0.0/12`.
    pub service_ranges: SurveyedList,
}

/// One list of a [`Survey`].
#[derive(Clone, Debug, Default)]
pub struct SurveyedList {
    /// The last good list; `None` if there never was one.
    pub found: Option<Vec<String>>,
    /// Why the last attempt failed.
    pub failed: Option<ListFailure>,
}

impl SurveyedList {
    /// Takes a new list. After a failure the last good list stays, unless listing is now forbidden.
    fn update(&mut self, listed: Result<Vec<String>, ListFailure>) {
        match listed {
            Ok(found) => {
                self.found = Some(found);
                self.failed = None;
            }
            Err(failed) => {
                if is_forbidden(&failed) {
                    self.found = None;
                }
                self.failed = Some(failed);
            }
        }
    }
}

/// Why a list failed; its text is a sentence.
pub type ListFailure = std::sync::Arc<ConnectError>;

impl Cluster {
    /// Lists the Services of the active namespace, those of others, and the Service ranges: three calls of at most 30 s
    /// each. If one fails, its last good list stays beside the error.
    ///
    /// Cancellation: dropping the future gives the calls up; [`last_survey`](Self::last_survey) is unchanged.
    pub async fn survey(&self) -> Survey {
        let (services, all, ranges) =
            tokio::join!(self.services(), self.service_names_of(None), self.ranges());
        let elsewhere = |(namespace, name): (String, String)| {
            (namespace != self.namespace()).then(|| format!("{name}.{namespace}"))
        };
        let elsewhere = all.map(|all| all.into_iter().filter_map(elsewhere).collect());
        let mut last = lock(self.surveyed());
        for (known, listed) in last.iter_mut().zip([services, elsewhere, ranges]) {
            known.update(listed);
        }
        drop(last);
        self.last_survey()
    }

    /// The result of the last [`survey`](Self::survey), without a call.
    pub fn last_survey(&self) -> Survey {
        let [services, elsewhere, service_ranges] = lock(self.surveyed()).clone();
        Survey {
            namespace: self.namespace().to_owned(),
            services,
            elsewhere,
            service_ranges,
        }
    }

    /// Namespace and name of the first 500 Services: of all namespaces, or of the active one if the others may not be
    /// listed.
    pub async fn service_names(&self) -> Result<Vec<(String, String)>, ListFailure> {
        match self.service_names_of(None).await {
            Err(failed) if is_forbidden(&failed) => {
                let own = self.namespace().to_owned();
                self.service_names_of(Some(own)).await
            }
            listed => listed,
        }
    }

    /// The same in one namespace, or in all.
    async fn service_names_of(
        &self,
        namespace: Option<String>,
    ) -> Result<Vec<(String, String)>, CallFailure> {
        let mut names = Vec::new();
        let keep = |service: Service| {
            names.extend(service.metadata.namespace.zip(service.metadata.name));
        };
        let select = Select::All { namespace };
        first_page(self.server(), &select, SERVICES, keep).await?;
        Ok(names)
    }

    async fn services(&self) -> Result<Vec<String>, CallFailure> {
        let own = Some(self.namespace().to_owned());
        let names = self.service_names_of(own).await?;
        Ok(names.into_iter().map(|(_, name)| name).collect())
    }

    async fn ranges(&self) -> Result<Vec<String>, CallFailure> {
        let select = Select::All { namespace: None };
        let mut ranges = Vec::new();
        let keep = |range: ServiceCIDR| {
            let cidrs = range.spec.and_then(|spec| spec.cidrs);
            ranges.extend(cidrs.into_iter().flatten());
        };
        first_page(self.server(), &select, RANGES, keep).await?;
        Ok(ranges)
    }
}
