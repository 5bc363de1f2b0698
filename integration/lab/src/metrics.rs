//! The metrics of `kubevpn proxy-out`, as a real Prometheus records them while Pods and the API server fail and come back.
//!
//! ```text
//!   load (metrics/load.rs) ──▶ kubevpn proxy-out ──▶ the cluster ◀── chaos
//!                                    ▲ /metrics, each second
//!                              prometheus with the shipped rules ◀── claims, by its HTTP API
//! ```
//!
//! Both `prometheus` and `promtool` are from Debian's package, which is unpacked and not installed.

mod chaos;
mod claims;
pub(crate) mod load;
pub(crate) mod programs;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tracing::info;

use self::chaos::CHAOS;
use self::claims::Evidence;
use self::load::CountedLoad;
use self::programs::{Prometheus, ScrapedProxy, scaled};
use crate::Lab;
use crate::check::{CheckClaims, Claim};

/// The shipped rules, relative to the repository.
const RULES: &str = "deploy/monitoring/rules.yaml";
/// Upper bound on each wait.
const LIMIT: Duration = Duration::from_secs(60);

/// Parses the length of a run: `10m`, `90s`.
///
/// Errors: not a duration, or not from 30 s to 6 h, which the range of queries covers.
pub fn lasting(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let seconds = match unit {
        "s" => number.parse().ok(),
        "m" => number.parse::<u64>().ok().and_then(|n| n.checked_mul(60)),
        _ => None,
    };
    seconds
        .filter(|seconds| (30..=6 * 3600).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "write it as 10m or 90s, from 30s to 360m".into())
}

/// Result of a run.
#[derive(Debug)]
pub struct Scraped {
    /// One claim for each check.
    pub claims: Vec<Claim>,
    /// A Markdown table of what clients and Prometheus counted.
    pub table: String,
}

impl Lab {
    /// Sends load through this `kubevpn` for `lasts`, disturbs the cluster meanwhile, and checks what Prometheus recorded. The
    /// cluster has to be up, and is up afterwards.
    ///
    /// # Errors
    /// No cluster; a package that cannot be downloaded; a program that does not start.
    pub async fn metrics(
        &self,
        kubevpn: &Path,
        lasts: Duration,
        report: impl FnMut(&Claim),
    ) -> Result<Scraped> {
        self.api_ready().await?;
        let programs = self.debian("prometheus", &["prometheus"]).await?;
        let programs = programs.join("usr/bin");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(RULES);
        let directory = tempfile::tempdir()?;
        let proxy = ScrapedProxy::start(self, kubevpn, directory.path()).await?;
        let scaled = scaled(&fs::read_to_string(&rules)?, lasts);
        let prometheus =
            Prometheus::start(&programs, directory.path(), proxy.admin, &scaled).await?;
        prometheus.is_scraping().await?;

        info!("load for {lasts:?}, with {} disturbances", CHAOS.len());
        let load = CountedLoad::start(proxy.addresses);
        let chaos = self.disturb(lasts).await;
        let outcomes = load.end().await;
        let effects = chaos?;
        for deployment in ["reviews", "productpage"] {
            let name = format!("deployment/{deployment}");
            self.kubectl(&["rollout", "status", &name, "--timeout=120s"])
                .await?;
        }

        let mut c = CheckClaims {
            report,
            all: Vec::new(),
        };
        let evidence = Evidence {
            prometheus,
            outcomes,
            effects,
            lasts,
            admin: proxy.admin,
        };
        self.effects(&mut c, &evidence.effects).await;
        evidence.claims(&mut c).await;
        let promtool = programs.join("promtool");
        evidence.lint(&mut c, &promtool, &rules).await;
        let table = evidence.table().await?;
        Ok(Scraped {
            claims: c.all,
            table,
        })
    }
}
