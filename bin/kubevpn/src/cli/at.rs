//! Addresses of a running proxy, and the variables that name them to programs.

use std::net::SocketAddr;

use kubevpn_client::{Env, KubeconfigArgs, Loaded, OWN_PROXIES, load};
use kubevpn_conn::Addr;
use kubevpn_daemon::api::{
    ClusterRef, ConnectionInfo, ConnectionQuery, ConnectionState, KubeconfigSelection, ListenerInfo,
};
use kubevpn_daemon::{ApiError, DaemonClient, StateDir};
use kubevpn_proxy::{Policy, reachable};
use tokio::net::TcpStream;

use super::kube::KubeArgs;
use super::listen::usual_socks;
use crate::config;
use crate::exit::Failure;
use crate::out;

/// Addresses of a running proxy
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Proxy")]
pub(crate) struct AtArgs {
    /// Use the running proxy whose HTTP listener is at ADDR
    #[arg(long = "use-http", alias = "http", value_name = "ADDR")]
    http: Option<String>,
    /// Use the running proxy whose SOCKS5 listener is at ADDR
    #[arg(long = "use-socks", alias = "socks", value_name = "ADDR")]
    socks: Option<String>,
}

/// The parsed addresses, at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProxyAddresses {
    pub(crate) http: Option<SocketAddr>,
    pub(crate) socks: Option<SocketAddr>,
    /// `USER:PASSWORD` of the proxy, if programs should get it.
    pub(crate) login: Option<String>,
}

/// A connection of the daemon. No daemon is started; `None` if none runs or answers.
async fn of_daemon(
    find: impl AsyncFnOnce(&DaemonClient) -> Result<Option<ConnectionInfo>, ApiError>,
) -> Option<ConnectionInfo> {
    let asked = async {
        let daemon = DaemonClient::new(StateDir::locate()?);
        match daemon.find().await? {
            true => find(&daemon).await,
            false => Ok(None),
        }
    };
    asked.await.unwrap_or_else(|error| {
        tracing::debug!(error = error.whole(), "no daemon is asked where it listens");
        None
    })
}

async fn current() -> Option<ConnectionInfo> {
    of_daemon(async |daemon| {
        let status = daemon.status().await?;
        let mut list = status.list.into_iter();
        Ok(list.find(|connection| connection.id == status.current))
    })
    .await
}

/// The connection of this kubeconfig, context and namespace, and of this policy, if one is given.
async fn of_cluster(
    args: &KubeconfigArgs,
    loaded: &Loaded,
    policy: Option<Policy>,
) -> Option<ConnectionInfo> {
    let query = ConnectionQuery {
        cluster: ClusterRef::new(loaded),
        kubeconfig_selection: KubeconfigSelection::new(args, loaded),
        policy,
    };
    of_daemon(async |daemon| daemon.find_connection(&query).await).await
}

/// The connection's listeners that `fits` accepts and that programs can use.
fn listeners(connection: &ConnectionInfo, fits: impl Fn(&ListenerInfo) -> bool) -> ProxyAddresses {
    let speaks = |protocol: &str| {
        let mut listeners = connection.listeners.iter().filter(|listener| {
            let speaks = [protocol, "mixed"].contains(&listener.protocol.as_str());
            speaks && listener.listening && fits(listener)
        });
        listeners.find_map(|listener| listener.address.parse().ok().map(reachable))
    };
    ProxyAddresses {
        http: speaks("http"),
        socks: speaks("socks"),
        login: None,
    }
}

/// The listeners of a connection for programs: those into the cluster without a password, else those into the cluster, else
/// all.
fn preferred(connection: &ConnectionInfo) -> Option<ProxyAddresses> {
    let fits: [fn(&ListenerInfo) -> bool; 3] = [is_open, |listener| !listener.egress, |_| true];
    let mut proxies = fits.into_iter().map(|fits| listeners(connection, fits));
    proxies.find(ProxyAddresses::is_some)
}

fn is_open(listener: &ListenerInfo) -> bool {
    !listener.egress && !listener.auth
}

/// The proxy that `run` uses instead of its own: it works, leads into the cluster, requires no password, and speaks HTTP,
/// because many programs do not support SOCKS.
fn in_place_of_own(connection: &ConnectionInfo) -> Option<ProxyAddresses> {
    let works = matches!(
        connection.state,
        ConnectionState::Connected | ConnectionState::Degraded
    );
    let proxy = listeners(connection, is_open);
    (works && proxy.http.is_some()).then_some(proxy)
}

/// The proxy of the daemon's connection, if it runs and has the requested one.
pub(crate) async fn of_daemon_for_run(
    args: &KubeconfigArgs,
    loaded: &Loaded,
    policy: &Policy,
) -> Option<ProxyAddresses> {
    let policy = (*policy != Policy::default()).then(|| policy.clone());
    let connection = of_cluster(args, loaded, policy).await?;
    let proxy = in_place_of_own(&connection)?;
    tracing::debug!(id = connection.id, ?proxy, "using the daemon's connection");
    Some(proxy)
}

impl AtArgs {
    /// The proxy that the flags name, if they do.
    pub(crate) fn named(&self) -> Result<Option<ProxyAddresses>, Failure> {
        let read = |flag: &str, text: &str| match text.parse() {
            Ok(Addr::Tcp(addr)) if addr.port() != 0 => Ok(addr),
            Ok(other) => Err(Failure::value(format!(
                "{flag}: programs need an IP address and a port, not {other}"
            ))),
            Err(error) => Err(Failure::value(format!("{flag}: {error}"))),
        };
        let http = self.http.as_deref().map(|text| read("--use-http", text));
        let socks = self.socks.as_deref().map(|text| read("--use-socks", text));
        let proxy = ProxyAddresses {
            http: http.transpose()?,
            socks: socks.transpose()?,
            login: None,
        };
        Ok(proxy.is_some().then_some(proxy))
    }

    /// The proxy that the flags name, else that of the daemon's connection to the cluster of these flags (without flags: of
    /// the current connection), else one on the default address. Also returns the hosts that kubectl connects to, if they
    /// are known.
    pub(crate) async fn proxy(
        &self,
        kube: KubeArgs,
    ) -> Result<(ProxyAddresses, Vec<String>), Failure> {
        if let Some(named) = self.named()? {
            return Ok((named, kubectl_hosts(kube)?));
        }
        let is_asked_for = kube != config::usual::<KubeArgs>();
        let args = KubeconfigArgs::from(kube);
        let loaded = load(&args, &Env::of_process());
        let connection = match (is_asked_for, &loaded) {
            (true, Ok(loaded)) => of_cluster(&args, loaded, None).await,
            (true, Err(_)) => None,
            (false, _) => current().await,
        };
        if let Some(connection) = connection
            && let Some(proxy) = preferred(&connection)
        {
            let mut hosts = loaded.map(|loaded| loaded.hosts).unwrap_or_default();
            hosts.extend(host(&connection.server));
            return Ok((proxy, hosts));
        }
        let hosts = loaded?.hosts;
        Ok((assumed().await, hosts))
    }

    /// The same for output that contains names of the cluster: only a connection to that cluster is used.
    pub(crate) async fn proxy_of(
        &self,
        args: &KubeconfigArgs,
        loaded: &Loaded,
    ) -> Result<ProxyAddresses, Failure> {
        if let Some(named) = self.named()? {
            return Ok(named);
        }
        let connection = of_cluster(args, loaded, None).await;
        match connection.as_ref().and_then(preferred) {
            Some(proxy) => Ok(proxy),
            None => Ok(assumed().await),
        }
    }
}

/// The proxy at the default address, with a note if nothing listens there.
async fn assumed() -> ProxyAddresses {
    let proxy = ProxyAddresses::assumed();
    if let Some(addr) = proxy.socks
        && !out::is_hushed()
        && TcpStream::connect(addr).await.is_err()
    {
        out::aside(format_args!(
            "nothing listens on {addr} yet: start kubevpn proxy-out, or name a proxy with --use-socks or --use-http"
        ));
    }
    proxy
}

/// The hosts that kubectl connects to, in all contexts, which programs should reach without the proxy. Empty without a
/// valid kubeconfig, because nothing else is needed of it.
pub(crate) fn kubectl_hosts(kube: KubeArgs) -> Result<Vec<String>, Failure> {
    let is_asked_for = kube != config::usual::<KubeArgs>();
    match load(&KubeconfigArgs::from(kube), &Env::of_process()) {
        Ok(loaded) => Ok(loaded.hosts),
        Err(error) if !is_asked_for => {
            tracing::debug!(%error, "NO_PROXY is without API servers");
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// The host of a server's URL, without the brackets of IPv6.
fn host(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    let host = url.host()?;
    Some(host.trim_matches(['[', ']']).to_owned())
}

/// Exceptions from the proxy: this machine, and the hosts that the proxy itself and kubectl connect to.
pub(crate) fn exceptions(hosts: &[String], known: &str) -> String {
    let mut all: Vec<&str> = known
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty())
        .collect();
    for host in ["localhost", "127.0.0.1", "::1"]
        .into_iter()
        .chain(hosts.iter().map(String::as_str))
    {
        if !all.contains(&host) {
            all.push(host);
        }
    }
    all.join(",")
}

impl ProxyAddresses {
    fn is_some(&self) -> bool {
        self.http.is_some() || self.socks.is_some()
    }

    /// The proxy at the default address.
    fn assumed() -> Self {
        Self {
            socks: usual_socks().parse().ok(),
            ..Self::default()
        }
    }

    /// The variables, in lower and upper case, because programs read one or the other. `own` is the value of
    /// [`OWN_PROXIES`].
    pub(crate) fn variables(&self, no_proxy: &str, own: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut own: Vec<_> = own
            .split(',')
            .filter(|url| !url.is_empty())
            .map(str::to_owned)
            .collect();
        let mut both = |name: &str, value: String| {
            if name != "no_proxy" && !own.contains(&value) {
                own.push(value.clone());
            }
            found.push((name.to_uppercase(), value.clone()));
            found.push((name.to_lowercase(), value));
        };
        let login = self.login.as_deref().map(userinfo).unwrap_or_default();
        if let Some(http) = self.http {
            both("http_proxy", format!("http://{login}{http}"));
            both("https_proxy", format!("http://{login}{http}"));
        }
        // HTTP is preferred: some programs fail with an error for SOCKS.
        let all = match (self.http, self.socks) {
            (Some(http), _) => Some(format!("http://{login}{http}")),
            (None, Some(socks)) => Some(format!("socks5h://{login}{socks}")),
            (None, None) => None,
        };
        if let Some(all) = all {
            both("all_proxy", all);
        }
        both("no_proxy", no_proxy.into());
        found.push((OWN_PROXIES.to_owned(), own.join(",")));
        found
    }

    /// The variables to remove: with only SOCKS, a program would use an earlier HTTP proxy.
    pub(crate) fn unset(&self) -> &'static [&'static str] {
        match self.http {
            Some(_) => &[],
            None => &["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"],
        }
    }

    /// The settings for Java, which does not read these variables; `known` is the current value.
    pub(crate) fn java(&self, no_proxy: &str, known: &str) -> String {
        let mut options: Vec<String> = Some(known.trim().to_owned())
            .filter(|known| !known.is_empty())
            .into_iter()
            .collect();
        let except = no_proxy.split(',').map(|host| match host {
            "127.0.0.1" => "127.*".to_owned(),
            host if host.contains(':') => format!("[{host}]"),
            host if host.starts_with('.') => format!("*{host}"),
            host => host.to_owned(),
        });
        let except = except.collect::<Vec<_>>().join("|");
        if let Some(http) = self.http {
            for scheme in ["http", "https"] {
                options.push(format!("-D{scheme}.proxyHost={}", http.ip()));
                options.push(format!("-D{scheme}.proxyPort={}", http.port()));
            }
            options.push(format!("-Dhttp.nonProxyHosts={except}"));
        }
        if let Some(socks) = self.socks {
            options.push(format!("-DsocksProxyHost={}", socks.ip()));
            options.push(format!("-DsocksProxyPort={}", socks.port()));
            options.push(format!("-DsocksNonProxyHosts={except}"));
        }
        options.join(" ")
    }
}

/// The userinfo of a URL with its `@` (RFC 3986, 3.2.1).
fn userinfo(login: &str) -> String {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let encoded = |text: &str| {
        text.bytes().fold(String::new(), |mut url, byte| {
            match byte {
                b'-' | b'.' | b'_' | b'~' => url.push(char::from(byte)),
                byte if byte.is_ascii_alphanumeric() => url.push(char::from(byte)),
                byte => url.push_str(&format!("%{byte:02X}")),
            }
            url
        })
    };
    format!("{}:{}@", encoded(user), encoded(password))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    fn both(proxy: &ProxyAddresses) -> [Option<String>; 2] {
        [proxy.http, proxy.socks].map(|addr| addr.map(|addr| addr.to_string()))
    }

    fn some(addr: &str) -> Option<String> {
        Some(addr.to_owned())
    }

    #[test]
    fn listeners_of_a_connection() {
        let mut connection = sample::connection("b");
        connection.listeners = vec![
            sample::listener("dns", "127.0.0.1:2", true),
            sample::listener("socks", "127.0.0.1:3", false),
            sample::listener("socks", "unix:/tmp/x", true),
            sample::listener("mixed", "0.0.0.0:4", true),
            sample::listener("http", "127.0.0.1:5", true),
        ];
        let proxy = |connection: &ConnectionInfo| preferred(connection).as_ref().map(both);
        let [four, five] = ["127.0.0.1:4", "127.0.0.1:5"].map(some);
        assert_eq!(proxy(&connection), Some([four.clone(), four.clone()]));
        // A listener with a password, or not into the cluster, is used only if there is no other.
        connection.listeners[3].egress = true;
        assert_eq!(proxy(&connection), Some([five.clone(), None]));
        connection.listeners[4].auth = true;
        assert_eq!(proxy(&connection), Some([five, None]));
        connection.listeners.pop();
        assert_eq!(proxy(&connection), Some([four.clone(), four]));
        connection.listeners.pop();
        assert_eq!(proxy(&connection), None);
    }

    #[test]
    fn run_uses_a_working_http_listener_without_a_password() {
        let mut connection = sample::connection("b");
        connection.listeners = vec![
            sample::listener("http", "127.0.0.1:1", true),
            sample::listener("http", "127.0.0.1:2", true),
            sample::listener("mixed", "127.0.0.1:3", true),
        ];
        connection.listeners[0].auth = true;
        connection.listeners[1].egress = true;
        let proxy = in_place_of_own(&connection).unwrap();
        assert_eq!(both(&proxy), [some("127.0.0.1:3"), some("127.0.0.1:3")]);
        for state in [
            ConnectionState::Unreachable,
            ConnectionState::Unauthenticated,
        ] {
            let mut away = connection.clone();
            away.state = state;
            assert_eq!(in_place_of_own(&away), None);
        }
        // Go, Java and Node do not use a proxy that speaks only SOCKS.
        connection.listeners[2].protocol = "socks".into();
        assert_eq!(in_place_of_own(&connection), None);
    }

    #[test]
    fn host_of_a_server() {
        for (url, name) in [
            ("https://api.test:6443", "api.test"),
            ("https://[fd00::1]:6443/prefix", "fd00::1"),
            ("http://10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(host(url).as_deref(), Some(name));
        }
        assert_eq!(host("api.test/x y"), None);
    }

    #[test]
    fn login_is_part_of_the_urls() {
        let proxy = ProxyAddresses {
            login: Some("ann:s3:c/r t".into()),
            ..proxy(Some("3128"), None)
        };
        let variables = proxy.variables("x", "");
        let wanted = "http://ann:s3%3Ac%2Fr%20t@127.0.0.1:3128";
        assert!(
            variables.contains(&("HTTP_PROXY".into(), wanted.into())),
            "{variables:?}"
        );
    }

    fn at(http: Option<&str>, socks: Option<&str>) -> AtArgs {
        AtArgs {
            http: http.map(Into::into),
            socks: socks.map(Into::into),
        }
    }

    fn proxy(http: Option<&str>, socks: Option<&str>) -> ProxyAddresses {
        at(http, socks).named().unwrap().unwrap()
    }

    #[test]
    fn where_it_listens() {
        assert_eq!(at(None, None).named().unwrap(), None);
        assert_eq!(
            ProxyAddresses::assumed().socks,
            "127.0.0.1:1080".parse().ok()
        );
        let http = proxy(Some("3128"), None);
        assert_eq!(
            (http.http, http.socks),
            ("127.0.0.1:3128".parse().ok(), None)
        );
        for bad in ["x", "127.0.0.1", "0", "unix:/tmp/x"] {
            let failure = at(Some(bad), None).named().unwrap_err();
            assert_eq!(crate::exit::exit_code(&failure), 23, "{bad}");
        }
    }

    #[test]
    fn no_proxy_has_this_machine_and_the_api_servers() {
        let own = "localhost,127.0.0.1,::1";
        assert_eq!(exceptions(&[], ""), own);
        let of = |host: &str, known| exceptions(&[host.to_owned()], known);
        assert_eq!(of("api.test", ""), format!("{own},api.test"));
        assert_eq!(
            of("127.0.0.1", ".corp, localhost,"),
            ".corp,localhost,127.0.0.1,::1"
        );
    }

    #[test]
    fn each_variable_in_both_cases() {
        let both = proxy(Some("127.0.0.1:3128"), Some("[::1]:1080"));
        let variables = both.variables("localhost", "http://127.0.0.1:9,http://127.0.0.1:3128");
        for (name, value) in [
            ("HTTP_PROXY", "http://127.0.0.1:3128"),
            ("https_proxy", "http://127.0.0.1:3128"),
            ("ALL_PROXY", "http://127.0.0.1:3128"),
            ("all_proxy", "http://127.0.0.1:3128"),
            ("no_proxy", "localhost"),
            (
                "KUBEVPN_PROXIES",
                "http://127.0.0.1:9,http://127.0.0.1:3128",
            ),
        ] {
            assert!(variables.contains(&(name.into(), value.into())), "{name}");
        }
        assert_eq!(variables.len(), 9);
        let socks = ProxyAddresses::assumed().variables("x", "");
        assert!(socks.contains(&("KUBEVPN_PROXIES".into(), "socks5h://127.0.0.1:1080".into())));
        assert!(!socks.iter().any(|(name, _)| name == "HTTP_PROXY"));
    }

    #[test]
    fn java_gets_its_own_settings() {
        let both = proxy(Some("127.0.0.1:3128"), Some("127.0.0.1:1080"));
        assert_eq!(
            both.java("localhost,127.0.0.1,::1,.corp", "-Xmx1g "),
            "-Xmx1g -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=3128 -Dhttps.proxyHost=127.0.0.1 \
             -Dhttps.proxyPort=3128 -Dhttp.nonProxyHosts=localhost|127.*|[::1]|*.corp \
             -DsocksProxyHost=127.0.0.1 -DsocksProxyPort=1080 -DsocksNonProxyHosts=localhost|127.*|[::1]|*.corp"
        );
    }
}
