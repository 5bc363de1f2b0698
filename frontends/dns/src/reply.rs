//! Answers as bytes, no longer than their client accepts.

use hickory_proto::op::{Message, OpCode, ResponseCode};

/// A datagram without EDNS (RFC 1035 section 4.2.1).
pub(crate) const PLAIN_UDP: u16 = 512;

/// The largest datagram that we send or accept: it fits every path without fragmentation (DNS flag day 2020).
pub(crate) const UDP_PAYLOAD: u16 = 1232;

/// The message, if it fits into `limit` bytes; otherwise its question only, marked as truncated, so that the client asks
/// again over TCP.
pub(crate) fn encode(message: &Message, limit: usize) -> Vec<u8> {
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= limit => bytes,
        Ok(_) => encode_failed(message.truncate().to_vec(), message),
        Err(error) => encode_failed(Err(error), message),
    }
}

/// A message that cannot be encoded becomes SERVFAIL.
fn encode_failed(bytes: Result<Vec<u8>, hickory_proto::ProtoError>, message: &Message) -> Vec<u8> {
    bytes.unwrap_or_else(|error| {
        tracing::debug!(%error, "an answer cannot be written");
        let id = message.metadata.id;
        let failed = Message::error_msg(id, OpCode::Query, ResponseCode::ServFail);
        failed.to_vec().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    use super::*;

    #[test]
    fn an_answer_that_does_not_fit_is_truncated() {
        let name = Name::from_ascii("many.shop.").unwrap();
        let mut message = Message::response(9, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        for i in 0..100 {
            let address = RData::A(A([10, 0, 0, i].into()));
            message.add_answer(Record::from_rdata(name.clone(), 5, address));
        }
        let whole = message.to_vec().unwrap().len();
        for (limit, cut) in [(whole, false), (whole - 1, true), (512, true)] {
            let bytes = encode(&message, limit);
            assert!(bytes.len() <= limit);
            let read = Message::from_vec(&bytes).unwrap();
            assert_eq!(read.metadata.truncation, cut, "{limit}");
            assert_eq!(read.answers.len(), if cut { 0 } else { 100 });
            assert_eq!(read.queries, message.queries);
            assert_eq!(read.metadata.id, 9);
        }
    }
}
