//! Problems: everything that is answered with an error of our own, with its status, its error type in
//! `Proxy-Status`, and its sentence.

use std::fmt;
use std::time::Duration;

use http::StatusCode;
use kubevpn_target::{ConnectError, Target};

use crate::authority::AuthorityError;
use crate::refusal::status;
use crate::{MAX_FIELDS, MAX_HEAD};

/// The field that makes the end of a message ambiguous, if that is hyper's error.
pub(crate) fn framing(error: &hyper::Error) -> Option<&'static str> {
    // hyper distinguishes these errors only by their text.
    let words = error.to_string();
    if words.contains("content-length") {
        Some("its Content-Length is not one number")
    } else if words.contains("transfer-encoding") {
        Some("its Transfer-Encoding does not end in chunked, or stands in HTTP/1.0")
    } else {
        None
    }
}

/// Why a request was not answered by its target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// The request-target is not a target.
    #[error(transparent)]
    Target(AuthorityError),
    /// The request breaks a rule of HTTP.
    #[error("{0}")]
    Request(&'static str),
    /// The head is not HTTP, or too large.
    #[error("{sentence}")]
    Malformed {
        status: StatusCode,
        sentence: String,
    },
    /// The head is too large.
    #[error("the request's head has more than {} KiB or {} fields", MAX_HEAD / 1024, MAX_FIELDS)]
    LargeHead,
    /// No complete head in this time.
    #[error("the request was not complete within {0:?}")]
    Slow(Duration),
    /// A transfer coding other than chunked.
    #[error(
        "the only transfer coding this proxy takes is chunked, once: send the body without any other"
    )]
    Coding,
    /// A method that our own pages do not support.
    #[error(
        "the proxy's own pages are only to be read: to reach another server send it the whole address, as a client does that is told of its proxy"
    )]
    Method,
    /// A request to the proxy itself under a name it does not have.
    #[error(
        "this is an HTTP proxy, and it does not have the name the Host field says: set it as the client's proxy (http_proxy=http://…) instead of opening it"
    )]
    Misdirected,
    /// A path without a page of ours.
    #[error(
        "this is an HTTP proxy and has no such page: set it as the client's proxy (http_proxy=http://…) instead of opening it"
    )]
    NoPage,
    /// No credentials, or not the right ones.
    #[error(
        "the proxy asks for a user name and a password: put them into its address (http://user:password@…)"
    )]
    Unauthorized,
    /// The same for one of our own pages.
    #[error(
        "this page needs the proxy's user name and password when it is asked for from another machine"
    )]
    PageUnauthorized,
    /// The body of the request broke or was malformed, after its head had been sent on.
    #[error("the request's body ended too early or is not well-formed")]
    Body,
    /// No stream to the target.
    #[error(transparent)]
    Refused(ConnectError),
    /// The stream to the target ended before an answer.
    #[error(
        "{target} closed the connection before it answered; whether it acted on the request is not known"
    )]
    Died {
        target: Target,
        #[source]
        error: hyper::Error,
    },
    /// The target's answer is not an HTTP/1 message.
    #[error(fmt = garbage)]
    Garbage {
        target: Target,
        #[source]
        error: hyper::Error,
    },
    /// The head of the target's answer is too large.
    #[error("{} answered with a head of more than {} KiB or {} fields", .0, MAX_HEAD / 1024, MAX_FIELDS)]
    LargeAnswer(Target),
    /// The target's answer has a transfer coding other than chunked.
    #[error(
        "{0} answered with a transfer coding other than chunked, which the proxy does not take"
    )]
    AnswerCoding(Target),
    /// The target switched protocols without a request, or ended after it had.
    #[error("{0} switched to another protocol against the rules of HTTP")]
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

fn garbage(target: &Target, error: &hyper::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match framing(error) {
        Some(field) => write!(
            f,
            "{target} sent an answer of which it is not clear where it ends: {field}"
        ),
        None => write!(
            f,
            "{target} did not answer in HTTP/1; if it speaks another protocol, use CONNECT"
        ),
    }
}
