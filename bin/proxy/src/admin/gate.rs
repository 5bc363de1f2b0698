//! Access to the status page, and to cutting connections. The threats are those of docs/security.md, and `tests.rs` tries
//! them: other programs on this machine, and other sites in the user's browser.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::header::{COOKIE, HOST, ORIGIN};
use http::{HeaderMap, Method, StatusCode};
use subtle::ConstantTimeEq as _;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;

/// Prefix of the cookie's name. The port follows, because a browser sends a cookie to every port of a host.
const COOKIE_NAME: &str = "kubevpn-";

/// Secrets of one listener, made when it is bound and stored nowhere else.
pub(super) struct Keys {
    /// Token in the URL that is printed for the user.
    token: String,
    /// Cookie that a browser gets in exchange for the token.
    cookie: String,
    /// Value in the page's forms, against cross-site requests.
    csrf: String,
    /// Address of the listener.
    at: SocketAddr,
}

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denied(pub(super) StatusCode, pub(super) &'static str);

const NO_HOST: Denied = Denied(
    StatusCode::MISDIRECTED_REQUEST,
    "this host is none of this page's: open it by its address, 127.0.0.1 or [::1], or as localhost",
);
const FOREIGN_NAME: Denied = Denied(
    StatusCode::MISDIRECTED_REQUEST,
    "this host may be another site's: ask by an address, localhost, a name without dots or one in .internal\n",
);
const FOREIGN: Denied = Denied(
    StatusCode::FORBIDDEN,
    "another site asks: open the page by itself",
);
const NO_COOKIE: Denied = Denied(
    StatusCode::UNAUTHORIZED,
    "open the URL with the token, which kubevpn has said when it began to listen",
);
const NO_CSRF: Denied = Denied(
    StatusCode::FORBIDDEN,
    "the page is of an earlier start of kubevpn: reload it",
);

impl Keys {
    /// `None` if the system provides no random numbers.
    pub(super) fn new(at: SocketAddr) -> Option<Self> {
        Some(Self {
            token: secret()?,
            cookie: secret()?,
            csrf: secret()?,
            at,
        })
    }

    pub(super) fn csrf(&self) -> &str {
        &self.csrf
    }

    /// URL with the token, to be shown to the user only.
    pub(super) fn url(&self) -> String {
        format!("http://{}/?token={}", self.at, self.token)
    }

    /// Value of `Set-Cookie` for a browser that has shown the token.
    pub(super) fn set_cookie(&self) -> String {
        format!(
            "{COOKIE_NAME}{}={}; Path=/; HttpOnly; SameSite=Strict",
            self.at.port(),
            self.cookie
        )
    }

    /// Whether the request comes from the page itself, or from no page at all.
    pub(super) fn check_origin(&self, method: &Method, headers: &HeaderMap) -> Result<(), Denied> {
        let host = only(headers, HOST.as_str()).ok_or(NO_HOST)?;
        if !is_own(host) {
            return Err(NO_HOST);
        }
        match only(headers, ORIGIN.as_str()) {
            Some(origin) if origin.strip_prefix("http://") == Some(host) => {}
            None if !headers.contains_key(ORIGIN) && *method != Method::POST => {}
            _ => return Err(FOREIGN),
        }
        // A link to the page may be followed from any site, because the cookie is not sent then.
        let is_link = only(headers, "sec-fetch-mode") == Some("navigate")
            && only(headers, "sec-fetch-dest") == Some("document")
            && *method == Method::GET;
        match only(headers, "sec-fetch-site") {
            Some("same-origin" | "none") => Ok(()),
            None if !headers.contains_key("sec-fetch-site") => Ok(()),
            _ if is_link => Ok(()),
            _ => Err(FOREIGN),
        }
    }

    pub(super) fn has_token(&self, query: Option<&str>) -> bool {
        let token = query.and_then(|query| query.strip_prefix("token="));
        token.is_some_and(|token| is_same(token, &self.token))
    }

    pub(super) fn check_cookie(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let name = format!("{COOKIE_NAME}{}=", self.at.port());
        let fields = headers.get_all(COOKIE).into_iter();
        let cookies = fields.filter_map(|field| field.to_str().ok());
        let mut cookies = cookies.flat_map(|field| field.split("; "));
        let shown = |cookie: &str| {
            let value = cookie.strip_prefix(&*name);
            value.is_some_and(|value| is_same(value, &self.cookie))
        };
        cookies.any(shown).then_some(()).ok_or(NO_COOKIE)
    }

    /// Number of the connection in a form sent by the page.
    pub(super) fn read_form(&self, form: &[u8]) -> Result<u64, Denied> {
        let form = str::from_utf8(form).unwrap_or_default();
        let field = |name: &str| {
            let mut fields = form.split('&').filter_map(|field| field.split_once('='));
            fields
                .find(|(found, _)| *found == name)
                .map(|(_, value)| value)
        };
        if !field("csrf").is_some_and(|csrf| is_same(csrf, &self.csrf)) {
            return Err(NO_CSRF);
        }
        let id = field("id").and_then(|id| id.parse().ok());
        id.ok_or(Denied(
            StatusCode::BAD_REQUEST,
            "the form names no connection: reload the page",
        ))
    }
}

/// Whether a request without a token is answered on a loopback address: by an address, or by a name that no foreign DNS
/// can lead here, such as `localhost`, one of this network or that of a container's host (`host.docker.internal`). A
/// browser always sends a host.
pub(super) fn check_name(headers: &HeaderMap) -> Result<(), Denied> {
    if !headers.contains_key(HOST) {
        return Ok(());
    }
    let name = only(headers, HOST.as_str()).map(name).unwrap_or_default();
    let is_name = !name.is_empty() && !name.contains(['.', ':']);
    let lower = name.to_ascii_lowercase();
    let is_internal = lower.ends_with(".internal") || lower.ends_with(".localhost");
    match is_name || is_internal || name.parse::<IpAddr>().is_ok() {
        true => Ok(()),
        false => Err(FOREIGN_NAME),
    }
}

/// The host without its port.
fn name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name.trim_start_matches('[').trim_end_matches(']')
}

/// A name that a foreign DNS resolves to this address (DNS rebinding) is not.
fn is_own(host: &str) -> bool {
    let name = name(host);
    match name.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

/// Value of a header that occurs once.
fn only<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn is_same(shown: &str, kept: &str) -> bool {
    shown.as_bytes().ct_eq(kept.as_bytes()).into()
}

/// 256 bits, in hex.
fn secret() -> Option<String> {
    let mut bytes = [0; 32];
    default_provider().secure_random.fill(&mut bytes).ok()?;
    let mut text = String::with_capacity(64);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}
