//! What there is, at a glance and bounded: for a list that is written once and not kept.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kubevpn_target::ConnectError;

use crate::Cluster;
use crate::fetch::{Failure, Select, first_page};

/// How many Services are named, and how many ranges.
const SERVICES: u32 = 500;
const RANGES: u32 = 16;

/// Names and ranges of a cluster. What could not be read says why.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The active namespace.
    pub namespace: String,
    /// The Services in it, the first 500 of them.
    pub services: Result<Vec<String>, Failed>,
    /// The ranges that ClusterIPs are taken from, as `10.96.0.0/12`.
    pub service_ranges: Result<Vec<String>, Failed>,
}

/// Why something could not be read; its text is a sentence.
pub type Failed = std::sync::Arc<ConnectError>;

impl Cluster {
    /// Lists the names in the active namespace, and the ranges of Services. Two calls, nothing is kept.
    ///
    /// Cancellation: dropping the future gives the calls up.
    pub async fn survey(&self) -> Survey {
        let namespace = self.namespace().to_owned();
        let (services, service_ranges) = tokio::join!(self.services(), self.ranges());
        Survey {
            namespace,
            services,
            service_ranges,
        }
    }

    async fn services(&self) -> Result<Vec<String>, Failure> {
        let select = Select::All {
            namespace: Some(self.namespace().to_owned()),
        };
        let mut names = Vec::new();
        let keep = |service: Service| names.extend(service.metadata.name);
        first_page(self.server(), &select, SERVICES, keep).await?;
        Ok(names)
    }

    async fn ranges(&self) -> Result<Vec<String>, Failure> {
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
