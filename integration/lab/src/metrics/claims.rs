//! Claims about a run, and the evidence for them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::LIMIT;
use super::chaos::ChaosEffects;
use super::load::LoadOutcomes;
use super::programs::{EVER, FIRES, Prometheus, curl, program};
use crate::check::{CheckClaims, Claim};
use crate::command::{output, output_of_input};
use crate::process::until;

/// Names of the frontends in the metrics.
const FRONTENDS: [&str; 3] = ["socks5", "http", "forward"];
/// Share of a run for which the condition of an alert other than [`FIRES`] may hold. Some alerts wait as long as a run
/// takes, and cannot fire in it; the absence of the API server meets the condition of one of them for a while.
const PENDING: f64 = 0.5;
/// The alert about lost watches. A watch that nobody needs after the API server is back stays lost until it is needed again, or
/// ends 10 minutes after its last use; the alert waits as long, so that its condition may hold for most of a run.
const LASTS: &str = "KubevpnWatchesLost";

/// Everything that a run leaves for the checks.
pub(super) struct Evidence {
    pub(super) prometheus: Prometheus,
    pub(super) outcomes: LoadOutcomes,
    pub(super) effects: ChaosEffects,
    pub(super) lasts: Duration,
    pub(super) admin: SocketAddr,
}

impl Evidence {
    /// Waits until no connection is open and as many are counted as the load has made, and for a scrape after that. A
    /// stream ends shortly after its client has closed.
    async fn settled(&self) -> Result<()> {
        let settled = until(LIMIT, "the end of all connections", async || {
            let open = "sum(kubevpn_connections_open)";
            let mut is_settled = self.prometheus.number(open).await? == 0.0;
            for frontend in FRONTENDS {
                let (connected, refused) = self.prometheus.counted(frontend).await?;
                is_settled &= connected + refused == self.outcomes.of(frontend).all();
            }
            Ok(is_settled.then_some(()))
        });
        let settled = settled.await;
        self.prometheus.scraped_since(SystemTime::now()).await?;
        settled
    }

    pub(super) async fn claims<F: FnMut(&Claim)>(&self, c: &mut CheckClaims<F>) {
        let Self {
            prometheus,
            outcomes,
            lasts,
            ..
        } = self;
        c.claim_of(
            "no connection stays open, and all are counted",
            self.settled(),
            |()| true,
        )
        .await;
        c.claim_of(
            "each connection of the load has an outcome",
            async { Ok((outcomes.all(), outcomes.lost.clone())) },
            |(all, lost)| *all > 0 && lost.is_empty(),
        )
        .await;
        c.claim_of(
            "connections were refused because the API server was away",
            prometheus.number("sum(kubevpn_refusals_total{refusal=~\"cluster_away|timed_out\"})"),
            |refused| *refused > 0.0,
        )
        .await;
        let up = async {
            let least = prometheus
                .number(&format!("min_over_time(up[{EVER}])"))
                .await?;
            let scrapes = prometheus
                .number(&format!("count_over_time(up[{EVER}])"))
                .await?;
            Ok((least, scrapes))
        };
        // Half of the scrapes are enough, because the machine is busy.
        let enough = lasts.as_secs_f64() / 2.0;
        c.claim_of(
            "no scrape failed, and there was one a second or so",
            up,
            |(least, scrapes)| *least == 1.0 && *scrapes >= enough,
        )
        .await;
        let fallen = async {
            let counters = prometheus.counters().await?;
            let mut fallen = Vec::new();
            for counter in &counters {
                let resets = format!("sum(resets({counter}[{EVER}]))");
                if prometheus.number(&resets).await? != 0.0 {
                    fallen.push(counter.clone());
                }
            }
            Ok((counters.len(), fallen))
        };
        c.claim_of("no counter fell", fallen, |(counters, fallen)| {
            *counters > 0 && fallen.is_empty()
        })
        .await;
        for (what, frontend) in [
            (
                "SOCKS5: connections and refusals are what the load was told",
                "socks5",
            ),
            (
                "HTTP: connections and refusals are what the load asked for",
                "http",
            ),
            (
                "forwarded port: connections and refusals are what the load asked for",
                "forward",
            ),
        ] {
            let seen = outcomes.of(frontend);
            let counted = prometheus.counted(frontend);
            c.claim_of(what, counted, |(connected, refused)| {
                let all = connected + refused == seen.all();
                // A client whose outcome is unknown may be counted as either, so that only the sum can be compared.
                let each =
                    seen.unknown > 0 || (*connected, *refused) == (seen.granted, seen.refused);
                seen.all() > 0 && all && each
            })
            .await;
        }
        c.claim_of(
            "the alert about the API server fired, and no other one",
            prometheus.fired(),
            |fired| fired.iter().eq([FIRES]),
        )
        .await;
        let most = PENDING * lasts.as_secs_f64();
        c.claim_of(
            "no alert that waits too long to fire was pending for half of the run, but that about lost watches",
            prometheus.pending(),
            |pending| {
                let mut others = pending.iter().filter(|(name, _)| *name != LASTS);
                others.all(|(_, seconds)| *seconds < most)
            },
        )
        .await;
    }

    /// Checks the metrics and the shipped rules with `promtool`, and runs the tests of the rules.
    pub(super) async fn lint<F: FnMut(&Claim)>(
        &self,
        c: &mut CheckClaims<F>,
        promtool: &Path,
        rules: &Path,
    ) {
        let checked = async {
            let scraped = curl(&[&format!("http://{}/metrics", self.admin)]).await?;
            output_of_input(program(promtool).args(["check", "metrics"]), &scraped).await
        };
        c.claim("promtool check metrics", checked, |_| true).await;
        let checked = async {
            let mut check = program(promtool);
            output(check.args(["check", "rules"]).arg(rules)).await
        };
        c.claim("promtool check rules", checked, |said| {
            said.contains("SUCCESS")
        })
        .await;
        let tests = rules.with_file_name("rules_test.yaml");
        let checked = async { output(program(promtool).args(["test", "rules"]).arg(tests)).await };
        c.claim("promtool test rules", checked, |said| {
            said.contains("SUCCESS")
        })
        .await;
    }

    /// The counts of both sides, and the disturbances.
    pub(super) async fn table(&self) -> Result<String> {
        let Self {
            prometheus,
            outcomes,
            effects,
            lasts,
            ..
        } = self;
        let scrapes = prometheus
            .number(&format!("count_over_time(up[{EVER}])"))
            .await?;
        let mut table = format!(
            "{} s of load; {} Pods deleted, {} Deployments replaced, the API server away {} times; {scrapes} scrapes.\n\n\
         | frontend | the load: granted | refused | not told apart | Prometheus: connections | refusals |\n\
         |---|---|---|---|---|---|\n",
            lasts.as_secs(),
            effects.deleted.len(),
            effects.generations.len(),
            effects.starts.len().saturating_sub(1),
        );
        for frontend in FRONTENDS {
            let seen = outcomes.of(frontend);
            let (connected, refused) = prometheus.counted(frontend).await?;
            writeln!(
                table,
                "| {frontend} | {} | {} | {} | {connected} | {refused} |",
                seen.granted, seen.refused, seen.unknown
            )?;
        }
        let fired = prometheus.fired().await?;
        let fired: Vec<_> = fired.into_iter().collect();
        writeln!(table, "\nAlerts that fired: {}.", fired.join(", "))?;
        let pending = prometheus.pending().await?;
        let pending: Vec<_> = pending
            .into_iter()
            .map(|(name, seconds)| format!("{name} for {seconds} s"))
            .collect();
        let pending = match pending.is_empty() {
            true => "none".to_owned(),
            false => pending.join(", "),
        };
        writeln!(table, "Others that were pending: {pending}.")?;
        Ok(table)
    }
}
