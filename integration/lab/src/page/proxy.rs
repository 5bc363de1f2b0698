//! The proxy whose page is shown, and what it counts.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use super::LIMIT;
use super::browser::Browser;
use crate::Lab;
use crate::command::{command, output};
use crate::metrics::programs::{curl, isolate, program};
use crate::process::until;

/// The proxy whose page is shown, started in a terminal of its own: the URL of the page is printed on a terminal alone.
pub(super) struct ShownProxy<'p> {
    pub(super) socks: SocketAddr,
    admin: SocketAddr,
    pub(super) page: String,
    kubevpn: &'p Path,
    home: &'p Path,
    /// Demo: the process.
    child: Option<Child>,
}

impl<'p> ShownProxy<'p> {
    pub(super) async fn start(
        lab: &Lab,
        kubevpn: &'p Path,
        demo: bool,
        home: &'p Path,
    ) -> Result<Self> {
        let own = kubevpn.display();
        let line = match demo {
            true => format!("'{own}' demo --listen 127.0.0.1:0 --admin 127.0.0.1:0"),
            false => format!(
                "'{own}' connect --socks 127.0.0.1:0 --admin 127.0.0.1:0 --kubeconfig '{}'",
                lab.kubeconfig().display()
            ),
        };
        let mut terminal = command("script")?;
        isolate(&mut terminal, home);
        terminal
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .stdout(Stdio::piped());
        let mut child = terminal.spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let told = timeout(LIMIT, told(stdout)).await;
        let told = match told.context("it says no page").flatten() {
            Err(error) if !demo => {
                let _ended = quit(kubevpn, home).await;
                return Err(error);
            }
            told => told?,
        };
        let (socks, page) = told;
        let admin = page
            .strip_prefix("http://")
            .and_then(|rest| rest.split('/').next());
        Ok(Self {
            socks,
            admin: admin.context("an address")?.parse()?,
            page,
            kubevpn,
            home,
            child: demo.then_some(child),
        })
    }

    /// The metrics once two reads are equal, a second apart.
    pub(super) async fn rested(&self) -> Result<TrafficCounts> {
        let mut last = None;
        until(LIMIT, "an end of the traffic", async || {
            let metrics = curl(&[&format!("http://{}/metrics", self.admin)]).await?;
            let now = TrafficCounts::of_metrics(&metrics)?;
            sleep(Duration::from_secs(1)).await;
            Ok(match last.replace(now) {
                Some(before) if Some(&before) == last.as_ref() => Some(before),
                _ => None,
            })
        })
        .await
    }

    /// What `status -o json` says; `None` in a demo, which it does not know.
    pub(super) async fn status(&self) -> Result<Option<TrafficCounts>> {
        if self.child.is_some() {
            return Ok(None);
        }
        let status = output(own(self.kubevpn, self.home).args(["status", "-o", "json"])).await?;
        let mut status: Value = serde_json::from_str(&status)?;
        Ok(serde_json::from_value(status["List"][0]["Traffic"].take())?)
    }

    pub(super) async fn end(&self) -> Result<()> {
        match &self.child {
            // It ends with its terminal.
            Some(_) => Ok(()),
            None => quit(self.kubevpn, self.home).await,
        }
    }
}

/// The program under test, with the state directory of this run.
fn own(kubevpn: &Path, home: &Path) -> Command {
    let mut command = program(kubevpn);
    isolate(&mut command, home);
    command
}

/// Ends the daemon.
async fn quit(kubevpn: &Path, home: &Path) -> Result<()> {
    output(own(kubevpn, home).arg("quit")).await.map(drop)
}

/// The address of the SOCKS listener and the URL of the page.
async fn told(stdout: ChildStdout) -> Result<(SocketAddr, String)> {
    let mut lines = BufReader::new(stdout).lines();
    let (mut said, mut socks) = (String::new(), None);
    let page = loop {
        let line = lines.next_line().await?;
        let line = line.with_context(|| format!("it says no page: {said}"))?;
        if let Some((_, address)) = line.rsplit_once(" on ")
            && line.contains("SOCKS5")
        {
            socks = Some(address.trim().parse()?);
        }
        if let Some((_, url)) = line.split_once("Status page: ") {
            break url.trim().to_owned();
        }
        said += &line;
    };
    // Whatever else it prints must not fill the pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((socks.context("it says no SOCKS listener")?, page))
}

/// The counts that the page shows, the metrics have and `status -o json` has.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct TrafficCounts {
    #[serde(alias = "OpenConnections")]
    pub(super) open: u64,
    #[serde(alias = "TotalConnections")]
    pub(super) connected: u64,
    #[serde(alias = "RefusedConnections")]
    pub(super) refused: u64,
    #[serde(alias = "BytesUp")]
    pub(super) up: u64,
    #[serde(alias = "BytesDown")]
    pub(super) down: u64,
}

impl TrafficCounts {
    fn of_metrics(text: &str) -> Result<Self> {
        let sum = |series: &str| {
            summed(text, series).with_context(|| format!("no {series} in the metrics"))
        };
        Ok(Self {
            open: sum("kubevpn_connections_open{")?,
            connected: sum("kubevpn_connections_total{")?,
            refused: sum("kubevpn_refusals_total{")?,
            up: sum("kubevpn_bytes_total{direction=\"up\"}")?,
            down: sum("kubevpn_bytes_total{direction=\"down\"}")?,
        })
    }

    /// As the page should show them, by its own words for amounts.
    pub(super) async fn as_shown(&self, browser: &Browser) -> Result<Value> {
        let Self {
            open,
            connected,
            refused,
            up,
            down,
        } = self;
        let amounts = format!("[amount({up}), amount({down})]");
        let amounts = browser.evaluate(&amounts).await?;
        let words = [open, connected, refused].map(u64::to_string);
        let [open, connected, refused] = words;
        Ok(json!({
            "open": open, "connected": connected, "refused": refused, "up": amounts[0], "down": amounts[1],
        }))
    }
}

/// Sum of all series whose name and labels begin so; `None` if there is none.
fn summed(metrics: &str, series: &str) -> Option<u64> {
    let values = metrics.lines().filter(|line| line.starts_with(series));
    let values = values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
    values.reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_metrics_are_sums_over_labels() {
        let metrics = "# TYPE kubevpn_connections_open gauge\n\
            kubevpn_connections_open{frontend=\"socks5\"} 3\nkubevpn_connections_open{frontend=\"http\"} 4\n\
            kubevpn_connections_total{frontend=\"socks5\"} 10\n\
            kubevpn_refusals_total{frontend=\"socks5\",refusal=\"not_ready\"} 1\n\
            kubevpn_refusals_total{frontend=\"socks5\",refusal=\"no_such_port\"} 2\n\
            kubevpn_bytes_total{direction=\"up\"} 100\nkubevpn_bytes_total{direction=\"down\"} 2000\n";
        let counts = TrafficCounts {
            open: 7,
            connected: 10,
            refused: 3,
            up: 100,
            down: 2000,
        };
        assert_eq!(TrafficCounts::of_metrics(metrics).unwrap(), counts);
        assert!(TrafficCounts::of_metrics("").is_err());
    }
}
