//! Who is compared: our two examples, and Debian's proxies with the least configuration that lets them work.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use lab::Lab;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::process::Group;

/// What the clients speak to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Socks5,
    Http,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerKind {
    OursSocks5,
    Microsocks,
    Dante,
    OursHttp,
    Tinyproxy,
    Squid,
}

impl PeerKind {
    const ALL: [Self; 6] = [
        Self::OursSocks5,
        Self::Microsocks,
        Self::Dante,
        Self::OursHttp,
        Self::Tinyproxy,
        Self::Squid,
    ];

    pub(super) fn of(family: Family) -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(move |kind| kind.family() == family)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::OursSocks5 => "ours (SOCKS5)",
            Self::Microsocks => "microsocks",
            Self::Dante => "dante",
            Self::OursHttp => "ours (HTTP)",
            Self::Tinyproxy => "tinyproxy",
            Self::Squid => "squid",
        }
    }

    fn family(self) -> Family {
        match self {
            Self::OursSocks5 | Self::Microsocks | Self::Dante => Family::Socks5,
            Self::OursHttp | Self::Tinyproxy | Self::Squid => Family::Http,
        }
    }
}

/// The programs and the libraries that a small Debian lacks.
const PACKAGES: [&str; 10] = [
    "microsocks",
    "dante-server",
    "libwrap0",
    "tinyproxy-bin",
    "squid",
    "squid-common",
    "libecap3",
    "libltdl7",
    "libtdb1",
    "libnetfilter-conntrack3",
];
/// Of `libnetfilter-conntrack3`.
const MORE: [&str; 1] = ["libnfnetlink0"];

/// Where the programs are.
pub(super) struct PeerPrograms {
    debian: PathBuf,
    examples: PathBuf,
}

impl PeerPrograms {
    pub(super) async fn new(lab: &Lab, examples: PathBuf) -> anyhow::Result<Self> {
        for example in ["direct", "http-direct"] {
            anyhow::ensure!(
                examples.join(example).exists(),
                "{} is missing: cargo build --profile dist -p kubevpn-socks5 -p kubevpn-http-connect --examples",
                examples.join(example).display()
            );
        }
        let packages: Vec<&str> = PACKAGES.into_iter().chain(MORE).collect();
        let debian = lab.debian("debian-proxies", &packages).await?;
        Ok(Self { debian, examples })
    }

    /// Starts one on a free port of loopback, and waits until it answers there.
    pub(super) async fn start(&self, kind: PeerKind) -> anyhow::Result<PeerProxy> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = port.local_addr()?;
        drop(port);
        let dir = tempfile::tempdir()?;
        let group = Group::start(self.command(kind, addr.port(), dir.path())?)?;
        let mut proxy = PeerProxy {
            group,
            addr,
            family: kind.family(),
            _dir: dir,
        };
        proxy.listening().await?;
        Ok(proxy)
    }

    fn command(&self, kind: PeerKind, port: u16, dir: &Path) -> anyhow::Result<Command> {
        let debian = |program: &str| {
            let mut command = Command::new(self.debian.join(program));
            let libraries = self.debian.join("usr/lib/x86_64-linux-gnu");
            let more = self.debian.join("lib/x86_64-linux-gnu");
            let path = format!("{}:{}", libraries.display(), more.display());
            command.env("LD_LIBRARY_PATH", path).current_dir(dir);
            command
        };
        let write = |text: String| -> anyhow::Result<PathBuf> {
            let file = dir.join("proxy.conf");
            std::fs::write(&file, text)?;
            Ok(file)
        };
        let address = format!("127.0.0.1:{port}");
        Ok(match kind {
            PeerKind::OursSocks5 => {
                let mut command = Command::new(self.examples.join("direct"));
                command.arg(address);
                command
            }
            PeerKind::OursHttp => {
                let mut command = Command::new(self.examples.join("http-direct"));
                command.arg(address);
                command
            }
            PeerKind::Microsocks => {
                let mut command = debian("usr/bin/microsocks");
                command.args(["-i", "127.0.0.1", "-p", &port.to_string()]);
                command
            }
            PeerKind::Dante => {
                let config = write(format!(
                    "logoutput: /dev/null\n\
                     internal: 127.0.0.1 port = {port}\n\
                     external: 127.0.0.1\n\
                     clientmethod: none\n\
                     socksmethod: none\n\
                     user.privileged: root\n\
                     user.unprivileged: nobody\n\
                     client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}\n\
                     socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 command: connect }}\n"
                ))?;
                let mut command = debian("usr/sbin/danted");
                command.arg("-f").arg(config);
                command.arg("-p").arg(dir.join("pid"));
                command
            }
            PeerKind::Tinyproxy => {
                let config = write(format!(
                    "Port {port}\n\
                     Listen 127.0.0.1\n\
                     Timeout 600\n\
                     MaxClients 2000\n\
                     LogLevel Error\n\
                     Allow 127.0.0.1\n"
                ))?;
                let mut command = debian("usr/bin/tinyproxy");
                command.arg("-d").arg("-c").arg(config);
                command
            }
            PeerKind::Squid => {
                let share = self.debian.join("usr/share/squid");
                let config = write(format!(
                    "http_port {address}\n\
                     http_access allow all\n\
                     cache deny all\n\
                     access_log none\n\
                     cache_log /dev/null\n\
                     cache_store_log none\n\
                     netdb_filename none\n\
                     pinger_enable off\n\
                     cache_effective_user nobody\n\
                     shutdown_lifetime 0 seconds\n\
                     max_filedescriptors 16384\n\
                     visible_hostname localhost\n\
                     unlinkd_program /bin/true\n\
                     logfile_daemon /bin/true\n\
                     coredump_dir {dir}\n\
                     error_directory {dir}\n\
                     pid_filename {dir}/pid\n\
                     mime_table {share}/mime.conf\n\
                     icon_directory {share}/icons\n",
                    dir = dir.display(),
                    share = share.display(),
                ))?;
                let mut command = debian("usr/sbin/squid");
                command.arg("-N").arg("-f").arg(config);
                command
            }
        })
    }
}

/// A running proxy. Ended by [`PeerProxy::end`]; what is dropped without it is killed.
pub(super) struct PeerProxy {
    pub(super) group: Group,
    pub(super) addr: SocketAddr,
    pub(super) family: Family,
    _dir: TempDir,
}

impl PeerProxy {
    async fn listening(&mut self) -> anyhow::Result<()> {
        let started = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                if TcpStream::connect(self.addr).await.is_ok() {
                    return Ok(());
                }
                if let Some(status) = self.group.ended()? {
                    bail!("it ended with {status} before it listened");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        started.await.context("it does not listen")?
    }

    pub(super) async fn end(&mut self) -> anyhow::Result<()> {
        self.group.end().await
    }
}
