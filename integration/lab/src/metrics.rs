//! The metrics of `kubevpn proxy-out`, as a real Prometheus records them while Pods and the API server fail and come back.
//!
//! ```text
//!   load (metrics/load.rs) ──▶ kubevpn proxy-out ──▶ the cluster ◀── chaos
//!                                    ▲ /metrics, each second
//!                              prometheus with the shipped rules ◀── claims, by its HTTP API
//! ```
//!
//! Both `prometheus` and `promtool` are from Debian's package, which is unpacked and not installed.

pub(crate) mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::info;

use self::load::{CountedLoad, LoadOutcomes, ScrapedListeners};
use crate::Lab;
use crate::check::{CheckClaims, Claim};
use crate::command::{command, output, output_of_input};
use crate::process::{Signal, until};

/// The shipped rules, relative to the repository.
const RULES: &str = "deploy/monitoring/rules.yaml";
/// Run length for which the rules are used unchanged. A shorter run scales their durations down.
const WHOLE: Duration = Duration::from_secs(600);
/// The only alert that the absence of the API server may cause.
const FIRES: &str = "KubevpnClusterAway";
/// Upper bound on the absence of the API server.
const AWAY: Duration = Duration::from_secs(10);
/// Upper bound on each wait.
const LIMIT: Duration = Duration::from_secs(60);
/// Names of the frontends in the metrics.
const FRONTENDS: [&str; 3] = ["socks5", "http", "forward"];
/// Share of a run for which the condition of an alert other than [`FIRES`] may hold. Some alerts wait as long as a run
/// takes, and cannot fire in it; the absence of the API server meets the condition of one of them for a while.
const PENDING: f64 = 0.5;
/// The alert about lost watches. A watch that nobody needs after the API server is back stays lost until it is needed again, or
/// ends 10 minutes after its last use; the alert waits as long, so that its condition may hold for most of a run.
const LASTS: &str = "KubevpnWatchesLost";
/// Range of queries, longer than any run.
const EVER: &str = "7h";

/// One disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    /// Deletes one Pod of this Deployment.
    Delete(&'static str),
    /// Replaces all Pods of this Deployment.
    Roll(&'static str),
    /// Kills the API server and starts it again.
    Away,
}

/// Times of the disturbances, as fractions of the run. The absences are closer to each other than the window of the alert, so
/// that it lasts long enough to fire.
const CHAOS: [(f64, Disturbance); 11] = [
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

    /// Runs every disturbance at its time, and waits for the end.
    async fn disturb(&self, lasts: Duration) -> Result<ChaosEffects> {
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
    async fn effects<F: FnMut(&Claim)>(&self, c: &mut CheckClaims<F>, effects: &ChaosEffects) {
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

/// What the disturbances have changed in the cluster, as it was read there.
#[derive(Debug, Default)]
struct ChaosEffects {
    /// UIDs of the Pods that were deleted one by one.
    deleted: Vec<String>,
    /// UIDs of the Pods that Deployments had when they were replaced.
    rolled: Vec<String>,
    /// Deployments that were replaced, with their generations before.
    generations: Vec<(&'static str, u64)>,
    /// When the API server began: at first, and after each absence.
    starts: Vec<f64>,
}

/// Everything that a run leaves for the checks.
struct Evidence {
    prometheus: Prometheus,
    outcomes: LoadOutcomes,
    effects: ChaosEffects,
    lasts: Duration,
    admin: SocketAddr,
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

    async fn claims<F: FnMut(&Claim)>(&self, c: &mut CheckClaims<F>) {
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

    /// Checks the metrics and the shipped rules with `promtool`.
    async fn lint<F: FnMut(&Claim)>(&self, c: &mut CheckClaims<F>, promtool: &Path, rules: &Path) {
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
    }

    /// The counts of both sides, and the disturbances.
    async fn table(&self) -> Result<String> {
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

/// The rules with durations scaled to a run that is shorter than [`WHOLE`].
fn scaled(rules: &str, lasts: Duration) -> String {
    let factor = lasts.as_secs_f64() / WHOLE.as_secs_f64();
    let mut text = rules.to_owned();
    if factor >= 1.0 {
        return text;
    }
    let minutes = (1..60).map(|n| (format!("{n}m"), n));
    for (word, minutes) in minutes.chain([("1h".to_owned(), 60)]) {
        // A rate needs at least two scrapes.
        let seconds = (factor * f64::from(minutes * 60)).max(5.0).round();
        let (window, hold) = (format!("[{seconds}s]"), format!("for: {seconds}s\n"));
        text = text
            .replace(&format!("[{word}]"), &window)
            .replace(&format!("for: {word}\n"), &hold);
    }
    text
}

/// The program under test, with a listener for each frontend.
struct ScrapedProxy {
    addresses: ScrapedListeners,
    admin: SocketAddr,
    _child: Child,
}

impl ScrapedProxy {
    async fn start(lab: &Lab, kubevpn: &Path, home: &Path) -> Result<Self> {
        let mut command = program(kubevpn);
        isolate(&mut command, home);
        command
            .args(["proxy-out", "--listen", "127.0.0.1:0"])
            .args(["--forward", "127.0.0.1:0:reviews.default:80"])
            .args(["--metrics", "127.0.0.1:0", "--quiet", "-o", "json"])
            .arg("--kubeconfig")
            .arg(lab.kubeconfig())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", kubevpn.display()))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut listeners = BTreeMap::new();
        let listening = async {
            // The admin listener is reported last.
            while !listeners.contains_key("admin") {
                let Some(line) = lines.next_line().await? else {
                    bail!("it ended before it listened");
                };
                let listener: Value = serde_json::from_str(&line)?;
                let of = |key: &str| listener[key].as_str().unwrap_or_default().to_owned();
                listeners.insert(of("protocol"), of("address").parse::<SocketAddr>()?);
            }
            Ok(())
        };
        timeout(LIMIT, listening)
            .await
            .context("it does not listen")??;
        let address = |protocol: &str| {
            let address = listeners.get(protocol).copied();
            address.with_context(|| format!("no listener {protocol} in {listeners:?}"))
        };
        Ok(Self {
            addresses: ScrapedListeners {
                mixed: address("mixed")?,
                forward: address("forward")?,
            },
            admin: address("admin")?,
            _child: child,
        })
    }
}

/// Prometheus, which is killed when this is dropped.
struct Prometheus {
    url: String,
    log: PathBuf,
    _child: Child,
}

impl Prometheus {
    async fn start(
        programs: &Path,
        directory: &Path,
        target: SocketAddr,
        rules: &str,
    ) -> Result<Self> {
        let (config, log) = (
            directory.join("prometheus.yaml"),
            directory.join("prometheus.log"),
        );
        fs::write(directory.join("rules.yaml"), rules)?;
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [rules.yaml]\n\
             scrape_configs:\n\
             - job_name: kubevpn\n\
             \x20 static_configs: [{{targets: ['{target}']}}]\n"
        );
        fs::write(&config, text)?;
        let address = free_address()?;
        let mut command = program(&programs.join("prometheus"));
        isolate(&mut command, directory);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?);
        let child = command.spawn().context("cannot start prometheus")?;
        Ok(Self {
            url: format!("http://{address}"),
            log,
            _child: child,
        })
    }

    /// Waits for the first scrape.
    async fn is_scraping(&self) -> Result<()> {
        let scraped = until(LIMIT, "the first scrape", async || {
            let up = self.number("sum(up)").await;
            Ok(up.ok().filter(|up| *up == 1.0))
        });
        scraped.await.map(drop).with_context(|| {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            crate::command::last_lines(&log, 20)
        })
    }

    /// Waits for a scrape that began after `since`.
    async fn scraped_since(&self, since: SystemTime) -> Result<()> {
        let since = since.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        until(LIMIT, "one more scrape", async || {
            let scraped = self.number("min(timestamp(kubevpn_ready))").await?;
            Ok((scraped > since).then_some(()))
        })
        .await
    }

    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let url = format!("{}/api/v1/{path}", self.url);
        let mut words = vec!["--get".to_owned(), url];
        for (name, value) in query {
            words.extend(["--data-urlencode".to_owned(), format!("{name}={value}")]);
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut answer: Value = serde_json::from_str(&curl(&words).await?)?;
        ensure!(answer["status"] == "success", "{query:?}: {answer}");
        Ok(answer["data"].take())
    }

    /// The current series of an expression: labels and value.
    async fn series(&self, expression: &str) -> Result<Vec<(Value, f64)>> {
        let data = self.ask("query", &[("query", expression)]).await?;
        let all = data["result"].as_array().cloned().unwrap_or_default();
        let all = all.into_iter().map(|mut series| {
            let value = series["value"][1].as_str().unwrap_or_default().parse()?;
            Ok((series["metric"].take(), value))
        });
        all.collect()
    }

    /// The value of an expression that has exactly one.
    async fn number(&self, expression: &str) -> Result<f64> {
        match &self.series(expression).await?[..] {
            [(_, value)] => Ok(*value),
            other => bail!("{expression} gives {other:?}"),
        }
    }

    /// Connections and refusals of a frontend, as Prometheus counted them.
    async fn counted(&self, frontend: &str) -> Result<(u64, u64)> {
        let sum = async |name: &str| {
            let expression = format!("sum({name}{{frontend=\"{frontend}\"}})");
            // Prometheus stores all numbers as floating point.
            Ok::<_, anyhow::Error>(self.number(&expression).await? as u64)
        };
        let connected = sum("kubevpn_connections_total").await?;
        Ok((connected, sum("kubevpn_refusals_total").await?))
    }

    /// Names of all counters, and of the series of histograms that only grow.
    async fn counters(&self) -> Result<Vec<String>> {
        let names = self.ask("label/__name__/values", &[]).await?;
        let names = names.as_array().cloned().unwrap_or_default();
        let names = names.iter().filter_map(Value::as_str).filter(|name| {
            let grows = ["_total", "_bucket", "_count", "_sum"];
            name.starts_with("kubevpn_") && grows.iter().any(|end| name.ends_with(end))
        });
        Ok(names.map(str::to_owned).collect())
    }

    /// For how many seconds alerts other than [`FIRES`] were pending: the rules are evaluated each second.
    async fn pending(&self) -> Result<BTreeMap<String, f64>> {
        let pending = format!(
            "sum by (alertname) (count_over_time(ALERTS{{alertstate=\"pending\",alertname!=\"{FIRES}\"}}[{EVER}]))"
        );
        let pending = self.series(&pending).await?;
        let seconds = pending.into_iter().filter_map(|(labels, seconds)| {
            let name = labels["alertname"].as_str()?;
            Some((name.to_owned(), seconds))
        });
        Ok(seconds.collect())
    }

    /// Names of alerts that have fired.
    async fn fired(&self) -> Result<BTreeSet<String>> {
        let fired = format!("max_over_time(ALERTS{{alertstate=\"firing\"}}[{EVER}])");
        let fired = self.series(&fired).await?;
        let names = fired.iter().filter_map(|(labels, _)| {
            let name = labels["alertname"].as_str()?;
            Some(name.to_owned())
        });
        Ok(names.collect())
    }
}

/// The command for a program file; the process is killed when its handle is dropped.
pub(crate) fn program(file: &Path) -> Command {
    let mut command = Command::new(file);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Clears the environment of a command, so that variables and files of the user, e.g. a proxy or a configuration, do not
/// change the run.
pub(crate) fn isolate(command: &mut Command, home: &Path) {
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env("XDG_DATA_HOME", home.join("share"))
        .env("KUBEVPN_HOME", home.join("kubevpn"));
}

pub(crate) async fn curl(words: &[&str]) -> Result<String> {
    let mut curl = command("curl")?;
    output(
        curl.args(["-sS", "--noproxy", "*", "--max-time", "30"])
            .args(words),
    )
    .await
}

/// A free address: Prometheus does not print the port that it gets for port 0.
fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_rules_are_scaled_and_names_are_not() {
        let rules = "record: kubevpn:refused:ratio_rate5m\nexpr: rate(x[5m]) + rate(y[1h])\nfor: 10m\nfor: 2m\n";
        assert_eq!(scaled(rules, WHOLE), rules);
        let short = scaled(rules, WHOLE / 10);
        assert_eq!(
            short,
            "record: kubevpn:refused:ratio_rate5m\nexpr: rate(x[30s]) + rate(y[360s])\nfor: 60s\nfor: 12s\n"
        );
    }

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
