//! DNS queries and answers as bytes, without I/O.
//!
//! hickory-proto encodes and decodes; this file decides what is accepted. Sources: RFC 1035 section 4 (messages), RFC 2308
//! (negative caching), RFC 5452 section 9.1 (matching answers to queries).

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::ProtoError;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name as DnsName, RData, RecordType};
use hickory_proto::serialize::binary::DecodeError;
use kubevpn_target::Name;

use super::Lasting;

/// Limit on aliases followed within one answer.
const ALIASES: usize = 8;

/// Limit on addresses taken from one answer.
pub(crate) const ADDRESSES: usize = 16;

/// Lifetime of a negative answer without an SOA.
const NO_SOA: Duration = Duration::from_secs(5);

/// Cached complete answers keep their original TTLs, so they are cached for 5 s at most.
const WHOLE: Duration = Duration::from_secs(5);

/// Limit on records of a cached complete answer. Names are compressed on the wire only, so many larger answers would take
/// gigabytes.
const RECORDS: usize = 64;

/// Limit on any lifetime.
pub(crate) const LONGEST: Duration = Duration::from_secs(3600);

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DnsError {
    #[error("the question cannot be written")]
    Question(#[source] ProtoError),
    #[error("its answer cannot be read")]
    Malformed(#[source] DecodeError),
    #[error("its answer is to something that was not asked")]
    NotOurs,
    #[error("its answer is cut short")]
    Truncated,
    #[error("it answered {0}")]
    Failed(ResponseCode),
    #[error("the connection broke before the answer was there")]
    Broken(#[source] std::io::Error),
    #[error("it did not answer within {0:?}")]
    TimedOut(Duration),
}

impl DnsError {
    /// Whether another replica of the server may answer.
    pub(crate) fn is_the_servers(&self) -> bool {
        match self {
            Self::Broken(_) | Self::TimedOut(_) => true,
            Self::Failed(code) => *code == ResponseCode::ServFail,
            Self::Question(_) | Self::Malformed(_) | Self::NotOurs | Self::Truncated => false,
        }
    }
}

/// The addresses in one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnsweredAddresses {
    /// The addresses of the name, or of what it is an alias for.
    pub(crate) addresses: Vec<IpAddr>,
    /// The last alias, if it has no address in the answer.
    pub(crate) alias: Option<Name>,
    /// The lifetime.
    pub(crate) ttl: Duration,
}

/// A query for one name and record type.
pub(crate) struct RecordQuery {
    pub(crate) id: u16,
    query: Query,
}

impl RecordQuery {
    pub(crate) fn new(name: &Name, record: RecordType) -> Result<Self, DnsError> {
        let name =
            DnsName::from_ascii(format!("{}.", name.as_str())).map_err(DnsError::Question)?;
        Ok(Self::of(Query::query(name, record)))
    }

    pub(crate) fn of(query: Query) -> Self {
        Self {
            id: Message::query().metadata.id,
            query,
        }
    }

    /// The message to send, without its length prefix.
    pub(crate) fn to_vec(&self) -> Result<Vec<u8>, DnsError> {
        let mut message = Message::new(self.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        message.to_vec().map_err(DnsError::Question)
    }

    /// Decodes an answer to this query; `None` if its ID belongs to another query.
    pub(crate) fn answer(&self, bytes: &[u8]) -> Result<Option<Message>, DnsError> {
        let message = Message::from_vec(bytes).map_err(DnsError::Malformed)?;
        if message.metadata.id != self.id {
            return Ok(None);
        }
        let asked = [&self.query];
        if message.metadata.message_type != MessageType::Response
            || message.metadata.op_code != OpCode::Query
            || !message.queries.iter().eq(asked)
        {
            return Err(DnsError::NotOurs);
        }
        if message.metadata.truncation {
            return Err(DnsError::Truncated);
        }
        Ok(Some(message))
    }

    /// The result of a message for this name; `None` if its ID belongs to another query.
    pub(crate) fn read(&self, bytes: &[u8]) -> Result<Option<AnsweredAddresses>, DnsError> {
        let Some(message) = self.answer(bytes)? else {
            return Ok(None);
        };
        match message.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(Some(self.take(&message))),
            code => Err(DnsError::Failed(code)),
        }
    }

    fn take(&self, message: &Message) -> AnsweredAddresses {
        let records = || {
            let answers = message.answers.iter();
            answers.filter(|r| r.dns_class == DNSClass::IN)
        };
        let mut name = self.query.name();
        let mut ttl = LONGEST;
        for _ in 0..ALIASES {
            let next = records().find_map(|record| match &record.data {
                RData::CNAME(to) if record.name == *name => Some((&to.0, record.ttl)),
                _ => None,
            });
            let Some((to, lasts)) = next else { break };
            ttl = ttl.min(seconds(lasts));
            name = to;
        }
        let mut addresses = Vec::new();
        for record in records().filter(|r| r.name == *name).take(ADDRESSES) {
            let ip = match &record.data {
                RData::A(a) => IpAddr::V4(a.0),
                RData::AAAA(aaaa) => IpAddr::V6(aaaa.0).to_canonical(),
                _ => continue,
            };
            ttl = ttl.min(seconds(record.ttl));
            addresses.push(ip);
        }
        let mut alias = None;
        if addresses.is_empty() {
            if name != self.query.name() {
                alias = Name::parse(&name.to_ascii()).ok();
            }
            ttl = ttl.min(negative(message));
        }
        AnsweredAddresses {
            addresses,
            alias,
            ttl,
        }
    }
}

/// Lifetime of a complete answer: the smallest TTL of its records; zero for a failure and for a large answer.
impl Lasting for Message {
    fn lasts(&self) -> Duration {
        let records = self.answers.len() + self.authorities.len() + self.additionals.len();
        if records > RECORDS {
            return Duration::ZERO;
        }
        match self.metadata.response_code {
            ResponseCode::NoError if !self.answers.is_empty() => {
                let ttls = self.answers.iter().map(|record| seconds(record.ttl));
                ttls.min().unwrap_or_default().min(WHOLE)
            }
            ResponseCode::NoError | ResponseCode::NXDomain => negative(self).min(WHOLE),
            _ => Duration::ZERO,
        }
    }

    fn describe(&self) -> String {
        let code = self.metadata.response_code;
        format!("has {} records ({code})", self.answers.len())
    }
}

fn seconds(ttl: u32) -> Duration {
    // A TTL with the top bit set counts as zero (RFC 2181 section 8).
    let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
    Duration::from_secs(ttl.into())
}

/// Lifetime of a negative answer: the smaller of the SOA's TTL and its minimum.
fn negative(message: &Message) -> Duration {
    let mut authorities = message.authorities.iter();
    let soa = authorities.find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    soa.map_or(NO_SOA, seconds)
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA};

    use super::*;

    fn dns(name: &str) -> DnsName {
        DnsName::from_ascii(name).unwrap()
    }

    fn question() -> RecordQuery {
        RecordQuery::new(&Name::parse("web.corp.test").unwrap(), RecordType::A).unwrap()
    }

    /// An answer that matches `question()`.
    fn answer(question: &RecordQuery, records: Vec<Record>) -> Message {
        let mut message = Message::response(question.id, OpCode::Query);
        message.add_query(question.query.clone());
        message.add_answers(records);
        message
    }

    fn a(name: &str, ttl: u32, ip: [u8; 4]) -> Record {
        Record::from_rdata(dns(name), ttl, RData::A(A(ip.into())))
    }

    fn cname(name: &str, ttl: u32, to: &str) -> Record {
        Record::from_rdata(dns(name), ttl, RData::CNAME(CNAME(dns(to))))
    }

    fn read(
        question: &RecordQuery,
        message: &Message,
    ) -> Result<Option<AnsweredAddresses>, DnsError> {
        question.read(&message.to_vec().unwrap())
    }

    fn taken(records: Vec<Record>) -> (Vec<String>, Option<String>, u64) {
        let question = question();
        let message = answer(&question, records);
        let answered = read(&question, &message).unwrap().unwrap();
        (
            answered.addresses.iter().map(IpAddr::to_string).collect(),
            answered.alias.map(|name| name.to_string()),
            answered.ttl.as_secs(),
        )
    }

    #[test]
    fn a_question_as_it_is_sent() {
        let question = question();
        let sent = Message::from_vec(&question.to_vec().unwrap()).unwrap();
        assert_eq!(sent.metadata.id, question.id);
        assert_eq!(sent.metadata.message_type, MessageType::Query);
        assert!(sent.metadata.recursion_desired);
        assert_eq!(
            sent.queries,
            [Query::query(dns("web.corp.test."), RecordType::A)]
        );
        // Not every name of a cluster is a host name.
        assert!(RecordQuery::new(&Name::parse("_a._tcp.x.test").unwrap(), RecordType::A).is_ok());
    }

    #[test]
    fn addresses_and_how_long_they_last() {
        let records = vec![
            a("web.corp.test.", 30, [10, 0, 0, 1]),
            a("WEB.corp.test.", 20, [10, 0, 0, 2]),
            a("other.corp.test.", 1, [10, 0, 0, 3]),
        ];
        let two = vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()];
        assert_eq!(taken(records), (two, None, 20));
        let v6 = RData::AAAA(AAAA("fd00::1".parse().unwrap()));
        let records = vec![Record::from_rdata(dns("web.corp.test."), 86400, v6)];
        assert_eq!(taken(records), (vec!["fd00::1".to_owned()], None, 3600));
        let records = vec![a("web.corp.test.", u32::MAX, [10, 0, 0, 1])];
        assert_eq!(taken(records).2, 0);
        let many = (0..100).map(|i| a("web.corp.test.", 5, [10, 0, 0, i]));
        assert_eq!(taken(many.collect()).0.len(), ADDRESSES);
    }

    #[test]
    fn aliases_are_followed_within_the_answer() {
        let records = vec![
            a("db.test.", 60, [10, 0, 0, 1]),
            cname("www.corp.test.", 40, "db.test."),
            cname("web.corp.test.", 50, "www.corp.test."),
        ];
        let one = vec!["10.0.0.1".to_owned()];
        assert_eq!(taken(records), (one, None, 40));
        // An alias to a name that the server does not know.
        let records = vec![cname("web.corp.test.", 3, "db.example.")];
        assert_eq!(taken(records), (vec![], Some("db.example.".into()), 3));
        // Aliases in a loop.
        let records = vec![
            cname("web.corp.test.", 50, "a.corp.test."),
            cname("a.corp.test.", 50, "web.corp.test."),
        ];
        let (addresses, _, _) = taken(records);
        assert!(addresses.is_empty());
    }

    #[test]
    fn a_negative_answer_has_the_lifetime_of_the_zone() {
        assert_eq!(taken(vec![]), (vec![], None, 5));
        let question = question();
        let mut message = answer(&question, vec![]);
        message.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(dns("ns.test."), dns("root.test."), 1, 2, 3, 4, 7);
        message.add_authority(Record::from_rdata(dns("test."), 30, RData::SOA(soa)));
        let answered = read(&question, &message).unwrap().unwrap();
        assert_eq!((answered.addresses.len(), answered.ttl.as_secs()), (0, 7));
    }

    #[test]
    fn a_whole_answer_is_remembered_if_it_is_small() {
        let lasts = |count: u8| {
            let records = (0..count).map(|i| a("web.corp.test.", 30, [10, 0, 0, i]));
            let mut message = answer(&question(), records.collect());
            message.add_additional(a("other.corp.test.", 30, [10, 0, 1, 0]));
            message.lasts()
        };
        assert_eq!((lasts(63), lasts(64)), (WHOLE, Duration::ZERO));
    }

    #[test]
    fn foreign_messages_are_not_answers() {
        let question = question();
        let good = answer(&question, vec![a("web.corp.test.", 30, [10, 0, 0, 1])]);
        let with = |change: fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            read(&question, &message)
        };
        assert!(with(|_| {}).unwrap().is_some());
        assert!(with(|m| m.metadata.id ^= 1).unwrap().is_none());
        let changes: [fn(&mut Message); 4] = [
            |m| m.metadata.message_type = MessageType::Query,
            |m| m.metadata.op_code = OpCode::Notify,
            |m| m.queries.clear(),
            |m| {
                m.queries[0].set_query_type(RecordType::AAAA);
            },
        ];
        for change in changes {
            assert!(matches!(with(change), Err(DnsError::NotOurs)));
        }
        assert!(matches!(
            with(|m| m.metadata.truncation = true),
            Err(DnsError::Truncated)
        ));
        assert!(matches!(
            with(|m| m.metadata.response_code = ResponseCode::ServFail),
            Err(DnsError::Failed(ResponseCode::ServFail))
        ));
    }

    #[test]
    fn no_prefix_of_an_answer_is_one() {
        let question = question();
        let records = vec![
            cname("web.corp.test.", 50, "www.corp.test."),
            a("www.corp.test.", 60, [10, 0, 0, 1]),
        ];
        let bytes = answer(&question, records).to_vec().unwrap();
        for end in 0..bytes.len() {
            assert!(question.read(&bytes[..end]).is_err(), "{end}");
        }
        assert!(question.read(&bytes).unwrap().is_some());
    }
}
