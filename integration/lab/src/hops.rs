//! Gateways and proxies before the API server: real ones from Debian, configured as people do, and a program of our own
//! for what no product does by name. For each, does `kubevpn proxy-out` get through, how soon, and over which transport?
//!
//! `table.rs` lists them with what has to come of each; `gateway.rs` is the program.

mod gateway;
mod table;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use self::gateway::{Does, Gateway};
use self::table::{HOPS, HopProgram, HopVia, To};
use crate::Lab;
use crate::command::{command, last_lines, output};
use crate::process::until;
use crate::proxy::{ProxiedConnection, ProxyUnderTest};
use crate::section::table_cell;

pub use self::table::Hop;

/// What is learned for a hop in a first connection costs this at least, where it costs anything: a transport that is not
/// answered is given up after 2 s.
const LEARNED: f64 = 2.0;

/// A hop, and connections through it.
#[derive(Debug)]
pub struct Crossing {
    /// Which.
    pub hop: &'static Hop,
    /// The first connection, one to another Pod after it, and where the hop cuts silent connections, one after that.
    pub reached: Vec<ProxiedConnection>,
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
    /// Sends connections through every hop of the table whose name begins with `only`, one hop after the other.
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
        let mut crossings = Vec::new();
        for hop in HOPS.iter().filter(|hop| hop.name.starts_with(only)) {
            let crossed = self.cross(hop, kubevpn).await;
            let (reached, contradiction) = match crossed {
                Ok(reached) => {
                    let contradiction = contradiction(hop, &reached);
                    (reached, contradiction)
                }
                Err(error) => (Vec::new(), Some(format!("{error:#}"))),
            };
            let crossing = Crossing {
                hop,
                reached,
                contradiction,
            };
            report(&crossing);
            crossings.push(crossing);
        }
        Ok(crossings)
    }

    async fn cross(&self, hop: &'static Hop, kubevpn: &Path) -> Result<Vec<ProxiedConnection>> {
        let standing = self.stand(hop).await.context("it does not start")?;
        let kubeconfig = standing.dir.path().join("kubeconfig");
        fs::write(&kubeconfig, self.config_for(hop, standing.port).to_string())?;
        let environment = match hop.to {
            To::Environment => Some(format!("http://127.0.0.1:{}", standing.port)),
            _ => None,
        };
        let mut proxy =
            ProxyUnderTest::start(kubevpn, &kubeconfig, environment.as_deref(), &[]).await?;
        let mut reached = Vec::new();
        for target in ["productpage.default:9080", "reviews.default:80"] {
            reached.push(proxy.reach(&format!("http://{target}/")).await?);
        }
        if let Some(after) = hop.cuts {
            sleep(after + Duration::from_secs(1)).await;
            reached.push(proxy.reach("http://productpage.default:9080/").await?);
        }
        Ok(reached)
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
fn contradiction(hop: &Hop, reached: &[ProxiedConnection]) -> Option<String> {
    for (n, connection) in reached.iter().enumerate() {
        let which = ["first", "second", "third"]
            .get(n)
            .copied()
            .unwrap_or("a later");
        let wrong = match (&connection.how, hop.refused) {
            (Ok(_), None) => None,
            (Ok(transport), Some(_)) => Some(format!("answered over {transport}")),
            (Err(sentence), None) => Some(format!("refused: {sentence}")),
            (Err(sentence), Some(words)) => {
                (!sentence.contains(words)).then(|| format!("no {words:?} in: {sentence}"))
            }
        };
        if let Some(wrong) = wrong {
            return Some(format!("{which} connection: {wrong}"));
        }
        if connection.seconds > 31.0 {
            return Some(format!("{which} connection: {:.1} s", connection.seconds));
        }
    }
    let [first, second, ..] = reached else {
        return None;
    };
    let holds = matches!(hop.via, HopVia::Gateway(Does::Holds(_))); // every answer is slow, and nothing is to be learned
    let again = first.how.is_ok()
        && !holds
        && first.seconds > LEARNED
        && second.seconds > first.seconds - LEARNED;
    again.then(|| format!("the second connection took {:.1} s, too", second.seconds))
}

/// The rows of a table in Markdown.
pub fn table(crossings: &[Crossing]) -> String {
    let mut table = String::from(
        "| before the API server | first connection | second | after a cut | transport, or the refusal |\n|-|-|-|-|-|\n",
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
