//! Refusals as HTTP status and `Proxy-Status` error type.

use http::StatusCode;
use kubevpn_target::Refusal;

/// The status of a refusal and its error type of RFC 9209 section 2.3, which stands in `Proxy-Status`. No
/// `_` arm: a new class needs a decision here.
///
/// ```
/// use http::StatusCode;
/// use kubevpn_http_connect::status;
/// use kubevpn_target::Refusal;
/// assert_eq!(status(Refusal::Refused), (StatusCode::BAD_GATEWAY, "connection_refused"));
/// ```
pub fn status(refusal: Refusal) -> (StatusCode, &'static str) {
    use StatusCode as S;
    match refusal {
        Refusal::NameNotFound => (S::BAD_GATEWAY, "dns_error"),
        Refusal::NoSuchPort | Refusal::Refused => (S::BAD_GATEWAY, "connection_refused"),
        Refusal::NotReady => (S::SERVICE_UNAVAILABLE, "destination_unavailable"),
        Refusal::Unreachable => (S::BAD_GATEWAY, "destination_ip_unroutable"),
        Refusal::ClusterAway => (S::BAD_GATEWAY, "destination_unavailable"),
        Refusal::Forbidden | Refusal::Denied => (S::FORBIDDEN, "http_request_denied"),
        Refusal::TimedOut => (S::GATEWAY_TIMEOUT, "connection_timeout"),
        Refusal::Overloaded => (S::SERVICE_UNAVAILABLE, "connection_limit_reached"),
        // RFC 9209 recommends 500; but the cluster rejects our credentials, which is not a fault of the proxy.
        Refusal::Unauthenticated => (S::BAD_GATEWAY, "proxy_configuration_error"),
        Refusal::Internal => (S::INTERNAL_SERVER_ERROR, "proxy_internal_error"),
    }
}
