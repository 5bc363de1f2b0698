//! The proxy's own answers: refusals, the help page, the PAC file.

use bytes::Bytes;
use http::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use kubevpn_target::ConnectError;

use crate::headers::PSEUDONYM;
use crate::problem::Problem;
use crate::refusal::status;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const CHALLENGE: HeaderValue =
    HeaderValue::from_static("Basic realm=\"kubevpn\", charset=\"UTF-8\"");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// Limit on the sentence in `Proxy-Status`; the body has all of it.
const MAX_DETAILS: usize = 512;

/// A refusal, with its sentence in the body, and again in `Proxy-Status` (RFC 9209) for clients that do not
/// show the body of a refused CONNECT.
pub(crate) fn refusal(problem: &Problem) -> Response<Bytes> {
    let mut answer = no(problem.status(), &problem.to_string());
    let headers = answer.headers_mut();
    match problem {
        Problem::Unauthorized => {
            headers.insert(PROXY_AUTHENTICATE, CHALLENGE);
        }
        Problem::PageUnauthorized => {
            headers.insert(WWW_AUTHENTICATE, CHALLENGE);
        }
        Problem::Method => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        _ => {}
    }
    answer
}

/// The same for a target that was not reached.
pub(crate) fn refused(error: &ConnectError) -> Response<Bytes> {
    no(status(error.refusal()), &error.to_string())
}

fn no((status, error): (StatusCode, &str), sentence: &str) -> Response<Bytes> {
    let mut answer = text(status, "text/plain; charset=utf-8", format!("{sentence}\n"));
    let headers = answer.headers_mut();
    let details = quote(sentence);
    let field = format!("{PSEUDONYM}; error={error}; details=\"{details}\"");
    if let Ok(field) = HeaderValue::from_str(&field) {
        headers.insert(PROXY_STATUS, field);
    }
    answer
}

/// The help page, shown if the proxy's address is opened in a browser.
pub(crate) fn help(host: Option<&str>) -> Response<Bytes> {
    let host = host.unwrap_or("localhost");
    let page = format!(
        "This is an HTTP proxy of kubevpn, no web server. To use it, tell a program of it:\n\
         \n\
         http_proxy=http://{host} curl http://SERVICE.NAMESPACE/\n\
         https_proxy=http://{host} curl https://SERVICE.NAMESPACE/\n"
    );
    text(StatusCode::OK, "text/plain; charset=utf-8", page)
}

/// The PAC file. Pages of other origins may not read it, because it names Services.
pub(crate) fn pac(file: Bytes) -> Response<Bytes> {
    let mut answer = text(StatusCode::OK, "application/x-ns-proxy-autoconfig", file);
    answer
        .headers_mut()
        .insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    answer
}

/// The answer to an OPTIONS or TRACE that must not be forwarded (RFC 9110 section 7.6.2).
pub(crate) fn last_hop(head: &Parts) -> Response<Bytes> {
    if head.method == Method::TRACE {
        return text(StatusCode::OK, "message/http", echo(head));
    }
    let mut answer = text(StatusCode::OK, "text/plain; charset=utf-8", Bytes::new());
    answer.headers_mut().insert(
        ALLOW,
        HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE, CONNECT"),
    );
    answer
}

/// The request as received, without secrets (RFC 9110 section 9.3.8).
fn echo(head: &Parts) -> Vec<u8> {
    let mut text = format!("{} {} {:?}\r\n", head.method, head.uri, head.version).into_bytes();
    for (name, value) in &head.headers {
        if matches!(
            name.as_str(),
            "authorization" | "proxy-authorization" | "cookie"
        ) {
            continue;
        }
        field(&mut text, name, value);
    }
    text.extend_from_slice(b"\r\n");
    text
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // Some texts contain names from a request, which must not be interpreted as a script.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// An answer as bytes, for a connection that was taken out of hyper's hands and ends with it.
pub(crate) fn last_words(answer: Response<Bytes>) -> Vec<u8> {
    let (mut head, body) = answer.into_parts();
    let close = HeaderValue::from_static("close");
    head.headers.insert(CONNECTION, close);
    head.headers.insert(CONTENT_LENGTH, body.len().into());
    let mut bytes = self::head(head.status, &head.headers);
    bytes.extend_from_slice(&body);
    bytes
}

/// The head of an answer as bytes.
pub(crate) fn head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = Vec::with_capacity(64 * (headers.len() + 1));
    for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
        bytes.extend_from_slice(part.as_bytes());
    }
    for (name, value) in headers {
        let begin = bytes.len();
        field(&mut bytes, name, value);
        as_written(&mut bytes[begin..begin + name.as_str().len()]);
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// Spells a field name in the usual way, for clients that compare case.
fn as_written(name: &mut [u8]) {
    let mut begins = true;
    for byte in &mut *name {
        if begins {
            byte.make_ascii_uppercase();
        }
        begins = *byte == b'-';
    }
    if name.starts_with(b"Sec-Websocket-") {
        name[7].make_ascii_uppercase();
    }
}

fn field(bytes: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    bytes.extend_from_slice(name.as_str().as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value.as_bytes());
    bytes.extend_from_slice(b"\r\n");
}

/// The inside of a quoted string of RFC 8941, which is ASCII only.
fn quote(sentence: &str) -> String {
    let mut quoted = String::new();
    for c in sentence.chars().take(MAX_DETAILS) {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            '…' => quoted.push_str("..."),
            _ => quoted.push('?'),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubevpn_target::{ConnectError, Refusal};

    #[test]
    fn a_refusal_repeats_its_sentence_in_proxy_status() {
        let error = ConnectError::new(Refusal::NotReady, "\"web\" is not ready\r\nX-Evil: ü\\");
        let answer = refusal(&Problem::Refused(error));
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            answer.headers()["proxy-status"],
            r#"kubevpn; error=destination_unavailable; details="\"web\" is not ready??X-Evil: ?\\""#
        );
        assert_eq!(answer.body(), "\"web\" is not ready\r\nX-Evil: ü\\\n");
    }

    #[test]
    fn a_long_sentence_is_cut_in_the_field_alone() {
        let error = ConnectError::new(Refusal::Internal, "x".repeat(9000));
        let answer = refusal(&Problem::Refused(error));
        assert!(answer.headers()["proxy-status"].len() < 600);
        assert_eq!(answer.body().len(), 9001);
    }

    #[test]
    fn last_words_say_their_length_and_that_they_are_the_last() {
        let words = last_words(refusal(&Problem::Unauthorized));
        let words = String::from_utf8(words).unwrap();
        let (head, body) = words.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 407 Proxy Authentication Required\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nConnection: close"), "{head}");
        assert!(
            head.contains(&format!("\r\nContent-Length: {}", body.len())),
            "{head}"
        );
        assert!(
            head.contains("\r\nProxy-Authenticate: Basic realm="),
            "{head}"
        );
    }

    #[test]
    fn an_echo_leaves_secrets_out() {
        let request = http::Request::builder()
            .method("TRACE")
            .uri("http://web/x?y")
            .header("host", "web")
            .header("authorization", "Basic s3cret")
            .header("proxy-authorization", "Basic s3cret")
            .header("cookie", "s3cret")
            .header("via", "1.1 a")
            .body(())
            .unwrap();
        let answer = last_hop(&request.into_parts().0);
        assert_eq!(answer.headers()[CONTENT_TYPE], "message/http");
        assert_eq!(
            answer.body(),
            "TRACE http://web/x?y HTTP/1.1\r\nhost: web\r\nvia: 1.1 a\r\n\r\n"
        );
    }
}
