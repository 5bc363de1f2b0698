//! One DNS query over one stream.

use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::RecordType;
use kubevpn_target::Name;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::message::{self, AnsweredAddresses, DnsError};

/// Limit on the time of one exchange.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the answer for one family waits for the other's (the "resolution delay" of RFC 8305 section 3).
const OTHER_FAMILY: Duration = Duration::from_secs(1);

/// A query that can be sent to a DNS server over one stream.
pub(crate) trait StreamQuery: Display + Sync {
    type Answer: Send;

    /// Sends the query and reads the answer, without a time limit.
    fn ask<S>(&self, stream: &mut S) -> impl Future<Output = Result<Self::Answer, DnsError>> + Send
    where
        S: AsyncRead + AsyncWrite + Unpin + Send;
}

/// Asks for the addresses of a name: both families at once (RFC 7766 section 6.2.1.1), with the answers in either order. A
/// failure of one family is ignored if the other has an address.
impl StreamQuery for Name {
    type Answer = AnsweredAddresses;

    async fn ask<S>(&self, stream: &mut S) -> Result<AnsweredAddresses, DnsError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        both(stream, self).await
    }
}

/// Names in search order, of which the first that exists is meant. All are asked for at once: one after the other they would
/// take a round trip each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SearchNames(pub(crate) Vec<Name>);

impl Display for SearchNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(Name::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

impl StreamQuery for SearchNames {
    type Answer = AnsweredAddresses;

    async fn ask<S>(&self, stream: &mut S) -> Result<AnsweredAddresses, DnsError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match &*self.0 {
            [name] => both(stream, name).await,
            names => first(stream, names).await,
        }
    }
}

/// Sends one query unchanged, for the complete answer.
impl StreamQuery for Query {
    type Answer = Message;

    async fn ask<S>(&self, stream: &mut S) -> Result<Message, DnsError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let question = message::RecordQuery::of(self.clone());
        write(stream, [&question]).await?;
        question
            .answer(&read(stream).await?)?
            .ok_or(DnsError::NotOurs)
    }
}

/// Sends the query, and waits for [`PATIENCE`] at most.
pub(crate) async fn ask<S, Q: StreamQuery>(
    stream: &mut S,
    question: &Q,
) -> Result<Q::Answer, DnsError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    match timeout(PATIENCE, question.ask(stream)).await {
        Ok(answered) => answered,
        Err(_) => Err(DnsError::TimedOut(PATIENCE)),
    }
}

async fn write<'q, S>(
    stream: &mut S,
    questions: impl IntoIterator<Item = &'q message::RecordQuery>,
) -> Result<(), DnsError>
where
    S: AsyncWrite + Unpin,
{
    let mut sent = Vec::new();
    for question in questions {
        let message = question.to_vec()?;
        // A query is a name and a few bytes.
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        sent.extend(length.to_be_bytes());
        sent.extend(message);
    }
    stream.write_all(&sent).await.map_err(DnsError::Broken)?;
    stream.flush().await.map_err(DnsError::Broken)
}

async fn both<S>(stream: &mut S, name: &Name) -> Result<AnsweredAddresses, DnsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let v4 = message::RecordQuery::new(name, RecordType::A)?;
    let mut v6 = message::RecordQuery::new(name, RecordType::AAAA)?;
    if v6.id == v4.id {
        v6.id = v4.id.wrapping_add(1);
    }
    write(stream, [&v4, &v6]).await?;
    let first = read(stream).await?;
    let (first, other) = match v4.read(&first) {
        Ok(None) => (v6.read(&first), &v4),
        a => (a, &v6),
    };
    let ours =
        |answer: Result<Option<AnsweredAddresses>, DnsError>| answer?.ok_or(DnsError::NotOurs);
    let first = ours(first);
    let second = async { ours(other.read(&read(stream).await?)) };
    let second = match &first {
        Ok(answered) if !answered.addresses.is_empty() => {
            let second = timeout(OTHER_FAMILY, second).await;
            second.unwrap_or(Err(DnsError::TimedOut(OTHER_FAMILY)))
        }
        _ => second.await,
    };
    let v4_first = other.id == v6.id;
    match v4_first {
        true => merge(first, second),
        false => merge(second, first),
    }
}

/// One name, queried in both families.
struct NameQueries {
    v4: Asking,
    v6: Asking,
}

impl NameQueries {
    fn is_answered(&self) -> bool {
        self.v4.answer.is_some() && self.v6.answer.is_some()
    }
}

struct Asking {
    question: message::RecordQuery,
    answer: Option<Result<AnsweredAddresses, DnsError>>,
}

impl Asking {
    /// Takes an answer; `false` if it belongs to another query.
    fn take(&mut self, message: &[u8]) -> bool {
        let answer = match self.question.read(message) {
            Ok(None) => return false,
            Ok(Some(answer)) => Ok(answer),
            Err(error) => Err(error),
        };
        let open = self.answer.is_none();
        if open {
            self.answer = Some(answer);
        }
        open
    }

    fn has_addresses(&self) -> bool {
        matches!(&self.answer, Some(Ok(answer)) if !answer.addresses.is_empty())
    }
}

async fn first<S>(stream: &mut S, names: &[Name]) -> Result<AnsweredAddresses, DnsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut asked = VecDeque::new();
    let mut id: Option<u16> = None;
    for name in names {
        let mut of = |record| -> Result<Asking, DnsError> {
            let mut question = message::RecordQuery::new(name, record)?;
            // The first ID is random, and all differ.
            question.id = id.map_or(question.id, |id| id.wrapping_add(1));
            id = Some(question.id);
            let answer = None;
            Ok(Asking { question, answer })
        };
        asked.push_back(NameQueries {
            v4: of(RecordType::A)?,
            v6: of(RecordType::AAAA)?,
        });
    }
    let questions = asked.iter().flat_map(|a| [&a.v4.question, &a.v6.question]);
    write(stream, questions).await?;
    let mut ttl: Option<Duration> = None;
    loop {
        // The names before this one are known not to exist.
        while asked.front().is_some_and(NameQueries::is_answered)
            && let Some(NameQueries { v4, v6 }) = asked.pop_front()
            && let (Some(v4), Some(v6)) = (v4.answer, v6.answer)
        {
            let answered = merge(v4, v6)?;
            if !answered.addresses.is_empty() || answered.alias.is_some() {
                return Ok(answered);
            }
            ttl = Some(ttl.unwrap_or(answered.ttl).min(answered.ttl));
        }
        let Some(front) = asked.front_mut() else {
            return Ok(AnsweredAddresses {
                addresses: Vec::new(),
                alias: None,
                ttl: ttl.unwrap_or_default(),
            });
        };
        let half = front.v4.has_addresses() || front.v6.has_addresses();
        let received = match half {
            true => {
                let received = timeout(OTHER_FAMILY, read(stream)).await;
                received.unwrap_or(Err(DnsError::TimedOut(OTHER_FAMILY)))
            }
            false => read(stream).await,
        };
        match received {
            Ok(message) => {
                let mut asking = asked.iter_mut().flat_map(|a| [&mut a.v4, &mut a.v6]);
                if !asking.any(|asking| asking.take(&message)) {
                    return Err(DnsError::NotOurs);
                }
            }
            Err(error) if half => {
                let missing = match front.v4.answer {
                    None => &mut front.v4,
                    Some(_) => &mut front.v6,
                };
                missing.answer = Some(Err(error));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads one message, whose two bytes of length limit its size.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, DnsError> {
    let length = stream.read_u16().await.map_err(DnsError::Broken)?;
    let mut message = vec![0; length.into()];
    let read = stream.read_exact(&mut message).await;
    read.map_err(DnsError::Broken)?;
    Ok(message)
}

fn merge(
    v4: Result<AnsweredAddresses, DnsError>,
    v6: Result<AnsweredAddresses, DnsError>,
) -> Result<AnsweredAddresses, DnsError> {
    let has_some = |answer: &AnsweredAddresses| !answer.addresses.is_empty();
    match (v4, v6) {
        (Ok(some), Err(_)) | (Err(_), Ok(some)) if has_some(&some) => Ok(some),
        (Ok(v4), Ok(v6)) => match (has_some(&v4), has_some(&v6)) {
            // A family without records does not limit the lifetime of the other.
            (true, false) => Ok(v4),
            (false, true) => Ok(v6),
            _ => Ok(AnsweredAddresses {
                addresses: [v4.addresses, v6.addresses].concat(),
                alias: v4.alias.or(v6.alias),
                ttl: v4.ttl.min(v6.ttl),
            }),
        },
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use hickory_proto::op::ResponseCode;
    use tokio::io::DuplexStream;

    use super::super::testing::{answer, reply};
    use super::*;

    fn name() -> Name {
        Name::parse("web.corp.test.").unwrap()
    }

    /// The result for a server that handles the two queries in this way.
    async fn served<F, Fut>(serve: F) -> Result<AnsweredAddresses, DnsError>
    where
        F: FnOnce(DuplexStream, Message, Message) -> Fut,
        Fut: Future<Output = ()>,
    {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        let server = async {
            let first = Message::from_vec(&read(&mut theirs).await.unwrap()).unwrap();
            let second = Message::from_vec(&read(&mut theirs).await.unwrap()).unwrap();
            assert_ne!(first.metadata.id, second.metadata.id);
            serve(theirs, first, second).await;
        };
        let name = name();
        tokio::join!(ask(&mut ours, &name), server).0
    }

    fn ips(answered: AnsweredAddresses) -> Vec<String> {
        answered.addresses.iter().map(IpAddr::to_string).collect()
    }

    #[tokio::test]
    async fn both_families_in_any_order() {
        for swapped in [false, true] {
            let answered = served(async |mut stream, a, aaaa| {
                let v4 = answer(&a, &["10.0.0.1"], 30);
                let v6 = answer(&aaaa, &["fd00::1"], 20);
                let answers = if swapped { [v6, v4] } else { [v4, v6] };
                for answer in answers {
                    reply(&mut stream, &answer).await;
                }
            });
            let answered = answered.await.unwrap();
            assert_eq!(answered.ttl, Duration::from_secs(20));
            assert_eq!(ips(answered), ["10.0.0.1", "fd00::1"]);
        }
    }

    #[tokio::test]
    async fn one_family_will_do() {
        for code in [ResponseCode::NoError, ResponseCode::ServFail] {
            let answered = served(async |mut stream, a, aaaa| {
                reply(&mut stream, &answer(&a, &["10.0.0.1"], 30)).await;
                let mut none = answer(&aaaa, &[], 0);
                none.metadata.response_code = code;
                reply(&mut stream, &none).await;
            });
            let answered = answered.await.unwrap();
            assert_eq!(answered.ttl, Duration::from_secs(30));
            assert_eq!(ips(answered), ["10.0.0.1"]);
        }
    }

    #[tokio::test]
    async fn failures() {
        let failed = served(async |mut stream, a, aaaa| {
            for question in [a, aaaa] {
                let mut none = answer(&question, &[], 0);
                none.metadata.response_code = ResponseCode::Refused;
                reply(&mut stream, &none).await;
            }
        });
        assert!(matches!(
            failed.await,
            Err(DnsError::Failed(ResponseCode::Refused))
        ));
        let broken = served(async |mut stream, a, _| {
            reply(&mut stream, &answer(&a, &[], 30)).await;
        });
        assert!(matches!(broken.await, Err(DnsError::Broken(_))));
        let twice = served(async |mut stream, a, _| {
            reply(&mut stream, &answer(&a, &[], 30)).await;
            reply(&mut stream, &answer(&a, &[], 30)).await;
        });
        assert!(matches!(twice.await, Err(DnsError::NotOurs)));
        let garbage = served(async |mut stream, _, _| {
            let _ = stream.write_all(&[0, 3, 1, 2, 3, 0, 1, 9]).await;
        });
        assert!(matches!(garbage.await, Err(DnsError::Malformed(_))));
        let empty = served(async |mut stream, _, _| {
            let _ = stream.write_all(&[0, 0, 0, 0]).await;
        });
        assert!(matches!(empty.await, Err(DnsError::Malformed(_))));
    }

    /// A server that closes after the first answer, or never sends the second.
    #[tokio::test(start_paused = true)]
    async fn an_address_is_not_thrown_away_for_the_other_family() {
        for swapped in [false, true] {
            for closes in [false, true] {
                let answered = served(async |mut stream, a, aaaa| {
                    let (question, ip) = if swapped {
                        (aaaa, "fd00::1")
                    } else {
                        (a, "10.0.0.1")
                    };
                    reply(&mut stream, &answer(&question, &[ip], 30)).await;
                    if !closes {
                        tokio::time::sleep(PATIENCE).await;
                    }
                });
                let wanted = if swapped { "fd00::1" } else { "10.0.0.1" };
                assert_eq!(ips(answered.await.unwrap()), [wanted]);
            }
        }
    }

    fn names() -> SearchNames {
        let names = ["a.test.", "b.test.", "c.test."];
        SearchNames(names.map(|name| Name::parse(name).unwrap()).into())
    }

    /// The result for a server that answers six queries (name and family) in this order, with these addresses each.
    async fn searched(
        order: &[usize],
        ips: impl Fn(&Message) -> Vec<&'static str>,
    ) -> Result<AnsweredAddresses, DnsError> {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        let server = async {
            let mut questions = Vec::new();
            for _ in 0..6 {
                let question = read(&mut theirs).await.unwrap();
                questions.push(Message::from_vec(&question).unwrap());
            }
            for n in order {
                let question = &questions[*n];
                reply(&mut theirs, &answer(question, &ips(question), 30)).await;
            }
            if order.len() < 6 {
                tokio::time::sleep(PATIENCE).await;
            }
        };
        let names = names();
        tokio::select! {
            answered = ask(&mut ours, &names) => answered,
            () = async { server.await; std::future::pending().await } => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_names_asked_for_at_once_the_first_that_exists_counts() {
        let of = |name: &'static str, ip: &'static str| {
            move |question: &Message| {
                let asked = question.queries[0].name().to_ascii();
                if asked == name { vec![ip] } else { vec![] }
            }
        };
        let all = [0, 1, 2, 3, 4, 5];
        let backwards = [5, 4, 3, 2, 1, 0];
        for order in [all, backwards] {
            let found = searched(&order, of("b.test.", "10.0.0.1")).await;
            assert_eq!(ips(found.unwrap()), ["10.0.0.1"]);
            let found = searched(&order, of("no.test.", "10.0.0.1")).await.unwrap();
            assert_eq!(
                (found.addresses.len(), found.ttl),
                (0, Duration::from_secs(5))
            );
            // The first name in search order wins, whichever answer came first.
            let found = searched(&order, |question| {
                match &*question.queries[0].name().to_ascii() {
                    "a.test." => vec!["10.0.0.1"],
                    _ => vec!["10.0.0.2"],
                }
            });
            assert_eq!(ips(found.await.unwrap()), ["10.0.0.1"]);
        }
        // Later names are not waited for, and the other family only for a short time.
        let found = searched(&[0], of("a.test.", "10.0.0.1")).await;
        assert_eq!(ips(found.unwrap()), ["10.0.0.1"]);
        // Earlier names are waited for.
        let silent = searched(&[2, 3, 4, 5], of("b.test.", "10.0.0.1")).await;
        assert!(matches!(silent, Err(DnsError::TimedOut(PATIENCE))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_silent_is_given_up() {
        let silent = served(async |stream, _, _| {
            tokio::time::sleep(PATIENCE * 2).await;
            drop(stream);
        });
        assert!(matches!(silent.await, Err(DnsError::TimedOut(PATIENCE))));
    }
}
