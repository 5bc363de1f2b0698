//! What happens to the fields of a message on its way through (RFC 9110 section 7.6, RFC 9112 section 6).

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, Entry, HOST, HeaderMap, HeaderName, HeaderValue,
    MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{Method, StatusCode, Uri, Version, request, response, uri};
use kubevpn_target::Target;

use crate::authority::host_value;

/// Who we are in `Via` and `Proxy-Status`.
pub(crate) const PSEUDONYM: &str = "kubevpn";

const VIA_10: HeaderValue = HeaderValue::from_static("1.0 kubevpn");
const VIA_11: HeaderValue = HeaderValue::from_static("1.1 kubevpn");
const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");

/// Fields about one connection, not about the message, whether or not `Connection` names them.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    PROXY_AUTHORIZATION,
];

/// What a request asks of the connection it is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asks {
    /// To switch protocols.
    pub(crate) upgrade: bool,
    /// To be told before it sends its body.
    pub(crate) go_ahead: bool,
}

/// What a request has behind its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    None,
    Known,
    Chunked,
}

/// Makes of a request as a client sends it to a proxy the request a proxy sends on.
pub(crate) fn request(head: &mut request::Parts, target: &Target, content: Content) -> Asks {
    let from = head.version;
    let headers = &mut head.headers;
    let upgrade = (from == Version::HTTP_11 && content == Content::None)
        .then(|| wanted_upgrade(headers))
        .flatten();
    let trailers = has_token(headers, &TE, "trailers");
    strip(headers);

    if let Ok(host) = HeaderValue::from_str(&host_value(target)) {
        headers.insert(HOST, host);
    }
    headers.append(
        VIA,
        if from == Version::HTTP_10 {
            VIA_10
        } else {
            VIA_11
        },
    );
    match content {
        Content::None | Content::Known => {}
        Content::Chunked => {
            headers.remove(CONTENT_LENGTH);
            headers.insert(TRANSFER_ENCODING, CHUNKED);
        }
    }
    let go_ahead = has_token(headers, &EXPECT, "100-continue");
    let go_ahead = go_ahead && content != Content::None && from == Version::HTTP_11;
    if !go_ahead && has_token(headers, &EXPECT, "100-continue") {
        headers.remove(EXPECT);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.append(CONNECTION, HeaderValue::from_static("te"));
    }
    let asks = Asks {
        upgrade: upgrade.is_some(),
        go_ahead,
    };
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if let Some(left) = forwards_left(headers, &head.method) {
        headers.insert(MAX_FORWARDS, left.saturating_sub(1).into());
    }
    head.version = Version::HTTP_11;
    head.uri = origin_form(&head.uri);
    asks
}

/// Makes of a response as a server sends it the response a proxy sends on. `false` if its body is coded in
/// a way we do not understand, so that it cannot be sent on.
pub(crate) fn response(head: &mut response::Parts) -> bool {
    let from = head.version;
    let headers = &mut head.headers;
    // A response with both is framed by its transfer coding; a length that stayed would be a lie.
    let coded = headers.contains_key(TRANSFER_ENCODING);
    if coded && !is_chunked(headers) {
        return false;
    }
    let upgrade = match head.status {
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED => headers.remove(UPGRADE),
        _ => None,
    };
    strip(headers);
    if coded {
        headers.remove(CONTENT_LENGTH);
    } else {
        one_length(headers);
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    headers.append(
        VIA,
        if from == Version::HTTP_10 {
            VIA_10
        } else {
            VIA_11
        },
    );
    head.version = Version::HTTP_11;
    true
}

/// Whether the only transfer coding is chunked, once. Others would be lost with the field, and a body
/// chunked twice has two readings.
pub(crate) fn is_chunked(headers: &HeaderMap) -> bool {
    let mut codings = tokens(headers, &TRANSFER_ENCODING);
    codings
        .next()
        .is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// How often an OPTIONS or TRACE may still be forwarded; `None` for any number, and for other methods.
pub(crate) fn forwards_left(headers: &HeaderMap, method: &Method) -> Option<u64> {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return None;
    }
    let digits = headers.get(MAX_FORWARDS)?.to_str().ok()?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The protocols a request would switch to. Not HTTP/2: a server that took it would speak with us what
/// only the client can, and a client is told to leave it when its proxy drops the offer.
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    if !has_token(headers, &CONNECTION, "upgrade") || has_token(headers, &UPGRADE, "h2c") {
        return None;
    }
    let mut offers = headers.get_all(UPGRADE).iter();
    let offer = offers.next()?.clone();
    match offers.next() {
        None if !offer.is_empty() => Some(offer),
        _ => None,
    }
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter(|t| !t.eq_ignore_ascii_case(b"keep-alive") && !t.eq_ignore_ascii_case(b"close"))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Leaves one `Content-Length` of several that agree (`5, 5` is one of them). hyper has refused others.
fn one_length(headers: &mut HeaderMap) {
    let first = tokens(headers, &CONTENT_LENGTH).next();
    let first = first.and_then(|length| HeaderValue::from_bytes(length).ok());
    if let (Some(first), Entry::Occupied(mut all)) = (first, headers.entry(CONTENT_LENGTH)) {
        all.insert(first);
    }
}

/// `/path?query`. An OPTIONS without a path should become `*` (RFC 9112 section 3.2.4), but the URI library
/// shows an empty path as `/`, which asks nearly the same.
fn origin_form(uri: &Uri) -> Uri {
    let slash = || uri::PathAndQuery::from_static("/");
    Uri::from(uri.path_and_query().cloned().unwrap_or_else(slash))
}

fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// The members of a comma-separated field, over all its lines.
fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests;
