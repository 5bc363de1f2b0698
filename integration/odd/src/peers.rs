//! The proxies a row goes through: ours in this process, and those of Debian beside it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kubevpn_conn::{Gate, Limits, Listener};
use kubevpn_http_connect::{Settings, serve_connection};
use kubevpn_target::Target;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::libraries::NAME;

/// A program that is not there, and how to get it.
#[derive(Clone, Debug)]
pub struct MissingProgram(pub String);

/// The ways of a row, in the order of the table: directly, ours, the others.
pub struct Peers {
    pub(crate) ways: Vec<PeerRoute>,
    _others: Vec<Child>,
    _dir: TempDir,
    _shared_memory: SharedMemory,
}

/// What squid leaves in `/dev/shm` when it is killed, under a name of its own: no other squid starts over another user's.
struct SharedMemory(String);

impl Drop for SharedMemory {
    fn drop(&mut self) {
        for segment in ["metadata", "queues", "readers"] {
            let _ = std::fs::remove_file(format!("/dev/shm/{}-cf__{segment}.shm", self.0));
        }
    }
}

pub(crate) struct PeerRoute {
    pub(crate) name: &'static str,
    /// `None` for none.
    pub(crate) proxy: Option<SocketAddr>,
}

/// Name, program, package.
const OTHERS: [(&str, &str, &str); 3] = [
    ("squid", "/usr/sbin/squid", "squid"),
    ("tinyproxy", "/usr/bin/tinyproxy", "tinyproxy"),
    ("Apache", "/usr/sbin/apache2", "apache2"),
];

impl Peers {
    /// Installs what is missing where that is allowed.
    pub fn check() -> Result<(), MissingProgram> {
        let missing = || {
            OTHERS
                .iter()
                .filter(|(_, path, _)| !Path::new(path).exists())
        };
        if missing().next().is_none() {
            return Ok(());
        }
        let packages: Vec<&str> = missing().map(|(_, _, package)| *package).collect();
        install(packages.iter().copied());
        match missing().next() {
            None => Ok(()),
            Some(_) => {
                let packages = packages.join(" ");
                Err(MissingProgram(format!(
                    "needs other proxies: apt-get install {packages}"
                )))
            }
        }
    }

    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // The peers run as users of their own.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open)?;
        let mut ways = vec![
            PeerRoute {
                name: "direct",
                proxy: None,
            },
            PeerRoute {
                name: "ours",
                proxy: Some(ours().await?),
            },
        ];
        let mut others = Vec::new();
        let service = format!("odd{}", std::process::id());
        for (name, program, _) in OTHERS {
            let port = free_port().await?;
            let home = dir.path().join(name);
            std::fs::create_dir(&home)?;
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(&home, open)?;
            let file = home.join("conf");
            let home = home.display();
            let (settings, args) = match name {
                "squid" => {
                    let args = vec!["-N", "-n", &service, "-f"];
                    (squid(port, &home.to_string()), args)
                }
                "tinyproxy" => (tinyproxy(port, &home.to_string()), vec!["-d", "-c"]),
                _ => (apache(port, &home.to_string()), vec!["-X", "-f"]),
            };
            std::fs::write(&file, settings)?;
            let child = Command::new(program)
                .args(args)
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("cannot start {program}"))?;
            others.push(child);
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            listening(name, addr).await?;
            ways.push(PeerRoute {
                name,
                proxy: Some(addr),
            });
        }
        Ok(Self {
            ways,
            _others: others,
            _dir: dir,
            _shared_memory: SharedMemory(service),
        })
    }

    /// Names of the ways, in the order of the table.
    pub fn names(&self) -> Vec<&'static str> {
        self.ways.iter().map(|way| way.name).collect()
    }
}

/// Debian packages, if there are any; where that is not allowed they go on missing.
pub(crate) fn install<'p>(packages: impl Iterator<Item = &'p str>) {
    let packages: Vec<_> = packages.collect();
    if packages.is_empty() {
        return;
    }
    let install = ["install", "-y", "--no-install-recommends"];
    for words in [&["update"][..], &[&install[..], &packages].concat()] {
        let mut apt = std::process::Command::new("apt-get");
        apt.args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let _ = apt.status();
    }
}

/// Our frontend over plain TCP, as in its example.
pub(crate) async fn ours() -> Result<SocketAddr> {
    let listener = Listener::bind(&"127.0.0.1:0".parse()?).await?;
    let kubevpn_conn::Addr::Tcp(addr) = *listener.addr() else {
        bail!("no TCP address");
    };
    let dialer = tower::service_fn(|target: Target| {
        TcpStream::connect(target.to_string().replace(NAME, "127.0.0.1"))
    });
    let settings = Arc::new(Settings::default());
    let (gate, drain) = (Gate::new(Limits::default()), settings.drain.clone());
    tokio::spawn(async move {
        let serving = listener.serve(gate, drain, |client| {
            let settings = Arc::clone(&settings);
            async move {
                let _ended = serve_connection(client, dialer, &settings).await;
            }
        });
        serving.await;
    });
    Ok(addr)
}

async fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(listener.local_addr()?.port())
}

async fn listening(name: &str, addr: SocketAddr) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(addr).await.is_err() {
        if Instant::now() > until {
            bail!("{name} does not listen on {addr} within 30 s");
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn squid(port: u16, home: &str) -> String {
    format!(
        "http_port 127.0.0.1:{port}\nhttp_access allow all\ncache deny all\nvisible_hostname odd\n\
         pid_filename {home}/pid\ncache_log {home}/log\naccess_log none\ncoredump_dir {home}\n\
         shutdown_lifetime 0 seconds\npinger_enable off\nmax_filedescriptors 4096\n"
    )
}

fn tinyproxy(port: u16, home: &str) -> String {
    format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 500\nLogFile \"{home}/log\"\n\
         LogLevel Error\nPidFile \"{home}/pid\"\n"
    )
}

fn apache(port: u16, home: &str) -> String {
    let modules = "/usr/lib/apache2/modules";
    format!(
        "ServerRoot {home}\nServerName odd\nPidFile {home}/pid\nErrorLog {home}/log\n\
         LoadModule mpm_event_module {modules}/mod_mpm_event.so\n\
         LoadModule authz_core_module {modules}/mod_authz_core.so\n\
         LoadModule proxy_module {modules}/mod_proxy.so\n\
         LoadModule proxy_http_module {modules}/mod_proxy_http.so\n\
         LoadModule proxy_connect_module {modules}/mod_proxy_connect.so\n\
         Listen 127.0.0.1:{port}\nUser www-data\nGroup www-data\n\
         ProxyRequests On\nProxyVia On\nAllowCONNECT 1-65535\nThreadsPerChild 64\nMaxRequestWorkers 64\n\
         <Proxy \"*\">\nRequire all granted\n</Proxy>\n"
    )
}
