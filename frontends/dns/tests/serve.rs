//! The frontend over real sockets, with backends that answer, refuse or are slow.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use kubevpn_conn::{Drain, Gate, Limits, Listener};
use kubevpn_dns::{AnswerQueries, Settings, bind_udp, serve_stream, serve_udp};
use kubevpn_target::{ConnectError, Refusal};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tower::service_fn;

/// Time limit of a test, reached only if something hangs.
const PATIENCE: Duration = Duration::from_secs(30);

fn question(name: &str, record: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record));
    message
}

/// `N.many.` has N addresses, `slow.` never answers, `out.` is not ours, everything else has one address.
fn backend() -> impl AnswerQueries + Clone + Sync + 'static {
    service_fn(|query: Query| async move {
        let name = query.name().to_ascii().to_lowercase();
        let refused = |refusal| Err(ConnectError::new(refusal, "no"));
        match name.as_str() {
            "slow." => std::future::pending().await,
            "out." => return refused(Refusal::Denied),
            "broken." => return refused(Refusal::ClusterAway),
            _ => {}
        }
        let count = name
            .strip_suffix(".many.")
            .map_or(1, |n| n.parse().unwrap());
        let mut answer = Message::response(0, OpCode::Query);
        answer.metadata.authoritative = true;
        for i in 0..count {
            let address = RData::A(A(Ipv4Addr::from(0x0a00_0000 + i)));
            answer.add_answer(Record::from_rdata(query.name().clone(), 5, address));
        }
        Ok(answer)
    })
}

struct Rig {
    addr: SocketAddr,
    drain: Drain,
}

impl Rig {
    fn start(settings: Settings) -> Self {
        Self::bind("127.0.0.1:0", settings)
    }

    fn bind(addr: &str, settings: Settings) -> Self {
        let socket = bind_udp(addr.parse().unwrap()).unwrap();
        let (addr, drain) = (socket.local_addr().unwrap(), Drain::new());
        tokio::spawn(serve_udp(socket, backend(), settings, drain.clone()));
        Self { addr, drain }
    }

    async fn client(&self) -> UdpSocket {
        let any = match self.addr {
            SocketAddr::V4(_) => "127.0.0.1:0",
            SocketAddr::V6(_) => "[::1]:0",
        };
        let socket = UdpSocket::bind(any).await.unwrap();
        socket.connect(self.addr).await.unwrap();
        socket
    }

    async fn ask(&self, question: &Message) -> Message {
        let client = self.client().await;
        client.send(&question.to_vec().unwrap()).await.unwrap();
        let mut buffer = [0; 65_535];
        let received = tokio::time::timeout(PATIENCE, client.recv(&mut buffer));
        let length = received.await.expect("no answer").unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &Message) {
    let bytes = message.to_vec().unwrap();
    stream
        .write_u16(bytes.len().try_into().unwrap())
        .await
        .unwrap();
    stream.write_all(&bytes).await.unwrap();
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Message> {
    let mut bytes = vec![0; stream.read_u16().await.ok()?.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Some(Message::from_vec(&bytes).unwrap())
}

/// All answers to these over one stream, in the order they come.
async fn ask_stream(questions: &[&Message]) -> Vec<Message> {
    let (mut app, client): (DuplexStream, _) = tokio::io::duplex(1 << 20);
    let served =
        tokio::spawn(async move { serve_stream(client, backend(), &Settings::default()).await });
    for question in questions {
        write(&mut app, question).await;
    }
    app.shutdown().await.unwrap();
    let mut answers = Vec::new();
    while let Some(answer) = read(&mut app).await {
        answers.push(answer);
    }
    served.await.unwrap().unwrap();
    answers
}

#[tokio::test]
async fn an_answer_has_the_questions_id_name_and_case() {
    let rig = Rig::start(Settings::default());
    let asked = question("Web.Shop.", RecordType::A);
    let got = rig.ask(&asked).await;
    assert_eq!(got.metadata.id, asked.metadata.id);
    assert_eq!(got.queries[0].name().to_ascii(), "Web.Shop.");
    assert!(got.metadata.authoritative && got.metadata.recursion_desired);
    assert_eq!((got.answers.len(), got.edns), (1, None));
}

/// Clients reject answers from an address other than the one they asked.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_answer_comes_from_the_address_that_was_asked() {
    for (bound, asked) in [
        ("0.0.0.0:0", "127.0.0.2"),
        ("[::]:0", "127.0.0.3"),
        ("[::]:0", "::1"),
        ("127.0.0.1:0", "127.0.0.1"),
    ] {
        let rig = Rig::bind(bound, Settings::default());
        let addr = SocketAddr::new(asked.parse().unwrap(), rig.addr.port());
        let got = Rig { addr, ..rig }
            .ask(&question("web.", RecordType::A))
            .await;
        assert_eq!(got.answers.len(), 1, "{asked} of {bound}");
    }
}

/// RA, DO and CD in the answer, and DO and CD in the upstream's query.
#[tokio::test]
async fn flags_are_true() {
    let mut asked = question("web.", RecordType::A);
    asked.metadata.checking_disabled = true;
    let mut edns = Edns::new();
    edns.set_dnssec_ok(true);
    asked.set_edns(edns);
    let alone = Rig::start(Settings::default());
    let got = alone.ask(&asked).await;
    assert!(!got.metadata.recursion_available, "nobody recurses");
    assert!(got.metadata.checking_disabled);
    assert!(got.edns.unwrap().flags().dnssec_ok);
    let rig = Rig::start(Settings {
        upstream: Some(upstream().await),
        ..Settings::default()
    });
    let plain = question("out.", RecordType::A);
    asked.queries = plain.queries.clone();
    for (asked, signed) in [(asked, true), (plain, false)] {
        let got = rig.ask(&asked).await;
        assert!(got.metadata.recursion_available);
        assert_eq!(got.metadata.checking_disabled, signed);
        // The upstream returns the flags of its query.
        let text = format!("DO {signed} CD {signed}");
        assert_eq!(got.answers[0].data.to_string(), text);
    }
}

#[tokio::test]
async fn a_truncated_answer_is_asked_again_over_tcp() {
    let rig = Rig::start(Settings::default());
    let plain = question("60.many.", RecordType::A);
    let mut with_edns = plain.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    with_edns.set_edns(edns);
    let got = rig.ask(&plain).await;
    assert!(got.metadata.truncation && got.answers.is_empty());
    let got = rig.ask(&with_edns).await;
    assert_eq!((got.metadata.truncation, got.answers.len()), (false, 60));
    assert_eq!(got.edns.unwrap().max_payload(), 1232);
    let many = question("2000.many.", RecordType::A);
    assert!(rig.ask(&many).await.metadata.truncation);
    let mut counts: Vec<_> = ask_stream(&[&plain, &many])
        .await
        .iter()
        .map(|answer| answer.answers.len())
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [60, 2000]);
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let rig = Rig::start(Settings::default());
    for (name, code) in [
        ("out.", ResponseCode::Refused),
        ("broken.", ResponseCode::ServFail),
    ] {
        let got = rig.ask(&question(name, RecordType::A)).await;
        assert_eq!(got.metadata.response_code, code, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_a_failure_and_holds_up_no_other() {
    let (slow, quick) = (
        question("slow.", RecordType::A),
        question("web.", RecordType::A),
    );
    let got = ask_stream(&[&slow, &quick]).await;
    assert_eq!(got[0].metadata.id, quick.metadata.id, "answered first");
    assert_eq!(got[1].metadata.id, slow.metadata.id);
    assert_eq!(got[1].metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test(start_paused = true)]
async fn idle_and_excessive_streams_are_closed() {
    let (app, client) = tokio::io::duplex(64);
    let served = serve_stream(client, backend(), &Settings::default()).await;
    assert_eq!(served.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    drop(app);
    // Single bytes now and then are not a query.
    let (mut app, client) = tokio::io::duplex(64);
    let dripping = tokio::spawn(async move {
        app.write_u16(40).await.unwrap();
        while app.write_u8(0).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(9)).await;
        }
    });
    let started = tokio::time::Instant::now();
    let served = serve_stream(client, backend(), &Settings::default()).await;
    assert_eq!(served.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(started.elapsed().as_secs(), 10);
    dripping.await.unwrap();
    let (mut app, client) = tokio::io::duplex(64);
    app.write_u16(5000).await.unwrap();
    let served = serve_stream(client, backend(), &Settings::default()).await;
    assert_eq!(served.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}

/// An idle stream, or one with half a query, does not delay a drain.
#[tokio::test]
async fn a_drain_closes_idle_streams() {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let addr = listener.addr().to_string();
    let (gate, drain) = (Gate::new(Limits::default()), Drain::new());
    let serving = listener.serve(gate.clone(), drain.clone(), |client| async {
        let _ended = serve_stream(client, backend(), &Settings::default()).await;
    });
    let serving = tokio::spawn(serving);
    let idle = TcpStream::connect(&addr).await.unwrap();
    let mut half = TcpStream::connect(&addr).await.unwrap();
    half.write_u16(40).await.unwrap();
    let mut asked = TcpStream::connect(&addr).await.unwrap();
    write(&mut asked, &question("web.", RecordType::A)).await;
    assert!(read(&mut asked).await.is_some());
    assert_eq!(gate.open(), 3);
    let drained = drain.drain(Duration::from_secs(5)).await;
    assert_eq!((drained.finished, drained.cut), (3, 0));
    serving.await.unwrap();
    drop((idle, half, asked));
}

/// An upstream DNS server. Over UDP a forged answer comes first, and an answer about TXT is truncated.
async fn upstream() -> SocketAddr {
    fn answer(asked: &Message) -> Message {
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        let query = &asked.queries[0];
        let edns = asked.edns.as_ref();
        let signatures = edns.is_some_and(|edns| edns.flags().dnssec_ok);
        let unchecked = asked.metadata.checking_disabled;
        let text = format!("DO {signatures} CD {unchecked}");
        let text = RData::TXT(TXT::new(vec![text]));
        answer.add_query(query.clone());
        answer.add_answer(Record::from_rdata(query.name().clone(), 60, text));
        answer
    }
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(addr).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut forged = answer(&asked);
            forged.metadata.id = asked.metadata.id.wrapping_add(1);
            forged.metadata.response_code = ResponseCode::NXDomain;
            let mut real = answer(&asked);
            if asked.queries[0].query_type() == RecordType::TXT {
                real = real.truncate();
            }
            for message in [forged, real] {
                udp.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let asked = read(&mut stream).await.unwrap();
            write(&mut stream, &answer(&asked)).await;
        }
    });
    addr
}

#[tokio::test]
async fn names_outside_are_asked_upstream() {
    let rig = Rig::start(Settings {
        upstream: Some(upstream().await),
        ..Settings::default()
    });
    for record in [RecordType::A, RecordType::TXT] {
        let got = rig.ask(&question("Out.", record)).await;
        assert_eq!(got.metadata.response_code, ResponseCode::NoError);
        assert_eq!(got.answers.len(), 1, "{got:?}");
        assert!(!got.metadata.authoritative);
    }
    // The upstream is not asked after a failure of the service.
    let got = rig.ask(&question("broken.", RecordType::A)).await;
    assert_eq!(got.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_failure() {
    let gone = {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.local_addr().unwrap()
    };
    let rig = Rig::start(Settings {
        upstream: Some(gone),
        ..Settings::default()
    });
    let got = rig.ask(&question("out.", RecordType::A)).await;
    assert_eq!(got.metadata.response_code, ResponseCode::ServFail);
}

/// A valid query is answered despite garbage of every length and more open queries than the limit.
#[tokio::test]
async fn noise_leaves_it_answering() {
    let rig = Rig::start(Settings {
        in_flight: 8,
        in_flight_per_client: 4,
        answer_timeout: Duration::from_millis(300),
        ..Settings::default()
    });
    let noisy = rig.client().await;
    let good = question("web.", RecordType::A).to_vec().unwrap();
    let slow = question("slow.", RecordType::A).to_vec().unwrap();
    for i in 0..2000_usize {
        let mut bytes = good.clone();
        bytes.rotate_left(i % good.len());
        bytes.truncate(i % (good.len() + 1));
        noisy.send(&bytes).await.unwrap();
        noisy.send(&slow).await.unwrap();
    }
    assert!(rig.drain.open() <= 8, "{}", rig.drain.open());
    // Permits are returned as the slow queries fail; until then the client repeats its query.
    let client = rig.client().await;
    let mut buffer = [0; 4096];
    let answered = async {
        loop {
            client.send(&good).await.unwrap();
            let received = client.recv(&mut buffer);
            if let Ok(length) = tokio::time::timeout(Duration::from_millis(50), received).await {
                return Message::from_vec(&buffer[..length.unwrap()]).unwrap();
            }
        }
    };
    let got = tokio::time::timeout(PATIENCE, answered).await.unwrap();
    assert_eq!(got.answers.len(), 1);
}
