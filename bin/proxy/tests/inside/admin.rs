use std::time::Duration;

use kubevpn_conn::{Addr, HANDSHAKE_TIMEOUT};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use kubevpn_proxy::journal::{AboutProxy, JournalEvent};
use kubevpn_proxy::{
    Admin, Backend, Journal, ListenerSpec, Protocol, ProxyReadiness, ProxyView, Server,
};
use kubevpn_target::{BoxError, ConnectError, Refusal, Target};
use tower::service_fn;

/// Concurrent open pages.
const STREAMS: usize = 32;
/// Upper bound on a form.
const MAX_FORM: usize = 1024;
/// Headers of all answers.
const HEADERS: [(&str, &str); 6] = [
    ("cache-control", "no-store"),
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; ",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

/// The answer to a request, read to the end of the connection.
async fn send(admin: &Admin, request: &str) -> String {
    let mut stream = TcpStream::connect(admin.addr().to_string()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn ask(admin: &Admin, line: &str) -> String {
    send(
        admin,
        &format!("{line} HTTP/1.1\r\nhost: {}\r\n\r\n", admin.addr()),
    )
    .await
}

fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    status.unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

async fn admin() -> Admin {
    Admin::start(&"127.0.0.1:0".parse().unwrap()).await.unwrap()
}

/// A listener that shows a proxy, and the fields of a browser that has its page: `Host` and `Cookie`.
async fn shown(view: ProxyView) -> (Admin, String, String) {
    let admin = admin().await;
    admin.show(view);
    let host = admin.addr().to_string();
    let url = admin.page().unwrap();
    let path = url.strip_prefix(&format!("http://{host}")).unwrap();
    let answer = ask(&admin, &format!("GET {path}")).await;
    // Not a redirect: a URL that was followed from another site would take it without the cookie, which is strict.
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains("content=\"0; url=/\""), "{answer}");
    assert!(!answer.contains("csrf"), "{answer}");
    let cookie = answer.split("set-cookie: ").nth(1).unwrap();
    let cookie = cookie.split("\r\n").next().unwrap();
    let (cookie, attributes) = cookie.split_once(';').unwrap();
    assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Strict");
    let fields = format!("host: {host}\r\ncookie: {cookie}\r\n");
    (admin, host, fields)
}

fn view() -> ProxyView {
    ProxyView::of_host(Journal::default(), AboutProxy::default())
}

/// The token of forms in a page.
fn csrf(page: &str) -> &str {
    let begin = page.split("data-csrf=\"").nth(1).unwrap();
    begin.split('"').next().unwrap()
}

fn cut(fields: &str, more: &str, form: &str) -> String {
    let length = form.len();
    format!("POST /cut HTTP/1.1\r\n{fields}{more}content-length: {length}\r\n\r\n{form}")
}

#[tokio::test]
async fn probes_get_the_readiness() {
    let admin = admin().await;
    for (readiness, code, reason) in [
        (ProxyReadiness::Starting, 503, "starting"),
        (ProxyReadiness::Ready, 200, "ok"),
        (ProxyReadiness::Ending, 503, "ending"),
    ] {
        admin.set(readiness);
        let answer = ask(&admin, "GET /readyz").await;
        assert_eq!(status(&answer), code, "{answer}");
        assert!(answer.contains(&format!("\r\n\r\n{reason}")), "{answer}");
        let answer = ask(&admin, "GET /livez").await;
        assert_eq!(status(&answer), 200, "{answer}");
    }
    for (line, code) in [
        ("GET /", 404),
        ("GET /livez/x", 404),
        ("POST /livez", 405),
        ("POST /metrics", 405),
        ("GET http://web.shop/livez", 200),
        ("CONNECT web.shop:80", 404),
        ("GET /v1/proxy/inside", 404),
    ] {
        let answer = ask(&admin, line).await;
        assert_eq!(status(&answer), code, "{line}: {answer}");
    }
    let addr = admin.addr().to_string();
    let taken = Admin::start(admin.addr()).await.err().unwrap();
    assert!(
        taken.to_string().starts_with("the admin listener: "),
        "{taken}"
    );
    admin.end().await;
    assert!(TcpStream::connect(addr).await.is_err());
}

/// The client holds one of few permits.
#[tokio::test(start_paused = true)]
async fn silent_client_is_left() {
    let admin = admin().await;
    let mut stream = TcpStream::connect(admin.addr().to_string()).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

/// A request of the page's own, changed in one way, is refused; each row is an attack.
#[tokio::test]
async fn page_answers_itself_alone() {
    let (admin, host, fields) = shown(view()).await;
    let port = host.rsplit_once(':').unwrap().1;
    let ok = send(&admin, &format!("GET / HTTP/1.1\r\n{fields}\r\n")).await;
    assert_eq!(status(&ok), 200, "{ok}");
    let csrf = csrf(&ok);
    let cookie = fields.split("\r\n").nth(1).unwrap();
    let own = format!("origin: http://{host}\r\n");
    let form = format!("id=1&csrf={csrf}");
    // The request is valid: connection 1 would be cut if it existed.
    let answer = send(&admin, &cut(&fields, &own, &form)).await;
    assert_eq!(status(&answer), 404, "{answer}");

    let get = |path: &str, fields: &str| format!("GET {path} HTTP/1.1\r\n{fields}\r\n");
    let table = [
        ("no token", get("/", &format!("host: {host}\r\n")), 401),
        (
            "a wrong token",
            get("/?token=0", &format!("host: {host}\r\n")),
            401,
        ),
        (
            "an empty token",
            get("/?token=", &format!("host: {host}\r\n")),
            401,
        ),
        (
            "a wrong cookie",
            get(
                "/",
                &format!("host: {host}\r\ncookie: kubevpn-{port}=0\r\n"),
            ),
            401,
        ),
        (
            "another port's cookie",
            get("/", &fields.replace("kubevpn-", "kubevpn-1")),
            401,
        ),
        (
            "events without a cookie",
            get("/events", &format!("host: {host}\r\n")),
            401,
        ),
        (
            "the script without a cookie",
            get("/script.js", &format!("host: {host}\r\n")),
            401,
        ),
        (
            "DNS rebinding",
            get("/", &fields.replace(&host, &format!("evil.example:{port}"))),
            421,
        ),
        (
            "DNS rebinding by a name that looks like this machine's",
            get(
                "/events",
                &fields.replace(&host, &format!("localhost.evil.example:{port}")),
            ),
            421,
        ),
        (
            "rebinding to a number",
            get("/", &fields.replace(&host, &format!("192.0.2.7:{port}"))),
            421,
        ),
        (
            "no host",
            format!("GET / HTTP/1.0\r\n{cookie}\r\n\r\n"),
            421,
        ),
        (
            "two hosts",
            get("/", &format!("{fields}host: evil.example\r\n")),
            421,
        ),
        (
            "a fetch of another site",
            get(
                "/events",
                &format!("{fields}origin: http://evil.example\r\n"),
            ),
            403,
        ),
        (
            "a fetch of another port of this machine",
            get("/", &format!("{fields}origin: http://127.0.0.1:1\r\n")),
            403,
        ),
        (
            "a fetch inside a sandbox",
            get("/", &format!("{fields}origin: null\r\n")),
            403,
        ),
        (
            "an image, or a script, of another site",
            get(
                "/script.js",
                &format!("{fields}sec-fetch-site: cross-site\r\n"),
            ),
            403,
        ),
        (
            "a frame in another site",
            get(
                "/",
                &format!(
                    "{fields}sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\nsec-fetch-dest: iframe\r\n"
                ),
            ),
            403,
        ),
        (
            "a change by GET",
            get(&format!("/cut?{form}"), &fields),
            405,
        ),
        ("a form without an origin", cut(&fields, "", &form), 403),
        (
            "a form of another site",
            cut(&fields, "origin: http://evil.example\r\n", &form),
            403,
        ),
        (
            "a form of another port",
            cut(&fields, "origin: http://127.0.0.1:1\r\n", &form),
            403,
        ),
        ("a form without its token", cut(&fields, &own, "id=1"), 403),
        (
            "a form with a wrong token",
            cut(&fields, &own, "id=1&csrf=0"),
            403,
        ),
        (
            "a form without a cookie",
            cut(&format!("host: {host}\r\n"), &own, &form),
            401,
        ),
        (
            "a form that is too long",
            cut(&fields, &own, &format!("{form}&{}", "x".repeat(MAX_FORM))),
            403,
        ),
        (
            "a preflight of CORS",
            format!(
                "OPTIONS /cut HTTP/1.1\r\n{fields}origin: http://evil.example\r\naccess-control-request-method: POST\r\n\r\n"
            ),
            403,
        ),
        (
            "what only programs of the user are told",
            get("/v1/proxy/inside", &fields),
            404,
        ),
    ];
    for (attack, request, code) in table {
        let answer = send(&admin, &request).await;
        assert_eq!(status(&answer), code, "{attack}: {answer}");
        assert!(!answer.contains(csrf), "{attack}: {answer}");
        assert!(!answer.contains("set-cookie"), "{attack}: {answer}");
    }
    // A link from anywhere, and this machine's other names, are no attack.
    for (case, request) in [
        (
            "a link",
            get(
                "/",
                &format!(
                    "{fields}sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\nsec-fetch-dest: document\r\n"
                ),
            ),
        ),
        (
            "localhost",
            get("/", &fields.replace(&host, &format!("LocalHost:{port}"))),
        ),
        ("IPv6", get("/", &fields.replace(&host, "[::1]:9"))),
        (
            "beside other cookies",
            get("/", &fields.replace("cookie: ", "cookie: a=b; ")),
        ),
    ] {
        let answer = send(&admin, &request).await;
        assert_eq!(status(&answer), 200, "{case}: {answer}");
    }
}

#[tokio::test]
async fn every_answer_permits_only_the_page_itself() {
    let (admin, _, fields) = shown(view()).await;
    for path in [
        "/",
        "/livez",
        "/metrics",
        "/script.js",
        "/style.css",
        "/nothing",
    ] {
        let answer = send(&admin, &format!("GET {path} HTTP/1.1\r\n{fields}\r\n")).await;
        let head = answer.split("\r\n\r\n").next().unwrap();
        for (name, value) in HEADERS {
            let field = format!("\r\n{name}: {value}");
            assert!(head.contains(&field), "{path} without {name}: {head}");
        }
        assert!(!head.contains("access-control-"), "{path}: {head}");
        for word in ["unsafe-inline", "unsafe-eval", "*"] {
            assert!(!head.contains(word), "{path}: {head}");
        }
    }
    // The content policy permits no inline scripts, so there must be none.
    let page = send(&admin, &format!("GET / HTTP/1.1\r\n{fields}\r\n")).await;
    for inline in [
        " style=",
        "<style",
        " onclick",
        "javascript:",
        "<script>",
        "https://",
    ] {
        assert!(!page.contains(inline), "{inline}: {page}");
    }
}

/// Probes and metrics have no token: they are for names that no foreign DNS can lead here.
#[tokio::test]
async fn probes_answer_no_foreign_name() {
    let (admin, host, _) = shown(view()).await;
    let port = host.rsplit_once(':').unwrap().1;
    for (hosts, code) in [
        (vec![host.clone()], 200),
        (vec!["[::1]:9".into()], 200),
        (vec!["192.0.2.7".into()], 200),
        (vec![format!("LocalHost:{port}")], 200),
        (vec!["gateway".into()], 200),
        (vec!["host.docker.internal".into()], 200),
        (vec![], 200),
        (vec![format!("evil.example:{port}")], 421),
        (vec!["evil.example.".into()], 421),
        (vec!["localhost.evil.example".into()], 421),
        (vec!["internal.evil.example".into()], 421),
        (vec!["evil-internal.example".into()], 421),
        (vec!["127.0.0.1.evil.example".into()], 421),
        (vec!["".into()], 421),
        (vec![host.clone(), "evil.example".into()], 421),
    ] {
        let fields: String = hosts
            .iter()
            .map(|host| format!("host: {host}\r\n"))
            .collect();
        for path in ["/livez", "/readyz", "/metrics"] {
            // A browser sends a host in any version, and other clients none in this one.
            let answer = send(&admin, &format!("GET {path} HTTP/1.0\r\n{fields}\r\n")).await;
            let answered = match status(&answer) {
                503 if path == "/readyz" => 200,
                other => other,
            };
            assert_eq!(answered, code, "{path} of {hosts:?}: {answer}");
        }
    }
}

/// The journal is served by the proxy's console, and by no socket of `--admin`.
#[tokio::test]
async fn unix_socket_has_probes_and_metrics_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = Addr::Unix(directory.path().join("admin.sock"));
    let get = async |path: &str| {
        let mut stream = UnixStream::connect(directory.path().join("admin.sock")).await;
        let stream = stream.as_mut().unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: kubevpn\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        status(&answer)
    };
    let paths = [
        ("/livez", 200),
        ("/metrics", 200),
        ("/", 404),
        ("/v1/proxy/inside", 404),
        ("/v1/proxy/events", 404),
        ("/v1/proxy/pages", 404),
    ];
    let admin = Admin::start(&at).await.unwrap();
    admin.show(view());
    for (path, code) in paths {
        assert_eq!(get(path).await, code, "{path}");
    }
    admin.end().await;
    let (server, _) = served(view(), at).await;
    for (path, code) in paths {
        assert_eq!(get(path).await, code, "{path} of a server's listener");
    }
    server.end(Duration::ZERO, std::future::pending()).await;
}

/// A server with an admin listener, and its address.
async fn served(view: ProxyView, at: Addr) -> (Server<impl Connect>, Addr) {
    let spec = ListenerSpec::new(Protocol::Admin, at);
    let bound = spec.bind(&spec.address, false).await.unwrap().remove(0);
    let address = bound.listener.addr().clone();
    let refuse = async |_: Target| Err::<TcpStream, BoxError>("no target".into());
    let backend = Backend::of_host(service_fn(refuse));
    let mut server = Server::new(backend, spec.clients(&[]).unwrap());
    server.observed_by(view);
    server.add(bound);
    (server, address)
}

trait Connect: kubevpn_target::Connect + Clone + Sync + 'static {}
impl<C: kubevpn_target::Connect + Clone + Sync + 'static> Connect for C {}

#[tokio::test]
async fn end_waits_neither_for_a_page_nor_for_a_silent_client() {
    let view = view();
    let (server, address) = served(view.clone(), "127.0.0.1:0".parse().unwrap()).await;
    let connect = async || TcpStream::connect(address.to_string()).await.unwrap();
    let mut silent = connect().await;
    let mut half = connect().await;
    half.write_all(b"GET / HT").await.unwrap();
    let page = view.journal().pages().remove(0);
    let path = page.strip_prefix(&format!("http://{address}")).unwrap();
    let mut answer = String::new();
    let mut browser = connect().await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
    browser.write_all(request.as_bytes()).await.unwrap();
    browser.read_to_string(&mut answer).await.unwrap();
    let cookie = answer.split("set-cookie: ").nth(1).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    let mut events = connect().await;
    let request = format!("GET /events HTTP/1.1\r\nhost: {address}\r\ncookie: {cookie}\r\n\r\n");
    events.write_all(request.as_bytes()).await.unwrap();
    let mut heard = String::new();
    while !heard.contains("event: snapshot") {
        let mut bytes = [0; 4096];
        let n = events.read(&mut bytes).await.unwrap();
        assert_ne!(n, 0, "{heard}");
        heard.push_str(str::from_utf8(&bytes[..n]).unwrap());
    }
    let ending = server.end(Duration::from_secs(3600), std::future::pending());
    // This is well before the time limit of a request.
    let ended = timeout(HANDSHAKE_TIMEOUT / 2, ending).await;
    assert!(ended.is_ok(), "it waits for a client");
    for client in [&mut silent, &mut half] {
        assert!(!matches!(client.read(&mut [0]).await, Ok(1..)));
    }
}

/// A listener of the proxy that is not open makes it not ready, whichever listener is asked.
#[tokio::test]
async fn readiness_follows_the_listeners() {
    let view = view();
    let (server, address) = served(view.clone(), "127.0.0.1:0".parse().unwrap()).await;
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(address.to_string()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    for is_complete in [true, false, true] {
        view.journal().set_all_listening(is_complete);
        let answer = get("/readyz").await;
        assert_eq!(
            status(&answer),
            if is_complete { 200 } else { 503 },
            "{answer}"
        );
        assert!(is_complete || answer.contains("kubevpn status"), "{answer}");
        let answer = get("/metrics").await;
        let sample = format!("\nkubevpn_ready {}\n", u8::from(is_complete));
        assert!(answer.contains(&sample), "{answer}");
    }
    server.end(Duration::ZERO, std::future::pending()).await;
}

/// On an address that is not loopback, before a proxy is shown.
#[tokio::test]
async fn no_page_off_loopback() {
    let admin = Admin::start(&"0.0.0.0:0".parse().unwrap()).await.unwrap();
    admin.show(view());
    assert_eq!(admin.page(), None);
    let port = admin
        .addr()
        .to_string()
        .rsplit_once(':')
        .unwrap()
        .1
        .to_owned();
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}"))
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: gateway\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        status(&answer)
    };
    assert_eq!(get("/livez").await, 200);
    assert_eq!(get("/metrics").await, 200);
    for path in ["/", "/?token=", "/events", "/style.css", "/v1/proxy/inside"] {
        assert_eq!(get(path).await, 404, "{path}");
    }
}

/// A client that reads while the page is open.
#[tokio::test]
async fn events_go_on_and_leave_room_for_probes() {
    let (admin, _, fields) = shown(view()).await;
    let request = format!("GET /events HTTP/1.1\r\n{fields}\r\n");
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = TcpStream::connect(admin.addr().to_string()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut heard = String::new();
        while heard.matches("event: snapshot\ndata: {").count() < 2 {
            let mut bytes = [0; 4096];
            let n = stream.read(&mut bytes).await.unwrap();
            assert_ne!(n, 0, "{heard}");
            heard.push_str(str::from_utf8(&bytes[..n]).unwrap());
            // The first event is sent at once; one is enough for all clients but the first.
            if !open.is_empty() && heard.contains("event: snapshot") {
                break;
            }
        }
        assert!(heard.contains("content-type: text/event-stream"), "{heard}");
        open.push(stream);
    }
    assert_eq!(status(&send(&admin, &request).await), 503);
    assert_eq!(status(&ask(&admin, "GET /livez").await), 200);
}

/// A URL may have a credential: snapshots have it without that, the page not at all, whoever listens to requests meanwhile.
#[tokio::test]
async fn page_is_told_no_request_and_snapshot_no_credential() {
    let view = view();
    // The target takes the request, and does not answer.
    let (taken, mut requests) = tokio::sync::mpsc::channel(1);
    let dial = move |_: Target| {
        let taken = taken.clone();
        async move {
            let (ours, mut theirs) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let n = theirs.read(&mut [0; 4096]).await.unwrap();
                taken.send(n).await.unwrap();
                // Until the client leaves.
                let _ended = theirs.read(&mut [0; 1]).await;
            });
            Ok::<_, BoxError>(ours)
        }
    };
    let spec = ListenerSpec::new(Protocol::Http, "127.0.0.1:0".parse().unwrap());
    let bound = spec.bind(&spec.address, false).await.unwrap().remove(0);
    let address = bound.address().unwrap();
    let backend = Backend::of_host(service_fn(dial));
    let mut server = Server::new(backend, spec.clients(&[]).unwrap());
    server.observed_by(view.clone());
    server.add(bound);
    // As `tap` does.
    let mut requests_told = view.events(true);
    let mut client = TcpStream::connect(address).await.unwrap();
    let url = "http://jane:s3cret@web/?token=s3cret&page=2";
    let request = format!("GET {url} HTTP/1.1\r\nHost: web\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    assert_ne!(requests.recv().await, Some(0));

    let seen = view.snapshot().await;
    let exchange = seen.connections[0].exchange.clone().unwrap();
    assert_eq!(exchange.method, "GET");
    let redacted = "http://REDACTED@web/?token=REDACTED&page=2";
    assert_eq!(exchange.url, redacted);

    let (admin, _, fields) = shown(view.clone()).await;
    let mut page = TcpStream::connect(admin.addr().to_string()).await.unwrap();
    let request = format!("GET /events HTTP/1.1\r\n{fields}\r\n");
    page.write_all(request.as_bytes()).await.unwrap();
    let mut heard = String::new();
    // A snapshot ends with an empty line, and so does the head before it.
    while heard.matches("event: snapshot\ndata: {").count() < 1 || !heard.ends_with("\n\n\r\n") {
        let mut bytes = [0; 4096];
        let n = page.read(&mut bytes).await.unwrap();
        assert_ne!(n, 0, "{heard}");
        heard.push_str(str::from_utf8(&bytes[..n]).unwrap());
    }
    assert!(heard.contains("\"target\":\"web:80\""), "{heard}");
    assert!(heard.contains("\"exchange\":null"), "{heard}");
    for word in ["s3cret", "page=2", "\"method\""] {
        assert!(!heard.contains(word), "{word}: {heard}");
    }
    // Events have the whole URL, because `--credentials` shows it.
    drop(client);
    let told = loop {
        if let JournalEvent::ConnectionClosed { exchange, .. } =
            &requests_told.next().await.unwrap().event
        {
            break exchange.clone();
        }
    };
    assert_eq!(told.unwrap().url, url);
}

/// A context and a refusal that contain markup, as a browser receives them.
#[tokio::test]
async fn text_of_others_is_text() {
    const CANARY: &str = "<script>alert(1)</script>\"'&";
    const ESCAPED: &str = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;";
    let about = AboutProxy {
        context: CANARY.into(),
        namespace: CANARY.into(),
        server: CANARY.into(),
        ..AboutProxy::default()
    };
    let view = ProxyView::of_host(Journal::default(), about);
    let dial = async |_: Target| {
        Err::<tokio::io::DuplexStream, BoxError>(
            ConnectError::new(Refusal::NotReady, CANARY).into(),
        )
    };
    let spec = ListenerSpec::new(Protocol::Socks, "127.0.0.1:0".parse().unwrap());
    let bound = spec.bind(&spec.address, false).await.unwrap().remove(0);
    let address = bound.address().unwrap();
    let mut server = Server::new(
        Backend::of_host(service_fn(dial)),
        spec.clients(&[]).unwrap(),
    );
    server.observed_by(view.clone());
    server.add(bound);
    let mut client = TcpStream::connect(address).await.unwrap();
    client
        .write_all(&[5, 1, 0, 5, 1, 0, 3, 3, b'w', b'e', b'b', 0, 80])
        .await
        .unwrap();
    client.read_exact(&mut [0; 12]).await.unwrap();
    let (admin, _, fields) = shown(view).await;
    let page = send(&admin, &format!("GET / HTTP/1.1\r\n{fields}\r\n")).await;
    // The title, the three words of the head, the refusal.
    assert!(page.matches(ESCAPED).count() >= 5, "{page}");
    assert!(!page.replace(ESCAPED, "").contains("alert"), "{page}");
}

/// JSON for the script contains no line break, which would end a server-sent event.
#[tokio::test]
async fn event_is_one_line_whatever_it_holds() {
    let journal = Journal::default();
    let mut events = journal.events(false);
    journal.tell(|| JournalEvent::WatchLost {
        watch: "services\n\nevent: snapshot\ndata: {}".into(),
        reason: "\r\n".into(),
    });
    let event = serde_json::to_string(&*events.next().await.unwrap()).unwrap();
    assert!(!event.contains(['\n', '\r']), "{event}");
}
