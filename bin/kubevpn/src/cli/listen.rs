//! Flags of listeners, shared by `proxy-out`, `connect` and `demo`, and their conversion to specifications.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::ArgAction;
use kubevpn_conn::{Addr, AddrError, Credentials, Limits};
use kubevpn_forward::Forward;
use kubevpn_proxy::{
    Bound, Clients, ForwardTo, HttpSettings, ListenerError, ListenerSpec, ListenerTls, Listening,
    PacSettings, Protocol, Reread, credentials_in, dns_settings,
};
use kubevpn_target::{Name, Target};

use super::holder::{PortHolder, connections, held};
use crate::config;
use crate::exit::Failure;

/// Default address of the SOCKS5 listener.
const DEFAULT_SOCKS: &str = "127.0.0.1:1080";
/// Default address of the HTTP listener of `connect --http`.
const DEFAULT_HTTP: &str = "127.0.0.1:3128";
/// Environment variable with user and password. There is no flag, because every user can read the command line.
pub(crate) const AUTH: &str = "KUBEVPN_AUTH";

/// Flags of all commands with listeners
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Listeners")]
pub(crate) struct ListenerArgs {
    /// Listen for SOCKS5 on ADDR: IP:PORT (port 0: a free port) or unix:PATH; '' for none [default: 127.0.0.1:1080 for
    /// connect without another listener, and for proxy-out without --listen and --forward]
    #[arg(long, visible_alias = "socks-listen", value_name = "ADDR")]
    pub(crate) listen_socks: Option<String>,
    /// Listen for HTTP proxy requests on ADDR: CONNECT and plain http [default: 127.0.0.1:3128 for connect --http]
    #[arg(
        long,
        visible_alias = "http-listen",
        alias = "listen-http-connect",
        value_name = "ADDR"
    )]
    pub(crate) listen_http: Option<String>,
    /// Listen for DNS queries on ADDR, UDP and TCP, and answer them for the cluster's names and addresses
    #[arg(
        long,
        visible_alias = "dns-listen",
        value_name = "ADDR",
        default_value = "",
        hide_default_value = true
    )]
    listen_dns: String,
    /// Listen for SOCKS5 and HTTP on one port, ADDR
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "",
        hide_default_value = true
    )]
    listen: String,
    /// Forward a local port to one host and port, for programs without proxy support: PORT:HOST:PORT or
    /// ADDR:PORT:HOST:PORT, IPv6 addresses in brackets. May be given more than once
    #[arg(short = 'L', long, value_name = "FORWARD", action = ArgAction::Append)]
    forward: Vec<String>,
    /// Listen on ADDR for probes (/livez, /readyz) and Prometheus (/metrics); on a loopback address also for a status page,
    /// whose URL, with its token, is printed. On any other address, everybody who can connect can probe and scrape
    #[arg(
        long,
        visible_alias = "metrics",
        value_name = "ADDR",
        default_value = "",
        hide_default_value = true
    )]
    admin: String,
    /// Ask the DNS server at ADDR, as IP or IP:PORT, for names outside the cluster [default: answer REFUSED]
    #[arg(long, value_name = "ADDR", requires = "listen_dns")]
    dns_upstream: Option<String>,
    /// Require a user and password of FILE, which has a line USER:PASSWORD for each user, at most 128. The file is read
    /// again when it changes. KUBEVPN_AUTH=USER:PASSWORD in the environment does the same for one user, except for connect.
    /// Forwards and DNS have no passwords
    #[arg(long, value_name = "FILE", env = "KUBEVPN_AUTH_FILE")]
    pub(crate) auth_file: Option<PathBuf>,
    /// Accept clients on other machines without a password, if a listener is not on loopback
    #[arg(long)]
    allow_unauthenticated: bool,
    /// Maximum number of concurrent client connections; further clients are queued
    #[arg(long, value_name = "N", default_value_t = Limits::default().total, value_parser = at_least_one)]
    max_connections: usize,
    /// Maximum number of concurrent connections from one IP address; further ones are closed [default: unlimited]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_connections_per_client: Option<usize>,
    /// Serve /proxy.pac and the help page under the host name NAME too, besides localhost, IP addresses and
    /// host.docker.internal. May be given more than once
    #[arg(long, value_name = "NAME", action = ArgAction::Append, value_parser = host_name)]
    listen_name: Vec<String>,
    /// Keep the Host header of forwarded HTTP requests as the client sent it, e.g. to test an ingress by name [default: set
    /// it to the host of the requested URL]
    #[arg(long)]
    keep_host: bool,
    // This has to be last: later flags would get its heading.
    #[command(flatten)]
    pac: PacArgs,
}

/// Listeners by protocol, each at its default address if none is given
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Listeners")]
pub(crate) struct ProtocolArgs {
    /// Listen for SOCKS5, on ADDR or 127.0.0.1:1080: the same as --listen-socks ADDR
    #[arg(long, value_name = "ADDR")]
    socks: Option<Option<String>>,
    /// Listen for HTTP proxy requests, on ADDR or 127.0.0.1:3128: the same as --listen-http ADDR
    #[arg(long, value_name = "ADDR")]
    http: Option<Option<String>>,
}

impl ProtocolArgs {
    /// Applies these flags to those with addresses.
    pub(crate) fn apply(self, to: &mut ListenerArgs) -> Result<(), Failure> {
        for (name, asked, address, usual) in [
            ("socks", self.socks, &mut to.listen_socks, usual_socks()),
            ("http", self.http, &mut to.listen_http, usual_http()),
        ] {
            let Some(named) = asked else { continue };
            if let Some(named) = &named {
                // By the name that was typed.
                self::address(&format!("--{name}"), named)?;
            }
            address.take_if(|address| address.is_empty());
            match (address.as_deref(), named) {
                (None, named) => *address = Some(named.unwrap_or_else(|| usual.to_owned())),
                (Some(_), None) => {}
                (Some(one), Some(other)) => {
                    return Err(Failure::value(format!(
                        "--{name} {other} and --listen-{name} {one} are the same flag: give one of them"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Settings of the PAC file
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "PAC file")]
pub(crate) struct PacArgs {
    /// Send addresses in RANGE through the proxy, besides those of Services, e.g. 10.244.0.0/16 for Pods. May be given more
    /// than once
    #[arg(long, value_name = "RANGE", action = ArgAction::Append)]
    pac_range: Vec<String>,
    /// Send hosts outside the cluster to the HTTP proxy at HOST:PORT [default: reach them directly]
    #[arg(long, value_name = "HOST:PORT")]
    pac_upstream: Option<String>,
}

/// TLS with clients
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Listeners")]
pub(crate) struct TlsArgs {
    /// Serve SOCKS5 and HTTP over TLS with the certificate chain in FILE, in PEM. Certificate and key are read again when
    /// they change. Forwards and DNS are not encrypted
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate in --tls-cert, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// The certificate, and the watcher of its files.
    pub(crate) fn read(&self) -> Result<Option<(ListenerTls, Reread)>, Failure> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(None);
        };
        let read = ListenerTls::read(certificate, key);
        let read = read.map_err(|error| Failure::value(format!("--tls-cert, --tls-key: {error}")));
        read.map(Some)
    }
}

/// Address of the SOCKS5 listener without a flag.
pub(crate) fn usual_socks() -> &'static str {
    config::installed()
        .listen_socks
        .as_deref()
        .unwrap_or(DEFAULT_SOCKS)
}

/// Address of the HTTP listener of `connect --http` without a flag.
pub(crate) fn usual_http() -> &'static str {
    config::installed()
        .listen_http
        .as_deref()
        .unwrap_or(DEFAULT_HTTP)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("write a number".into()),
    }
}

fn host_name(text: &str) -> Result<String, String> {
    let name = Name::parse(text).map_err(|error| error.to_string())?;
    Ok(name.as_str().to_owned())
}

impl PacArgs {
    pub(crate) fn settings(&self) -> Result<PacSettings, Failure> {
        let ranges = self.pac_range.iter().map(|text| {
            let range = text.parse();
            range.map_err(|error| Failure::value(format!("--pac-range: {error}")))
        });
        if let Some(upstream) = &self.pac_upstream {
            Target::parse(upstream, Default::default())
                .map_err(|error| Failure::value(format!("--pac-upstream {upstream}: {error}")))?;
        }
        Ok(PacSettings {
            ranges: ranges.collect::<Result<_, _>>()?,
            upstream: self.pac_upstream.clone(),
        })
    }
}

impl ListenerArgs {
    /// Only these forwards.
    pub(super) fn of_forwards(forward: Vec<String>) -> Self {
        Self {
            listen_socks: None,
            listen_http: None,
            listen_dns: String::new(),
            listen: String::new(),
            admin: String::new(),
            forward,
            dns_upstream: None,
            auth_file: None,
            allow_unauthenticated: false,
            max_connections: Limits::default().total,
            max_connections_per_client: None,
            listen_name: Vec::new(),
            keep_host: false,
            pac: PacArgs::default(),
        }
    }

    /// The requested listeners. `socks` and `http` are their default addresses, empty for none. Values are checked here,
    /// before anything is bound or started.
    pub(crate) fn specs(&self, socks: &str, http: &str) -> Result<Vec<ListenerSpec>, Failure> {
        let listeners = [
            (
                "--listen-socks",
                self.listen_socks.as_deref().unwrap_or(socks),
                Protocol::Socks,
            ),
            (
                "--listen-http",
                self.listen_http.as_deref().unwrap_or(http),
                Protocol::Http,
            ),
            ("--listen-dns", &self.listen_dns, Protocol::Dns),
            ("--listen", &self.listen, Protocol::Mixed),
            ("--admin", &self.admin, Protocol::Admin),
        ];
        let mut specs = Vec::new();
        let pac = self.pac.settings()?;
        let dns_upstream = self.dns_upstream()?;
        for (flag, text, protocol) in listeners {
            if let Some(addr) = address(flag, text)? {
                let mut spec = self.spec(protocol, addr, &pac, dns_upstream);
                spec.both_families = is_port_alone(text);
                specs.push(spec);
            }
        }
        for text in &self.forward {
            let Forward { listen, to } = forward(text)?;
            let protocol = Protocol::Forward(ForwardTo(to));
            let mut spec = self.spec(protocol, listen, &pac, dns_upstream);
            spec.both_families = is_port_alone(text);
            specs.push(spec);
        }
        Ok(specs)
    }

    fn spec(
        &self,
        protocol: Protocol,
        address: Addr,
        pac: &PacSettings,
        dns_upstream: Option<SocketAddr>,
    ) -> ListenerSpec {
        let mut spec = ListenerSpec {
            allow_unauthenticated: self.allow_unauthenticated,
            max_connections: self.max_connections,
            max_connections_per_client: self.max_connections_per_client,
            ..ListenerSpec::new(protocol, address)
        };
        match spec.protocol {
            Protocol::Socks => spec.auth_file = self.auth_file.clone(),
            Protocol::Http | Protocol::Mixed => {
                spec.auth_file = self.auth_file.clone();
                spec.pac = pac.clone();
                spec.http = self.http();
            }
            Protocol::Dns => spec.dns_upstream = dns_upstream,
            Protocol::Forward(_) | Protocol::Admin => {}
        }
        spec
    }

    fn http(&self) -> HttpSettings {
        HttpSettings {
            names: self.listen_name.clone(),
            keep_host: self.keep_host,
        }
    }

    fn dns_upstream(&self) -> Result<Option<SocketAddr>, Failure> {
        let Some(text) = &self.dns_upstream else {
            return Ok(None);
        };
        let ip = text.parse().map(|ip: IpAddr| SocketAddr::from((ip, 53)));
        ip.or_else(|_| text.parse()).map(Some).map_err(|_| {
            Failure::value(format!(
                "--dns-upstream {text}: write an IP address, with :PORT where that is not 53"
            ))
        })
    }

    /// The same for a server in this process: at least one.
    pub(crate) fn own_specs(&self) -> Result<Vec<ListenerSpec>, Failure> {
        let socks = match self.listen.is_empty() && self.forward.is_empty() {
            true => usual_socks(),
            false => "",
        };
        // The address in the configuration file is used only without listeners in flags.
        let is_named =
            self.listen_socks.is_some() || !self.listen_dns.is_empty() || socks.is_empty();
        let http = match is_named {
            true => "",
            false => config::installed()
                .listen_http
                .as_deref()
                .unwrap_or_default(),
        };
        let specs = self.specs(socks, http)?;
        if specs.iter().all(|spec| spec.protocol == Protocol::Admin) {
            return Err(Failure::value(
                "nothing to listen on: give --listen-socks, --listen-http or --listen an address, --forward a port, or \
                 --listen-dns an address",
            ));
        }
        Ok(specs)
    }

    /// Binds all of these for one server, or none.
    pub(crate) async fn bind(&self, specs: Vec<ListenerSpec>) -> Result<Listening, Failure> {
        let (credentials, reread) = match &self.auth_file {
            Some(file) => {
                warn_of_readers(file);
                let read = credentials_in(file);
                read.map(|(credentials, reread)| (Some(credentials), Some(reread)))
                    .map_err(|error| Failure::value(format!("--auth-file: {error}")))?
            }
            None => (credentials_of_environment()?, None),
        };
        let mut bound = Vec::new();
        for spec in specs {
            match spec.bind(&spec.address, credentials.is_some()).await {
                Ok(of_spec) => bound.extend(of_spec),
                Err(error) => return Err(not_bound(error, &spec.address).await),
            }
        }
        let own: Vec<_> = bound.iter().filter_map(Bound::address).collect();
        Ok(Listening {
            bound,
            clients: Clients {
                credentials,
                tls: None,
                reread: reread.into_iter().collect(),
                limits: Limits {
                    total: self.max_connections,
                    per_client: self.max_connections_per_client,
                },
                dns: dns_settings(self.dns_upstream()?, &own)?,
                pac: self.pac.settings()?,
                http: self.http(),
            },
        })
    }
}

/// Parses a forward, whose host may be `svc/NAME`.
pub(super) fn forward(text: &str) -> Result<Forward, Failure> {
    let parsed = text.replacen("svc/", "", 1).parse();
    parsed.map_err(|error| Failure::value(format!("--forward {text}: {error}")))
}

/// Parses the address of a flag; an empty one is `None`.
pub(super) fn address(flag: &str, text: &str) -> Result<Option<Addr>, Failure> {
    let given = Some(text).filter(|text| !text.is_empty());
    let parsed = given.map(str::parse).transpose();
    parsed.map_err(|error: AddrError| Failure::value(format!("{flag}: {error}")))
}

/// Adds the holder of the address to the error, if it is known.
async fn not_bound(error: ListenerError, address: &Addr) -> Failure {
    let (ListenerError::InUse { .. }, Addr::Tcp(address)) = (&error, address) else {
        return error.into();
    };
    let advice = match held(*address, &connections().await) {
        PortHolder::Connection(id) => {
            format!("kubevpn disconnect {id}, which has it, or another address")
        }
        PortHolder::Process { pid, name } => {
            format!("end {name} (process {pid}), which has it, or take another address")
        }
        PortHolder::Free | PortHolder::Somebody | PortHolder::Refused(_) => return error.into(),
    };
    Failure::Advised {
        error: error.into(),
        advice,
    }
}

/// Whether the text begins with a port without an address: both address families are used then, as in kubectl.
pub(super) fn is_port_alone(text: &str) -> bool {
    let first = text.split(':').next().unwrap_or_default();
    first.bytes().all(|b| b.is_ascii_digit()) || first.eq_ignore_ascii_case("localhost")
}

/// Warns if every user may read a file with a password. Its group may: that is how a mounted Secret is read.
pub(crate) fn warn_of_readers(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let found = std::fs::metadata(path);
    if found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o007 != 0) {
        tracing::warn!(path = %path.display(), "every user may read the password file: chmod 600 it");
    }
}

/// The user and password in the environment; `None` accepts every client.
pub(crate) fn credentials_of_environment() -> Result<Option<Credentials>, Failure> {
    let value = std::env::var_os(AUTH).filter(|value| !value.is_empty());
    let parsed = value.map(|value| Credentials::parse(&value.to_string_lossy()));
    let parsed = parsed.transpose();
    parsed.map_err(|error| Failure::value(format!("{AUTH}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_both_families() {
        for text in [
            "1080",
            ":1080",
            "localhost:1080",
            "8080:web:80",
            "LocalHost:1:[fd00::1]:80",
        ] {
            assert!(is_port_alone(text), "{text}");
        }
        for text in [
            "127.0.0.1:1080",
            "[::1]:1080",
            "0.0.0.0:80:web:80",
            "unix:socks",
        ] {
            assert!(!is_port_alone(text), "{text}");
        }
    }

    #[test]
    fn protocols_with_and_without_an_address() {
        let socks = |socks: Option<Option<&str>>, address: Option<&str>| {
            let mut args = ListenerArgs::of_forwards(Vec::new());
            args.listen_socks = address.map(str::to_owned);
            let protocols = ProtocolArgs {
                socks: socks.map(|address| address.map(str::to_owned)),
                http: None,
            };
            let done = protocols
                .apply(&mut args)
                .map_err(|failure| failure.message());
            done.map(|()| args.listen_socks.unwrap_or_default())
        };
        assert_eq!(socks(None, None).as_deref(), Ok(""));
        assert_eq!(socks(Some(None), None).as_deref(), Ok(DEFAULT_SOCKS));
        assert_eq!(socks(Some(None), Some("")).as_deref(), Ok(DEFAULT_SOCKS));
        assert_eq!(
            socks(Some(None), Some("127.0.0.1:1")).as_deref(),
            Ok("127.0.0.1:1")
        );
        assert_eq!(
            socks(Some(Some("127.0.0.1:2")), None).as_deref(),
            Ok("127.0.0.1:2")
        );
        assert!(socks(Some(Some("127.0.0.1:2")), Some("127.0.0.1:1")).is_err());
    }

    #[test]
    fn pac_flags_that_are_not_accepted() {
        let settings = |ranges: &[&str], upstream: Option<&str>| {
            let args = PacArgs {
                pac_range: ranges.iter().map(|range| (*range).into()).collect(),
                pac_upstream: upstream.map(Into::into),
            };
            args.settings()
        };
        assert!(settings(&["10.0.0.0/8"], Some("proxy.corp:8080")).is_ok());
        for (ranges, upstream) in [
            (&["10.0.0.0"][..], None),
            (&[], Some("proxy.corp")),
            (&[], Some("a\"b:1")),
        ] {
            let failure = settings(ranges, upstream).unwrap_err();
            assert_eq!(crate::exit::exit_code(&failure), 23);
        }
    }
}
