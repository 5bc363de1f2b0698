use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubevpn_proxy::journal::{AboutProxy, JournalEvent, TrafficTotals};
use kubevpn_proxy::{Backend, Journal, ListenerSpec, Protocol, ProxyView, Server};
use kubevpn_target::{BoxError, ConnectError, Refusal, Target};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tower::service_fn;

/// Number of refusals that are kept.
const REFUSALS: usize = 10;

/// A SOCKS5 proxy that is observed; behind it a port 80 that echoes, and no other port.
async fn proxy(view: &ProxyView) -> (Server<impl Connect>, std::net::SocketAddr) {
    let dial = async |target: Target| match target.port.get() {
        80 => {
            let (ours, theirs) = tokio::io::duplex(64);
            let (mut read, mut write) = tokio::io::split(theirs);
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
            Ok::<_, BoxError>(ours)
        }
        _ => Err(ConnectError::new(Refusal::ClusterAway, "the cluster is <b>away</b>").into()),
    };
    serve(view, Protocol::Socks, service_fn(dial)).await
}

/// An HTTP proxy that is observed; every target answers one request.
async fn http_proxy(view: &ProxyView) -> (Server<impl Connect>, std::net::SocketAddr) {
    let dial = async |_: Target| {
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let mut theirs = BufReader::new(theirs);
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                theirs.read_line(&mut line).await.unwrap();
            }
            let answer = "HTTP/1.1 200 OK\r\nSet-Cookie: a=s3cret\r\nContent-Length: 2\r\n\r\nhi";
            theirs.write_all(answer.as_bytes()).await.unwrap();
        });
        Ok::<_, BoxError>(ours)
    };
    serve(view, Protocol::Http, service_fn(dial)).await
}

async fn serve<C: Connect>(
    view: &ProxyView,
    protocol: Protocol,
    dial: C,
) -> (Server<C>, std::net::SocketAddr) {
    let spec = ListenerSpec::new(protocol, "127.0.0.1:0".parse().unwrap());
    let bound = spec.bind(&spec.address, false).await.unwrap().remove(0);
    let address = bound.address().unwrap();
    let backend = Backend::of_host(dial);
    let mut server = Server::new(backend, spec.clients(&[]).unwrap());
    server.observed_by(view.clone());
    server.add(bound);
    (server, address)
}

trait Connect: kubevpn_target::Connect + Clone + Sync + 'static {}
impl<C: kubevpn_target::Connect + Clone + Sync + 'static> Connect for C {}

/// A SOCKS5 client that has asked for `web` and this port, and the code of its reply.
async fn ask(proxy: std::net::SocketAddr, port: u16) -> (TcpStream, u8) {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    let [high, low] = port.to_be_bytes();
    let request = [5, 1, 0, 5, 1, 0, 3, 3, b'w', b'e', b'b', high, low];
    client.write_all(&request).await.unwrap();
    let mut reply = [0; 12];
    client.read_exact(&mut reply).await.unwrap();
    (client, reply[3])
}

fn view() -> ProxyView {
    ProxyView::of_host(Journal::default(), AboutProxy::default())
}

#[tokio::test]
async fn connection_from_its_beginning_to_its_end() {
    let view = view();
    let mut events = view.events(false);
    let (server, address) = proxy(&view).await;
    let (mut client, reply) = ask(address, 80).await;
    assert_eq!(reply, 0);
    client.write_all(b"hello").await.unwrap();
    client.read_exact(&mut [0; 5]).await.unwrap();

    let seen = view.snapshot().await;
    assert_eq!(seen.listeners[0].address, address.to_string());
    let [connection] = &seen.connections[..] else {
        panic!("{seen:?}");
    };
    assert_eq!(connection.frontend, "socks5");
    assert_eq!(connection.target.as_deref(), Some("web:80"));
    assert_eq!((connection.up, connection.down), (5, 5));
    let own = client.local_addr().unwrap().to_string();
    assert_eq!(connection.client.as_ref(), Some(&own));
    if cfg!(target_os = "linux") {
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(connection.program.as_deref(), Some(comm.trim_end()));
    }
    assert_eq!(
        seen.totals,
        TrafficTotals {
            open: 1,
            connected: 1,
            refused: 0,
            up: 5,
            down: 5
        }
    );

    drop(client);
    let mut told = Vec::new();
    while told.len() < 3 {
        told.push(events.next().await.unwrap().event.clone());
    }
    let id = connection.id;
    assert!(matches!(told[0], JournalEvent::ConnectionOpened { id: of, .. } if of == id));
    assert!(matches!(told[1], JournalEvent::ConnectionResolved { id: of, .. } if of == id));
    let JournalEvent::ConnectionClosed { up, down, end, .. } = &told[2] else {
        panic!("{told:?}");
    };
    assert_eq!((*up, *down, end.as_str()), (5, 5, "eof"));
    let seen = view.snapshot().await;
    assert!(seen.connections.is_empty());
    assert_eq!((seen.totals.open, seen.totals.up), (0, 5));
    server.end(Duration::ZERO, std::future::pending()).await;
    assert!(view.snapshot().await.listeners.is_empty());
}

#[tokio::test]
async fn refusals_are_reported_and_kept_and_bounded() {
    let view = view();
    let mut events = view.events(false);
    let (_server, address) = proxy(&view).await;
    for _ in 0..2 * REFUSALS {
        let (_, reply) = ask(address, 81).await;
        assert_eq!(reply, 3);
    }
    // A refusal is kept for a later call.
    view.journal().trouble().await;
    let refusals = view.journal().refusals();
    assert_eq!(refusals.len(), REFUSALS);
    assert_eq!(refusals[0].target, "web:81");
    assert_eq!(refusals[0].refusal, "cluster_away");
    assert_eq!(view.journal().totals().refused, 2 * REFUSALS as u64);
    let mut kinds = BTreeSet::new();
    for _ in 0..4 * REFUSALS {
        let event = serde_json::to_value(&*events.next().await.unwrap()).unwrap();
        kinds.insert(event["event"].as_str().unwrap().to_owned());
        assert!(event["at"].is_string(), "{event}");
    }
    let two = ["connectionOpened", "connectionRefused"];
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), two);
}

#[tokio::test]
async fn one_is_cut_and_the_other_lives() {
    let view = view();
    let mut events = view.events(false);
    let (_server, address) = proxy(&view).await;
    let (mut first, _) = ask(address, 80).await;
    let (mut second, _) = ask(address, 80).await;
    let id = view.snapshot().await.connections[0].id;
    assert!(view.cut(id));
    // A reset, and no orderly end.
    assert!(first.read(&mut [0]).await.is_err());
    second.write_all(b"x").await.unwrap();
    second.read_exact(&mut [0]).await.unwrap();
    loop {
        if let JournalEvent::ConnectionClosed { id: of, end, .. } =
            &events.next().await.unwrap().event
        {
            assert_eq!((*of, end.as_str()), (id, "cut"));
            break;
        }
    }
    assert!(!view.cut(id));
}

#[tokio::test]
async fn a_slow_listener_gets_the_number_of_missed_events() {
    let journal = Journal::default();
    let view = ProxyView::of_host(journal.clone(), AboutProxy::default());
    let mut events = journal.events(false);
    for session in 0..2000 {
        journal.tell(|| JournalEvent::SessionSuspected {
            session,
            pod: "shop/web".into(),
        });
    }
    let JournalEvent::Dropped { events: missed } = events.next().await.unwrap().event else {
        panic!("it has all of them");
    };
    assert_eq!(view.snapshot().await.dropped_events, missed);
    let JournalEvent::SessionSuspected { session, .. } = events.next().await.unwrap().event else {
        panic!("the rest is gone");
    };
    assert_eq!(session, missed);
    journal.close();
    while events.next().await.is_some() {}
}

/// An event is not made without a listener.
#[test]
fn no_event_is_made_without_a_listener() {
    let journal = Journal::default();
    journal.tell(|| unreachable!("nobody listens"));
    let events = journal.events(false);
    assert!(!journal.observer().wants_exchanges());
    drop(events);
    journal.tell(|| unreachable!("nobody listens any more"));
    let events = journal.events(true);
    assert!(journal.observer().wants_exchanges());
    assert!(!journal.observer().wants_heads());
    let with_heads = journal.events_with_heads();
    drop(events);
    assert!(journal.observer().wants_exchanges());
    assert!(journal.observer().wants_heads());
    drop(with_heads);
    assert!(!journal.observer().wants_exchanges());
    assert!(!journal.observer().wants_heads());
}

/// Requests and their heads are copied for listeners that want them, as far as these want them.
#[tokio::test]
async fn heads_are_sent_to_listeners_that_want_them() {
    let view = view();
    let (_server, address) = http_proxy(&view).await;
    for (exchanges, heads) in [(false, false), (true, false), (true, true)] {
        let mut events = match heads {
            true => view.events_with_heads(),
            false => view.events(exchanges),
        };
        let mut client = TcpStream::connect(address).await.unwrap();
        let cookie = "s".repeat(20_000);
        let request = format!(
            "GET http://web/x?y HTTP/1.1\r\nHost: web\r\nConnection: close\r\nCookie: {cookie}\r\n\r\n"
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\nhi"), "{answer}");
        let exchange = loop {
            if let JournalEvent::ConnectionClosed { exchange, .. } =
                &events.next().await.unwrap().event
            {
                break exchange.clone();
            }
        };
        assert_eq!(exchange.is_some(), exchanges);
        let Some(exchange) = exchange else { continue };
        assert_eq!(exchange.method, "GET");
        assert_eq!(exchange.url, "http://web/x?y");
        assert_eq!(exchange.status, Some(200));
        assert!(exchange.waited >= exchange.dialled, "{exchange:?}");
        assert!(exchange.dialled.is_some());
        assert_eq!(exchange.request.is_some(), heads);
        assert_eq!(exchange.response.is_some(), heads);
        let (Some(request), Some(response)) = (exchange.request, exchange.response) else {
            continue;
        };
        assert_eq!(request.version, "HTTP/1.1");
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert!(request.fields.contains(&field("host", "web")));
        // More than is kept of one head.
        assert!(!request.is_whole, "{request:?}");
        assert!(!format!("{request:?}").contains("sss"));
        assert!(response.is_whole);
        assert!(response.fields.contains(&field("set-cookie", "a=s3cret")));
    }
}

/// Events that wait for a slow listener are bounded in bytes, whatever a client sends.
#[tokio::test]
async fn long_urls_and_methods_are_cut() {
    let view = view();
    let (_server, address) = http_proxy(&view).await;
    let mut events = view.events_with_heads();
    let mut client = TcpStream::connect(address).await.unwrap();
    let (method, path) = ("M".repeat(9000), "a/".repeat(9000));
    let request =
        format!("{method} http://web/{path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\r\nhi"), "{answer}");
    let exchange = loop {
        if let JournalEvent::ConnectionClosed { exchange, .. } = &events.next().await.unwrap().event
        {
            break exchange.clone().unwrap();
        }
    };
    for (text, begin) in [(exchange.url, "http://web/"), (exchange.method, "MM")] {
        assert!(text.starts_with(begin) && text.ends_with('…'), "{text}");
        assert!(text.len() < 8500, "{}", text.len());
    }
}

/// A request on a kept connection that was dead, whose dial is refused, got no stream.
#[tokio::test]
async fn a_request_is_connected_or_refused_and_never_both() {
    let view = view();
    let mut events = view.events(false);
    let is_first = Arc::new(AtomicBool::new(true));
    let dial = move |_: Target| {
        let is_first = is_first.swap(false, Ordering::Relaxed);
        async move {
            if !is_first {
                return Err(ConnectError::new(Refusal::NotReady, "no Pod is ready").into());
            }
            let (ours, theirs) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let mut theirs = BufReader::new(theirs);
                // The second one is read, and not answered.
                for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", ""] {
                    let mut line = String::new();
                    while line != "\r\n" {
                        line.clear();
                        assert_ne!(theirs.read_line(&mut line).await.unwrap(), 0);
                    }
                    theirs.write_all(answer.as_bytes()).await.unwrap();
                }
            });
            Ok::<_, BoxError>(ours)
        }
    };
    let (_server, address) = serve(&view, Protocol::Http, service_fn(dial)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = "GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\nhi") {
        assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
    }
    client.write_all(request.as_bytes()).await.unwrap();
    loop {
        let event = events.next().await.unwrap();
        if matches!(event.event, JournalEvent::ConnectionRefused { .. }) {
            break;
        }
    }
    let totals = view.journal().totals();
    assert_eq!((totals.connected, totals.refused, totals.open), (1, 1, 0));
}

/// A trace is made of what a dial tells and of what the request says it belongs to, and for who wants it alone.
#[tokio::test]
async fn traces_are_told_to_who_wants_them() {
    let view = view();
    // With what the target is sent.
    let (sent, mut heads) = tokio::sync::mpsc::channel(1);
    let dial = move |_: Target| {
        let sent = sent.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let (mut theirs, mut head) = (BufReader::new(theirs), String::new());
                while !head.ends_with("\r\n\r\n") {
                    theirs.read_line(&mut head).await.unwrap();
                }
                sent.send(head.to_ascii_lowercase()).await.unwrap();
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
                theirs.write_all(answer.as_bytes()).await.unwrap();
            });
            Ok::<_, BoxError>(ours)
        }
    };
    let (_server, address) = serve(&view, Protocol::Http, service_fn(dial)).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ask = async |fields: &str| {
        let mut client = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET http://web/x HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{fields}\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\nhi"), "{answer}");
    };
    let mut others = view.events(false);
    let mut events = view.journal().events_with_traces();
    assert!(view.journal().observer().wants_traces());
    let mut end = async || loop {
        if let JournalEvent::ConnectionClosed {
            exchange, trace, ..
        } = &events.next().await.unwrap().event
        {
            break (exchange.clone(), trace.clone().unwrap());
        }
    };
    ask(&format!("Traceparent: {parent}\r\n")).await;
    let (exchange, trace) = end().await;
    assert_eq!(exchange.unwrap().url, "http://web/x");
    assert_eq!(trace.parent.as_deref(), Some(parent));
    assert!(!trace.began.is_empty());
    let passed_on = format!("\r\ntraceparent: {parent}\r\n");
    assert_eq!(heads.recv().await.unwrap().matches(&passed_on).count(), 1);
    // Nothing is made up, and of two neither is taken.
    ask("").await;
    assert_eq!(end().await.1.parent, None);
    assert!(!heads.recv().await.unwrap().contains("traceparent"));
    ask(&format!(
        "Traceparent: {parent}\r\ntraceparent: {parent}\r\n"
    ))
    .await;
    assert_eq!(end().await.1.parent, None);
    // What only one listener wants, the other one is not told.
    loop {
        let event = others.next().await.unwrap();
        if let JournalEvent::ConnectionClosed {
            exchange, trace, ..
        } = &event.event
        {
            assert_eq!((exchange, trace), (&None, &None));
            break;
        }
    }
}
