//! Refusals as DNS response codes.

use hickory_proto::op::ResponseCode;
use kubevpn_target::Refusal;

/// The response code of a refusal.
///
/// ```
/// use hickory_proto::op::ResponseCode;
/// use kubevpn_target::Refusal;
/// assert_eq!(kubevpn_dns::response_code(Refusal::Denied), ResponseCode::Refused);
/// ```
pub fn response_code(refusal: Refusal) -> ResponseCode {
    match refusal {
        Refusal::NameNotFound => ResponseCode::NXDomain,
        // The name is not answered here: a client with several servers asks the next one.
        Refusal::Denied => ResponseCode::Refused,
        Refusal::NoSuchPort
        | Refusal::NotReady
        | Refusal::Refused
        | Refusal::Unreachable
        | Refusal::ClusterAway
        | Refusal::Forbidden
        | Refusal::TimedOut
        | Refusal::Overloaded
        | Refusal::Unauthenticated
        | Refusal::Internal => ResponseCode::ServFail,
    }
}
