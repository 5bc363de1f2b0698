//! What happens to the fields of a message on its way through (RFC 9110 section 7.6, RFC 9112 section 6).

use std::mem::take;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
    WWW_AUTHENTICATE,
};
use http::{Method, StatusCode, Uri, Version, request, response, uri};
use kubevpn_conn::Head;
use kubevpn_target::Target;

use crate::authority::host_value;

/// Who we are in `Via` and `Proxy-Status`.
pub(crate) const PSEUDONYM: &str = "kubevpn";

const VIA_10: HeaderValue = HeaderValue::from_static("1.0 kubevpn");
const VIA_11: HeaderValue = HeaderValue::from_static("1.1 kubevpn");
const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");

/// Fields about one connection, not about the message, whether or not `Connection` names them.
static HOP_BY_HOP: [HeaderName; 9] = [
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
pub(crate) enum RequestContent {
    None,
    Known,
    Chunked,
}

/// Makes of a request as a client sends it to a proxy the request a proxy sends on. Fields that pass keep their
/// order.
pub(crate) fn request(
    head: &mut request::Parts,
    target: &Target,
    content: RequestContent,
    keep_host: bool,
) -> Asks {
    let from = head.version;
    let headers = &mut head.headers;
    let upgrade = (from == Version::HTTP_11 && content == RequestContent::None)
        .then(|| wanted_upgrade(headers))
        .flatten();
    let trailers = has_token(headers, &TE, "trailers");
    let expects = has_token(headers, &EXPECT, "100-continue");
    let go_ahead = expects && content != RequestContent::None && from == Version::HTTP_11;
    let asks = Asks {
        upgrade: upgrade.is_some(),
        go_ahead,
    };

    let connection = connection(headers, trailers, asks.upgrade);
    let mut replaced = vec![
        (CONNECTION, connection),
        (TE, trailers.then(|| HeaderValue::from_static("trailers"))),
        (UPGRADE, upgrade),
        (
            TRANSFER_ENCODING,
            (content == RequestContent::Chunked).then_some(CHUNKED),
        ),
    ];
    match content {
        RequestContent::None => {}
        RequestContent::Known => {
            let length = headers.get(CONTENT_LENGTH).cloned();
            replaced.push((CONTENT_LENGTH, length));
        }
        RequestContent::Chunked => replaced.push((CONTENT_LENGTH, None)),
    }
    let has_host = headers.get(HOST).is_some_and(|host| !host.is_empty());
    if !keep_host || !has_host {
        replaced.push((HOST, HeaderValue::from_str(&host_value(target)).ok()));
    }
    if expects && !go_ahead {
        replaced.push((EXPECT, None));
    }
    if let Some(left) = forwards_left(headers, &head.method) {
        replaced.push((MAX_FORWARDS, Some(left.saturating_sub(1).into())));
    }
    pass_on(headers, replaced, from);
    head.version = Version::HTTP_11;
    head.uri = origin_form(&head.uri);
    asks
}

/// Why a response cannot be sent on: its body is coded in a way we do not understand, or has two lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownCoding;

/// Makes of a response as a server sends it the response a proxy sends on. Answers with the length of a body that
/// hyper takes to go on to the end of the connection, if there is one.
pub(crate) fn response(head: &mut response::Parts) -> Result<Option<u64>, UnknownCoding> {
    let from = head.version;
    let headers = &mut head.headers;
    // A response with both is framed by its transfer coding; a length that stayed would be a lie.
    let coded = headers.contains_key(TRANSFER_ENCODING);
    let chunked = is_chunked(headers);
    let mut ends = None;
    // "identity" was a coding until RFC 7230: none.
    if coded && !chunked {
        let mut codings = tokens(headers, &TRANSFER_ENCODING);
        if !codings.all(|coding| coding.eq_ignore_ascii_case(b"identity")) {
            return Err(UnknownCoding);
        }
        ends = length(headers).map_err(|_| UnknownCoding)?;
    }
    let upgrade = match head.status {
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED => {
            headers.get(UPGRADE).cloned()
        }
        _ => None,
    };
    let connection = connection(headers, false, upgrade.is_some());
    let mut replaced = vec![(CONNECTION, connection), (UPGRADE, upgrade)];
    if headers.contains_key(CONTENT_LENGTH) {
        // One of several that agree (`5, 5` is one of them); hyper has refused others.
        let first = tokens(headers, &CONTENT_LENGTH).next();
        let first = first.filter(|_| !chunked);
        let first = first.and_then(|first| HeaderValue::from_bytes(first).ok());
        replaced.push((CONTENT_LENGTH, first));
    }
    pass_on(headers, replaced, from);
    head.version = Version::HTTP_11;
    Ok(ends)
}

/// The same for an interim response (1xx), which has no body.
pub(crate) fn interim(headers: &mut HeaderMap) {
    let replaced = vec![(CONTENT_LENGTH, None), (TRANSFER_ENCODING, None)];
    pass_on(headers, replaced, Version::HTTP_11);
}

/// Whether a request shows, or a response asks for, credentials that vouch for the connection they are sent on.
pub(crate) fn knows_client(headers: &HeaderMap) -> bool {
    let schemes = [AUTHORIZATION, WWW_AUTHENTICATE];
    let mut values = schemes.iter().flat_map(|name| headers.get_all(name));
    values.any(|value| {
        let scheme = value.as_bytes().split(|b| *b == b' ').next();
        let scheme = scheme.unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
    })
}

/// A head, for whoever looks at what goes through.
pub(crate) fn told(version: Version, fields: &HeaderMap) -> Head {
    let fields = fields.iter();
    Head::copied(
        format!("{version:?}"),
        fields.map(|(name, value)| (name.as_str(), value.as_bytes())),
    )
}

/// The trace that a request belongs to: the only `traceparent`, if it is well-formed. Others are passed on all the same.
pub(crate) fn traceparent(fields: &HeaderMap) -> Option<String> {
    const LONGEST: usize = 256;
    let mut all = fields.get_all("traceparent").iter();
    let (first, second) = (all.next()?, all.next());
    let only = first.to_str().ok().filter(|_| second.is_none())?;
    (only.len() <= LONGEST && is_traceparent(only.as_bytes())).then(|| only.to_owned())
}

/// Whether a value is what W3C Trace Context, section 3.2, allows. Version 00 has nothing after the flags; a higher one may
/// have more after another dash.
fn is_traceparent(value: &[u8]) -> bool {
    let Some((known, more)) = value.split_at_checked(55) else {
        return false;
    };
    let parts: Vec<&[u8]> = known.split(|b| *b == b'-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return false;
    };
    let is_hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let is_zero = |id: &[u8]| id.iter().all(|b| *b == b'0');
    [version, trace, span, flags].map(<[u8]>::len) == [2, 32, 16, 2]
        && parts.iter().all(|part| part.iter().all(is_hex))
        && !is_zero(trace)
        && !is_zero(span)
        && match version {
            b"ff" => false,
            b"00" => more.is_empty(),
            _ => more.is_empty() || more.starts_with(b"-"),
        }
}

/// Leaves out what is about one connection, puts `replaced` in the place of what is there, or at the end, and adds
/// who passed the message on.
fn pass_on(
    headers: &mut HeaderMap,
    mut replaced: Vec<(HeaderName, Option<HeaderValue>)>,
    from: Version,
) {
    let named = named(headers);
    let via = match from {
        Version::HTTP_10 => VIA_10,
        _ => VIA_11,
    };
    let stays = |name: &HeaderName| match replaced.iter().find(|(other, _)| other == name) {
        Some((_, new)) => new.is_some(),
        None => !HOP_BY_HOP.contains(name) && !named.contains(name),
    };
    if headers.keys().all(stays) {
        for (name, value) in replaced {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        headers.append(VIA, via);
        return;
    }
    let before = take(headers);
    headers.reserve(before.len() + replaced.len() + 1);
    let mut passes = None;
    for (name, value) in before {
        if let Some(name) = name {
            let known = replaced.iter_mut().find(|(other, _)| *other == name);
            passes = match known {
                Some((_, new)) => {
                    if let Some(new) = new.take() {
                        headers.append(name, new);
                    }
                    None
                }
                None if HOP_BY_HOP.contains(&name) || named.contains(&name) => None,
                None => Some(name),
            };
        }
        if let Some(name) = &passes {
            headers.append(name, value);
        }
    }
    for (name, value) in replaced {
        if let Some(value) = value {
            headers.append(name, value);
        }
    }
    headers.append(VIA, via);
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

/// What `Connection` says of the message as it is sent on, in the sender's own spelling.
fn connection(headers: &HeaderMap, te: bool, upgrade: bool) -> Option<HeaderValue> {
    let mut options: Vec<&[u8]> = Vec::new();
    for (wanted, name) in [(te, &b"TE"[..]), (upgrade, b"Upgrade")] {
        if wanted {
            let mut written = tokens(headers, &CONNECTION);
            let written = written.find(|option| option.eq_ignore_ascii_case(name));
            options.push(written.unwrap_or(name));
        }
    }
    match options.is_empty() {
        true => None,
        false => HeaderValue::from_bytes(&options.join(&b", "[..])).ok(),
    }
}

/// The fields that `Connection` names.
fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    tokens(headers, &CONNECTION)
        .filter(|t| !t.eq_ignore_ascii_case(b"keep-alive") && !t.eq_ignore_ascii_case(b"close"))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect()
}

/// The one length all fields agree on.
fn length(headers: &HeaderMap) -> Result<Option<u64>, UnknownCoding> {
    let mut one = None;
    for token in tokens(headers, &CONTENT_LENGTH) {
        let digits = token.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(token).ok().filter(|_| digits);
        let length = length.and_then(|length| length.parse::<u64>().ok());
        let length = length.ok_or(UnknownCoding)?;
        if *one.get_or_insert(length) != length {
            return Err(UnknownCoding);
        }
    }
    Ok(one)
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
