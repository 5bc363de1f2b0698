//! One question over one stream.

use std::fmt::Display;
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::RecordType;
use kubevpn_target::Name;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::message::{self, Answered, DnsError};

/// How long the server may take for all of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the answer for one family waits for the other's (RFC 8305 section 3 has a "resolution delay" of the kind).
const OTHER_FAMILY: Duration = Duration::from_secs(1);

/// Something a DNS server can be asked over one stream.
pub(crate) trait Question: Display + Sync {
    type Answer: Send;

    /// Without a limit on time.
    fn ask<S>(&self, stream: &mut S) -> impl Future<Output = Result<Self::Answer, DnsError>> + Send
    where
        S: AsyncRead + AsyncWrite + Unpin + Send;
}

/// A name, for its addresses: both families at once (RFC 7766 section 6.2.1.1), and both answers in whichever order
/// they come. One failure is passed over if the other answer has an address.
impl Question for Name {
    type Answer = Answered;

    async fn ask<S>(&self, stream: &mut S) -> Result<Answered, DnsError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        both(stream, self).await
    }
}

/// One question as it is, for the whole answer.
impl Question for Query {
    type Answer = Message;

    async fn ask<S>(&self, stream: &mut S) -> Result<Message, DnsError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let question = message::Question::of(self.clone());
        write(stream, [&question]).await?;
        question
            .answer(&read(stream).await?)?
            .ok_or(DnsError::NotOurs)
    }
}

/// Asks, and waits for [`PATIENCE`] at most.
pub(crate) async fn ask<S, Q: Question>(stream: &mut S, question: &Q) -> Result<Q::Answer, DnsError>
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
    questions: impl IntoIterator<Item = &'q message::Question>,
) -> Result<(), DnsError>
where
    S: AsyncWrite + Unpin,
{
    let mut sent = Vec::new();
    for question in questions {
        let message = question.to_vec()?;
        // A question is a name and a few bytes more.
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        sent.extend(length.to_be_bytes());
        sent.extend(message);
    }
    stream.write_all(&sent).await.map_err(DnsError::Broken)?;
    stream.flush().await.map_err(DnsError::Broken)
}

async fn both<S>(stream: &mut S, name: &Name) -> Result<Answered, DnsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let v4 = message::Question::new(name, RecordType::A)?;
    let mut v6 = message::Question::new(name, RecordType::AAAA)?;
    if v6.id == v4.id {
        v6.id = v4.id.wrapping_add(1);
    }
    write(stream, [&v4, &v6]).await?;
    let first = read(stream).await?;
    let (first, other) = match v4.read(&first) {
        Ok(None) => (v6.read(&first), &v4),
        a => (a, &v6),
    };
    let ours = |answer: Result<Option<Answered>, DnsError>| answer?.ok_or(DnsError::NotOurs);
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

/// One message, which cannot be longer than its two bytes of length say.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, DnsError> {
    let length = stream.read_u16().await.map_err(DnsError::Broken)?;
    let mut message = vec![0; length.into()];
    let read = stream.read_exact(&mut message).await;
    read.map_err(DnsError::Broken)?;
    Ok(message)
}

fn merge(
    v4: Result<Answered, DnsError>,
    v6: Result<Answered, DnsError>,
) -> Result<Answered, DnsError> {
    let has_some = |answer: &Answered| !answer.addresses.is_empty();
    match (v4, v6) {
        (Ok(some), Err(_)) | (Err(_), Ok(some)) if has_some(&some) => Ok(some),
        (Ok(v4), Ok(v6)) => match (has_some(&v4), has_some(&v6)) {
            // The family that is not there says nothing about how long the other is.
            (true, false) => Ok(v4),
            (false, true) => Ok(v6),
            _ => Ok(Answered {
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

    /// What comes of a server that does this with the two questions.
    async fn served<F, Fut>(serve: F) -> Result<Answered, DnsError>
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

    fn ips(answered: Answered) -> Vec<String> {
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

    /// A server that closes after the first answer, or never gives the second.
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

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_silent_is_given_up() {
        let silent = served(async |stream, _, _| {
            tokio::time::sleep(PATIENCE * 2).await;
            drop(stream);
        });
        assert!(matches!(silent.await, Err(DnsError::TimedOut(PATIENCE))));
    }
}
