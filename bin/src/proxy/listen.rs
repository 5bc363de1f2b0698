//! Where the proxy listens: the flags, what they mean together, and the sockets.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::ArgAction;
use kubevpn_conn::{Addr, Credentials, Limits, Listener};
use kubevpn_forward::Forward;
use kubevpn_target::Target;
use tokio::net::UdpSocket;

use super::pac::{PacArgs, PacFlags};
use crate::exit::Failure;

/// What is spoken on a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Socks,
    Http,
    /// SOCKS and HTTP, told apart by the first byte.
    Mixed,
    /// What this target speaks.
    Forward(Target),
    /// By TCP on the listener, by UDP beside it.
    Dns,
}

impl Protocol {
    /// Whether it has a place for a user and a password.
    fn asks_for_password(&self) -> bool {
        match self {
            Self::Socks | Self::Http | Self::Mixed => true,
            Self::Forward(_) | Self::Dns => false,
        }
    }
}

/// A socket that is bound and not yet served.
pub(crate) struct Bound {
    pub(crate) listener: Listener,
    /// On the same port; DNS has one.
    pub(crate) udp: Option<UdpSocket>,
    pub(crate) protocol: Protocol,
}

impl Bound {
    /// Where it is, if anybody can connect there by an address.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self.listener.addr() {
            Addr::Tcp(addr) => Some(*addr),
            Addr::Unix(_) => None,
        }
    }
}

/// All that is listened on, and what its clients may do. Bound, and not yet served.
pub(crate) struct Listening {
    pub(crate) bound: Vec<Bound>,
    pub(crate) clients: Clients,
}

/// What clients may do, whichever listener they come to.
pub(crate) struct Clients {
    /// Who they must be; anybody, where there are none.
    pub(crate) credentials: Option<Credentials>,
    pub(crate) limits: Limits,
    pub(crate) dns: kubevpn_dns::Settings,
    pub(crate) pac: PacFlags,
}

impl Listening {
    /// Where it listens, as far as anybody can connect there by an address.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().filter_map(Bound::address).collect()
    }
}

/// The flags every command with listeners has.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Listeners")]
pub(crate) struct ListenArgs {
    /// Local SOCKS5 listen address: IP:PORT (port 0 takes a free one) or unix:PATH; '' for none
    /// [default: 127.0.0.1:1080, or none with --listen]
    #[arg(long, value_name = "ADDR")]
    listen_socks: Option<String>,
    /// Local HTTP proxy listen address, for CONNECT and for plain http
    #[arg(
        long,
        visible_alias = "listen-http-connect",
        value_name = "ADDR",
        default_value = "",
        hide_default_value = true
    )]
    listen_http: String,
    /// Local listen address for SOCKS5 and HTTP on one port
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "",
        hide_default_value = true
    )]
    listen: String,
    /// Forward a local port to one host and port, for programs that know no proxy: PORT:HOST:PORT or ADDR:PORT:HOST:PORT, IPv6
    /// addresses in brackets. May be given more than once
    #[arg(long, value_name = "FORWARD", action = ArgAction::Append)]
    forward: Vec<String>,
    /// Local DNS listen address, UDP and TCP: answers for the cluster's names and addresses
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "",
        hide_default_value = true
    )]
    listen_dns: String,
    /// DNS server, as IP or IP:PORT, for the names that are not the cluster's [default: they are REFUSED]
    #[arg(long, value_name = "ADDR", requires = "listen_dns")]
    dns_upstream: Option<String>,
    /// Ask clients for the user and password in this file, one line of USER:PASSWORD; KUBEVPN_AUTH in the
    /// environment may hold the line itself. Forwards and DNS cannot ask
    #[arg(long, value_name = "FILE", env = "KUBEVPN_AUTH_FILE")]
    auth_file: Option<PathBuf>,
    /// Let clients on other machines in without a password, where a listener is not on loopback
    #[arg(long)]
    allow_unauthenticated: bool,
    /// Connections open at once, over all listeners; further clients wait
    #[arg(long, value_name = "N", default_value_t = Limits::default().total, value_parser = at_least_one)]
    max_connections: usize,
    /// Connections open at once from one IP address; further ones are closed [default: no limit of its own]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_connections_per_client: Option<usize>,
    // Last: what follows would be under its heading.
    #[command(flatten)]
    pac: PacArgs,
}

pub(crate) const DEFAULT_SOCKS: &str = "127.0.0.1:1080";
/// Where the credentials are when they are not in a file. Never a flag: the command line is everybody's to read.
pub(crate) const AUTH: &str = "KUBEVPN_AUTH";
/// The most that is read of a file with credentials, which are 511 bytes at most.
const MAX_AUTH: u64 = 1024;

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("write a number".into()),
    }
}

impl ListenArgs {
    /// Who may use the listeners: as the file says, else the environment; everybody where neither says anything.
    fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        match (&self.auth_file, std::env::var_os(AUTH)) {
            (Some(path), _) => credentials_in(path).map(Some),
            (None, Some(value)) if !value.is_empty() => {
                credentials(AUTH, &value.to_string_lossy()).map(Some)
            }
            (None, _) => Ok(None),
        }
    }

    /// Binds all that was asked for, or nothing.
    pub(crate) async fn bind(&self) -> Result<Listening, Failure> {
        let credentials = self.credentials()?;
        let pac = self.pac.flags()?;
        let default = if self.listen.is_empty() {
            DEFAULT_SOCKS
        } else {
            ""
        };
        let socks = self.listen_socks.as_deref().unwrap_or(default);
        let mut wanted = Vec::new();
        for (flag, text, protocol) in [
            ("--listen-socks", socks, Protocol::Socks),
            ("--listen-http", &self.listen_http, Protocol::Http),
            ("--listen", &self.listen, Protocol::Mixed),
            ("--listen-dns", &self.listen_dns, Protocol::Dns),
        ] {
            if !text.is_empty() {
                let addr = text
                    .parse()
                    .map_err(|error| Failure::Value(format!("{flag}: {error}")))?;
                wanted.push((flag, addr, protocol));
            }
        }
        for text in &self.forward {
            let (listen, to) = forward_of(text)?;
            wanted.push(("--forward", listen, Protocol::Forward(to)));
        }
        if wanted.is_empty() {
            return Err(Failure::Value(
                "nothing to listen on: give --listen-socks, --listen-http or --listen an address, --forward a port, or \
                 --listen-dns an address"
                    .into(),
            ));
        }
        let mut bound = Vec::new();
        for (flag, addr, protocol) in wanted {
            let admits_all = self.allow_unauthenticated;
            bound.push(bind(flag, &addr, protocol, credentials.is_some(), admits_all).await?);
        }
        let own: Vec<_> = bound.iter().filter_map(Bound::address).collect();
        let dns = dns_settings(self.dns_upstream.as_deref(), &own)?;
        Ok(Listening {
            bound,
            clients: Clients {
                credentials,
                limits: Limits {
                    total: self.max_connections,
                    per_client: self.max_connections_per_client,
                },
                dns,
                pac,
            },
        })
    }
}

/// What `--dns-upstream` says; `own` is where this program listens, and must not ask.
pub(crate) fn dns_settings(
    upstream: Option<&str>,
    own: &[SocketAddr],
) -> Result<kubevpn_dns::Settings, Failure> {
    let Some(text) = upstream else {
        return Ok(kubevpn_dns::Settings::default());
    };
    let wrong = |why: &str| Failure::Value(format!("--dns-upstream {text}: {why}"));
    let ip = text.parse().map(|ip: IpAddr| SocketAddr::from((ip, 53)));
    let upstream = ip.or_else(|_| text.parse());
    let upstream: SocketAddr =
        upstream.map_err(|_| wrong("write an IP address, with :PORT where that is not 53"))?;
    let is_upstream = |own: &SocketAddr| {
        own.port() == upstream.port() && (own.ip() == upstream.ip() || own.ip().is_unspecified())
    };
    if own.iter().any(is_upstream) {
        return Err(wrong(
            "that is this program's own listener: it would ask itself",
        ));
    }
    Ok(kubevpn_dns::Settings {
        upstream: Some(upstream),
        ..kubevpn_dns::Settings::default()
    })
}

/// Listeners for ourselves, on free ports of loopback: HTTP, then SOCKS5.
pub(crate) async fn own() -> Result<Listening, Failure> {
    let addr = Addr::Tcp((Ipv4Addr::LOCALHOST, 0).into());
    let mut bound = Vec::new();
    for protocol in [Protocol::Http, Protocol::Socks] {
        bound.push(Bound {
            listener: bind_one("--http", &addr).await?,
            udp: None,
            protocol,
        });
    }
    Ok(Listening {
        bound,
        clients: Clients {
            credentials: None,
            limits: Limits::default(),
            dns: kubevpn_dns::Settings::default(),
            pac: PacFlags::default(),
        },
    })
}

/// What `--forward` says: where to listen, and where that leads.
pub(crate) fn forward_of(text: &str) -> Result<(Addr, Target), Failure> {
    let Forward { listen, to } = text
        .parse()
        .map_err(|error| Failure::Value(format!("--forward {text}: {error}")))?;
    Ok((listen, to))
}

/// Whoever can connect to a listener is in the cluster.
fn open_to_all(flag: &str, addr: &Addr, can_ask: bool) -> Failure {
    let ask = match can_ask {
        true => "ask for a password with --auth-file, ",
        false => "",
    };
    Failure::Value(format!(
        "{flag}: {addr} can be reached from other machines, and whoever connects is in the cluster: \
         listen on 127.0.0.1, {ask}or accept that with --allow-unauthenticated"
    ))
}

/// Binds one, unless it would let in whoever can reach it: `credentials` says that it asks for a password where its
/// protocol can, `admits_all` that somebody has accepted that.
pub(crate) async fn bind(
    flag: &'static str,
    addr: &Addr,
    protocol: Protocol,
    credentials: bool,
    admits_all: bool,
) -> Result<Bound, Failure> {
    let can_ask = protocol.asks_for_password();
    let asks = can_ask && credentials;
    if !addr.is_loopback() && !asks && !admits_all {
        return Err(open_to_all(flag, addr, can_ask));
    }
    let (listener, udp) = match protocol {
        Protocol::Dns => {
            let (listener, udp) = bind_both(flag, addr).await?;
            (listener, Some(udp))
        }
        _ => (bind_one(flag, addr).await?, None),
    };
    Ok(Bound {
        listener,
        udp,
        protocol,
    })
}

async fn bind_one(flag: &'static str, addr: &Addr) -> Result<Listener, Failure> {
    Listener::bind(addr).await.map_err(|error| {
        let address = error.addr.to_string();
        match error.source.kind() {
            io::ErrorKind::AddrInUse => Failure::AddressInUse { flag, address },
            _ => Failure::Listen {
                flag,
                address,
                source: error.source,
            },
        }
    })
}

/// The user and password in a file.
pub(crate) fn credentials_in(path: &Path) -> Result<Credentials, Failure> {
    let place = format!("--auth-file: {}", path.display());
    match read_auth(path) {
        Ok(text) => credentials(&place, &text),
        Err(error) => Err(Failure::Value(format!("{place}: {error}"))),
    }
}

fn credentials(place: &str, text: &str) -> Result<Credentials, Failure> {
    let line = text.lines().next().unwrap_or_default();
    Credentials::parse(line).map_err(|error| Failure::Value(format!("{place}: {error}")))
}

/// How many free TCP ports are tried until the UDP port of the same number is free too.
const PORTS: usize = 16;

/// TCP and UDP on one port.
async fn bind_both(flag: &'static str, addr: &Addr) -> Result<(Listener, UdpSocket), Failure> {
    let Addr::Tcp(wanted) = addr else {
        return Err(Failure::Value(format!(
            "{flag}: a DNS client needs an IP address and a port, not {addr}"
        )));
    };
    let mut attempts = 1;
    loop {
        let listener = bind_one(flag, addr).await?;
        let Addr::Tcp(real) = *listener.addr() else {
            return Err(Failure::Other(anyhow::anyhow!(
                "{addr} became {}",
                listener.addr()
            )));
        };
        match kubevpn_dns::bind_udp(real) {
            Ok(udp) => return Ok((listener, udp)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if wanted.port() != 0 || attempts == PORTS {
                    let address = format!("{real} (UDP)");
                    return Err(Failure::AddressInUse { flag, address });
                }
                attempts += 1;
            }
            Err(source) => {
                let address = format!("{real} (UDP)");
                return Err(Failure::Listen {
                    flag,
                    address,
                    source,
                });
            }
        }
    }
}

/// The begin of a file; a pipe will do, as a shell's `<(...)` makes them.
fn read_auth(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_AUTH).read_to_string(&mut text)?;
    Ok(text)
}
