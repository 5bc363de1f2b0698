//! What a refusal is to a DNS client.

use hickory_proto::op::ResponseCode;
use kubevpn_target::Refusal;

/// The response code of each class.
///
/// ```
/// use hickory_proto::op::ResponseCode;
/// use kubevpn_target::Refusal;
/// assert_eq!(kubevpn_dns::response_code(Refusal::Denied), ResponseCode::Refused);
/// ```
pub fn response_code(refusal: Refusal) -> ResponseCode {
    match refusal {
        Refusal::NameNotFound => ResponseCode::NXDomain,
        // Not a name to be answered here: a client with several servers asks the next one.
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
