//! Where a proxy that runs already listens, and what programs are told of it.

use std::net::SocketAddr;

use kubevpn_conn::Addr;

use crate::exit::Failure;
use crate::proxy::DEFAULT_SOCKS;

/// Where the proxy listens
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Proxy")]
pub(crate) struct At {
    /// Address of its HTTP listener, where it has one
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// Address of its SOCKS5 listener [default: 127.0.0.1:1080, or none with --http]
    #[arg(long, value_name = "ADDR")]
    socks: Option<String>,
}

/// The same, understood: one of them at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) http: Option<SocketAddr>,
    pub(crate) socks: Option<SocketAddr>,
}

impl At {
    /// Whether a proxy was named.
    pub(crate) fn is_given(&self) -> bool {
        self.http.is_some() || self.socks.is_some()
    }

    pub(crate) fn proxy(&self) -> Result<Proxy, Failure> {
        let read = |flag: &str, text: &str| match text.parse() {
            Ok(Addr::Tcp(addr)) if addr.port() != 0 => Ok(addr),
            Ok(other) => Err(Failure::Value(format!(
                "{flag}: programs need an IP address and a port, not {other}"
            ))),
            Err(error) => Err(Failure::Value(format!("{flag}: {error}"))),
        };
        let http = self.http.as_deref().map(|text| read("--http", text));
        let socks = match (&self.socks, &self.http) {
            (None, None) => Some(DEFAULT_SOCKS),
            (socks, _) => socks.as_deref(),
        };
        Ok(Proxy {
            http: http.transpose()?,
            socks: socks.map(|text| read("--socks", text)).transpose()?,
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
        if let Some(http) = self.http {
            both("http_proxy", format!("http://{http}"));
            both("https_proxy", format!("http://{http}"));
        }
        let all = match (self.socks, self.http) {
            (Some(socks), _) => Some(format!("socks5h://{socks}")),
            (None, Some(http)) => Some(format!("http://{http}")),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(http: Option<&str>, socks: Option<&str>) -> At {
        At {
            http: http.map(Into::into),
            socks: socks.map(Into::into),
        }
    }

    fn proxy(http: Option<&str>, socks: Option<&str>) -> Proxy {
        at(http, socks).proxy().unwrap()
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
            assert_eq!(at(Some(bad), None).proxy().unwrap_err().code(), 23, "{bad}");
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
            ("ALL_PROXY", "socks5h://[::1]:1080"),
            ("all_proxy", "socks5h://[::1]:1080"),
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
