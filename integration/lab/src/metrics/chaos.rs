//! The disturbances of the cluster, and the claims that they had their effects.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::LIMIT;
use crate::Lab;
use crate::check::{CheckClaims, Claim};
use crate::process::{Signal, until};

/// Upper bound on the absence of the API server.
const AWAY: Duration = Duration::from_secs(10);

/// One disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// Deletes one Pod of this Deployment.
    Delete(&'static str),
    /// Replaces all Pods of this Deployment.
    Roll(&'static str),
    /// Kills the API server and starts it again.
    Away,
}

/// Times of the disturbances, as fractions of the run. The absences are closer to each other than the window of the alert, so
/// that it lasts long enough to fire.
pub(super) const CHAOS: [(f64, Disturbance); 11] = [
    (0.05, Disturbance::Delete("reviews")),
    (0.15, Disturbance::Away),
    (0.25, Disturbance::Delete("productpage")),
    (0.30, Disturbance::Roll("reviews")),
    (0.40, Disturbance::Delete("reviews")),
    (0.45, Disturbance::Delete("productpage")),
    (0.55, Disturbance::Away),
    (0.65, Disturbance::Delete("reviews")),
    (0.70, Disturbance::Roll("productpage")),
    (0.80, Disturbance::Delete("reviews")),
    (0.90, Disturbance::Delete("productpage")),
];

impl Lab {
    /// Runs every disturbance at its time, and waits for the end.
    pub(super) async fn disturb(&self, lasts: Duration) -> Result<ChaosEffects> {
        let begun = Instant::now();
        let mut effects = ChaosEffects {
            starts: vec![self.api_start().await?],
            ..ChaosEffects::default()
        };
        for (part, act) in CHAOS {
            sleep_until(begun + lasts.mul_f64(part)).await;
            info!("{act:?}");
            match act {
                Disturbance::Delete(app) => effects.deleted.push(self.delete_one(app).await?),
                Disturbance::Roll(app) => {
                    let pods = self.living(app).await?;
                    effects.rolled.extend(pods.into_iter().map(|(_, uid)| uid));
                    let (generation, _) = self.generations(app).await?;
                    effects.generations.push((app, generation));
                    let name = format!("deployment/{app}");
                    self.kubectl(&["rollout", "restart", &name]).await?;
                }
                Disturbance::Away => {
                    let down_for = AWAY.min(lasts / 12);
                    self.restart_apiserver(down_for, Signal::Kill).await?;
                    let start = until(LIMIT, "the API server's metrics", async || {
                        Ok(self.api_start().await.ok())
                    });
                    effects.starts.push(start.await?);
                }
            }
        }
        sleep_until(begun + lasts).await;
        Ok(effects)
    }

    /// Deletes one Pod; returns its UID.
    async fn delete_one(&self, app: &str) -> Result<String> {
        let mut pods = self.living(app).await?;
        ensure!(!pods.is_empty(), "there is no Pod of {app}");
        let (name, uid) = pods.swap_remove(fastrand::usize(..pods.len()));
        self.kubectl(&["delete", "pod", &name, "--wait=false"])
            .await?;
        Ok(uid)
    }

    /// Names and UIDs of the Pods of this Deployment that are not being deleted.
    async fn living(&self, app: &str) -> Result<Vec<(String, String)>> {
        let pods = self.pods_of(app).await?;
        let living = pods.iter().filter(|pod| pod["deletionTimestamp"].is_null());
        let word = |word: &Value| word.as_str().unwrap_or_default().to_owned();
        Ok(living
            .map(|pod| (word(&pod["name"]), word(&pod["uid"])))
            .collect())
    }

    /// The metadata of all Pods of this Deployment.
    async fn pods_of(&self, app: &str) -> Result<Vec<Value>> {
        let label = format!("app={app}");
        let list = self
            .kubectl(&["get", "pods", "-l", &label, "-o", "json"])
            .await?;
        let mut list: Value = serde_json::from_str(&list)?;
        let items = list["items"].as_array_mut().context("a list of Pods")?;
        Ok(items.iter_mut().map(|pod| pod["metadata"].take()).collect())
    }

    /// The generation of a Deployment, and the one that its controller has observed.
    async fn generations(&self, app: &str) -> Result<(u64, u64)> {
        let deployment = self
            .kubectl(&["get", "deployment", app, "-o", "json"])
            .await?;
        let deployment: Value = serde_json::from_str(&deployment)?;
        let generation = deployment["metadata"]["generation"].as_u64();
        let observed = deployment["status"]["observedGeneration"].as_u64();
        generation.zip(observed).context("the generations")
    }

    /// When the process of the API server began, in seconds since 1970.
    async fn api_start(&self) -> Result<f64> {
        let metrics = self.kubectl(&["get", "--raw", "/metrics"]).await?;
        let mut lines = metrics.lines();
        let start = lines.find_map(|line| line.strip_prefix("process_start_time_seconds "));
        Ok(start
            .context("the start of the API server")?
            .trim()
            .parse()?)
    }

    /// Claims that the disturbances had their effects on the cluster.
    pub(super) async fn effects<F: FnMut(&Claim)>(
        &self,
        c: &mut CheckClaims<F>,
        effects: &ChaosEffects,
    ) {
        let gone = async {
            let ended = effects.deleted.iter().chain(&effects.rolled);
            let ended: BTreeSet<&str> = ended.map(String::as_str).collect();
            until(LIMIT, "the end of the Pods", async || {
                let mut left = self.pods_of("reviews").await?;
                left.extend(self.pods_of("productpage").await?);
                let mut uids = left.iter().filter_map(|pod| pod["uid"].as_str());
                let is_left = uids.any(|uid| ended.contains(uid));
                Ok((!is_left).then_some(()))
            })
            .await?;
            let different: BTreeSet<_> = effects.deleted.iter().collect();
            Ok((different.len(), effects.rolled.len()))
        };
        c.claim_of(
            "the Pods that were deleted or replaced are gone: none has its UID",
            gone,
            |(deleted, rolled)| *deleted > 0 && *deleted == effects.deleted.len() && *rolled > 0,
        )
        .await;
        let observed = async {
            let mut observed = Vec::new();
            for (app, before) in &effects.generations {
                let (_, now) = self.generations(app).await?;
                observed.push((*app, *before, now));
            }
            Ok(observed)
        };
        c.claim_of(
            "each replaced Deployment has a later generation, which its controller has observed",
            observed,
            |all| !all.is_empty() && all.iter().all(|(_, before, now)| now > before),
        )
        .await;
        c.claim_of(
            "the API server was another process after each absence",
            async { Ok(effects.starts.clone()) },
            |starts| starts.len() > 1 && starts.windows(2).all(|pair| pair[0] < pair[1]),
        )
        .await;
    }
}

/// Effects of the disturbances, as read from the cluster.
#[derive(Debug, Default)]
pub(super) struct ChaosEffects {
    /// UIDs of the Pods that were deleted one by one.
    pub(super) deleted: Vec<String>,
    /// UIDs of the Pods that Deployments had when they were replaced.
    rolled: Vec<String>,
    /// Deployments that were replaced, with their generations before.
    pub(super) generations: Vec<(&'static str, u64)>,
    /// When the API server began: at first, and after each absence.
    pub(super) starts: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The window after each absence reaches the next one, so that the alert lasts from the first to the end.
    #[test]
    fn absences_are_closer_than_the_window_of_the_alert() {
        let away: Vec<_> = CHAOS
            .iter()
            .filter(|(_, act)| *act == Disturbance::Away)
            .collect();
        let [(first, _), (second, _)] = away[..] else {
            panic!("{away:?}");
        };
        // The alert's window of 5 minutes, in a run of 10.
        let window = 0.5;
        assert!(second - first < window && second + window > 1.0);
        assert!(first + window < 1.0, "it fires within the run");
    }
}
