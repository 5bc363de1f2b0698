//! Classification of a request by its head.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, MAX_FORWARDS, PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{Method, Version};
use kubevpn_conn::Credentials;
use kubevpn_target::{Host, Origin, Target};

use crate::Settings;
use crate::authority;
use crate::headers::{forwards_left, is_chunked};
use crate::problem::Problem;

/// What a request asks for.
#[derive(Debug)]
pub(crate) enum RequestPurpose {
    /// CONNECT: a tunnel.
    Tunnel(Target),
    /// An absolute-form request-target: the request is forwarded.
    Forward(Target),
    /// An OPTIONS or TRACE that must not be forwarded.
    LastHop,
    /// The help page, for a client that knows the proxy by this name.
    Help(Option<Target>),
    /// The PAC file, for a client that knows the proxy by this name.
    Pac(Option<Target>),
}

pub(crate) fn read(
    head: &Parts,
    settings: &Settings,
    origin: Origin,
) -> Result<RequestPurpose, Problem> {
    let host = host(head, origin)?;
    let uri = &head.uri;
    match (uri.scheme_str(), uri.authority()) {
        _ if head.method == Method::CONNECT => {
            authorize(head, settings)?;
            no_content(head)?;
            let (None, Some(authority)) = (uri.scheme(), uri.authority()) else {
                return Err(Problem::Request(
                    "a CONNECT names host:port and nothing else",
                ));
            };
            let target = authority::tunnel(authority.as_str(), origin).map_err(Problem::Target)?;
            Ok(RequestPurpose::Tunnel(target))
        }
        (Some(scheme), Some(authority)) => {
            authorize(head, settings)?;
            codings(head)?;
            let target = authority::forward(scheme, authority.as_str(), origin);
            let target = target.map_err(Problem::Target)?;
            match last_hop(head)? {
                true => Ok(RequestPurpose::LastHop),
                false => Ok(RequestPurpose::Forward(target)),
            }
        }
        _ if head.method.as_str().eq_ignore_ascii_case("connect") => Err(Problem::Request(
            "methods are written in capitals: send CONNECT host:port",
        )),
        (_, Some(_)) => Err(Problem::Request(
            "only a CONNECT names host:port: write the whole address, http://host:port/path",
        )),
        (_, None) => ours(head, host, settings, origin),
    }
}

/// A request to the proxy itself. It is answered only under a name that no other site can have: a page in a
/// browser whose own name resolves to our address (DNS rebinding) must not read anything.
fn ours(
    head: &Parts,
    host: Option<Target>,
    settings: &Settings,
    origin: Origin,
) -> Result<RequestPurpose, Problem> {
    if let Some(target) = &host
        && let Host::Name(name) = &target.host
        && !is_ours(name.as_str(), settings)
    {
        return Err(Problem::Misdirected);
    }
    if head.uri.path() == "*" {
        return match head.method {
            Method::OPTIONS => Ok(RequestPurpose::LastHop),
            _ => Err(Problem::Request("only an OPTIONS asks for *")),
        };
    }
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Err(Problem::Method);
    }
    // A browser cannot send a password for its PAC file, so users of this machine need none.
    let is_near = |peer: SocketAddr| peer.ip().to_canonical().is_loopback();
    if let Some(wanted) = &settings.credentials
        && !origin.peer.is_none_or(is_near)
        && !shows(head, &AUTHORIZATION, wanted)
    {
        return Err(Problem::PageUnauthorized);
    }
    match head.uri.path() {
        "/" => Ok(RequestPurpose::Help(host)),
        "/proxy.pac" if settings.pac.is_some() => Ok(RequestPurpose::Pac(host)),
        _ => Err(Problem::NoPage),
    }
}

/// Whether a name may be the proxy's own. Containers and virtual machines call their host `host.docker.internal` and
/// similar names; no other site can have one, because `.internal` is reserved for private use.
fn is_ours(name: &str, settings: &Settings) -> bool {
    let mut labels = name.rsplit('.');
    match (labels.next(), labels.next(), labels.next(), labels.next()) {
        (Some("localhost"), ..) => true,
        (Some("internal"), Some(_), Some("host"), None) => true,
        _ => settings
            .names
            .iter()
            .any(|own| own.eq_ignore_ascii_case(name)),
    }
}

/// Checks the `Host` field: once, and well-formed or empty (RFC 9112 section 3.2). It is not used for a forwarded
/// request.
fn host(head: &Parts, origin: Origin) -> Result<Option<Target>, Problem> {
    let mut all = head.headers.get_all(HOST).iter();
    let host = match (all.next(), all.next()) {
        (None, _) if head.version == Version::HTTP_11 => {
            return Err(Problem::Request(
                "the Host field is missing, which HTTP/1.1 asks for",
            ));
        }
        (None, _) => return Ok(None),
        (Some(_), Some(_)) => return Err(Problem::Request("there is more than one Host field")),
        (Some(host), None) => host,
    };
    if host.is_empty() {
        return Ok(None);
    }
    let target = host.to_str().ok().map(|host| authority::host(host, origin));
    match target {
        Some(Ok(target)) => Ok(Some(target)),
        _ => Err(Problem::Request("the Host field is not host:port")),
    }
}

fn codings(head: &Parts) -> Result<(), Problem> {
    match head.headers.contains_key(TRANSFER_ENCODING) && !is_chunked(&head.headers) {
        true => Err(Problem::Coding),
        false => Ok(()),
    }
}

/// A CONNECT has no content; bytes after its head belong to the tunnel.
fn no_content(head: &Parts) -> Result<(), Problem> {
    let empty = head
        .headers
        .get(CONTENT_LENGTH)
        .is_none_or(|length| length == "0");
    match empty && !head.headers.contains_key(TRANSFER_ENCODING) {
        true => Ok(()),
        false => Err(Problem::Request(
            "a CONNECT has no body: leave out Content-Length and Transfer-Encoding",
        )),
    }
}

/// Whether an OPTIONS or TRACE has been forwarded as often as it may.
fn last_hop(head: &Parts) -> Result<bool, Problem> {
    if !matches!(head.method, Method::OPTIONS | Method::TRACE) {
        return Ok(false);
    }
    let mut all = head.headers.get_all(MAX_FORWARDS).iter();
    match (
        all.next(),
        all.next(),
        forwards_left(&head.headers, &head.method),
    ) {
        (None, _, _) => Ok(false),
        (Some(_), None, Some(left)) => Ok(left == 0),
        _ => Err(Problem::Request("Max-Forwards is not one number")),
    }
}

fn authorize(head: &Parts, settings: &Settings) -> Result<(), Problem> {
    match &settings.credentials {
        Some(wanted) if !shows(head, &PROXY_AUTHORIZATION, wanted) => Err(Problem::Unauthorized),
        _ => Ok(()),
    }
}

/// Whether the request has the right `Basic` credentials (RFC 7617) in this field.
fn shows(head: &Parts, field: &HeaderName, wanted: &Credentials) -> bool {
    let mut all = head.headers.get_all(field).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return false;
    };
    let Some((scheme, token)) = value.to_str().ok().and_then(|v| v.split_once(' ')) else {
        return false;
    };
    if !scheme.eq_ignore_ascii_case("basic") {
        return false;
    }
    let Ok(pair) = STANDARD.decode(token.trim_ascii()) else {
        return false;
    };
    match pair.iter().position(|b| *b == b':') {
        Some(colon) => wanted.check(&pair[..colon], &pair[colon + 1..]),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use kubevpn_target::Frontend;

    /// A client on another machine has to authenticate for our own pages.
    #[test]
    fn pages_are_for_all_of_this_machine_alone() {
        let settings = Settings {
            credentials: Credentials::new("ann", "s3:cret").ok(),
            pac: Some("".into()),
            ..Settings::default()
        };
        let ask = |path: &str, peer: Option<&str>, shown: &str| {
            let peer = peer.map(|peer| SocketAddr::new(peer.parse().unwrap(), 1));
            let origin = Origin {
                frontend: Frontend::Http,
                peer,
            };
            let request = Request::get(path)
                .header("host", "192.0.2.1:8118")
                .header("authorization", shown);
            let (head, ()) = request.body(()).unwrap().into_parts();
            read(&head, &settings, origin)
        };
        for path in ["/", "/proxy.pac", "/x"] {
            for near in [
                None,
                Some("127.0.0.1"),
                Some("::1"),
                Some("::ffff:127.0.0.1"),
            ] {
                let asked = ask(path, near, "");
                assert!(!matches!(asked, Err(Problem::PageUnauthorized)), "{near:?}");
            }
            for shown in ["", "Basic x", "Basic YW5uOnMzOmNyZQ=="] {
                let asked = ask(path, Some("192.0.2.9"), shown);
                assert!(matches!(asked, Err(Problem::PageUnauthorized)), "{path}");
            }
        }
        let asked = ask("/proxy.pac", Some("192.0.2.9"), "Basic YW5uOnMzOmNyZXQ=");
        assert!(matches!(asked, Ok(RequestPurpose::Pac(_))));
        let problem = Problem::PageUnauthorized;
        let answer = crate::answer::refusal(&problem);
        assert_eq!(answer.status(), 401);
        assert!(answer.headers().contains_key("www-authenticate"));
    }
}
