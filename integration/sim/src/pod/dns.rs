//! What CoreDNS does with its plugin `hosts`, over TCP: names and addresses from its configuration.

use std::net::IpAddr;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Where DNS is spoken.
pub(super) const PORT: u16 = 53;
/// What the plugin gives its answers.
const TTL: u32 = 3600;

/// Addresses with a name each, without its last dot.
pub(crate) type Hosts = Vec<(IpAddr, String)>;

/// The lines of every `hosts` block of a Corefile.
pub(crate) fn hosts_of(corefile: &str) -> Hosts {
    let mut hosts = Hosts::new();
    let mut inside = false;
    for line in corefile.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("hosts") => inside = true,
            Some("}") => inside = false,
            Some(first) if inside => {
                if let Ok(ip) = first.parse() {
                    hosts.extend(words.map(|name| (ip, name.to_ascii_lowercase())));
                }
            }
            _ => {}
        }
    }
    hosts
}

/// Answers questions until the client ends, or says something else.
pub(super) async fn serve(hosts: &Hosts, io: &mut DuplexStream) {
    while let Ok(length) = io.read_u16().await {
        let mut bytes = vec![0; length.into()];
        if io.read_exact(&mut bytes).await.is_err() {
            return;
        }
        let Some(answer) = answer(hosts, &bytes) else {
            return;
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return;
        };
        if io.write_u16(length).await.is_err() || io.write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn answer(hosts: &Hosts, question: &[u8]) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?;
    let name = query.name().to_ascii().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.add_query(query.clone());
    let mut known = hosts.iter().filter(|(_, host)| host == name).peekable();
    if known.peek().is_none() {
        // So the plugin has it, where none comes after it: without an SOA record NXDOMAIN would not be whole.
        answer.metadata.response_code = ResponseCode::ServFail;
    }
    for (ip, _) in known {
        let data = match (*ip, query.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => RData::A(A(ip)),
            (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(ip)),
            _ => continue,
        };
        answer.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
    }
    answer.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    use super::*;

    const COREFILE: &str = "
.:53 {
    errors
    hosts {
        192.0.2.1 a.test B.test
        2001:db8::1 a.test
        fallthrough
    }
    cache 30
}";

    fn asked(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let hosts = hosts_of(COREFILE);
        let answer = answer(&hosts, &question.to_vec().unwrap()).unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        let data = answer.answers.iter().map(|r| r.data.to_string());
        (answer.metadata.response_code, data.collect())
    }

    #[test]
    fn what_hosts_knows() {
        let found = |data: &str| (ResponseCode::NoError, vec![data.to_owned()]);
        assert_eq!(asked("A.test.", RecordType::A), found("192.0.2.1"));
        assert_eq!(asked("a.test.", RecordType::AAAA), found("2001:db8::1"));
        assert_eq!(asked("b.test.", RecordType::A), found("192.0.2.1"));
        let empty = (ResponseCode::NoError, Vec::new());
        assert_eq!(asked("b.test.", RecordType::AAAA), empty);
        let nothing = (ResponseCode::ServFail, Vec::new());
        assert_eq!(asked("c.test.", RecordType::A), nothing);
        assert_eq!(asked("cache.", RecordType::A), nothing);
    }

    #[test]
    fn nonsense_is_no_question() {
        assert_eq!(answer(&Hosts::new(), b"nonsense"), None);
    }
}
