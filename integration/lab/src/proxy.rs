//! `kubevpn proxy-out` with an HTTP listener, and what becomes of connections through it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::command::{command, last_lines, output};
use crate::process::until;

/// More than the limit of a dial, 30 s: a connection that is not refused by then hangs.
const LIMIT: Duration = Duration::from_secs(40);

/// Variables, also in lower case, by which clients choose their proxy.
const PROXY_VARIABLES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];

/// One connection.
#[derive(Debug, Clone)]
pub struct ProxiedConnection {
    /// Until its answer or its refusal.
    pub seconds: f64,
    /// The transport, or the sentence of the refusal.
    pub how: Result<String, String>,
}

/// The program under test with an HTTP listener. Ends when dropped.
pub(crate) struct ProxyUnderTest {
    _child: Option<Child>,
    address: String,
    log: PathBuf,
    connections: usize,
    /// It ended before it listened: with this, after so long.
    refused: Option<ProxiedConnection>,
}

impl ProxyUnderTest {
    /// With these flags, and this as `HTTPS_PROXY`, the only proxy variable of its environment. Its log is beside the
    /// kubeconfig.
    pub(crate) async fn start(
        kubevpn: &Path,
        kubeconfig: &Path,
        environment: Option<&str>,
        flags: &[&str],
    ) -> Result<Self> {
        let log = kubeconfig.with_file_name("kubevpn.log");
        let mut command = Command::new(kubevpn);
        command
            .args([
                "proxy-out",
                "--listen-socks",
                "",
                "--listen-http",
                "127.0.0.1:0",
            ])
            .args(flags)
            .args(["--log-format", "json", "--kubeconfig"])
            .arg(kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?)
            .kill_on_drop(true);
        for name in PROXY_VARIABLES {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        if let Some(proxy) = environment {
            command.env("HTTPS_PROXY", proxy);
        }
        let begun = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", kubevpn.display()))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let listening = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(address) = line.strip_prefix("HTTP proxy listening on ") {
                    return Ok(Some(address.to_owned()));
                }
            }
            anyhow::Ok(None)
        };
        let address = timeout(LIMIT, listening)
            .await
            .context("neither does it listen nor end")??;
        let seconds = begun.elapsed().as_secs_f64();
        let said = fs::read_to_string(&log).unwrap_or_default();
        let refused = address.is_none().then(|| ProxiedConnection {
            seconds,
            how: Err(last_lines(&said, 1)),
        });
        Ok(Self {
            _child: refused.is_none().then_some(child),
            address: address.unwrap_or_default(),
            log,
            connections: 0,
            refused,
        })
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A request over a connection of its own.
    pub(crate) async fn reach(&mut self, url: &str) -> Result<ProxiedConnection> {
        self.request(url, &[], LIMIT).await
    }

    /// A request to a Pod of the sample workload that is silent for this long before it answers. The method is POST: the
    /// proxy would repeat a GET whose connection was cut.
    pub(crate) async fn reach_silent(
        &mut self,
        target: &str,
        silent: Duration,
    ) -> Result<ProxiedConnection> {
        let url = format!("http://{target}/slow?ms={}", silent.as_millis());
        self.request(&url, &["--data", ""], silent + LIMIT).await
    }

    async fn request(
        &mut self,
        url: &str,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<ProxiedConnection> {
        if let Some(refused) = &self.refused {
            return Ok(refused.clone());
        }
        let limit = limit.as_secs().to_string();
        let mut curl = command("curl")?;
        curl.args([
            "-sS",
            "--noproxy",
            "",
            "--max-time",
            &limit,
            "--proxy",
            &self.url(),
        ])
        .args(["-o", "/dev/null", "-w", "%{http_code} %{time_total}"])
        .args(arguments)
        .arg(url);
        let begun = Instant::now();
        self.connections += 1;
        let measured = match output(&mut curl).await {
            Ok(measured) => measured,
            Err(error) => {
                return Ok(ProxiedConnection {
                    seconds: begun.elapsed().as_secs_f64(),
                    how: Err(format!("no answer: {error:#}")),
                });
            }
        };
        let record = until(Duration::from_secs(10), "the access record", async || {
            Ok(self.records()?.into_iter().nth(self.connections - 1))
        })
        .await?;
        let (status, seconds) = measured.split_once(' ').context("curl's measurement")?;
        let text = |name: &str| {
            record["fields"][name]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let how = match status {
            // default/productpage-1:9080 (spdy)
            "200" => Ok(text("via")
                .rsplit_once('(')
                .map(|(_, transport)| transport.trim_end_matches(')').to_owned())
                .context("a record without a transport")?),
            _ => Err(text("error")),
        };
        Ok(ProxiedConnection {
            seconds: seconds.parse()?,
            how,
        })
    }

    /// Those of connections that have ended, in order.
    fn records(&self) -> Result<Vec<Value>> {
        let log = fs::read_to_string(&self.log)?;
        let records = log.lines().filter_map(|line| {
            let record: Value = serde_json::from_str(line).ok()?;
            (record["target"] == "access").then_some(record)
        });
        Ok(records.collect())
    }
}
