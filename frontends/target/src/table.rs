//! The form of each [`Refusal`] in every protocol: the table against which the frontends, the exit codes and the
//! documentation are tested, so that none of them changes alone.

use crate::Refusal;

/// One refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalRow {
    /// The class.
    pub refusal: Refusal,
    /// The reply code of SOCKS5 (RFC 1928 section 6).
    pub reply: u8,
    /// The HTTP status.
    pub status: u16,
    /// The error type in `Proxy-Status` (RFC 9209 section 2.3).
    pub error: &'static str,
    /// The exit code of a command that ends with it.
    pub exit: u8,
    /// An example sentence; each row has its own.
    pub sentence: &'static str,
}

const fn row(
    refusal: Refusal,
    reply: u8,
    (status, error): (u16, &'static str),
    exit: u8,
    sentence: &'static str,
) -> RefusalRow {
    RefusalRow {
        refusal,
        reply,
        status,
        error,
        exit,
        sentence,
    }
}

/// Every refusal, in the order of [`Refusal::ALL`].
#[rustfmt::skip]
pub const REFUSALS: [RefusalRow; 12] = [
    row(Refusal::NameNotFound, 4, (502, "dns_error"), 50, "there is no service \"wbe\" in namespace shop, is it web?"),
    row(Refusal::NoSuchPort, 5, (502, "connection_refused"), 50, "service shop/web has no TCP port 81, it has 80 (http)"),
    row(Refusal::NotReady, 5, (503, "destination_unavailable"), 43, "service shop/web has no ready endpoint: 1 exists: 1 not ready"),
    row(Refusal::Refused, 5, (502, "connection_refused"), 1, "nothing listens on port 9999 of pod shop/web-0"),
    row(Refusal::Unreachable, 3, (502, "destination_ip_unroutable"), 1, "198.51.100.55 is not the address of a pod"),
    row(Refusal::ClusterAway, 3, (502, "destination_unavailable"), 40, "the API server cannot be reached: is the VPN up?"),
    row(Refusal::Forbidden, 2, (403, "http_request_denied"), 31, "ann may not create pods/portforward in namespace shop"),
    row(Refusal::Denied, 2, (403, "http_request_denied"), 31, "example.com is outside the cluster, see --outside"),
    row(Refusal::TimedOut, 6, (504, "connection_timeout"), 42, "web.shop:80 was not reached within 30 s"),
    row(Refusal::Overloaded, 1, (503, "connection_limit_reached"), 1, "as many streams are open as the limit allows"),
    row(Refusal::Unauthenticated, 1, (502, "proxy_configuration_error"), 32, "the API server does not accept the token: log in again"),
    row(Refusal::Internal, 1, (500, "proxy_internal_error"), 90, "a bug of the proxy"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_refusal_has_a_row_and_a_sentence_of_its_own() {
        assert_eq!(REFUSALS.map(|row| row.refusal), Refusal::ALL);
        let sentences: HashSet<_> = REFUSALS.iter().map(|row| row.sentence).collect();
        assert_eq!(sentences.len(), REFUSALS.len());
    }
}
