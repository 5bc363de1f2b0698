//! What clients send.

use crate::client::Do;
use crate::row::{OddRow, Want};
use crate::server::Then;

fn row(name: impl Into<String>, rule: &'static str) -> OddRow {
    OddRow::new(name, rule)
}

/// A request whose body comes in these bytes.
fn post(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {{http}}/ HTTP/1.1\r\nHost: {{host}}\r\n{fields}\r\n");
    [head.as_bytes(), body].concat()
}

fn get(target: &str) -> String {
    format!("GET {{http}}{target} HTTP/1.1\r\nHost: {{host}}\r\n\r\n")
}

pub(super) fn rows() -> Vec<OddRow> {
    let mut rows = methods();
    rows.extend(targets());
    rows.extend(fields());
    rows.extend(bodies());
    rows.extend(lines());
    rows.extend(connections());
    rows
}

fn methods() -> Vec<OddRow> {
    let mut rows: Vec<OddRow> = [
        "HEAD",
        "PUT",
        "DELETE",
        "PATCH",
        "OPTIONS",
        "PROPFIND",
        "QUERY",
        "get",
        "BREW-COFFEE",
        "M-SEARCH",
    ]
    .map(|method| {
        let length = if method == "PUT" || method == "PATCH" || method == "QUERY" {
            "Content-Length: 0\r\n"
        } else {
            ""
        };
        row(format!("method {method}"), "9110 9.1")
            .send(format!(
                "{method} {{http}}/ HTTP/1.1\r\nHost: {{host}}\r\n{length}\r\n"
            ))
            .status(200)
            .sees(&format!("{method} / HTTP/1.1\r\n"))
    })
    .into();
    rows.push(
        row(
            "OPTIONS with Max-Forwards: 0 is answered by the proxy",
            "9110 7.6.2",
        )
        .send("OPTIONS {http}/ HTTP/1.1\r\nHost: {host}\r\nMax-Forwards: 0\r\n\r\n")
        .proxied()
        .want(Want::Requests(0))
        .status(200),
    );
    rows.push(
        row("OPTIONS with Max-Forwards: 5 counts down", "9110 7.6.2")
            .send("OPTIONS {http}/ HTTP/1.1\r\nHost: {host}\r\nMax-Forwards: 5\r\n\r\n")
            .proxied()
            .sees_field("max-forwards", "4"),
    );
    rows
}

fn targets() -> Vec<OddRow> {
    let mut rows: Vec<OddRow> = [
        ("an encoded slash", "/a%2Fb%2fc"),
        ("encoded dots", "/%2e%2e/a"),
        ("dots", "/a/../b/./c"),
        ("two slashes", "//a//b"),
        ("an empty query", "/a?"),
        ("a query with everything", "/?a=b&c[]=d;e=1:2@3/4?5"),
        ("parameters", "/a;b=c/d;e"),
        ("a pipe and braces, as curl sends them", "/a|b{c}d^e"),
        ("a double quote", "/a\"b"),
        ("a backslash", "/a\\b"),
        ("UTF-8 as it is", "/\u{fc}ber/\u{2713}"),
        ("a percent sign alone", "/100%"),
        ("an encoded NUL", "/a%00b"),
        ("a plus", "/a+b?c+d"),
        ("a colon in the first segment", "/a:b"),
        ("an at sign in the path", "/@scope/package"),
        ("a whole address in the query", "/?u=http://x/y"),
    ]
    .map(|(name, target)| {
        row(format!("target: {name}"), "3986 2, 3.3; 9112 3.2")
            .send(get(target))
            .ok()
            .sees(&format!("GET {target} HTTP/1.1\r\n"))
    })
    .into();
    rows.push(
        row("target: a backtick", "3986 2 (no such character)")
            .send(get("/a`b"))
            .ok()
            .sees("GET /a`b HTTP/1.1\r\n")
            .because("it is no URI, for which RFC 9112 section 3.2 has 400 answered and nothing corrected; clients that do not encode it are few"),
    );
    for kib in [4, 16, 32, 60] {
        let target = format!("/{}", "x".repeat(kib * 1024));
        rows.push(
            row(
                format!("target: {kib} KiB"),
                "9112 3 (at least 8000 octets)",
            )
            .send(get(&target))
            .ok()
            .sees(&target),
        );
    }
    let absolute = |name: &str, rule, request: &str| {
        row(format!("target: {name}"), rule).proxied().send(request)
    };
    rows.extend([
        absolute(
            "no path",
            "9112 3.2.1",
            "GET {http} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .ok()
        .sees("GET / HTTP/1.1\r\n"),
        absolute(
            "a query and no path",
            "9112 3.2.1",
            "GET {http}?a=b HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .ok()
        .sees("GET /?a=b HTTP/1.1\r\n"),
        absolute(
            "the scheme in capitals",
            "3986 3.1",
            "GET HTTP://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .ok()
        .sees("GET / HTTP/1.1\r\n"),
        absolute(
            "a user name goes no further",
            "9110 4.2.4",
            "GET http://ann:secret@{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .ok()
        .sees_not("secret"),
        absolute(
            "an empty user name",
            "9110 4.2.4",
            "GET http://@{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .ok(),
        absolute(
            "a fragment goes no further",
            "9110 7.1",
            "GET {http}/a#b HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .ok()
        .sees("GET /a HTTP/1.1\r\n"),
        absolute(
            "Host of another server: the target wins",
            "9112 3.2.2",
            "GET {http}/ HTTP/1.1\r\nHost: other.example\r\n\r\n",
        )
        .ok()
        .sees_field("host", "{host}"),
        absolute(
            "Host missing in HTTP/1.0",
            "9112 3.2",
            "GET {http}/ HTTP/1.0\r\n\r\n",
        )
        .ok()
        .sees_field("host", "{host}"),
        absolute(
            "Host missing in HTTP/1.1",
            "9112 3.2",
            "GET {http}/ HTTP/1.1\r\n\r\n",
        )
        .refused()
        .status(400),
        absolute(
            "Host twice",
            "9112 3.2",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n",
        )
        .refused()
        .status(400),
        absolute(
            "Host empty",
            "9112 3.2.2",
            "GET {http}/ HTTP/1.1\r\nHost:\r\n\r\n",
        )
        .ok()
        .sees_field("host", "{host}"),
        absolute(
            "Host with a space in it",
            "9112 3.2",
            "GET {http}/ HTTP/1.1\r\nHost: a b\r\n\r\n",
        )
        .refused()
        .status(400),
        absolute(
            "https: is told to use CONNECT",
            "9110 4.2.2",
            "GET https://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .want(Want::Requests(0))
        .want(Want::Told("connect")),
        absolute(
            "ftp:",
            "9110 15.6",
            "GET gopher://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .refused(),
        absolute(
            "port 0",
            "9110 4.2.1",
            "GET http://127.0.0.1:0/ HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .refused(),
        absolute(
            "port 65536",
            "3986 3.2.3",
            "GET http://127.0.0.1:65536/ HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .refused(),
        absolute(
            "an IPv6 address without brackets",
            "3986 3.2.2",
            "GET http://::1:80/ HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .refused()
        .want(Want::Told("[")),
        absolute(
            "no host",
            "9110 4.2.1",
            "GET http:///x HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .refused(),
        absolute(
            "a port where nothing listens",
            "9110 15.6.3",
            "GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .refused()
        .want(Want::Or(Box::new([Want::Status(502), Want::Status(503)]))),
    ]);
    rows
}

fn fields() -> Vec<OddRow> {
    let r =
        |name: &str, rule, fields: &str| row(format!("request field: {name}"), rule).with(fields);
    let mut rows = vec![
        r(
            "names keep their letters",
            "9110 5.1",
            "X-CamelCase: 1\r\nx-lower: 2\r\nSOAPAction: \"x\"\r\n",
        )
        .ok()
        .sees("\r\nX-CamelCase: 1\r\n")
        .sees("\r\nx-lower: 2\r\n")
        .sees("\r\nSOAPAction: \"x\"\r\n"),
        r("order", "9110 5.3", "B: 1\r\nA: 2\r\nC: 3\r\n")
            .ok()
            .sees("B: 1\r\nA: 2\r\nC: 3\r\n"),
        r(
            "order, with fields of the connection between",
            "9110 5.3",
            "B: 1\r\nConnection: keep-alive\r\nA: 2\r\nKeep-Alive: 5\r\nC: 3\r\n",
        )
        .proxied()
        .ok()
        .sees("B: 1\r\nA: 2\r\nC: 3\r\n"),
        r("one name twice", "9110 5.3", "A: 1\r\nA: 2\r\n")
            .ok()
            .sees("A: 1\r\nA: 2\r\n"),
        r("an empty value", "9110 5.5", "A:\r\nB: 1\r\n")
            .ok()
            .sees_field("a", ""),
        r("spaces around a value", "9110 5.5", "A: \t b \t \r\n")
            .ok()
            .sees_field("a", "b"),
        r("no space behind the colon", "9112 5", "A:b\r\n")
            .ok()
            .sees_field("a", "b"),
        r("UTF-8", "9110 5.5 (obs-text)", "A: \u{fc}\u{2713}\r\n")
            .ok()
            .sees_field("a", "\u{fc}\u{2713}"),
        r("a tab within a value", "9110 5.5", "A: b\tc\r\n")
            .ok()
            .sees_field("a", "b\tc"),
        r(
            "every character of a token in a name",
            "9110 5.6.2",
            "a!#$%&'*+-.^_`|~1: b\r\n",
        )
        .ok()
        .sees_field("a!#$%&'*+-.^_`|~1", "b"),
        r("a name with an underscore", "9110 5.6.2", "x_a_b: c\r\n")
            .ok()
            .sees_field("x_a_b", "c"),
        r(
            "quotes and commas",
            "9110 5.6.4",
            "A: \"b, c\", \"d\\\"e\"\r\n",
        )
        .ok()
        .sees_field("a", "\"b, c\", \"d\\\"e\""),
        r("two cookies", "6265 5.4", "Cookie: a=1\r\nCookie: b=2\r\n")
            .ok()
            .sees("Cookie: a=1\r\nCookie: b=2\r\n"),
        r(
            "Authorization passes",
            "9110 11.6.2",
            "Authorization: Bearer x.y.z\r\n",
        )
        .ok()
        .sees_field("authorization", "Bearer x.y.z"),
        r(
            "Proxy-Authorization does not",
            "9110 11.7.2",
            "Proxy-Authorization: Basic eDp5\r\n",
        )
        .proxied()
        .ok()
        .sees_not("roxy-Auth"),
        r(
            "Proxy-Connection does not",
            "9112 C.2.2",
            "Proxy-Connection: keep-alive\r\n",
        )
        .proxied()
        .ok()
        .sees_not("roxy-Conn"),
        r(
            "what Connection names does not",
            "9110 7.6.1",
            "Connection: x-hop, close\r\nX-Hop: 1\r\n",
        )
        .proxied()
        .ok()
        .sees_not("X-Hop"),
        r(
            "Connection cannot take Host away",
            "9110 7.6.1",
            "Connection: host\r\n",
        )
        .proxied()
        .ok()
        .sees_field("host", "{host}"),
        r(
            "Keep-Alive does not pass",
            "9110 7.6.1",
            "Keep-Alive: timeout=77\r\n",
        )
        .proxied()
        .ok()
        .sees_not("timeout=77"),
        r(
            "TE: trailers is kept",
            "9110 10.1.4",
            "TE: trailers\r\nConnection: TE\r\n",
        )
        .ok()
        .sees_field("te", "trailers"),
        r(
            "TE: gzip is not",
            "9110 10.1.4",
            "TE: gzip\r\nConnection: TE\r\n",
        )
        .proxied()
        .ok()
        .sees_not("gzip"),
        r("Via grows", "9110 7.6.3", "Via: 1.0 a\r\n")
            .proxied()
            .ok()
            .sees("1.0 a"),
        r("Via is added", "9110 7.6.3", "")
            .proxied()
            .ok()
            .sees("Via: 1.1 "),
        r("nothing tells who asks", "7239 8.1", "")
            .proxied()
            .ok()
            .sees_not("Forwarded"),
        r(
            "X-Forwarded-For passes as it is",
            "7239 5.2",
            "X-Forwarded-For: 192.0.2.1\r\n",
        )
        .ok()
        .sees_field("x-forwarded-for", "192.0.2.1"),
        r(
            "Accept-Encoding passes as it is",
            "9110 12.5.3",
            "Accept-Encoding: br;q=1.0, zstd\r\n",
        )
        .ok()
        .sees_field("accept-encoding", "br;q=1.0, zstd"),
        r("Range passes", "9110 14.2", "Range: bytes=0-0,-1\r\n")
            .ok()
            .sees_field("range", "bytes=0-0,-1"),
        r(
            "Cache-Control passes, and nothing is added",
            "9111 5.2",
            "Cache-Control: no-transform\r\n",
        )
        .ok()
        .sees_field("cache-control", "no-transform"),
        r("Cache-Control is not made up", "9110 7.7", "")
            .proxied()
            .ok()
            .sees_not("Cache-Control"),
        r(
            "Connection: close is between client and proxy",
            "9112 9.6",
            "Connection: close\r\n",
        )
        .proxied()
        .ok(),
        r(
            "traceparent passes",
            "W3C Trace Context 3",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
        )
        .ok()
        .sees("\r\ntraceparent: 00-0af"),
    ];
    for (count, rule) in [(150, "9110 5.4"), (500, "9110 5.4"), (900, "9110 5.4")] {
        let many: String = (0..count).map(|i| format!("X-{i}: y\r\n")).collect();
        let last = format!("X-{}: y\r\n", count - 1);
        rows.push(r(&format!("{count} of them"), rule, &many).ok().sees(&last));
    }
    for kib in [8, 30, 60] {
        let long = format!("Cookie: {}\r\n", "x".repeat(kib * 1024));
        rows.push(
            r(&format!("a value of {kib} KiB"), "9110 5.4", &long)
                .ok()
                .sees(&long),
        );
    }
    let huge = format!("Cookie: {}\r\n", "x".repeat(2 << 20));
    rows.push(
        r(
            "a value of 2 MiB is told to be too large",
            "9110 5.4; 6585 5",
            &huge,
        )
        .proxied()
        .refused()
        .want(Want::Or(Box::new([Want::Status(431), Want::Status(400)]))),
    );
    rows
}

fn bodies() -> Vec<OddRow> {
    let r = |name: &str, rule, fields: &str, body: &[u8]| {
        row(format!("request body: {name}"), rule).send(post(fields, body))
    };
    let megabytes = vec![b'x'; 5_000_000];
    let length = format!("Content-Length: {}\r\n", megabytes.len());
    vec![
        r("a length", "9112 6.2", "Content-Length: 5\r\n", b"hello").ok().sees_body("hello").stays(),
        r("a length of 0", "9110 8.6", "Content-Length: 0\r\n", b"").ok().sees_field("content-length", "0").stays(),
        r("no length and no body", "9110 8.6", "", b"").ok().sees_body("").stays(),
        r("chunked", "9112 7.1", "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n").ok().sees_body("hello").stays(),
        r("chunked in capitals", "9112 7", "Transfer-Encoding: CHUNKED\r\n", b"5\r\nhello\r\n0\r\n\r\n").ok().sees_body("hello").stays(),
        r("chunks of one byte", "9112 7.1", "Transfer-Encoding: chunked\r\n", b"1\r\nh\r\n1\r\ni\r\n0\r\n\r\n").ok().sees_body("hi").stays(),
        r("chunk sizes in capitals, with zeros in front", "9112 7.1", "Transfer-Encoding: chunked\r\n", b"000A\r\n0123456789\r\n0\r\n\r\n").ok().sees_body("0123456789").stays(),
        r("a chunk extension", "9112 7.1.1", "Transfer-Encoding: chunked\r\n", b"5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n").ok().sees_body("hello").stays(),
        r("an empty chunked body", "9112 7.1", "Transfer-Encoding: chunked\r\n", b"0\r\n\r\n").ok().sees_body("").stays(),
        r("trailers that are announced", "9110 6.5", "TE: trailers\r\nConnection: TE\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n").ok().sees_body("hello").want(Want::ServerTrailer("x-sum: 1")).stays(),
        r("trailers that are not", "9110 6.5", "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n").ok().sees_body("hello").stays(),
        row("request body: of a GET", "9110 9.3.1").send("GET {http}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello").ok().sees_body("hello").stays(),
        row("request body: of a GET, chunked", "9110 9.3.1").send("GET {http}/ HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").ok().sees_body("hello").stays(),
        row("request body: of a DELETE", "9110 9.3.5").send("DELETE {http}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello").ok().sees_body("hello").stays(),
        row("request body: of an OPTIONS", "9110 9.3.7").send("OPTIONS {http}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello").ok().sees_body("hello").stays(),
        row("request body: of HTTP/1.0", "9112 6.3").send("POST {http}/ HTTP/1.0\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello").ok().sees_body("hello"),
        r("5 MB", "9112 6.2", &length, &megabytes).ok().sees_body(megabytes.clone()),
        row("request body: in pieces", "9112 6").does(vec![
            Do::Send(post("Content-Length: 6\r\n", b"he")),
            Do::Send(b"ll".to_vec()),
            Do::Send(b"o!".to_vec()),
            Do::Hear,
        ]).ok().sees_body("hello!"),
        r("two lengths that agree", "9112 6.3", "Content-Length: 5\r\nContent-Length: 5\r\n", b"hello").want(Want::Or(Box::new([Want::Refused, Want::ServerBody(b"hello".into())]))),
        r("two lengths that do not", "9112 6.3", "Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!").proxied().refused().status(400),
        r("two lengths: which field it is", "9112 6.3", "Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!").proxied().want(Want::Told("content-length")),
        r("two lengths on one line that do not agree", "9112 6.3", "Content-Length: 5, 6\r\n", b"hello!").proxied().refused().status(400),
        r("a length with a sign", "9110 8.6", "Content-Length: +5\r\n", b"hello").proxied().refused().status(400),
        r("a negative length", "9110 8.6", "Content-Length: -5\r\n", b"hello").proxied().refused().status(400),
        r("a length in hex", "9110 8.6", "Content-Length: 0x5\r\n", b"hello").proxied().refused().status(400),
        r("a length beyond 64 bits", "9110 8.6", "Content-Length: 99999999999999999999\r\n", b"hello").proxied().refused(),
        r("a length and chunked: one framing goes on", "9112 6.1", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n").proxied().want(Want::Or(Box::new([Want::Refused, Want::ServerNot("Content-Length: 3".into())]))),
        r("a coding under chunked that nobody here knows", "9112 6.1", "Transfer-Encoding: gzip, chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n").proxied().want(Want::Or(Box::new([Want::Refused, Want::Server("gzip".into())]))),
        r("a coding that is not chunked", "9112 6.3", "Transfer-Encoding: gzip\r\n", b"hello").proxied().refused(),
        r("identity has no reliable length", "9112 6.3 (must be 400)", "Transfer-Encoding: identity\r\nContent-Length: 5\r\n", b"hello").proxied().refused(),
        r("chunked in HTTP/1.0", "9112 6.1", "", b"").send("POST {http}/ HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").proxied().want(Want::Or(Box::new([Want::Refused, Want::ServerBody(b"hello".into())]))),
        r("chunked behind a vertical tab", "9112 6.1", "Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n").proxied().refused(),
        r("chunked with a space before the colon", "9112 5.1", "Transfer-Encoding : chunked\r\n", b"0\r\n\r\n").proxied().refused().status(400),
        row("Expect: the server says go on", "9110 10.1.1").does(vec![
            Do::Send(post("Content-Length: 5\r\nExpect: 100-continue\r\n", b"")),
            Do::Send(b"hello".to_vec()),
            Do::Hear,
        ]).says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok().sees_body("hello"),
        row("Expect: the server says no at once", "9110 10.1.1").send(post("Content-Length: 5000000\r\nExpect: 100-continue\r\n", b"")).says("HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno").early().closes().status(417).body("no"),
        row("Expect: the server is silent, as of HTTP/1.0", "9110 10.1.1").does(vec![
            Do::Send(post("Content-Length: 5\r\nExpect: 100-continue\r\n", b"")),
            Do::Send(b"hello".to_vec()),
            Do::Hear,
        ]).says("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok").ok().sees_body("hello"),
        row("Expect: something nobody knows", "9110 10.1.1").with("Expect: magic\r\n").want(Want::Or(Box::new([Want::Status(200), Want::Status(417)]))),
        row("an answer before a 5 MB body", "9112 9.3, 9.6").send(post(&length, &megabytes)).says("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").early().closes().status(413).body("no"),
        row("an answer before a 30 MB body", "9112 9.3, 9.6").send(post("Content-Length: 30000000\r\n", &vec![b'x'; 30_000_000])).says("HTTP/1.1 401 Who\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").early().closes().status(401).body("no"),
        row("a 30 MB body to a port where nothing listens", "9112 9.6").send([b"POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n".to_vec(), vec![b'x'; 30_000_000]].concat()).proxied().want(Want::Or(Box::new([Want::Status(502), Want::Status(503)]))),
        row("a body that ends too early", "9112 8").does(vec![
            Do::Send(post("Content-Length: 50\r\n", b"half")),
            Do::End,
            Do::Hear,
        ]).proxied().want(Want::SaysNot(" 200 ".into())),
    ]
}

/// The value `b` and `c` on two lines, with "one or more" spaces between them.
fn joined() -> Want {
    let one = Want::ServerField("a", "b c".into());
    Want::Or(Box::new([one, Want::ServerField("a", "b   c".into())]))
}

fn lines() -> Vec<OddRow> {
    let r = |name: &str, rule, request: &str| {
        row(format!("lines: {name}"), rule).send(request).proxied()
    };
    vec![
        r(
            "LF alone",
            "9112 2.2",
            "GET {http}/ HTTP/1.1\nHost: {host}\n\n",
        )
        .want(Want::Or(Box::new([
            Want::Refused,
            Want::Body(b"ok".into()),
        ]))),
        r(
            "empty lines in front",
            "9112 2.2",
            "\r\n\r\nGET {http}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .ok(),
        r(
            "a CR within a value",
            "9112 2.2",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nA: b\rc: d\r\n\r\n",
        )
        .want(Want::Or(Box::new([
            Want::Refused,
            Want::ServerNot("\rc".into()),
        ]))),
        r(
            "a NUL in a value",
            "9110 5.5",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nA: b\0c\r\n\r\n",
        )
        .want(Want::Or(Box::new([
            Want::Refused,
            Want::ServerNot("\0".into()),
        ]))),
        r(
            "a space before the colon",
            "9112 5.1 (must be 400)",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nA : b\r\n\r\n",
        )
        .refused()
        .status(400),
        r(
            "a space before the colon: which field it is",
            "9112 5.1",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nX-Odd : b\r\n\r\n",
        )
        .want(Want::Told("x-odd")),
        r(
            "a folded value is joined",
            "9112 5.2",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nA: b\r\n c\r\n\r\n",
        )
        .ok()
        .want(joined()),
        r(
            "a folded value of a second request",
            "9112 5.2",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nA: b\r\n c\r\n\r\n",
        )
        .twice()
        .ok()
        .want(joined())
        .want(Want::Answers(2))
        .want(Want::Requests(2)),
        r(
            "a name with brackets does not stop the request",
            "9110 5.1; 9112 2.2 (may be 400)",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nX[0]: b\r\n\r\n",
        )
        .ok(),
        r(
            "nor does a name beyond ASCII",
            "9110 5.1; 9112 2.2 (may be 400)",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nX-\u{fc}: b\r\n\r\n",
        )
        .ok(),
        r(
            "a name with a space in it",
            "9110 5.1; 9112 2.2, 11.2",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length x: 5\r\n\r\n",
        )
        .want(Want::Or(Box::new([
            Want::Refused,
            Want::ServerNot("Content-Length x".into()),
        ]))),
        r(
            "whitespace before the first field",
            "9112 2.2",
            "GET {http}/ HTTP/1.1\r\n Host: {host}\r\n\r\n",
        )
        .refused(),
        r(
            "a field without a colon",
            "9112 5",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\nnonsense\r\n\r\n",
        )
        .want(Want::Or(Box::new([
            Want::Refused,
            Want::ServerNot("nonsense".into()),
        ]))),
        r(
            "a field without a name",
            "9112 5",
            "GET {http}/ HTTP/1.1\r\nHost: {host}\r\n: x\r\n\r\n",
        )
        .want(Want::Or(Box::new([
            Want::Refused,
            Want::ServerNot("\n: x".into()),
        ]))),
        r(
            "two spaces in the request line",
            "9112 3",
            "GET  {http}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .want(Want::Or(Box::new([
            Want::Refused,
            Want::Server("GET / HTTP".into()),
        ]))),
        r(
            "a space in the target",
            "9112 3.2",
            "GET {http}/a b HTTP/1.1\r\nHost: {host}\r\n\r\n",
        )
        .refused(),
        r("no version", "9112 2.3", "GET {http}/\r\n\r\n").refused(),
        r(
            "HTTP/1.2",
            "9112 2.3; 9110 2.5",
            "GET {http}/ HTTP/1.2\r\nHost: {host}\r\n\r\n",
        )
        .want(Want::Or(Box::new([
            Want::Refused,
            Want::Server("HTTP/1.1\r\n".into()),
        ]))),
        r(
            "HTTP/2.0 in words",
            "9110 15.6.6",
            "GET {http}/ HTTP/2.0\r\nHost: {host}\r\n\r\n",
        )
        .refused(),
        r(
            "the preface of HTTP/2",
            "9113 3.4",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        )
        .refused(),
        r(
            "the version in small letters",
            "9112 2.3",
            "GET {http}/ http/1.1\r\nHost: {host}\r\n\r\n",
        )
        .refused(),
        r(
            "a hello of TLS is told what is wrong",
            "9112 2.2",
            "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        )
        .want(Want::Told("tls")),
        r(
            "SOCKS is told what is wrong",
            "1928 3",
            "\x05\x01\x00\r\n\r\n",
        )
        .want(Want::Told("socks")),
        r("noise", "9112 2.2", "\u{1}\u{2}\u{3}\r\n\r\n").refused(),
    ]
}

fn connections() -> Vec<OddRow> {
    let g = |path: &str| format!("GET {{http}}{path} HTTP/1.1\r\nHost: {{host}}\r\n\r\n");
    let r = |name: &str, rule, does: Vec<Do>| row(format!("connection: {name}"), rule).does(does);
    let pipelined: String = (0..5).map(|i| g(&format!("/{i}"))).collect();
    vec![
        row("connection: HTTP/1.1 stays", "9112 9.3").ok().stays(),
        r("HTTP/1.0 ends", "9112 9.3", vec![Do::Send("GET {http}/ HTTP/1.0\r\nHost: {host}\r\n\r\n".into()), Do::Hear, Do::ReadAll]).closes().ok().want(Want::Raw(Vec::new())),
        row("connection: HTTP/1.0 with keep-alive stays", "9112 C.2.2").send("GET {http}/ HTTP/1.0\r\nHost: {host}\r\nConnection: keep-alive\r\n\r\n").says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok").ok().stays(),
        r("close ends it", "9112 9.6", vec![Do::Send("GET {http}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".into()), Do::Hear, Do::ReadAll]).closes().ok().want(Want::Raw(Vec::new())),
        r("two requests at once", "9112 9.3.2", vec![Do::Send((g("/1") + &g("/2")).into()), Do::Hear, Do::Hear]).want(Want::Answers(2)).want(Want::Requests(2)),
        r("five requests at once", "9112 9.3.2", vec![Do::Send(pipelined.into()), Do::Hear, Do::Hear, Do::Hear, Do::Hear, Do::Hear]).want(Want::Answers(5)).want(Want::Requests(5)),
        r("a POST and a GET at once", "9112 9.3.2", vec![Do::Send(format!("POST {{http}}/ HTTP/1.1\r\nHost: {{host}}\r\nContent-Length: 2\r\n\r\nhi{}", g("/2")).into()), Do::Hear, Do::Hear]).want(Want::Answers(2)).sees_body("hi"),
        r("two requests in pieces", "9112 9.3.2", vec![Do::Send((g("/1") + "GET {http}/2 HT").into()), Do::Hear, Do::Send("TP/1.1\r\nHost: {host}\r\n\r\n".into()), Do::Hear]).want(Want::Answers(2)),
        r("a client that ends its writing gets its answer", "9112 9.6", vec![Do::Send(g("/").into()), Do::End, Do::Hear]).ok(),
        r("CR LF behind a POST's body", "9112 2.2", vec![Do::Send("POST {http}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\nhi\r\n".into()), Do::Hear, Do::Send(g("/2").into()), Do::Hear]).want(Want::Answers(2)),
        row("connection: two hundred requests on one", "9112 9.3").does((0..200).flat_map(|i| [Do::Send(g(&format!("/{i}")).into()), Do::Hear]).collect()).want(Want::Answers(200)),
        row("connection: a server that closes each", "9112 9.3").does((0..5).flat_map(|i| [Do::Send(g(&format!("/{i}")).into()), Do::Hear]).collect()).proxied().says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").closes().want(Want::Answers(5)),
        row("connection: a server that closes each without a word", "9112 9.3.1").does((0..5).flat_map(|i| [Do::Send(g(&format!("/{i}")).into()), Do::Hear]).collect()).proxied().closes().want(Want::Answers(5)),
        row("connection: a POST behind a close without a word", "9112 9.3.1").does((0..5).flat_map(|_| [Do::Send(post("Content-Length: 2\r\n", b"hi")), Do::Hear]).collect()).proxied().closes().want(Want::Answers(5)),
        row("connection: NTLM is one client's", "4559 6").does(vec![Do::Send(g("/").into()), Do::Hear, Do::Send(post("Authorization: NTLM TlRM\r\nContent-Length: 2\r\n", b"hi")), Do::Hear]).says("HTTP/1.1 401 Who\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n").says_with("Content-Length: 2\r\n").want(Want::Answers(2)).want(Want::Connections(1)),
        row("upgrade: WebSocket", "6455 4").does(vec![
            Do::Send("GET {http}/ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n".into()),
            Do::Hear,
            Do::Send("ping".into()),
            Do::Read(4),
            Do::End,
            Do::ReadAll,
        ]).says("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").then(Then::Echo).status(101).want(Want::ServerRest(b"ping".into())).want(Want::Raw(b"pingbye".into())).sees_field("upgrade", "websocket"),
        row("upgrade: the server does not", "9110 7.8").with("Connection: Upgrade\r\nUpgrade: websocket\r\n").ok().stays(),
        row("upgrade: h2c is not offered to the server", "9113 3.1").with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n").proxied().ok().sees_not("h2c"),
        row("upgrade: without Connection it is none", "9110 7.8").with("Upgrade: websocket\r\n").proxied().ok().sees_not("pgrade:"),
    ]
}
