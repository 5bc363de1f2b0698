use super::*;
use http::{Request, Response};
use kubevpn_target::Origin;

/// The fields in order, one per line, of a request after its way through.
fn through(
    method: &str,
    uri: &str,
    fields: &[(&str, &str)],
    content: RequestContent,
) -> (String, Asks) {
    through_as(Version::HTTP_11, method, uri, fields, content)
}

fn through_as(
    version: Version,
    method: &str,
    uri: &str,
    fields: &[(&str, &str)],
    content: RequestContent,
) -> (String, Asks) {
    let mut builder = Request::builder().method(method).uri(uri).version(version);
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    let (mut head, ()) = builder.body(()).unwrap().into_parts();
    let authority = head.uri.authority().unwrap().as_str().to_owned();
    let target = crate::authority::host(&authority, Origin::default()).unwrap();
    let asks = request(&mut head, &target, content, false);
    assert_eq!(head.version, Version::HTTP_11);
    (
        format!("{} {}\n{}", head.method, head.uri, lines(&head.headers)),
        asks,
    )
}

fn lines(headers: &HeaderMap) -> String {
    let mut lines: Vec<String> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines.concat()
}

const PLAIN: Asks = Asks {
    upgrade: false,
    go_ahead: false,
};

#[test]
fn fields_of_one_connection_do_not_pass() {
    let (text, asks) = through(
        "GET",
        "http://web/a?b",
        &[
            ("host", "other"),
            ("accept", "*/*"),
            ("connection", "close, X-Private ,"),
            ("connection", "x-second"),
            ("x-private", "1"),
            ("x-second", "2"),
            ("proxy-connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic eA=="),
            ("trailer", "x-sum"),
        ],
        RequestContent::None,
    );
    assert_eq!(
        text,
        "GET /a?b\naccept: */*\nhost: web\ntrailer: x-sum\nvia: 1.1 kubevpn\n"
    );
    assert_eq!(asks, PLAIN);
}

#[test]
fn fields_connection_may_not_take_away_are_put_back() {
    let (text, _) = through(
        "POST",
        "http://web:81/",
        &[
            ("host", "web:81"),
            ("connection", "host, content-length, transfer-encoding, via"),
            ("transfer-encoding", "chunked"),
            ("via", "1.1 other"),
        ],
        RequestContent::Chunked,
    );
    assert_eq!(
        text,
        "POST /\nhost: web:81\ntransfer-encoding: chunked\nvia: 1.1 kubevpn\n"
    );
}

#[test]
fn via_is_added_behind_what_is_there() {
    let fields = [("via", "1.0 fred, 1.1 p.example")];
    let (text, _) = through_as(
        Version::HTTP_10,
        "GET",
        "http://web/",
        &fields,
        RequestContent::None,
    );
    assert_eq!(
        text,
        "GET /\nhost: web\nvia: 1.0 fred, 1.1 p.example\nvia: 1.0 kubevpn\n"
    );
}

#[test]
fn trailers_are_asked_for_when_the_client_takes_them() {
    let fields = [("te", "deflate;q=0.5, Trailers"), ("connection", "TE")];
    let (text, _) = through("GET", "http://web/", &fields, RequestContent::None);
    assert_eq!(
        text,
        "GET /\nconnection: TE\nhost: web\nte: trailers\nvia: 1.1 kubevpn\n"
    );
}

#[test]
fn an_upgrade_passes_when_it_is_one() {
    let websocket = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
    ];
    let (text, asks) = through("GET", "http://web/", &websocket, RequestContent::None);
    assert_eq!(
        text,
        "GET /\nconnection: Upgrade\nhost: web\nupgrade: websocket\nvia: 1.1 kubevpn\n"
    );
    assert!(asks.upgrade);

    let plain = "GET /\nhost: web\nvia: 1.1 kubevpn\n";
    let without = |fields: &[(&str, &str)], content| through("GET", "http://web/", fields, content);
    let not_named = [("upgrade", "websocket")];
    assert_eq!(
        without(&not_named, RequestContent::None),
        (plain.into(), PLAIN)
    );
    let h2c = [
        ("connection", "upgrade, http2-settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMA"),
    ];
    assert_eq!(without(&h2c, RequestContent::None), (plain.into(), PLAIN));
    let both = [("connection", "upgrade"), ("upgrade", "websocket, H2C")];
    assert_eq!(without(&both, RequestContent::None), (plain.into(), PLAIN));
    let twice = [
        ("connection", "upgrade"),
        ("upgrade", "a"),
        ("upgrade", "b"),
    ];
    assert_eq!(without(&twice, RequestContent::None), (plain.into(), PLAIN));
    assert_eq!(
        without(&websocket, RequestContent::Known),
        (plain.into(), PLAIN)
    );
    let old = through_as(
        Version::HTTP_10,
        "GET",
        "http://web/",
        &websocket,
        RequestContent::None,
    );
    assert_eq!(old.1, PLAIN);
}

#[test]
fn an_expectation_passes_when_there_is_a_body() {
    let fields = [("expect", "100-Continue"), ("content-length", "5")];
    let (text, asks) = through("PUT", "http://web/", &fields, RequestContent::Known);
    assert_eq!(
        text,
        "PUT /\ncontent-length: 5\nexpect: 100-Continue\nhost: web\nvia: 1.1 kubevpn\n"
    );
    assert!(asks.go_ahead);
    let (text, asks) = through("PUT", "http://web/", &fields[..1], RequestContent::None);
    assert_eq!((text.contains("expect"), asks.go_ahead), (false, false));
    let old = through_as(
        Version::HTTP_10,
        "PUT",
        "http://web/",
        &fields,
        RequestContent::Known,
    );
    assert_eq!((old.0.contains("expect"), old.1.go_ahead), (false, false));
    // What we do not know is for the server to refuse (RFC 9110 section 10.1.1).
    let (text, _) = through(
        "PUT",
        "http://web/",
        &[("expect", "magic")],
        RequestContent::None,
    );
    assert!(text.contains("expect: magic"), "{text}");
}

#[test]
fn max_forwards_counts_down_for_two_methods() {
    for (method, sent, got) in [
        ("OPTIONS", "5", "4"),
        ("TRACE", "1", "0"),
        ("GET", "5", "5"),
        ("OPTIONS", "x", "x"),
    ] {
        let (text, _) = through(
            method,
            "http://web/",
            &[("max-forwards", sent)],
            RequestContent::None,
        );
        assert!(
            text.contains(&format!("max-forwards: {got}\n")),
            "{method} {text}"
        );
    }
}

#[test]
fn the_target_is_sent_on_as_its_path() {
    for (uri, path) in [
        ("http://web", "/"),
        ("http://web?q", "/?q"),
        ("http://web/a//b?c=d&e#f", "/a//b?c=d&e"),
        ("http://web:81/%2e%2e/", "/%2e%2e/"),
    ] {
        let (text, _) = through("GET", uri, &[], RequestContent::None);
        assert_eq!(text.lines().next(), Some(&*format!("GET {path}")), "{uri}");
    }
}

fn back(status: u16, version: Version, fields: &[(&str, &str)]) -> Option<String> {
    let mut builder = Response::builder().status(status).version(version);
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    let (mut head, ()) = builder.body(()).unwrap().into_parts();
    let taken = response(&mut head).is_ok();
    assert!(!taken || head.version == Version::HTTP_11);
    taken.then(|| lines(&head.headers))
}

#[test]
fn responses_lose_what_is_of_their_connection() {
    let fields = [
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "h2,h2c"),
        ("proxy-authenticate", "Basic"),
        ("transfer-encoding", "Chunked"),
        ("content-length", "3"),
        ("server", "x"),
    ];
    assert_eq!(
        back(200, Version::HTTP_11, &fields).unwrap(),
        "server: x\nvia: 1.1 kubevpn\n"
    );
    assert_eq!(
        back(200, Version::HTTP_10, &[]).unwrap(),
        "via: 1.0 kubevpn\n"
    );
}

#[test]
fn a_switch_of_protocols_keeps_its_fields() {
    let fields = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let kept = "connection: Upgrade\nupgrade: websocket\nvia: 1.1 kubevpn\n";
    assert_eq!(back(101, Version::HTTP_11, &fields).unwrap(), kept);
    assert_eq!(back(426, Version::HTTP_11, &fields).unwrap(), kept);
}

#[test]
fn codings_that_would_be_lost_are_not_passed_on() {
    for coding in [
        "gzip, chunked",
        "chunked, chunked",
        "gzip, identity",
        "xchunked",
    ] {
        let fields = [("transfer-encoding", coding)];
        assert_eq!(back(200, Version::HTTP_11, &fields), None, "{coding:?}");
    }
    let twice = [
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "chunked"),
    ];
    assert_eq!(back(200, Version::HTTP_11, &twice), None);
}

/// A coding of RFC 2068 that stands for none. hyper reads such a body to the end of the connection, whatever its
/// length.
#[test]
fn identity_is_no_coding() {
    for coding in ["identity", "Identity, identity", ""] {
        let fields = [("transfer-encoding", coding), ("content-length", "7")];
        let (mut head, ()) = Response::builder()
            .header(fields[0].0, fields[0].1)
            .header(fields[1].0, fields[1].1)
            .body(())
            .unwrap()
            .into_parts();
        assert_eq!(response(&mut head), Ok(Some(7)), "{coding:?}");
        assert_eq!(
            lines(&head.headers),
            "content-length: 7\nvia: 1.1 kubevpn\n"
        );
        let fields = [("transfer-encoding", coding), ("content-length", "7, 8")];
        assert_eq!(back(200, Version::HTTP_11, &fields), None, "{coding:?}");
        let fields = [("transfer-encoding", coding)];
        let kept = Some("via: 1.1 kubevpn\n".into());
        assert_eq!(back(200, Version::HTTP_11, &fields), kept, "{coding:?}");
    }
}

#[test]
fn fields_keep_their_order() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("x-a", "1"),
        ("connection", "x-gone, upgrade"),
        ("x-gone", "2"),
        ("host", "other"),
        ("x-b", "3"),
        ("x-a", "4"),
        ("upgrade", "websocket"),
        ("x-c", "5"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    let (mut head, ()) = Request::get("http://web/").body(()).unwrap().into_parts();
    head.headers = headers;
    let target = crate::authority::host("web", Origin::default()).unwrap();
    for (keep_host, host) in [(false, "web"), (true, "other")] {
        let mut head = head.clone();
        request(&mut head, &target, RequestContent::None, keep_host);
        let all: Vec<_> = head.headers.iter().collect();
        let all: Vec<_> = all
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        let expected = format!(
            "x-a: 1|x-a: 4|connection: upgrade|host: {host}|x-b: 3|upgrade: websocket|x-c: 5|via: 1.1 kubevpn"
        );
        assert_eq!(all.join("|"), expected);
    }
    head.headers.remove("host");
    request(&mut head, &target, RequestContent::None, true);
    assert_eq!(head.headers["host"], "web");
}

#[test]
fn lengths_that_agree_become_one() {
    for fields in [
        &[("content-length", "5, 5")][..],
        &[("content-length", "5"), ("content-length", "5")],
    ] {
        let kept = "content-length: 5\nvia: 1.1 kubevpn\n";
        assert_eq!(back(200, Version::HTTP_11, fields).unwrap(), kept);
    }
}

#[test]
fn a_malformed_traceparent_is_no_parent() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";
    let read = |value: &str| {
        let mut fields = HeaderMap::new();
        fields.insert("traceparent", HeaderValue::from_str(value).unwrap());
        traceparent(&fields)
    };
    for (value, is_one) in [
        (format!("00-{TRACE}-{SPAN}-01"), true),
        (format!("00-{TRACE}-{SPAN}-00"), true),
        (format!("cc-{TRACE}-{SPAN}-01"), true),
        (format!("cc-{TRACE}-{SPAN}-01-what-comes"), true),
        (format!("cc-{TRACE}-{SPAN}-01what"), false),
        (format!("00-{TRACE}-{SPAN}-01-"), false),
        (format!("00-{TRACE}-{SPAN}-01-more"), false),
        (format!("ff-{TRACE}-{SPAN}-01"), false),
        (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), false),
        (format!("00-{}-{SPAN}-01", "0".repeat(32)), false),
        (format!("00-{TRACE}-{}-01", "0".repeat(16)), false),
        (format!("00-{TRACE}-{SPAN}-1"), false),
        (format!("00-{TRACE}-{SPAN}-0g"), false),
        (format!("00-{TRACE}0-{}-01", &SPAN[1..]), false),
        (format!("00_{TRACE}_{SPAN}_01"), false),
        (format!("0-{TRACE}-{SPAN}-011"), false),
        ("00-1-2-01".to_owned(), false),
        (String::new(), false),
    ] {
        assert_eq!(read(&value), is_one.then(|| value.clone()), "{value}");
    }
}
