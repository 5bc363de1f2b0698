//! A DNS server for tests, at the other end of a stream.

use std::net::IpAddr;

use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// An answer to a question, with the addresses of its family.
pub(crate) fn answer(question: &Message, ips: &[&str], ttl: u32) -> Message {
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.add_queries(question.queries.clone());
    let query = &question.queries[0];
    for ip in ips {
        let data = match (ip.parse().unwrap(), query.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => RData::A(A(ip)),
            (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(ip)),
            _ => continue,
        };
        message.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
    }
    message
}

pub(crate) async fn reply(stream: &mut (impl AsyncWrite + Unpin), message: &Message) {
    let bytes = message.to_vec().unwrap();
    let length = u16::try_from(bytes.len()).unwrap();
    stream.write_u16(length).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
}
