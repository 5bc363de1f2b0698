//! Refusals as SOCKS5 replies.

use kubevpn_target::Refusal;

use crate::wire::reply::Reply;

/// The reply of a refusal. No `_` arm: a new class needs a decision here.
pub(crate) fn reply(refusal: Refusal) -> Reply {
    match refusal {
        Refusal::NameNotFound => Reply::HostUnreachable,
        Refusal::NoSuchPort | Refusal::NotReady | Refusal::Refused => Reply::ConnectionRefused,
        Refusal::Unreachable | Refusal::ClusterAway => Reply::NetworkUnreachable,
        Refusal::Forbidden | Refusal::Denied => Reply::NotAllowed,
        Refusal::TimedOut => Reply::TtlExpired,
        Refusal::Overloaded | Refusal::Unauthenticated | Refusal::Internal => Reply::GeneralFailure,
    }
}

/// The reply code (RFC 1928 section 6) a client gets for a refusal.
///
/// ```
/// use kubevpn_target::Refusal;
/// assert_eq!(kubevpn_socks5::reply_code(Refusal::Refused), 5);
/// ```
pub fn reply_code(refusal: Refusal) -> u8 {
    reply(refusal).code()
}
