//! Everything that ends in an answer of our own that says no: its status, its name in `Proxy-Status`, and
//! the sentence for the user.

use std::fmt;
use std::time::Duration;

use http::StatusCode;
use kubevpn_target::{ConnectError, Target};

use crate::authority::AuthorityError;
use crate::refusal::status;
use crate::{MAX_FIELDS, MAX_HEAD};

/// Which field leaves open where a message ends, if that is what hyper stumbled over.
pub(crate) fn framing(error: &hyper::Error) -> Option<&'static str> {
    // hyper tells them apart in its words alone.
    let words = error.to_string();
    if words.contains("content-length") {
        Some("its Content-Length is not one number")
    } else if words.contains("transfer-encoding") {
        Some("its Transfer-Encoding does not end in chunked, or stands in HTTP/1.0")
    } else {
        None
    }
}

/// Why a request got no answer of its target's.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The request-target names nothing that can be connected to.
    Target(AuthorityError),
    /// The request breaks a rule of HTTP.
    Request(&'static str),
    /// The head is no HTTP, or more than it may be.
    Malformed {
        status: StatusCode,
        sentence: String,
    },
    /// The head is larger than it may be.
    LargeHead,
    /// No complete head in this time.
    Slow(Duration),
    /// A transfer coding besides chunked.
    Coding,
    /// A method our own pages do not have.
    Method,
    /// A request to the proxy itself under a name it does not have.
    Misdirected,
    /// A path our own pages do not have.
    NoPage,
    /// No credentials, or not the right ones.
    Unauthorized,
    /// The same for one of our own pages.
    PageUnauthorized,
    /// The body of the request broke or was malformed, after its head had been sent on.
    Body,
    /// No stream to the target.
    Refused(ConnectError),
    /// The stream to the target ended before an answer.
    Died { target: Target, error: hyper::Error },
    /// What the target answered is no HTTP/1 message.
    Garbage { target: Target, error: hyper::Error },
    /// The target's answer has a head larger than it may be.
    LargeAnswer(Target),
    /// The target's answer has a transfer coding besides chunked.
    AnswerCoding(Target),
    /// The target switched protocols unasked, or did not go on after it had.
    Switched(Target),
}

impl Problem {
    /// The status, and the error type of RFC 9209.
    pub(crate) fn status(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        let request = |status| (status, "http_request_error");
        match self {
            Self::Target(_) | Self::Request(_) | Self::Body => request(S::BAD_REQUEST),
            Self::Malformed { status, .. } => request(*status),
            Self::LargeHead => request(S::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Self::Slow(_) => request(S::REQUEST_TIMEOUT),
            Self::Coding => request(S::NOT_IMPLEMENTED),
            Self::Method => request(S::METHOD_NOT_ALLOWED),
            Self::NoPage => request(S::NOT_FOUND),
            Self::Misdirected => (S::MISDIRECTED_REQUEST, "http_request_denied"),
            Self::Unauthorized => (S::PROXY_AUTHENTICATION_REQUIRED, "http_request_denied"),
            Self::PageUnauthorized => (S::UNAUTHORIZED, "http_request_denied"),
            Self::Refused(error) => status(error.refusal()),
            Self::Died { .. } => (S::BAD_GATEWAY, "connection_terminated"),
            Self::Garbage { .. } => (S::BAD_GATEWAY, "http_protocol_error"),
            Self::LargeAnswer(_) => (S::BAD_GATEWAY, "http_response_header_section_size"),
            Self::AnswerCoding(_) => (S::BAD_GATEWAY, "http_response_transfer_coding"),
            Self::Switched(_) => (S::BAD_GATEWAY, "http_upgrade_failed"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(error) => error.fmt(f),
            Self::Request(sentence) => f.write_str(sentence),
            Self::Malformed { sentence, .. } => f.write_str(sentence),
            Self::LargeHead => write!(f, "the request's head has more than {} KiB or {MAX_FIELDS} fields", MAX_HEAD / 1024),
            Self::Slow(limit) => write!(f, "the request was not complete within {limit:?}"),
            Self::Coding => f.write_str("the only transfer coding this proxy takes is chunked, once: send the body without any other"),
            Self::Method => f.write_str("the proxy's own pages are only to be read: to reach another server send it the whole address, as a client does that is told of its proxy"),
            Self::Misdirected => f.write_str("this is an HTTP proxy, and it does not have the name the Host field says: set it as the client's proxy (http_proxy=http://…) instead of opening it"),
            Self::NoPage => f.write_str("this is an HTTP proxy and has no such page: set it as the client's proxy (http_proxy=http://…) instead of opening it"),
            Self::Unauthorized => f.write_str("the proxy asks for a user name and a password: put them into its address (http://user:password@…)"),
            Self::PageUnauthorized => f.write_str("this page needs the proxy's user name and password when it is asked for from another machine"),
            Self::Body => f.write_str("the request's body ended too early or is not well-formed"),
            Self::Refused(error) => error.fmt(f),
            Self::Died { target, .. } => write!(f, "{target} closed the connection before it answered; whether it acted on the request is not known"),
            Self::Garbage { target, error } => match framing(error) {
                Some(field) => write!(f, "{target} sent an answer of which it is not clear where it ends: {field}"),
                None => write!(f, "{target} did not answer in HTTP/1; if it speaks another protocol, use CONNECT"),
            },
            Self::LargeAnswer(target) => write!(f, "{target} answered with a head of more than {} KiB or {MAX_FIELDS} fields", MAX_HEAD / 1024),
            Self::AnswerCoding(target) => write!(f, "{target} answered with a transfer coding other than chunked, which the proxy does not take"),
            Self::Switched(target) => write!(f, "{target} switched to another protocol against the rules of HTTP"),
        }
    }
}

impl std::error::Error for Problem {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Its own text is shown above, so the chain goes on behind it.
            Self::Refused(error) => error.source(),
            Self::Died { error, .. } | Self::Garbage { error, .. } => Some(error),
            _ => None,
        }
    }
}
