//! Real programs through `kubevpn proxy-out` to the cluster that is up: which get through, and how they are told to.
//!
//! `table.rs` lists them, each with the line a person pastes, which is the line that is run; `kits.rs` installs what
//! they need, into the cache; `page.rs` writes `docs/clients.md`. A client that is listed must pass: one that cannot be
//! installed has failed.

pub(crate) mod kits;
mod page;
mod table;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use self::kits::{Kit, Kits};
use self::table::{CLIENTS, CLUSTER_IP, DNS, HTTP, MIXED, POSTGRES, REDIS, SOCKS};
use crate::Lab;
use crate::command::{last_lines, search_path};

pub use self::page::write as write_page;
pub use self::table::{ProxyPort, TestedClient};

/// What one client may take. Node and Java start slowly on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A client, and why it did not get through, if it did not.
#[derive(Debug)]
pub struct Passage {
    /// Which.
    pub client: &'static TestedClient,
    /// What it said, or what could not be installed.
    pub failure: Option<String>,
}

impl Lab {
    /// Sends every client of the table whose name begins with `only` through this `kubevpn`, one after the other.
    ///
    /// # Errors
    /// The proxy does not start. A client's failure is in its [`Passage`].
    pub async fn clients(
        &self,
        kubevpn: &Path,
        only: &str,
        mut report: impl FnMut(&Passage),
    ) -> Result<Vec<Passage>> {
        let mut kits = Kits::new(self);
        let proxy = ClientsProxy::start(self, kubevpn, &kits.log()?).await?;
        let service = [
            "get",
            "service",
            "reviews",
            "-o",
            "jsonpath={.spec.clusterIP}",
        ];
        let cluster_ip = self.kubectl(&service).await?;
        let mut passages = Vec::new();
        for client in CLIENTS.iter().filter(|c| c.name.starts_with(only)) {
            let guests = client.guests.then_some(Kit::Guests);
            let mut needed = Ok(());
            for kit in client.kits.iter().copied().chain(guests) {
                if needed.is_ok() {
                    needed = kits.need(kit).await;
                }
            }
            let failure = match needed {
                Ok(()) => self.pass(client, &proxy, &cluster_ip, &kits).await.err(),
                Err(error) => Some(error.context("not installed")),
            };
            let failure = failure.map(|error| format!("{error:#}"));
            let passage = Passage { client, failure };
            report(&passage);
            passages.push(passage);
        }
        Ok(passages)
    }

    async fn pass(
        &self,
        client: &TestedClient,
        proxy: &ClientsProxy,
        cluster_ip: &str,
        kits: &Kits<'_>,
    ) -> Result<()> {
        let mut line = client.command().replace(CLUSTER_IP, cluster_ip);
        for (placeholder, addr) in &proxy.addrs {
            line = line.replace(placeholder, addr);
        }
        let mut shell = Command::new("sh");
        shell
            .args(["-ec", &line])
            // Nothing of the caller's environment: a proxy that is set there would be used instead.
            .env_clear()
            .env("PATH", format!("{}:{}", proxy.programs, search_path()))
            .env("HOME", kits.home())
            .env("KUBECONFIG", self.kubeconfig())
            .env("KITS", kits.dir())
            .env("SOURCES", kits.sources())
            .current_dir(kits.home())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let done = timeout(LIMIT, shell.output())
            .await
            .with_context(|| format!("no end within {LIMIT:?}"))??;
        let said = String::from_utf8_lossy(&done.stdout);
        let complained = String::from_utf8_lossy(&done.stderr);
        if !done.status.success() {
            bail!("{}: {}", done.status, last_lines(&complained, 3));
        }
        if !said.contains(client.expect) {
            let said = last_lines(&said, 3);
            bail!(
                "no {:?} in its answer: {said} {}",
                client.expect,
                last_lines(&complained, 3)
            );
        }
        Ok(())
    }
}

/// The proxy under test, on ports of its own. Ends when dropped.
struct ClientsProxy {
    _child: Child,
    /// What a line has for it, and where it listens.
    addrs: Vec<(&'static str, String)>,
    /// Where `kubevpn` itself is, and the cluster's kubectl, for a `PATH`.
    programs: String,
}

impl ClientsProxy {
    async fn start(lab: &Lab, kubevpn: &Path, log: &Path) -> Result<Self> {
        // A resolver knows no other port than 53.
        let dns = format!("{}:53", lab.settings.resolver_ip());
        let mut command = Command::new(kubevpn);
        command.args(["proxy-out", "--listen-socks", "127.0.0.1:0"]);
        command.args(["--listen-http", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
        command.args(["--forward", "127.0.0.1:0:redis:6379"]);
        command.args(["--forward", "127.0.0.1:0:postgres:5432"]);
        command.args(["--listen-dns", &dns]);
        command
            .arg("--kubeconfig")
            .arg(lab.kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(log)?)
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", kubevpn.display()))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut expected = vec![
            (SOCKS, "SOCKS5 proxy listening on ", ""),
            (HTTP, "HTTP proxy listening on ", ""),
            (MIXED, "SOCKS5 and HTTP proxy listening on ", ""),
            (REDIS, "Forwarding ", " -> redis:6379"),
            (POSTGRES, "Forwarding ", " -> postgres:5432"),
            (DNS, "DNS listening on ", " (UDP and TCP)"),
        ];
        let mut addrs = Vec::new();
        let listening = async {
            while !expected.is_empty() {
                let line = lines.next_line().await?;
                let line = line.context("it ended before it listened")?;
                expected.retain(|(placeholder, before, after)| {
                    let rest = line.strip_prefix(before);
                    let addr = rest.and_then(|rest| rest.strip_suffix(after));
                    addrs.extend(addr.map(|addr| (*placeholder, addr.to_owned())));
                    addr.is_none()
                });
            }
            anyhow::Ok(())
        };
        timeout(LIMIT, listening)
            .await
            .context("it does not say where it listens")?
            .with_context(|| {
                let said = fs::read_to_string(log).unwrap_or_default();
                format!("{}: {}", kubevpn.display(), last_lines(&said, 3))
            })?;
        // What else it prints must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let own = kubevpn.canonicalize()?;
        let own = own.parent().context("a program is in a directory")?;
        Ok(Self {
            _child: child,
            addrs,
            programs: format!("{}:{}", own.display(), lab.settings.path("bin")),
        })
    }
}
