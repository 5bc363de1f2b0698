//! The programs that a run starts: the proxy under test, and the Prometheus that scrapes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::LIMIT;
use super::load::ScrapedListeners;
use crate::Lab;
use crate::command::{command, output};
use crate::process::until;

/// Run length for which the rules are used unchanged. A shorter run scales their durations down.
const WHOLE: Duration = Duration::from_secs(600);
/// The only alert that the absence of the API server may cause.
pub(super) const FIRES: &str = "KubevpnClusterAway";
/// Range of queries, longer than any run.
pub(super) const EVER: &str = "7h";

/// The rules with durations scaled to a run that is shorter than [`WHOLE`].
pub(super) fn scaled(rules: &str, lasts: Duration) -> String {
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
pub(super) struct ScrapedProxy {
    pub(super) addresses: ScrapedListeners,
    pub(super) admin: SocketAddr,
    _child: Child,
}

impl ScrapedProxy {
    pub(super) async fn start(lab: &Lab, kubevpn: &Path, home: &Path) -> Result<Self> {
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
pub(super) struct Prometheus {
    url: String,
    log: PathBuf,
    _child: Child,
}

impl Prometheus {
    pub(super) async fn start(
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
    pub(super) async fn is_scraping(&self) -> Result<()> {
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
    pub(super) async fn scraped_since(&self, since: SystemTime) -> Result<()> {
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
    pub(super) async fn number(&self, expression: &str) -> Result<f64> {
        match &self.series(expression).await?[..] {
            [(_, value)] => Ok(*value),
            other => bail!("{expression} gives {other:?}"),
        }
    }

    /// Connections and refusals of a frontend, as Prometheus counted them.
    pub(super) async fn counted(&self, frontend: &str) -> Result<(u64, u64)> {
        let sum = async |name: &str| {
            let expression = format!("sum({name}{{frontend=\"{frontend}\"}})");
            // Prometheus stores all numbers as floating point.
            Ok::<_, anyhow::Error>(self.number(&expression).await? as u64)
        };
        let connected = sum("kubevpn_connections_total").await?;
        Ok((connected, sum("kubevpn_refusals_total").await?))
    }

    /// Names of all counters, and of the series of histograms that only grow.
    pub(super) async fn counters(&self) -> Result<Vec<String>> {
        let names = self.ask("label/__name__/values", &[]).await?;
        let names = names.as_array().cloned().unwrap_or_default();
        let names = names.iter().filter_map(Value::as_str).filter(|name| {
            let grows = ["_total", "_bucket", "_count", "_sum"];
            name.starts_with("kubevpn_") && grows.iter().any(|end| name.ends_with(end))
        });
        Ok(names.map(str::to_owned).collect())
    }

    /// For how many seconds alerts other than [`FIRES`] were pending: the rules are evaluated each second.
    pub(super) async fn pending(&self) -> Result<BTreeMap<String, f64>> {
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
    pub(super) async fn fired(&self) -> Result<BTreeSet<String>> {
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
}
