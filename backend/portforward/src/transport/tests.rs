//! All transports, against an API server in memory with scripted answers.

mod silence;

use std::future::poll_fn;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use kubevpn_client::{Options, build};
use kubevpn_target::{Refusal, Stream as _};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf, duplex, split};
use tokio::time::{advance, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tower::ServiceExt as _;

use super::*;
use crate::forward::Forwarder;
use crate::pod::PodPort;
use crate::stream::PodStream;
use crate::testing::{CLOSED, ECHO, MUTE, SINK, SLOW, TestNode, echo, settle, soon, to};
use crate::transport::tunnel::WebSocketBytes;

/// How a request is answered.
#[derive(Clone, Copy)]
enum Answer {
    Upgrade,
    Status(u16, &'static str),
    /// The connection is cut.
    Cut,
    /// No answer.
    Hang,
    /// An upgrade, and nothing after it.
    Swallow,
    /// An upgrade to another protocol than requested.
    Wrong(&'static str),
    /// This answer, after so many seconds.
    Late(u64, &'static Self),
}

const FORBIDDEN: Answer = Answer::Status(
    403,
    r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"pods \"web-0\" is forbidden: User \"viewer\" cannot do that","reason":"Forbidden","details":{"name":"web-0","kind":"pods"},"code":403}"#,
);
const UNKNOWN: Answer = Answer::Status(403, "unable to upgrade: unable to negotiate protocol");
const GONE: Answer = Answer::Status(
    404,
    r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"pods \"web-0\" not found","reason":"NotFound","details":{"name":"web-0","kind":"pods"},"code":404}"#,
);
const NODE_AWAY: Answer = Answer::Status(
    500,
    r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"error dialing backend: connection refused","code":500}"#,
);

/// An API server; `script` has the answer to each form: POST and GET of SPDY, SPDY in WebSocket, the channel.
#[derive(Clone)]
struct Server {
    script: Arc<Mutex<[Answer; 4]>>,
    asked: Arc<Mutex<Vec<&'static str>>>,
    node: Arc<TestNode>,
}

const FORMS: [&str; 4] = ["POST spdy", "GET spdy", "GET spdy-ws", "GET ws"];

impl Server {
    fn new(script: [Answer; 4]) -> Self {
        Self {
            script: Arc::new(Mutex::new(script)),
            asked: Arc::default(),
            node: Arc::default(),
        }
    }

    fn change(&self, script: [Answer; 4]) {
        *self.script.lock().unwrap() = script;
    }

    /// The requests since the last call.
    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn forwarder(&self, transport: TransportChoice) -> Forwarder {
        let config = Config {
            transport,
            ..Config::default()
        };
        Forwarder::new(self.client(), config)
    }

    fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (near, far) = duplex(64 * 1024);
                let service = hyper::service::service_fn(move |r| server.clone().answer(r));
                let far = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(far), service)
                    .with_upgrades();
                tokio::spawn(far);
                let (mut send, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
                tokio::spawn(connection.with_upgrades());
                send.send_request(request).await
            }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(self, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        assert_eq!(
            request.uri().path(),
            "/api/v1/namespaces/shop/pods/web-0/portforward"
        );
        let form = form(&request);
        self.asked.lock().unwrap().push(FORMS[form]);
        let mut answer = self.script.lock().unwrap()[form];
        while let Answer::Late(after, then) = answer {
            sleep(Duration::from_secs(after)).await;
            answer = *then;
        }
        match answer {
            Answer::Late(..) => unreachable!("it has come"),
            Answer::Upgrade => Ok(self.upgrade(form, request, true)),
            Answer::Status(status, body) => {
                let body = Full::new(Bytes::from(body));
                Ok(Response::builder().status(status).body(body).unwrap())
            }
            Answer::Cut => Err(io::ErrorKind::ConnectionReset.into()),
            Answer::Hang => std::future::pending().await,
            Answer::Swallow => Ok(self.upgrade(form, request, false)),
            Answer::Wrong(protocol) => {
                let mut response = self.upgrade(form, request, true);
                let headers = response.headers_mut();
                for name in [header::SEC_WEBSOCKET_PROTOCOL, header::SEC_WEBSOCKET_ACCEPT] {
                    if headers.contains_key(&name) {
                        headers.insert(name, protocol.parse().unwrap());
                    }
                }
                headers.insert(header::UPGRADE, "websocket".parse().unwrap());
                Ok(response)
            }
        }
    }

    fn upgrade(
        self,
        form: usize,
        request: Request<Incoming>,
        answers: bool,
    ) -> Response<Full<Bytes>> {
        let headers = request.headers().clone();
        let port = request.uri().query().and_then(|q| q.strip_prefix("ports="));
        let port = port.map(|p| p.parse().unwrap());
        assert_eq!(port.is_some(), form == 3, "only channels name the port");
        let node = self.node.clone();
        tokio::spawn(async move {
            let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            match form {
                _ if !answers => drop(tokio::io::copy(&mut io, &mut tokio::io::sink()).await),
                0 | 1 => node.speak_spdy(io).await,
                2 => {
                    node.speak_spdy(WebSocketBytes::new(io, Role::Server).await)
                        .await
                }
                _ => node.speak_v4(io, port.unwrap()).await,
            }
        });
        let mut response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, &headers[header::UPGRADE]);
        if let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) {
            response = response
                .header(
                    header::SEC_WEBSOCKET_ACCEPT,
                    derive_accept_key(key.as_bytes()),
                )
                .header(
                    header::SEC_WEBSOCKET_PROTOCOL,
                    &headers[header::SEC_WEBSOCKET_PROTOCOL],
                );
        }
        response.body(Full::default()).unwrap()
    }
}

fn form(request: &Request<Incoming>) -> usize {
    let get = |name: &str| {
        let value = request.headers().get(name);
        value.map_or("", |v| v.to_str().unwrap())
    };
    match (
        request.method().as_str(),
        get("upgrade"),
        get("x-stream-protocol-version"),
        get("sec-websocket-protocol"),
    ) {
        ("POST", "SPDY/3.1", "portforward.k8s.io", "") => 0,
        ("GET", "SPDY/3.1", "portforward.k8s.io", "") => 1,
        ("GET", "websocket", "", "SPDY/3.1+portforward.k8s.io") => 2,
        ("GET", "websocket", "", "v4.channel.k8s.io") => 3,
        other => panic!("asked for {other:?}"),
    }
}

async fn dial(forwarder: &Forwarder, port: u16) -> Result<PodStream, ForwardError> {
    forwarder.clone().oneshot(to(port)).await
}

/// Dials on a session or channel that is opened for it: to a Pod that has been replaced under its name.
async fn dial_anew(forwarder: &Forwarder) -> Result<PodStream, ForwardError> {
    static UIDS: AtomicUsize = AtomicUsize::new(0);
    let uid = UIDS.fetch_add(1, SeqCst).to_string();
    let uid = Some(uid);
    let anew = PodPort { uid, ..to(ECHO) };
    forwarder.clone().oneshot(anew).await
}

const AUTO: TransportChoice = TransportChoice::Auto;

// === which transport ===

#[tokio::test(start_paused = true)]
async fn an_api_server_that_puts_requests_off_is_overloaded_and_keeps_its_transport() {
    for status in [408, 425, 429] {
        let server = Server::new([Answer::Upgrade; 4]);
        let forwarder = server.forwarder(AUTO);
        dial_anew(&forwarder).await.unwrap();
        server.change([Answer::Status(status, "later"); 4]);
        server.asked();
        for _ in 0..3 {
            let error = dial_anew(&forwarder).await.unwrap_err();
            assert_eq!(error.refusal(), Refusal::Overloaded, "{error}");
            assert!(error.is_limit() && !error.retryable());
            assert_eq!(server.asked(), ["POST spdy"], "asked once");
        }
        // One of several servers answers 429, and the next transport would reach another.
        let once = Answer::Status(status, "later");
        server.change([once, Answer::Upgrade, Answer::Upgrade, Answer::Upgrade]);
        dial_anew(&forwarder).await.unwrap_err();
        server.change([Answer::Upgrade; 4]);
        server.asked();
        dial_anew(&forwarder).await.unwrap();
        assert_eq!(server.asked(), ["POST spdy"]);
    }
}

#[tokio::test(start_paused = true)]
async fn all_three_carry_bytes() {
    let server = Server::new([Answer::Upgrade; 4]);
    for (transport, asked) in [
        (Transport::Spdy, "POST spdy"),
        (Transport::SpdyWs, "GET spdy-ws"),
        (Transport::WsV4, "GET ws"),
    ] {
        let forwarder = server.forwarder(TransportChoice::Only(transport));
        let mut stream = dial(&forwarder, ECHO).await.unwrap();
        let text: Vec<u8> = (0..300_000u32).map(|i| (i * 7) as u8).collect();
        let (mut read, mut write) = split(&mut stream);
        let send = async {
            write.write_all(&text).await.unwrap();
            write.flush().await.unwrap();
        };
        let mut back = vec![0; text.len()];
        let both = async { tokio::join!(send, read.read_exact(&mut back)) };
        let (_, got) = soon(both).await;
        got.unwrap();
        assert!(back == text);
        assert_eq!(
            stream.via().to_string(),
            format!("shop/web-0:7 ({transport})")
        );
        assert_eq!(server.asked(), [asked]);
    }
}

#[tokio::test(start_paused = true)]
async fn working_transports_are_remembered_and_others_retried_later() {
    // A failure that may be an accident has to happen twice.
    for (refused, times) in [
        (UNKNOWN, 1),
        (Answer::Status(502, "<html>"), 2),
        (Answer::Cut, 2),
    ] {
        let server = Server::new([refused, refused, Answer::Upgrade, Answer::Upgrade]);
        let forwarder = server.forwarder(AUTO);
        for _ in 0..times {
            dial_anew(&forwarder).await.unwrap();
            assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws"]);
        }
        dial_anew(&forwarder).await.unwrap();
        assert_eq!(server.asked(), ["GET spdy-ws"]);
        server.change([Answer::Upgrade; 4]);
        advance(Duration::from_secs(601)).await;
        // In parallel with a dial, which does not wait for it.
        dial_anew(&forwarder).await.unwrap();
        settle().await;
        let mut asked = server.asked();
        asked.sort_unstable();
        assert_eq!(asked, ["GET spdy-ws", "POST spdy"]);
        dial_anew(&forwarder).await.unwrap();
        assert_eq!(server.asked(), ["POST spdy"]);
    }
}

/// Dials anew; how long it took.
async fn timed(forwarder: &Forwarder) -> Duration {
    let began = Instant::now();
    let mut stream = dial_anew(forwarder).await.unwrap();
    echo(&mut stream, b"hello").await.unwrap();
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_single_cut_is_forgotten() {
    let cut = [Answer::Cut, Answer::Cut, Answer::Upgrade, Answer::Upgrade];
    let server = Server::new(cut);
    let forwarder = server.forwarder(AUTO);
    for _ in 0..3 {
        server.change(cut);
        dial_anew(&forwarder).await.unwrap();
        assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws"]);
        server.change([Answer::Upgrade; 4]);
        dial_anew(&forwarder).await.unwrap();
        assert_eq!(server.asked(), ["POST spdy"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_came_back_is_not_held_against_the_transport() {
    let server = Server::new([NODE_AWAY, UNKNOWN, NODE_AWAY, Answer::Upgrade]);
    let forwarder = server.forwarder(AUTO);
    dial_anew(&forwarder).await.unwrap();
    assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws", "GET ws"]);
    server.change([Answer::Upgrade; 4]);
    dial_anew(&forwarder).await.unwrap();
    assert_eq!(server.asked(), ["POST spdy"]);
}

#[tokio::test(start_paused = true)]
async fn channels_are_the_last_resort_and_one_per_connection() {
    let server = Server::new([UNKNOWN, UNKNOWN, UNKNOWN, Answer::Upgrade]);
    let forwarder = server.forwarder(AUTO);
    let mut first = dial(&forwarder, ECHO).await.unwrap();
    assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws", "GET ws"]);
    let mut second = dial(&forwarder, ECHO).await.unwrap();
    assert_eq!(server.asked(), ["GET ws"]);
    echo(&mut first, b"one").await.unwrap();
    echo(&mut second, b"two").await.unwrap();
    assert_eq!(forwarder.stats().streams, 2);
    // The working transport fails: all are tried again, within this dial.
    server.change([UNKNOWN, UNKNOWN, Answer::Upgrade, UNKNOWN]);
    dial(&forwarder, ECHO).await.unwrap();
    assert_eq!(server.asked(), ["GET ws", "POST spdy", "GET spdy-ws"]);
}

#[tokio::test(start_paused = true)]
async fn whatever_an_upgrade_is_refused_with_the_next_is_tried() {
    for refusal in [
        Answer::Status(400, "Bad Request"),
        Answer::Status(403, ""),
        Answer::Status(404, "404 page not found"),
        Answer::Status(405, ""),
        Answer::Status(426, ""),
        Answer::Status(503, ""),
        Answer::Cut,
        Answer::Hang,
        Answer::Wrong("nonsense"),
        NODE_AWAY,
    ] {
        let server = Server::new([refusal, refusal, Answer::Upgrade, Answer::Upgrade]);
        dial(&server.forwarder(AUTO), ECHO).await.unwrap();
        assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_forced_transport_is_the_only_one_tried() {
    let server = Server::new([UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]);
    for (transport, asked) in Transport::ALL
        .into_iter()
        .zip(["POST spdy", "GET spdy-ws", "GET ws"])
    {
        let forwarder = server.forwarder(TransportChoice::Only(transport));
        let error = dial(&forwarder, ECHO).await.unwrap_err();
        assert!(matches!(error, ForwardError::Rejected { .. }), "{error}");
        assert_eq!(server.asked(), [asked]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_with_a_wrong_key_is_refused() {
    let wrong = Answer::Wrong("nonsense");
    let server = Server::new([Answer::Cut, Answer::Cut, wrong, wrong]);
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("spdy-ws, ws: the WebSocket answer is to somebody else's key"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_transport_is_waited_for_if_the_next_is_refused_for_good() {
    let slow = Answer::Late(3, &Answer::Upgrade);
    for refusal in [
        FORBIDDEN,
        Answer::Status(429, "later"),
        Answer::Status(401, ""),
    ] {
        let server = Server::new([slow, refusal, refusal, refusal]);
        dial(&server.forwarder(AUTO), ECHO).await.unwrap();
        assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws"]);
    }
    // Of the Pod itself every transport says the same.
    let server = Server::new([slow, slow, GONE, GONE]);
    let began = Instant::now();
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::NameNotFound);
    assert_eq!(began.elapsed(), Config::default().transport_stagger);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_is_the_answer_if_the_slow_transport_fails_too() {
    let cut = Answer::Late(3, &Answer::Cut);
    let put_off = Answer::Status(429, "later");
    let server = Server::new([cut, cut, put_off, put_off]);
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Overloaded, "{error}");
    let forbidden = Answer::Late(3, &FORBIDDEN);
    let server = Server::new([forbidden, FORBIDDEN, FORBIDDEN, FORBIDDEN]);
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    assert!(
        error.to_string().contains(r#"["create", "get"]"#),
        "{error}"
    );
    assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws", "GET spdy"]);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_never_worked_is_no_reason_to_forget() {
    let ok = Answer::Upgrade;
    let server = Server::new([UNKNOWN, UNKNOWN, ok, UNKNOWN]);
    let forwarder = server.forwarder(AUTO);
    dial_anew(&forwarder).await.unwrap();
    // A channel is tried beside the slow upgrade, and refused.
    server.change([UNKNOWN, UNKNOWN, Answer::Late(6, &Answer::Upgrade), UNKNOWN]);
    server.asked();
    dial_anew(&forwarder).await.unwrap();
    assert_eq!(server.asked(), ["GET spdy-ws", "GET ws"]);
    server.change([ok; 4]);
    dial_anew(&forwarder).await.unwrap();
    assert_eq!(server.asked(), ["GET spdy-ws"]);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_forgotten_when_nothing_is_left() {
    let ok = Answer::Upgrade;
    let server = Server::new([UNKNOWN, UNKNOWN, ok, ok]);
    let forwarder = server.forwarder(AUTO);
    dial_anew(&forwarder).await.unwrap();
    // Another network, which passes SPDY alone: no channel ever worked.
    server.change([ok, ok, UNKNOWN, UNKNOWN]);
    dial_anew(&forwarder).await.unwrap_err();
    server.asked();
    dial_anew(&forwarder).await.unwrap();
    assert_eq!(server.asked(), ["POST spdy"]);
}

#[tokio::test(start_paused = true)]
async fn a_second_failure_counts_though_another_transport_was_faster() {
    let ok = Answer::Upgrade;
    let server = Server::new([Answer::Cut, Answer::Cut, ok, ok]);
    let forwarder = server.forwarder(AUTO);
    dial_anew(&forwarder).await.unwrap();
    server.change([Answer::Late(3, &Answer::Cut), ok, ok, ok]);
    dial_anew(&forwarder).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    server.change([ok; 4]);
    server.asked();
    dial_anew(&forwarder).await.unwrap();
    assert_eq!(server.asked(), ["GET spdy-ws"]);
}

// === what a refusal means ===

#[tokio::test(start_paused = true)]
async fn a_401_ends_it() {
    let server = Server::new([Answer::Status(401, "Unauthorized"); 4]);
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Unauthenticated);
    assert!(!error.retryable());
    assert_eq!(server.asked(), ["POST spdy"]);
}

#[tokio::test(start_paused = true)]
async fn rules_that_grant_get_alone_are_enough() {
    let server = Server::new([FORBIDDEN, Answer::Upgrade, Answer::Upgrade, Answer::Upgrade]);
    dial(&server.forwarder(AUTO), ECHO).await.unwrap();
    assert_eq!(server.asked(), ["POST spdy", "GET spdy"]);
    // If SPDY does not pass, WebSocket is used with the same verb.
    let server = Server::new([FORBIDDEN, Answer::Cut, Answer::Upgrade, Answer::Upgrade]);
    dial(&server.forwarder(AUTO), ECHO).await.unwrap();
    assert_eq!(server.asked(), ["POST spdy", "GET spdy", "GET spdy-ws"]);
}

#[tokio::test(start_paused = true)]
async fn forbidden_names_every_verb_that_was_asked_for() {
    let server = Server::new([FORBIDDEN; 4]);
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Forbidden);
    assert_eq!(server.asked(), ["POST spdy", "GET spdy"]);
    let text = error.to_string();
    for part in [
        r#"["create", "get"]"#,
        "pods/portforward",
        "namespace shop",
        "viewer",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A proxy that stops SPDY leaves only forms that ask for `get`.
    let server = Server::new([Answer::Cut, Answer::Cut, FORBIDDEN, FORBIDDEN]);
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    assert!(error.to_string().contains(r#"["get"]"#), "{error}");
    // One that stops SPDY by GET alone does not hide that `create` is missing.
    let server = Server::new([FORBIDDEN, Answer::Cut, Answer::Cut, Answer::Cut]);
    let error = dial(
        &server.forwarder(TransportChoice::Only(Transport::Spdy)),
        ECHO,
    )
    .await;
    assert!(error.unwrap_err().to_string().contains(r#"["create"]"#));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_is_not_found() {
    let server = Server::new([GONE; 4]);
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::NameNotFound);
    assert!(error.retryable());
    assert_eq!(server.asked(), ["POST spdy"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_is_the_pods_fault_not_the_transports() {
    let server = Server::new([NODE_AWAY; 4]);
    let forwarder = server.forwarder(AUTO);
    let error = dial(&forwarder, ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Unreachable);
    assert_eq!(server.asked(), ["POST spdy", "GET spdy-ws", "GET ws"]);
    // Nothing is held against a transport when none worked.
    server.change([Answer::Upgrade; 4]);
    dial(&forwarder, ECHO).await.unwrap();
    assert_eq!(server.asked(), ["POST spdy"]);
}

/// Every transport leads to that node: no other is tried, and the answer is reported once.
#[tokio::test(start_paused = true)]
async fn a_node_without_a_container_runtime_is_asked_once() {
    const RUNTIME: &str =
        "rpc error: code = Unavailable desc = containerd.sock: connection refused";
    let server = Server::new([Answer::Status(500, RUNTIME); 4]);
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    assert_eq!(server.asked(), ["POST spdy"]);
    assert_eq!(error.refusal(), Refusal::Unreachable);
    assert!(error.retryable());
    assert_eq!(
        error.to_string(),
        format!("the node of the pod cannot connect to pod shop/web-0: {RUNTIME}")
    );
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_cuts_everything_is_away() {
    let server = Server::new([Answer::Cut; 4]);
    let error = dial(&server.forwarder(AUTO), ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::ClusterAway);
}

#[tokio::test]
async fn an_api_server_that_is_not_there_is_asked_once() {
    // A port that was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let config = kube::Config::new(url.parse().unwrap());
    let client = build(config, &Options::new("kubevpn-test")).unwrap();
    let error = dial(&Forwarder::new(client, Config::default()), ECHO)
        .await
        .unwrap_err();
    assert_eq!(error.refusal(), Refusal::ClusterAway);
    assert!(!error.retryable());
    assert!(error.to_string().contains("refused"), "{error}");
}

// === a channel is as good as a session ===

fn channels() -> (Server, Forwarder) {
    let server = Server::new([Answer::Upgrade; 4]);
    let forwarder = server.forwarder(TransportChoice::Only(Transport::WsV4));
    (server, forwarder)
}

#[tokio::test(start_paused = true)]
async fn a_closed_port_is_refused_on_a_channel_too() {
    let (server, forwarder) = channels();
    let error = dial(&forwarder, CLOSED).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused);
    // Late, on a port that was good.
    dial(&forwarder, ECHO).await.unwrap();
    server.node.close_port(ECHO);
    let mut stream = dial(&forwarder, ECHO).await.unwrap();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let error = dial(&forwarder, ECHO).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused);
}

#[tokio::test(start_paused = true)]
async fn a_late_refusal_on_a_channel_is_waited_for() {
    let (server, forwarder) = channels();
    server.node.refusal_ms.store(200, SeqCst);
    let error = dial(&forwarder, CLOSED).await.unwrap_err();
    assert_eq!(error.refusal(), Refusal::Refused, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_channel_lingers_for_the_answer() {
    let (_server, forwarder) = channels();
    let stream = dial(&forwarder, SLOW).await.unwrap();
    let (mut read, mut write) = split(stream);
    write.write_all(b"ask").await.unwrap();
    let mut answer = Vec::new();
    let both = async { tokio::join!(write.shutdown(), read.read_to_end(&mut answer)) };
    let (shut, got) = soon(both).await;
    shut.unwrap();
    got.unwrap();
    assert_eq!(answer, b"0123456789");
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_frees_its_channel_after_the_linger() {
    let (server, forwarder) = channels();
    let stream = dial(&forwarder, SINK).await.unwrap();
    let (mut read, mut write) = split(stream);
    let mut rest = Vec::new();
    let both = async { tokio::join!(write.shutdown(), read.read_to_end(&mut rest)) };
    let (shut, got) = soon(both).await;
    shut.unwrap();
    // The client's end closes the channel: whether the Pod had sent everything is unknown.
    assert_eq!(got.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    drop((read, write));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(server.node.forwards(), 0);
    assert_eq!(forwarder.stats().streams, 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_channel_is_pinged() {
    let (_server, forwarder) = channels();
    let mut stream = dial(&forwarder, ECHO).await.unwrap();
    let nothing = tokio::time::timeout(Duration::from_secs(7200), stream.read(&mut [0; 1])).await;
    assert!(nothing.is_err(), "it lives");
    echo(&mut stream, b"good morning").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_channel_into_a_black_hole_is_noticed() {
    let (_server, forwarder) = channels();
    let config = Config::default();
    for (write, within) in [
        (true, config.suspect_after + config.probe_timeout),
        (false, config.ping_every + config.probe_timeout),
    ] {
        let mut stream = dial(&forwarder, MUTE).await.unwrap();
        let began = Instant::now();
        if write {
            stream.write_all(b"anyone?").await.unwrap();
        }
        let error = soon(stream.read(&mut [0; 1])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        assert!(began.elapsed() <= within + Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_the_pod_pauses_is_waited_for_on_a_channel_too() {
    let config = Config::default();
    // With the last word the Pod's or the client's when the connection fills.
    for speaks in [true, false] {
        let (near, far) = duplex(1024);
        let mut channel = WebSocketChannel::new(Box::new(near), &config).await;
        let mut pod = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
        for message in [[0, 7, 0], [1, 7, 0]] {
            pod.send(Message::binary(message.to_vec())).await.unwrap();
        }
        if speaks {
            pod.send(Message::binary(vec![0, b'x'])).await.unwrap();
            let mut buf = [0; 1];
            let mut buf = ReadBuf::new(&mut buf);
            poll_fn(|cx| channel.poll_data(cx, &mut buf)).await.unwrap();
        }
        let uploading = poll_fn(|cx| {
            while let Poll::Ready(sent) = channel.poll_write(cx, &[0; 64]) {
                sent.unwrap();
            }
            let mut buf = [0; 1];
            channel.poll_data(cx, &mut ReadBuf::new(&mut buf))
        });
        let lost = tokio::time::timeout(Duration::from_secs(120), uploading).await;
        assert!(lost.is_err(), "given up: {lost:?}");
        // Not without limit: the peer may be gone.
        let mut buf = [0; 1];
        let mut buf = ReadBuf::new(&mut buf);
        let lost = soon(poll_fn(|cx| channel.poll_data(cx, &mut buf))).await;
        assert_eq!(lost.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_was_full_is_pinged_again_when_it_has_drained() {
    let config = Config::default();
    let (near, far) = duplex(1024);
    let mut channel = WebSocketChannel::new(Box::new(near), &config).await;
    let mut pod = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
    for message in [[0, 7, 0], [1, 7, 0]] {
        pod.send(Message::binary(message.to_vec())).await.unwrap();
    }
    poll_fn(|cx| {
        while let Poll::Ready(sent) = channel.poll_write(cx, &[0; 64]) {
            sent.unwrap();
        }
        Poll::Ready(())
    })
    .await;
    let mut buf = [0; 1];
    let mut buf = ReadBuf::new(&mut buf);
    let mut read = async |within| {
        let read = poll_fn(|cx| channel.poll_data(cx, &mut buf));
        tokio::time::timeout(Duration::from_secs(within), read).await
    };
    read(5).await.unwrap_err();
    // The peer reads on, and answers pings; nothing more is written.
    let pings = tokio::spawn(async move {
        let mut pings = 0;
        while let Some(Ok(message)) = pod.next().await {
            pings += usize::from(message.is_ping());
        }
        pings
    });
    let lost = read(400).await;
    assert!(lost.is_err(), "given up: {lost:?}");
    drop(channel);
    assert!(pings.await.unwrap() > 10);
}

/// After the close nothing may be sent that would be answered.
#[tokio::test(start_paused = true)]
async fn a_channel_whose_close_is_not_answered_may_be_cut_short() {
    let server = Server::new([Answer::Upgrade; 4]);
    let config = Config {
        transport: TransportChoice::Only(Transport::WsV4),
        linger: Duration::from_secs(1),
        ..Config::default()
    };
    let forwarder = Forwarder::new(server.client(), config);
    let (mut read, mut write) = split(dial(&forwarder, MUTE).await.unwrap());
    let mut rest = Vec::new();
    let both = async { tokio::join!(write.shutdown(), read.read_to_end(&mut rest)) };
    let (shut, got) = soon(both).await;
    shut.unwrap();
    let error = got.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_channels_too() {
    let (_server, forwarder) = channels();
    let mut stream = dial(&forwarder, ECHO).await.unwrap();
    forwarder.shutdown().await;
    stream.read(&mut [0; 1]).await.unwrap_err();
}
