//! Where a proxy that runs already listens, and what programs are told of it.

use std::net::SocketAddr;

use kubevpn_conn::Addr;
use kubevpn_daemon::api::Status;
use kubevpn_daemon::{Client, StateDir};
use kubevpn_proxy::reachable;

use super::listen::DEFAULT_SOCKS;
use crate::exit::Failure;

/// Where the proxy listens
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Proxy")]
pub(crate) struct At {
    /// Address of its HTTP listener
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// Address of its SOCKS5 listener [default with neither: those of the current connection, else 127.0.0.1:1080]
    #[arg(long, value_name = "ADDR")]
    socks: Option<String>,
}

/// The same, understood: one of them at least.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) http: Option<SocketAddr>,
    pub(crate) socks: Option<SocketAddr>,
    /// `USER:PASSWORD` that it asks for, where programs are to be told.
    pub(crate) login: Option<String>,
}

/// Where the current connection of a running daemon listens. No daemon is started for it.
async fn of_daemon() -> Option<Proxy> {
    let daemon = Client::new(StateDir::locate().ok()?);
    let is_there = daemon.find().await;
    let status = match is_there {
        Ok(true) => daemon.status().await,
        Ok(false) => return None,
        Err(error) => Err(error),
    };
    match status {
        Ok(status) => of_status(&status),
        Err(error) => {
            tracing::debug!(
                error = error.whole(),
                "the daemon is not asked where it listens"
            );
            None
        }
    }
}

fn of_status(status: &Status) -> Option<Proxy> {
    let mut list = status.list.iter();
    let current = list.find(|connection| connection.id == status.current)?;
    let speaks = |protocol: &str| {
        let mut listeners = current.listeners.iter().filter(|listener| {
            listener.listening && [protocol, "mixed"].contains(&listener.protocol.as_str())
        });
        listeners.find_map(|listener| listener.address.parse().ok().map(reachable))
    };
    let proxy = Proxy {
        http: speaks("http"),
        socks: speaks("socks"),
        login: None,
    };
    (proxy.http.is_some() || proxy.socks.is_some()).then_some(proxy)
}

impl At {
    /// Whether a proxy was named.
    pub(crate) fn is_given(&self) -> bool {
        self.http.is_some() || self.socks.is_some()
    }

    /// The proxy that was named, else that of the current connection, else one on the default address.
    pub(crate) async fn proxy(&self) -> Result<Proxy, Failure> {
        match self.is_given() {
            true => self.named(),
            false => match of_daemon().await {
                Some(proxy) => Ok(proxy),
                None => self.named(),
            },
        }
    }

    fn named(&self) -> Result<Proxy, Failure> {
        let read = |flag: &str, text: &str| match text.parse() {
            Ok(Addr::Tcp(addr)) if addr.port() != 0 => Ok(addr),
            Ok(other) => Err(Failure::value(format!(
                "{flag}: programs need an IP address and a port, not {other}"
            ))),
            Err(error) => Err(Failure::value(format!("{flag}: {error}"))),
        };
        let http = self.http.as_deref().map(|text| read("--http", text));
        let socks = match (&self.socks, &self.http) {
            (None, None) => Some(DEFAULT_SOCKS),
            (socks, _) => socks.as_deref(),
        };
        Ok(Proxy {
            http: http.transpose()?,
            socks: socks.map(|text| read("--socks", text)).transpose()?,
            login: None,
        })
    }
}

/// The hosts that are never asked of the proxy: this machine, and what the proxy itself goes to.
pub(crate) fn exceptions(api_server: Option<&str>, known: &str) -> String {
    let mut all: Vec<&str> = known
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty())
        .collect();
    for host in ["localhost", "127.0.0.1", "::1"]
        .into_iter()
        .chain(api_server)
    {
        if !all.contains(&host) {
            all.push(host);
        }
    }
    all.join(",")
}

impl Proxy {
    /// The variables, each in both cases: some programs read one, some the other.
    pub(crate) fn variables(&self, no_proxy: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut both = |name: &str, value: String| {
            found.push((name.to_uppercase(), value.clone()));
            found.push((name.to_lowercase(), value));
        };
        let login = self.login.as_deref().map(userinfo).unwrap_or_default();
        if let Some(http) = self.http {
            both("http_proxy", format!("http://{login}{http}"));
            both("https_proxy", format!("http://{login}{http}"));
        }
        // HTTP first: some programs do not know SOCKS, and end with an error.
        let all = match (self.http, self.socks) {
            (Some(http), _) => Some(format!("http://{login}{http}")),
            (None, Some(socks)) => Some(format!("socks5h://{login}{socks}")),
            (None, None) => None,
        };
        if let Some(all) = all {
            both("all_proxy", all);
        }
        both("no_proxy", no_proxy.into());
        found
    }

    /// What Java's own settings are, since it reads no variables of these; `known` are those it has.
    pub(crate) fn java(&self, no_proxy: &str, known: &str) -> String {
        let mut options: Vec<String> = Some(known.trim().to_owned())
            .filter(|known| !known.is_empty())
            .into_iter()
            .collect();
        let except = no_proxy.split(',').map(|host| match host {
            "127.0.0.1" => "127.*".to_owned(),
            host if host.contains(':') => format!("[{host}]"),
            host => host.trim_start_matches('.').to_owned(),
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
    use kubevpn_daemon::api::{Connection, Listener, State, Traffic};

    use super::*;

    fn listener(protocol: &str, address: &str, listening: bool) -> Listener {
        Listener {
            protocol: protocol.into(),
            address: address.into(),
            listening,
            reason: String::new(),
            egress: false,
            auth: false,
            open_clients: 0,
        }
    }

    #[test]
    fn listeners_of_the_current_connection() {
        let connection = |id: &str, listeners| Connection {
            id: id.into(),
            cluster: String::new(),
            kubeconfig: String::new(),
            namespace: String::new(),
            status: String::new(),
            socks_listen_addr: String::new(),
            socks_egress: false,
            context: String::new(),
            server: String::new(),
            state: State::Connected,
            reason: String::new(),
            since: String::new(),
            started_at: String::new(),
            listeners,
            traffic: Traffic::default(),
            sessions: 0,
            streams: 0,
            last_refusals: Vec::new(),
        };
        let other = connection("a", vec![listener("socks", "127.0.0.1:1", true)]);
        let current = connection(
            "b",
            vec![
                listener("dns", "127.0.0.1:2", true),
                listener("socks", "127.0.0.1:3", false),
                listener("socks", "unix:/tmp/x", true),
                listener("mixed", "0.0.0.0:4", true),
                listener("http", "127.0.0.1:5", true),
            ],
        );
        let mut status = Status {
            list: vec![other, current],
            current: "b".into(),
            ..Status::default()
        };
        let proxy = of_status(&status).unwrap();
        assert_eq!(proxy.socks, "127.0.0.1:4".parse().ok());
        assert_eq!(proxy.http, "127.0.0.1:4".parse().ok());
        status.list[1].listeners.clear();
        assert_eq!(of_status(&status), None);
        status.current.clear();
        assert_eq!(of_status(&status), None);
    }

    #[test]
    fn login_is_part_of_the_urls() {
        let proxy = Proxy {
            login: Some("ann:s3:c/r t".into()),
            ..proxy(Some("3128"), None)
        };
        let variables = proxy.variables("x");
        let wanted = "http://ann:s3%3Ac%2Fr%20t@127.0.0.1:3128";
        assert!(
            variables.contains(&("HTTP_PROXY".into(), wanted.into())),
            "{variables:?}"
        );
    }

    fn at(http: Option<&str>, socks: Option<&str>) -> At {
        At {
            http: http.map(Into::into),
            socks: socks.map(Into::into),
        }
    }

    fn proxy(http: Option<&str>, socks: Option<&str>) -> Proxy {
        at(http, socks).named().unwrap()
    }

    #[test]
    fn where_it_listens() {
        assert_eq!(proxy(None, None).socks, "127.0.0.1:1080".parse().ok());
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
    fn who_is_left_out() {
        let own = "localhost,127.0.0.1,::1";
        assert_eq!(exceptions(None, ""), own);
        assert_eq!(exceptions(Some("api.test"), ""), format!("{own},api.test"));
        assert_eq!(
            exceptions(Some("127.0.0.1"), ".corp, localhost,"),
            ".corp,localhost,127.0.0.1,::1"
        );
    }

    #[test]
    fn each_variable_in_both_cases() {
        let both = proxy(Some("127.0.0.1:3128"), Some("[::1]:1080"));
        let variables = both.variables("localhost");
        for (name, value) in [
            ("HTTP_PROXY", "http://127.0.0.1:3128"),
            ("https_proxy", "http://127.0.0.1:3128"),
            ("ALL_PROXY", "http://127.0.0.1:3128"),
            ("all_proxy", "http://127.0.0.1:3128"),
            ("no_proxy", "localhost"),
        ] {
            assert!(variables.contains(&(name.into(), value.into())), "{name}");
        }
        assert_eq!(variables.len(), 8);
        let socks = proxy(None, None).variables("x");
        assert!(!socks.iter().any(|(name, _)| name == "HTTP_PROXY"));
    }

    #[test]
    fn what_java_is_told() {
        let both = proxy(Some("127.0.0.1:3128"), Some("127.0.0.1:1080"));
        assert_eq!(
            both.java("localhost,127.0.0.1,::1,.corp", "-Xmx1g "),
            "-Xmx1g -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=3128 -Dhttps.proxyHost=127.0.0.1 \
             -Dhttps.proxyPort=3128 -Dhttp.nonProxyHosts=localhost|127.*|[::1]|corp \
             -DsocksProxyHost=127.0.0.1 -DsocksProxyPort=1080 -DsocksNonProxyHosts=localhost|127.*|[::1]|corp"
        );
    }
}
