//! The proxy before the API server, and our credentials for it.

use std::fmt;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use percent_encoding::percent_decode_str;

/// A proxy through which the API server is reached.
#[derive(Clone)]
pub(crate) struct ApiProxy {
    pub(crate) kind: ProxyKind,
    /// `scheme://host:port/`, always with a port, never with user and password.
    pub(crate) uri: Uri,
    pub(crate) login: ProxyLogin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyKind {
    /// HTTP CONNECT, spoken in the clear (`http`) or over TLS (`https`).
    Tunnel,
    /// SOCKS5. The proxy resolves the name for `socks5` too, as it does with kubectl and kube.
    Socks5,
}

/// Credentials for the proxy, percent-decoded.
#[derive(Clone)]
pub(crate) enum ProxyLogin {
    None,
    /// The value of `Proxy-Authorization`.
    Basic(HeaderValue),
    Password(String, String),
}

/// Why a proxy's URL cannot be used. The texts never contain the URL, which may contain a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Not `http`, `https`, `socks5` or `socks5h`.
    #[error("proxies of the kind {0:?} are not supported: use http, https, socks5 or socks5h")]
    Scheme(String),
    /// Not a URL with a host; a password may need percent-encoding.
    #[error(
        "the proxy is no URL such as http://host:3128 (percent-encode special characters of a password)"
    )]
    NotAUrl,
    /// SOCKS5 sends each in one length-prefixed field (RFC 1929).
    #[error("user and password of a SOCKS5 proxy have 255 bytes each at most")]
    LoginTooLong,
}

impl ApiProxy {
    /// Parses a proxy's URL. The default scheme is `http`, as with kubectl and curl.
    pub(crate) fn parse(text: &str) -> Result<Self, ProxyError> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => ("http".to_owned(), text),
        };
        // A part of the password would become the host.
        if !is_scheme(&scheme) || rest[end_of_authority(rest)..].contains('@') {
            return Err(ProxyError::NotAUrl);
        }
        let (kind, default_port) = match scheme.as_str() {
            "http" => (ProxyKind::Tunnel, 80),
            "https" => (ProxyKind::Tunnel, 443),
            "socks5" | "socks5h" => (ProxyKind::Socks5, 1080),
            _ => return Err(ProxyError::Scheme(scheme.chars().take(20).collect())),
        };
        let read = intercept(text).ok_or(ProxyError::NotAUrl)?;
        let uri = with_port(read.uri(), default_port).ok_or(ProxyError::NotAUrl)?;
        let login = match (read.basic_auth(), read.raw_auth()) {
            (Some(value), _) => ProxyLogin::Basic(value.clone()),
            (None, Some((user, password))) if user.len() > 255 || password.len() > 255 => {
                return Err(ProxyError::LoginTooLong);
            }
            (None, Some((user, password))) => {
                ProxyLogin::Password(user.to_owned(), password.to_owned())
            }
            (None, None) => ProxyLogin::None,
        };
        Ok(Self { kind, uri, login })
    }
}

/// The URL without user and password, for logs.
impl fmt::Display for ApiProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        write!(f, "{scheme}://{authority}")
    }
}

impl fmt::Debug for ApiProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether `NO_PROXY` excludes `server` from the proxy.
///
/// Parsed as in Go, and so in kubectl: hosts with all their subdomains, addresses, networks, `*` for everything,
/// each with an optional port. (kube 5.0 matches the list against the *proxy's* host.)
pub(crate) fn bypassed(no_proxy: &str, server: &Uri) -> bool {
    let port = server.port_u16().unwrap_or_else(|| default_port(server));
    let mut hosts = Vec::new();
    for entry in no_proxy.split(',').map(str::trim) {
        let entry = entry.strip_prefix("*.").unwrap_or(entry);
        match entry.rsplit_once(':') {
            _ if entry == "*" => return true,
            // More than one colon means an IPv6 address, unless it is in brackets.
            Some((host, at)) if !host.contains(':') || host.ends_with(']') => {
                if at.parse() == Ok(port) {
                    hosts.push(host.trim_start_matches('[').trim_end_matches(']'));
                }
            }
            _ => hosts.push(entry),
        }
    }
    let matcher = Matcher::builder()
        .all("http://unused")
        .no(hosts.join(","))
        .build();
    matcher.intercept(server).is_none()
}

/// Removes user and password from a possibly invalid URL, for messages. In a password that is not percent-encoded, `/`, `?`,
/// `#` and `://` do not end the login, so everything up to the last `@` is removed.
pub(crate) fn without_login(url: &str) -> String {
    let Some((login, host)) = url.rsplit_once('@') else {
        return url.to_owned();
    };
    match login.split_once("://") {
        Some((scheme, _)) if is_scheme(scheme) => format!("{scheme}://{host}"),
        _ => host.to_owned(),
    }
}

/// Splits user and password, percent-decoded, from the URL; `None` if there are none.
pub(crate) fn login_of(url: &str) -> Option<(String, String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let (authority, path) = rest.split_at(end_of_authority(rest));
    let (login, host) = authority.rsplit_once('@')?;
    let (name, password) = login.split_once(':').unwrap_or((login, ""));
    let decoded = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    let url = format!("{scheme}://{host}{path}");
    Some((url, decoded(name)?, decoded(password)?))
}

fn end_of_authority(rest: &str) -> usize {
    rest.find(['/', '?', '#']).unwrap_or(rest.len())
}

/// RFC 3986, 3.1. Other text before `://` may be a part of a password.
fn is_scheme(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(inner)
}

pub(crate) fn default_port(uri: &Uri) -> u16 {
    if uri.scheme_str() == Some("http") {
        80
    } else {
        443
    }
}

/// The same URI with its port written out.
pub(crate) fn with_port(uri: &Uri, default: u16) -> Option<Uri> {
    let port = uri.port_u16().unwrap_or(default);
    let mut parts = uri.clone().into_parts();
    parts.authority = Some(format!("{}:{port}", uri.host()?).parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Parses a proxy URL with hyper-util: scheme, user, password and escapes.
fn intercept(text: &str) -> Option<Intercept> {
    Matcher::builder()
        .all(text)
        .build()
        .intercept(&Uri::from_static("https://any.invalid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind() {
        let of = |text: &str| ApiProxy::parse(text).map(|p| (p.kind, p.to_string()));
        for (text, kind, shown) in [
            ("http://p:3128", ProxyKind::Tunnel, "http://p:3128"),
            ("http://p", ProxyKind::Tunnel, "http://p:80"),
            ("p:3128", ProxyKind::Tunnel, "http://p:3128"),
            ("HTTPS://p/", ProxyKind::Tunnel, "https://p:443"),
            ("socks5://p", ProxyKind::Socks5, "socks5://p:1080"),
            ("socks5h://[::1]:9", ProxyKind::Socks5, "socks5h://[::1]:9"),
            ("http://u:s3cret@p:1", ProxyKind::Tunnel, "http://p:1"),
        ] {
            assert_eq!(of(text), Ok((kind, shown.to_owned())), "{text}");
        }
        assert_eq!(of("ftp://p"), Err(ProxyError::Scheme("ftp".into())));
        assert_eq!(of("socks4://p"), Err(ProxyError::Scheme("socks4".into())));
        assert_eq!(of("http://u:a b@p"), Err(ProxyError::NotAUrl));
        assert_eq!(of("http://"), Err(ProxyError::NotAUrl));
        for unescaped in [
            "http://u:1/ss@p",
            "u:1?ss@p",
            "http://u:1#ss@p",
            "u:pa://ss@p",
        ] {
            assert_eq!(of(unescaped), Err(ProxyError::NotAUrl), "{unescaped}");
        }
        let long = format!("socks5://u:{}@p", "x".repeat(256));
        assert_eq!(of(&long), Err(ProxyError::LoginTooLong));
    }

    #[test]
    fn logins_are_decoded_and_never_shown() {
        let http = ApiProxy::parse("http://user:pa%40ss%3A@p:1").unwrap();
        let ProxyLogin::Basic(value) = &http.login else {
            panic!("{http:?}")
        };
        assert_eq!(value, "Basic dXNlcjpwYUBzczo=");
        assert!(value.is_sensitive());
        let socks = ApiProxy::parse("socks5h://user:pa%40ss@p").unwrap();
        assert!(matches!(&socks.login, ProxyLogin::Password(u, p) if u == "user" && p == "pa@ss"));
        assert!(!format!("{http:?}{socks:?}{http}{socks}").contains("pa"));
    }

    #[test]
    fn a_password_that_is_not_escaped_is_not_shown() {
        for login in [
            "pa/ss",
            "user:pa/ss",
            "user:1/ss",
            "user:pa?s#s",
            "user:p@ss",
            "u:p://ss",
        ] {
            assert_eq!(
                without_login(&format!("https://{login}@host:1/a")),
                "https://host:1/a"
            );
            assert_eq!(without_login(&format!("{login}@host")), "host");
        }
        assert_eq!(without_login("https://host/a?b"), "https://host/a?b");
        let at = login_of("https://u:p@host/a@b").map(|(url, ..)| url);
        assert_eq!(at.as_deref(), Some("https://host/a@b"), "sent, not shown");
    }

    #[test]
    fn no_proxy_as_go_reads_it() {
        let yes = |list: &str, url: &'static str| {
            assert!(bypassed(list, &Uri::from_static(url)), "{list} {url}");
        };
        let no = |list: &str, url: &'static str| {
            assert!(!bypassed(list, &Uri::from_static(url)), "{list} {url}");
        };
        yes("*", "https://10.0.0.1:6443");
        yes("x, *", "https://api.corp");
        yes("api.corp", "https://api.corp:6443");
        yes("corp", "https://api.corp:6443");
        yes(".corp", "https://api.corp");
        yes("*.corp", "https://api.corp");
        yes("API.Corp:6443", "https://api.corp:6443");
        yes("api.corp:443", "https://api.corp");
        yes("10.0.0.1", "https://10.0.0.1");
        yes("10.0.0.0/8,", "https://10.9.8.7:6443");
        yes("10.0.0.1:6443", "https://10.0.0.1:6443");
        yes("fd00::/8", "https://[fd00::1]:6443");
        yes("[fd00::1]:6443", "https://[fd00::1]:6443");
        no("", "https://api.corp");
        no("api.corp:443", "https://api.corp:6443");
        no("pi.corp", "https://api.corp");
        no("10.0.0.0/8", "https://11.0.0.1");
        no("[fd00::1]:1", "https://[fd00::1]:6443");
        // The proxy's own host is not what the list is about.
        no("proxy.corp", "https://api.other");
    }
}
