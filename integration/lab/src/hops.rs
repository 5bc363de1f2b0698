//! Gateways and proxies before the API server: real ones from Debian, configured as people do, and a program of our own
//! for what no product does by name. For each, does `kubevpn proxy-out` get through, how soon, and over which transport?
//!
//! `table.rs` lists them with what has to come of each; `gateway.rs` is the program.

mod gateway;
mod table;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use self::gateway::{Does, Gateway};
use self::table::{HOPS, HopProgram, HopVia, Third, To};
use crate::Lab;
use crate::command::{command, last_lines, output};
use crate::line::{Length, LineRelay};
use crate::process::until;
use crate::proxy::{ProxiedConnection, ProxyUnderTest};
use crate::section::{table_cell, write_section};

pub use self::table::Hop;

/// Upper bound on a first connection and on a refusal: the limit of a dial, 30 s, and 1 s for the measurement.
const DIAL: Duration = Duration::from_secs(31);

/// Upper bound on a later connection and on most refusals: a transport over which nothing is received is given up after 5 s,
/// so a connection that takes as long has tried again a transport that the first found not to work.
const LEARNED: Duration = Duration::from_secs(4);

/// Upper bound on the refusal behind a gateway that swallows both transports with sessions.
const SWALLOWED: Duration = Duration::from_secs(12);

/// A Service of the sample workload.
const PRODUCTPAGE: &str = "productpage.default:9080";

/// Serial round trips of a connection at most: lists of Services and of EndpointSlices, and the upgrade.
const ROUNDS: u32 = 3;

/// How much longer than the hop's limit a connection is silent, so that it is certainly cut. A hop of the table allows 2 s,
/// less than the 3 s between PINGs on a session in use.
const BEYOND: Duration = Duration::from_secs(10);

/// Lower bound on the time to a cut, which tells it from a refusal.
const CUT: f64 = 1.0;

/// A hop, and connections through it.
#[derive(Debug)]
pub struct Crossing {
    /// Which.
    pub hop: &'static Hop,
    /// The first connection, one to another Pod after it, and where the hop limits connections in time, one after that.
    pub reached: Vec<ProxiedConnection>,
    /// The silent connection that the hop has to cut, where it cuts any.
    pub silent: Option<ProxiedConnection>,
    /// TCP connections to the hop.
    pub accepted: u64,
    /// What contradicts the table.
    pub contradiction: Option<String>,
}

/// A hop that stands; ends when dropped.
struct Standing {
    port: u16,
    dir: tempfile::TempDir,
    _children: Vec<Child>,
    _gateway: Option<Gateway>,
}

impl Lab {
    /// Sends connections through every hop of the table whose name begins with `only`: one hop after the other, except
    /// that those with a silent connection of more than a minute are crossed together, at the end.
    ///
    /// # Errors
    /// No cluster. A hop that does not start is a contradiction.
    pub async fn hops(
        &self,
        kubevpn: &Path,
        only: &str,
        mut report: impl FnMut(&Crossing),
    ) -> Result<Vec<Crossing>> {
        self.api_ready().await?;
        let hops = HOPS.iter().filter(|hop| hop.name.starts_with(only));
        let (long, short): (Vec<&'static Hop>, Vec<&'static Hop>) =
            hops.partition(|hop| matches!(hop.third, Some(Third::Silent(_))));
        let mut crossings = Vec::new();
        for hop in short {
            let crossing = self.crossing(hop, kubevpn).await;
            report(&crossing);
            crossings.push(crossing);
        }
        let long = long.into_iter().map(|hop| self.crossing(hop, kubevpn));
        for crossing in join_all(long).await {
            report(&crossing);
            crossings.push(crossing);
        }
        crossings.sort_by_key(|c| HOPS.iter().position(|hop| hop.name == c.hop.name));
        Ok(crossings)
    }

    async fn crossing(&self, hop: &'static Hop, kubevpn: &Path) -> Crossing {
        let mut crossing = Crossing {
            hop,
            reached: Vec::new(),
            silent: None,
            accepted: 0,
            contradiction: None,
        };
        crossing.contradiction = match self.cross(&mut crossing, kubevpn).await {
            Ok(()) => contradiction(&crossing),
            Err(error) => Some(format!("{error:#}")),
        };
        crossing
    }

    async fn cross(&self, crossing: &mut Crossing, kubevpn: &Path) -> Result<()> {
        let hop = crossing.hop;
        let standing = self.stand(hop).await.context("it does not start")?;
        // The API server can be reached without the hop, so the connections to the hop are counted.
        let length = Length {
            each_way: Duration::ZERO,
            bandwidth: None,
        };
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, standing.port));
        let relay = LineRelay::start(to, length).await?;
        let port = relay.address().port();
        let kubeconfig = standing.dir.path().join("kubeconfig");
        fs::write(&kubeconfig, self.config_for(hop, port).to_string())?;
        let environment = match hop.to {
            To::Environment => Some(format!("http://127.0.0.1:{port}")),
            _ => None,
        };
        let mut proxy =
            ProxyUnderTest::start(kubevpn, &kubeconfig, environment.as_deref(), &[]).await?;
        for target in [PRODUCTPAGE, "reviews.default:80"] {
            let reached = proxy.reach(&format!("http://{target}/")).await?;
            crossing.reached.push(reached);
        }
        match hop.third {
            None => {}
            Some(Third::AfterCut(limit)) => {
                crossing.silent = Some(proxy.reach_silent(PRODUCTPAGE, limit + BEYOND).await?);
                // Sessions without a connection have been silent for as long, and are cut within this time.
                sleep(Duration::from_secs(1)).await;
                let reached = proxy.reach(&format!("http://{PRODUCTPAGE}/")).await?;
                crossing.reached.push(reached);
            }
            Some(Third::Silent(silent)) => {
                let reached = proxy.reach_silent(PRODUCTPAGE, silent).await?;
                crossing.reached.push(reached);
            }
        }
        crossing.accepted = relay.accepted();
        Ok(())
    }

    /// Starts what stands in between, and waits until it listens.
    async fn stand(&self, hop: &Hop) -> Result<Standing> {
        let dir = tempfile::Builder::new().prefix("kubevpn-hop-").tempdir()?;
        // squid works as another user.
        fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )?;
        let api = format!("127.0.0.1:{}", self.settings.api_port());
        let (one, two) = (free().await?, free().await?);
        let ports = [one.local_addr()?.port(), two.local_addr()?.port()];
        let (package, programs) = match &hop.via {
            HopVia::Gateway(does) => {
                let gateway = Gateway::start(one, gateway::address(&api)?, self.tls()?, *does);
                return Ok(Standing {
                    port: ports[0],
                    dir,
                    _children: Vec::new(),
                    _gateway: Some(gateway),
                });
            }
            HopVia::Debian(package, programs) => (package, programs),
        };
        drop((one, two));
        let root = self.debian(package.name, package.packages).await?;
        let pki = self.settings.path("pki");
        // HAProxy wants certificate and key in one file.
        for name in ["server", "admin"] {
            let mut both = fs::read_to_string(format!("{pki}/{name}.crt"))?;
            both += &fs::read_to_string(format!("{pki}/{name}.key"))?;
            fs::write(dir.path().join(name).with_extension("pem"), both)?;
        }
        let fill = |text: &str| {
            text.replace("ROOT", &root.display().to_string())
                .replace("DIR", &dir.path().display().to_string())
                .replace("PKI", &pki)
                .replace("PORT2", &ports[1].to_string())
                .replace("PORT", &ports[0].to_string())
                .replace("API", &api)
        };
        let mut children = Vec::new();
        for program in *programs {
            if !program.config.is_empty() {
                fs::write(dir.path().join("config"), fill(program.config))?;
            }
            children.extend(start(program, &fill(program.line), &root, dir.path()).await?);
        }
        let log = dir.path().join("said");
        let listening = until(Duration::from_secs(20), "its port", async || {
            if let Some(ended) = children.last_mut().and_then(|c| c.try_wait().transpose()) {
                bail!("{}", ended?);
            }
            Ok(TcpStream::connect(("127.0.0.1", ports[0])).await.ok())
        });
        listening
            .await
            .with_context(|| last_lines(&fs::read_to_string(&log).unwrap_or_default(), 5))?;
        Ok(Standing {
            port: ports[0],
            dir,
            _children: children,
            _gateway: None,
        })
    }

    /// The kubeconfig of a person behind this hop.
    fn config_for(&self, hop: &Hop, port: u16) -> Value {
        let pki = self.settings.path("pki");
        let certificate = json!({
            "client-certificate": format!("{pki}/admin.crt"),
            "client-key": format!("{pki}/admin.key"),
        });
        let ca = format!("{pki}/ca.crt");
        let (cluster, user) = match hop.to {
            To::Http(path) => (
                json!({"server": format!("http://127.0.0.1:{port}{path}")}),
                json!({}),
            ),
            To::Https | To::HttpsWithCertificate => (
                json!({"server": format!("https://127.0.0.1:{port}"), "certificate-authority": ca}),
                match hop.to {
                    To::HttpsWithCertificate => certificate,
                    _ => json!({}),
                },
            ),
            To::ProxyUrl(scheme) => (
                json!({
                    "server": self.settings.api_url(),
                    "certificate-authority": ca,
                    "proxy-url": format!("{scheme}://127.0.0.1:{port}"),
                }),
                certificate,
            ),
            // A proxy of the environment is not used for loopback addresses; the relay is at another.
            To::Environment => (
                json!({
                    "server": format!("https://{}:{}", self.settings.node_ip(), self.settings.api_port()),
                    "certificate-authority": ca,
                }),
                certificate,
            ),
        };
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "hop",
            "contexts": [{"name": "hop", "context": {"cluster": "hop", "user": "hop"}}],
            "clusters": [{"name": "hop", "cluster": cluster}],
            "users": [{"name": "hop", "user": user}],
        })
    }
}

async fn free() -> Result<TcpListener> {
    Ok(TcpListener::bind("127.0.0.1:0").await?)
}

/// Runs one that ends to its end; else it is returned running.
async fn start(program: &HopProgram, line: &str, root: &Path, dir: &Path) -> Result<Option<Child>> {
    let mut words = line.split(' ');
    let name = words.next().context("no program")?;
    let mut command = match name.contains('/') {
        true => Command::new(name),
        false => command(name)?,
    };
    command
        .args(words)
        .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
        .env("HOME", dir)
        .current_dir(dir)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if program.ends {
        output(&mut command).await?;
        return Ok(None);
    }
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("said"))?;
    command.stdout(log.try_clone()?).stderr(log);
    let child = command
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    Ok(Some(child))
}

/// What a run says against the table, if anything.
fn contradiction(crossing: &Crossing) -> Option<String> {
    let hop = crossing.hop;
    for (n, connection) in crossing.reached.iter().enumerate() {
        let which = ["first", "second", "third"]
            .get(n)
            .copied()
            .unwrap_or("a later");
        let wrong = match (&connection.how, hop.how) {
            (Ok(transport), Ok(expected)) => (transport != expected)
                .then(|| format!("answered over {transport}, not over {expected}")),
            (Ok(transport), Err(_)) => Some(format!("answered over {transport}")),
            (Err(sentence), Ok(_)) => Some(format!("refused: {sentence}")),
            (Err(sentence), Err(words)) => {
                (!sentence.contains(words)).then(|| format!("no {words:?} in: {sentence}"))
            }
        };
        let limit = upper_bound(hop, n).as_secs_f64();
        let slow = connection.seconds > limit;
        let wrong = wrong
            .or_else(|| slow.then(|| format!("{:.1} s, more than {limit} s", connection.seconds)));
        if let Some(wrong) = wrong {
            return Some(format!("{which} connection: {wrong}"));
        }
    }
    if let (Some(silent), Some(Third::AfterCut(limit))) = (&crossing.silent, hop.third) {
        // A refusal comes sooner; an answer, and curl's limit, later.
        let cut = CUT..(limit + BEYOND).as_secs_f64();
        if silent.how.is_ok() || !cut.contains(&silent.seconds) {
            let (Ok(how) | Err(how)) = &silent.how;
            let seconds = silent.seconds;
            return Some(format!(
                "the silent connection was not cut: {seconds:.1} s, {how}"
            ));
        }
    }
    (crossing.accepted == 0).then(|| "no connection came to the hop".into())
}

/// Upper bound on the time of a connection through this hop; `n` counts from 0.
fn upper_bound(hop: &Hop, n: usize) -> Duration {
    match (&hop.via, hop.third) {
        (HopVia::Gateway(Does::Holds(held)), _) => ROUNDS * *held + Duration::from_secs(1),
        (_, Some(Third::Silent(silent))) if n == 2 => silent + LEARNED,
        (HopVia::Gateway(Does::Swallows), _) => SWALLOWED,
        _ if n > 0 || hop.how.is_err() => LEARNED,
        _ => DIAL,
    }
}

/// Writes the page's two tables: of products, and of the lab's own gateway.
///
/// # Errors
/// A page that cannot be written, or has no place for them.
pub fn write_hops(page: &Path, crossings: &[Crossing]) -> Result<()> {
    let (behaviours, products): (Vec<_>, Vec<_>) = crossings
        .iter()
        .partition(|c| matches!(c.hop.via, HopVia::Gateway(_)));
    write_section(page, "hops", &table(&products))?;
    write_section(page, "behaviours", &table(&behaviours))
}

fn table(crossings: &[&Crossing]) -> String {
    let mut table = String::from(
        "| before the API server | first connection | second | after a cut, or silence | transport, or the refusal |\n|-|-|-|-|-|\n",
    );
    for crossing in crossings {
        let seconds = |n: usize| {
            let reached = crossing.reached.get(n);
            reached.map_or_else(String::new, |r| format!("{:.1} s", r.seconds))
        };
        let how = match crossing.reached.first().map(|r| &r.how) {
            Some(Ok(transport)) => format!("`{transport}`"),
            Some(Err(sentence)) => format!("refused: {}", table_cell(sentence)),
            None => table_cell(crossing.contradiction.as_deref().unwrap_or_default()),
        };
        table += &format!(
            "| {} | {} | {} | {} | {how} |\n",
            crossing.hop.name,
            seconds(0),
            seconds(1),
            seconds(2)
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections of these times through the hop whose name begins so, otherwise as the table has it.
    fn crossing(name: &str, seconds: &[f64]) -> Crossing {
        let hop = HOPS.iter().find(|hop| hop.name.starts_with(name)).unwrap();
        let how = hop.how.map(str::to_owned).map_err(str::to_owned);
        let connection = |&seconds: &f64| ProxiedConnection {
            seconds,
            how: how.clone(),
        };
        Crossing {
            hop,
            reached: seconds.iter().map(connection).collect(),
            silent: matches!(hop.third, Some(Third::AfterCut(_))).then(|| ProxiedConnection {
                seconds: 8.5,
                how: Err("closed".into()),
            }),
            accepted: 3,
            contradiction: None,
        }
    }

    fn found(crossing: &Crossing) -> String {
        contradiction(crossing).unwrap()
    }

    #[test]
    fn run_as_expected_has_no_contradiction() {
        for (name, seconds) in [
            ("stunnel", &[0.3, 0.1][..]),
            ("HAProxy, `timeout tunnel`", &[0.1, 0.1, 3.9]),
            ("nginx, `proxy_read_timeout` 60 s", &[0.1, 0.1, 65.3]),
            ("nginx, `proxy_pass` alone", &[0.3, 0.1]),
            ("a gateway that answers 101 and swallows", &[10.1, 10.1]),
            ("a gateway that answers 101 and swallows SPDY", &[5.2, 0.3]),
            ("a gateway that holds", &[9.1, 9.1]),
        ] {
            assert_eq!(contradiction(&crossing(name, seconds)), None, "{name}");
        }
    }

    #[test]
    fn other_transport_is_a_contradiction() {
        let mut other = crossing("stunnel", &[0.3, 0.1]);
        other.reached[1].how = Ok("ws".into());
        assert_eq!(
            found(&other),
            "second connection: answered over ws, not over spdy"
        );
    }

    #[test]
    fn unused_hop_is_a_contradiction() {
        let mut unused = crossing("squid, `HTTPS_PROXY`", &[0.2, 0.2]);
        unused.accepted = 0;
        assert_eq!(found(&unused), "no connection came to the hop");
    }

    #[test]
    fn slow_connection_is_a_contradiction() {
        for (name, seconds, expected) in [
            ("stunnel", &[0.3, 4.1][..], "second connection: 4.1 s"),
            (
                "HAProxy, `timeout tunnel`",
                &[0.1, 0.1, 4.1],
                "third connection: 4.1 s",
            ),
            (
                "nginx, `proxy_read_timeout` 60 s",
                &[0.1, 0.1, 69.1],
                "third connection: 69.1 s",
            ),
            (
                "nginx, `proxy_pass` alone",
                &[4.1, 0.1],
                "first connection: 4.1 s",
            ),
            (
                "a gateway that holds",
                &[9.1, 10.1],
                "second connection: 10.1 s",
            ),
        ] {
            let found = found(&crossing(name, seconds));
            assert!(found.starts_with(expected), "{name}: {found}");
        }
    }

    #[test]
    fn silent_connection_that_was_not_cut_is_a_contradiction() {
        for (seconds, how) in [
            (10.1, Ok("spdy".to_owned())),
            (0.1, Err("refused".to_owned())),
            (50.0, Err("no answer".to_owned())),
        ] {
            let mut uncut = crossing("HAProxy, `timeout tunnel`", &[0.1, 0.1, 0.1]);
            uncut.silent = Some(ProxiedConnection { seconds, how });
            let found = found(&uncut);
            assert!(found.contains("was not cut"), "{found}");
        }
    }
}
