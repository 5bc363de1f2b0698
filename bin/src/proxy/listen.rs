//! Where the proxy listens: the flags, what they mean together, and the sockets.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use kubevpn_conn::{Addr, Credentials, Listener};

use crate::exit::Failure;

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Socks,
    Http,
    /// Told apart by the first byte.
    Mixed,
}

/// A socket that is bound and not yet served.
pub(crate) struct Bound {
    pub(crate) listener: Listener,
    pub(crate) protocol: Protocol,
}

/// Where these listen, as far as anybody can connect there by an address.
pub(crate) fn addresses(bound: &[Bound]) -> Vec<SocketAddr> {
    let tcp = |bound: &Bound| match bound.listener.addr() {
        Addr::Tcp(addr) => Some(*addr),
        Addr::Unix(_) => None,
    };
    bound.iter().filter_map(tcp).collect()
}

/// The flags every command with listeners has.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Listeners")]
pub(crate) struct ListenArgs {
    /// Local SOCKS5 listen address: IP:PORT (port 0 takes a free one) or unix:PATH; '' for none
    /// [default: 127.0.0.1:1080, or none with --listen]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen_socks: Option<String>,
    /// Local HTTP proxy listen address, for CONNECT and for plain http
    #[arg(
        long,
        visible_alias = "listen-http-connect",
        value_name = "ADDR",
        default_value = ""
    )]
    pub(crate) listen_http: String,
    /// Local listen address for SOCKS5 and HTTP on one port
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) listen: String,
    /// Ask clients for the user and password in this file, one line of USER:PASSWORD
    #[arg(long, value_name = "FILE", env = "KUBEVPN_AUTH_FILE")]
    pub(crate) auth_file: Option<PathBuf>,
    /// Let clients on other machines in without a password, where a listener is not on loopback
    #[arg(long)]
    pub(crate) allow_unauthenticated: bool,
}

const DEFAULT_SOCKS: &str = "127.0.0.1:1080";

impl ListenArgs {
    /// Who may use the listeners; everybody where no file is given.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        let Some(path) = &self.auth_file else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::Value(format!(
                "--auth-file: cannot read {}: {error}",
                path.display()
            ))
        })?;
        let line = text.lines().next().unwrap_or_default();
        let credentials = Credentials::parse(line)
            .map_err(|error| Failure::Value(format!("--auth-file: {}: {error}", path.display())))?;
        Ok(Some(credentials))
    }

    /// Binds all that was asked for, or nothing.
    pub(crate) async fn bind(&self) -> Result<Vec<Bound>, Failure> {
        let default = if self.listen.is_empty() {
            DEFAULT_SOCKS
        } else {
            ""
        };
        let socks = self.listen_socks.as_deref().unwrap_or(default);
        let wanted = [
            ("--listen-socks", socks, Protocol::Socks),
            ("--listen-http", &self.listen_http, Protocol::Http),
            ("--listen", &self.listen, Protocol::Mixed),
        ];
        let mut bound = Vec::new();
        for (flag, text, protocol) in wanted {
            if !text.is_empty() {
                bound.push(Bound {
                    listener: self.bind_one(flag, text).await?,
                    protocol,
                });
            }
        }
        if bound.is_empty() {
            return Err(Failure::Value(
                "nothing to listen on: give --listen-socks, --listen-http or --listen an address"
                    .into(),
            ));
        }
        Ok(bound)
    }

    async fn bind_one(&self, flag: &'static str, text: &str) -> Result<Listener, Failure> {
        let addr: Addr = text
            .parse()
            .map_err(|error| Failure::Value(format!("{flag}: {error}")))?;
        if !addr.is_loopback() && self.auth_file.is_none() && !self.allow_unauthenticated {
            return Err(Failure::Value(format!(
                "{flag}: {addr} can be reached from other machines, and whoever connects is in the cluster: \
                 listen on 127.0.0.1, ask for a password with --auth-file, or accept that with \
                 --allow-unauthenticated"
            )));
        }
        Listener::bind(&addr).await.map_err(|error| {
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
}
