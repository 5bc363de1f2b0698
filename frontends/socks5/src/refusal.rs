//! Refusals as SOCKS5 replies.

use kubevpn_target::Refusal;

use crate::wire::reply::ReplyCode;

/// The reply of a refusal. No `_` arm: a new class needs a decision here.
pub(crate) fn reply(refusal: Refusal) -> ReplyCode {
    match refusal {
        Refusal::NameNotFound => ReplyCode::HostUnreachable,
        Refusal::NoSuchPort | Refusal::NotReady | Refusal::Refused => ReplyCode::ConnectionRefused,
        Refusal::Unreachable | Refusal::ClusterAway => ReplyCode::NetworkUnreachable,
        Refusal::Forbidden | Refusal::Denied => ReplyCode::NotAllowed,
        Refusal::TimedOut => ReplyCode::TtlExpired,
        Refusal::Overloaded | Refusal::Unauthenticated | Refusal::Internal => {
            ReplyCode::GeneralFailure
        }
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
