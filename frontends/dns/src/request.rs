//! Parses one query, or finds its fault.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

/// The smallest message: a header.
const HEADER: usize = 12;

/// The only version of EDNS.
const EDNS: u8 = 0;

/// One query that can be answered.
#[derive(Clone, Debug)]
pub(crate) struct DnsRequest {
    pub(crate) id: u16,
    /// The query in the client's spelling, including upper and lower case.
    pub(crate) query: Query,
    pub(crate) recursion_desired: bool,
    /// Whether answers that do not validate are accepted (CD, RFC 4035 section 3.2.2).
    pub(crate) checking_disabled: bool,
    pub(crate) edns: Option<Edns>,
}

/// The result of parsing.
#[derive(Debug)]
pub(crate) enum ParsedMessage {
    Question(DnsRequest),
    /// Not a query that can be answered, with the error message to send.
    Wrong(Message),
    /// Not to be answered at all: shorter than a header, or an answer. Two servers that answer each other's answers
    /// never end.
    Noise,
}

pub(crate) fn read(bytes: &[u8]) -> ParsedMessage {
    let Some(&[high, low, flags, ..]) = bytes.first_chunk::<HEADER>().map(|h| &h[..]) else {
        return ParsedMessage::Noise;
    };
    if flags & 0x80 != 0 {
        return ParsedMessage::Noise;
    }
    let id = u16::from_be_bytes([high, low]);
    let op_code = OpCode::from_u8((flags >> 3) & 0xf);
    let wrong = |code| ParsedMessage::Wrong(Message::error_msg(id, op_code, code));
    if op_code != OpCode::Query {
        return wrong(ResponseCode::NotImp);
    }
    let Ok(message) = Message::from_vec(bytes) else {
        return wrong(ResponseCode::FormErr);
    };
    debug_assert_eq!(message.metadata.message_type, MessageType::Query);
    let [query] = &message.queries[..] else {
        return wrong(ResponseCode::FormErr);
    };
    let request = DnsRequest {
        id,
        query: query.clone(),
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        edns: message.edns,
    };
    let code = match request.edns.as_ref().map(Edns::version) {
        Some(version) if version > EDNS => ResponseCode::BADVERS,
        _ if query.query_class() != DNSClass::IN => ResponseCode::Refused,
        _ => match query.query_type() {
            RecordType::ANY => ResponseCode::NotImp,
            RecordType::AXFR | RecordType::IXFR => ResponseCode::Refused,
            RecordType::OPT | RecordType::TSIG => ResponseCode::FormErr,
            _ => return ParsedMessage::Question(request),
        },
    };
    let mut answer = request.response();
    answer.metadata.response_code = code;
    ParsedMessage::Wrong(answer)
}

impl DnsRequest {
    /// An empty answer to this request.
    pub(crate) fn response(&self) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_version(EDNS);
            edns.set_max_payload(super::reply::UDP_PAYLOAD);
            // Copied, with or without signatures (RFC 3225 section 3).
            edns.set_dnssec_ok(self.wants_signatures());
            message.set_edns(edns);
        }
        message
    }

    /// The DO bit.
    pub(crate) fn wants_signatures(&self) -> bool {
        self.edns
            .as_ref()
            .is_some_and(|edns| edns.flags().dnssec_ok)
    }

    /// The largest datagram that its client accepts.
    pub(crate) fn udp_limit(&self) -> usize {
        use super::reply::{PLAIN_UDP, UDP_PAYLOAD};
        let edns = self.edns.as_ref();
        edns.map_or(PLAIN_UDP, |edns| {
            edns.max_payload().clamp(PLAIN_UDP, UDP_PAYLOAD)
        })
        .into()
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;

    use super::*;

    fn query(record: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii("Web.Shop.").unwrap(), record));
        message
    }

    fn code(message: &Message) -> ResponseCode {
        code_of(&message.to_vec().unwrap())
    }

    fn code_of(bytes: &[u8]) -> ResponseCode {
        match read(bytes) {
            ParsedMessage::Wrong(answer) => {
                assert_eq!(answer.metadata.message_type, MessageType::Response);
                answer.metadata.response_code
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_keeps_its_case_and_flags() {
        let ParsedMessage::Question(request) = read(&query(RecordType::A).to_vec().unwrap()) else {
            panic!("no question")
        };
        assert_eq!(request.query.name().to_ascii(), "Web.Shop.");
        let answer = request.response();
        assert_eq!(answer.metadata.id, 7);
        assert!(answer.metadata.recursion_desired);
        assert_eq!(answer.queries[0].name().to_ascii(), "Web.Shop.");
        assert_eq!((request.udp_limit(), answer.edns), (512, None));
    }

    #[test]
    fn sizes_that_clients_take() {
        for (said, limit) in [(0, 512), (511, 512), (1000, 1000), (4096, 1232)] {
            let mut message = query(RecordType::A);
            let mut edns = Edns::new();
            edns.set_max_payload(said);
            message.set_edns(edns);
            let ParsedMessage::Question(request) = read(&message.to_vec().unwrap()) else {
                panic!("no question")
            };
            assert_eq!(request.udp_limit(), limit, "{said}");
            assert_eq!(request.response().edns.unwrap().max_payload(), 1232);
        }
    }

    #[test]
    fn invalid_queries_have_their_response_codes() {
        assert_eq!(code(&query(RecordType::ANY)), ResponseCode::NotImp);
        assert_eq!(code(&query(RecordType::AXFR)), ResponseCode::Refused);
        let mut chaos = query(RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos), ResponseCode::Refused);
        let mut update = query(RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(code(&update), ResponseCode::NotImp);
        let mut none = query(RecordType::A);
        none.queries.clear();
        assert_eq!(code(&none), ResponseCode::FormErr);
        let mut two = query(RecordType::A);
        two.add_query(two.queries[0].clone());
        assert_eq!(code(&two), ResponseCode::FormErr);
        let mut later = query(RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(1);
        later.set_edns(edns);
        assert_eq!(code(&later), ResponseCode::BADVERS);
    }

    /// A query truncated anywhere is malformed, and answered with its ID; one shorter than a header is not answered.
    #[test]
    fn truncated_anywhere() {
        let bytes = query(RecordType::A).to_vec().unwrap();
        for length in 0..bytes.len() {
            match read(&bytes[..length]) {
                ParsedMessage::Noise => assert!(length < HEADER),
                ParsedMessage::Wrong(answer) => {
                    assert_eq!(answer.metadata.id, 7);
                    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
                }
                ParsedMessage::Question(_) => panic!("{length} bytes will do"),
            }
        }
    }

    #[test]
    fn answers_are_not_answered() {
        let mut answer = query(RecordType::A);
        answer.metadata.message_type = MessageType::Response;
        assert!(matches!(
            read(&answer.to_vec().unwrap()),
            ParsedMessage::Noise
        ));
    }
}
