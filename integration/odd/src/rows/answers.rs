//! What servers answer.

use crate::client::Do;
use crate::row::{OddRow, Want};
use crate::server::Then;

fn row(name: impl Into<String>, rule: &'static str) -> OddRow {
    OddRow::new(name, rule)
}

pub(super) fn rows() -> Vec<OddRow> {
    let mut rows = statuses();
    rows.extend(framing());
    rows.extend(fields());
    rows.extend(odd());
    rows
}

fn statuses() -> Vec<OddRow> {
    let mut rows: Vec<OddRow> = [
        201, 202, 203, 206, 226, 299, 300, 301, 302, 303, 307, 308, 400, 401, 402, 403, 404, 405,
        406, 409, 410, 412, 416, 418, 421, 422, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502,
        503, 504, 511, 599, 999,
    ]
    .map(|status| {
        row(format!("status {status}"), "9110 15")
            .says(format!(
                "HTTP/1.1 {status} As It Is\r\nContent-Length: 2\r\n\r\nok"
            ))
            .status(status)
            .body("ok")
            .hears(&format!(" {status} As It Is\r\n"))
    })
    .into();
    rows.extend([
        row("status 407 of a server", "9110 15.5.8").says("HTTP/1.1 407 Who\r\nContent-Length: 2\r\n\r\nok").status(407).body("ok"),
        row("status 204", "9110 15.3.5").says("HTTP/1.1 204 No Content\r\n\r\n").status(204).body("").stays(),
        row("status 204 with a length", "9112 6.3").says("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n").status(204).body("").stays(),
        row("status 205", "9110 15.3.6").says("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n").status(205).body("").stays(),
        row("status 304 with a length", "9110 15.4.5").with("If-None-Match: \"a\"\r\n").says("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 99\r\n\r\n").status(304).body("").hears_field("etag", "\"a\"").stays(),
        row("a reason that is empty", "9112 4").says("HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok").ok(),
        row("no reason and no space", "9112 4").says("HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok").ok(),
        row("a reason in UTF-8", "9112 4 (obs-text)").says("HTTP/1.1 200 \u{fc}ber\r\nContent-Length: 2\r\n\r\nok").ok(),
        row("100 before the answer, unasked", "9110 15.2.1").says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok(),
        row("102 before the answer", "9110 15.2").says("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").want(Want::Interim(102)).ok(),
        row("103 before the answer", "8297 2; 9110 15.2").says("HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").want(Want::Interim(103)).ok(),
        row("102 and 103 before the answer", "9110 15.2").says("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").want(Want::Interim(103)).want(Want::Interim(102)).ok().stays(),
        row("103 to a client of HTTP/1.0", "9110 15.2").send("GET {http}/ HTTP/1.0\r\nHost: {host}\r\n\r\n").says("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").closes().proxied().want(Want::Interim(103)).ok(),
        row("101 that nobody asked for", "9110 15.2.2").says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n").closes().proxied().want(Want::SaysNot(" 101 ".into())),
        row("426 with its Upgrade", "9110 15.5.22").says("HTTP/1.1 426 Upgrade Required\r\nUpgrade: x/1\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n").status(426).hears_field("upgrade", "x/1"),
    ]);
    // HTTP/1.0 knows no interim answers: it must not get one.
    for row in &mut rows {
        if row.name.ends_with("HTTP/1.0") {
            row.wants.retain(|want| !matches!(want, Want::Interim(_)));
        }
    }
    rows
}

fn framing() -> Vec<OddRow> {
    let r = |name: &str, rule, answer: &str| row(format!("answer: {name}"), rule).says(answer);
    let head = |name: &str, rule, answer: &str| {
        row(format!("answer to HEAD: {name}"), rule)
            .send("HEAD {http}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")
            .says(answer)
    };
    let large = vec![b'x'; 10_000_000];
    let mut ten =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", large.len()).into_bytes();
    ten.extend_from_slice(&large);
    vec![
        r("a length", "9112 6.2", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok().stays(),
        row("answer: 10 MB", "9112 6.2").says(ten).body(large),
        r("a length of 0", "9112 6.2", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").body("").stays(),
        r("chunked", "9112 7.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").ok().stays(),
        r("chunked in capitals", "9112 7", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").ok().stays(),
        r("chunked and a length", "9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").ok(),
        r("a chunk extension", "9112 7.1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\n\r\n").ok().stays(),
        r("chunk sizes with zeros and spaces", "9112 7.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0002  \r\nok\r\n00\r\n\r\n").ok().stays(),
        r("an empty chunked body", "9112 7.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").body("").stays(),
        r("trailers that are announced", "9110 6.5", "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n").with("TE: trailers\r\nConnection: TE\r\n").ok().want(Want::Trailer("x-sum: 1")).stays(),
        r("trailers that are not announced", "9110 6.5.1 (may be dropped)", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n").ok().stays(),
        r("to the end of the connection", "9112 6.3", "HTTP/1.1 200 OK\r\n\r\nok").closes().ok(),
        r("to the end of the connection, HTTP/1.0", "9112 6.3", "HTTP/1.0 200 OK\r\n\r\nok").closes().ok(),
        r("to the end of the connection, to HTTP/1.0", "9112 6.3", "HTTP/1.0 200 OK\r\n\r\nok").send("GET {http}/ HTTP/1.0\r\nHost: {host}\r\n\r\n").closes().ok(),
        r("chunked, to HTTP/1.0", "9112 6.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").send("GET {http}/ HTTP/1.0\r\nHost: {host}\r\n\r\n").proxied().ok().want(Want::SaysNot("chunked".into())),
        r("byte by byte", "9112 2.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n2\r\nok\r\n0\r\n\r\n").drips().ok(),
        r("ends too early, with a length", "9112 8", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").closes().want(Want::Cut),
        r("ends too early, chunked", "9112 8", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").closes().want(Want::Cut),
        r("ends too early, in a chunk", "9112 8", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok\r\n").closes().want(Want::Cut),
        r("ends too early, chunked, to HTTP/1.0", "9112 8", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").send("GET {http}/ HTTP/1.0\r\nHost: {host}\r\n\r\n").closes().proxied().want(Want::Cut),
        r("is reset", "9112 8", "HTTP/1.1 200 OK\r\n\r\nok").then(Then::Reset).proxied().want(Want::Cut),
        r("is reset, to HTTP/1.0", "9112 8", "HTTP/1.0 200 OK\r\n\r\nok").send("GET {http}/ HTTP/1.0\r\nHost: {host}\r\n\r\n").then(Then::Reset).want(Want::Cut),
        r("a bad chunk", "9112 7.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n").closes().want(Want::Cut),
        r("more than its length", "9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad").ok(),
        row("answer: what is behind one is not the answer to the next", "9112 9.2").says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 Bad\r\nContent-Length: 3\r\n\r\nbad").says_with("Content-Length: 2\r\n").proxied().does(vec![
            Do::Send("GET {http}/1 HTTP/1.1\r\nHost: {host}\r\n\r\n".into()),
            Do::Hear,
            Do::Send("GET {http}/2 HTTP/1.1\r\nHost: {host}\r\n\r\n".into()),
            Do::Hear,
        ]).want(Want::Requests(2)).want(Want::Answers(2)),
        r("two lengths that agree", "9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok").ok(),
        r("two lengths on one line that agree", "9110 8.6", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok").ok(),
        r("two lengths that do not", "9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!").closes().proxied().status(502),
        r("two lengths: which field it is", "9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!").closes().proxied().want(Want::Told("content-length")),
        r("a length that is no number", "9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok").closes().proxied().status(502),
        r("a negative length", "9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok").closes().proxied().status(502),
        r("identity", "9112 7; 2616 3.6", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok").closes().ok(),
        r("identity and a length, on a connection that stays", "9112 7; 2616 3.6", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok").ok(),
        r("gzip under chunked", "9112 6.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").proxied().want(Want::Or(Box::new([Want::Status(502), Want::Says("gzip".into())]))),
        r("chunked in HTTP/1.0", "9112 6.1", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").closes().proxied().want(Want::Or(Box::new([Want::Status(502), Want::Body(b"ok".into())]))),
        head("a length", "9110 9.3.2", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n").status(200).hears_field("content-length", "99").stays(),
        head("chunked", "9110 9.3.2", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").status(200).body("").stays(),
        head("neither", "9110 9.3.2", "HTTP/1.1 200 OK\r\n\r\n").status(200).body("").stays(),
        head("a body, which is none", "9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").closes().status(200),
    ]
}

fn fields() -> Vec<OddRow> {
    let r = |name: &str, rule, fields: &str| {
        row(format!("answer field: {name}"), rule)
            .says_with(&format!("{fields}Content-Length: 2\r\n"))
    };
    let mut rows = vec![
        r(
            "names keep their letters",
            "9110 5.1",
            "X-CamelCase: 1\r\nx-lower: 2\r\nETag: \"x\"\r\n",
        )
        .ok()
        .hears("\r\nX-CamelCase: 1\r\n")
        .hears("\r\nx-lower: 2\r\n")
        .hears("\r\nETag: \"x\"\r\n"),
        r("order", "9110 5.3", "B: 1\r\nA: 2\r\nC: 3\r\n")
            .ok()
            .hears("B: 1\r\nA: 2\r\nC: 3\r\n"),
        r(
            "three cookies on three lines",
            "6265 3",
            "Set-Cookie: a=1, b\r\nSet-Cookie: b=2\r\nSet-Cookie: c=3\r\n",
        )
        .ok()
        .hears("Set-Cookie: a=1, b\r\nSet-Cookie: b=2\r\nSet-Cookie: c=3\r\n"),
        r("an empty value", "9110 5.5", "A:\r\nB: 1\r\n")
            .ok()
            .hears_field("a", ""),
        r("spaces around a value", "9110 5.5", "A: \t b \t \r\n")
            .ok()
            .hears_field("a", "b"),
        r("UTF-8", "9110 5.5 (obs-text)", "A: \u{fc}\u{2713}\r\n")
            .ok()
            .hears_field("a", "\u{fc}\u{2713}"),
        r("a space before the colon", "9112 5.1", "X-A : 1\r\n")
            .ok()
            .hears("X-A: 1"),
        row(
            "answer field: a space before the colon of the length",
            "9112 5.1",
        )
        .says("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok")
        .ok(),
        r("a folded value", "9112 5.2", "X-A: 1\r\n 2\r\n\t3\r\n")
            .ok()
            .hears_field("x-a", "1 2 3"),
        r(
            "a folded value, empty on its first line",
            "9112 5.2",
            "X-A:\r\n 2\r\n",
        )
        .ok()
        .hears_field("x-a", "2"),
        r(
            "a name with a space in it",
            "9110 5.1",
            "X A: 1\r\nX-B: 2\r\n",
        )
        .ok()
        .hears_field("x-b", "2"),
        r(
            "a name that is no token",
            "9110 5.1",
            "X(A): 1\r\nX-B: 2\r\n",
        )
        .ok()
        .hears_field("x-b", "2"),
        r("a name in UTF-8", "9110 5.1", "X-\u{fc}: 1\r\nX-B: 2\r\n")
            .ok()
            .hears_field("x-b", "2"),
        r("a line without a colon", "9112 5", "nonsense\r\nX-B: 2\r\n")
            .ok()
            .hears_field("x-b", "2"),
        r("a line without a name", "9112 5", ": 1\r\nX-B: 2\r\n")
            .ok()
            .hears_field("x-b", "2"),
        r(
            "a control character in a value",
            "9110 5.5",
            "X-A: 1\u{1}2\r\nX-B: 2\r\n",
        )
        .ok()
        .hears_field("x-b", "2"),
        r("a NUL in a value", "9110 5.5", "X-A: 1\u{0}2\r\n")
            .proxied()
            .want(Want::Or(Box::new([
                Want::SaysNot("\0".into()),
                Want::Status(502),
            ]))),
        row("answer field: LF alone ends the lines", "9112 2.2")
            .says("HTTP/1.1 200 OK\nX-A: 1\nContent-Length: 2\n\nok")
            .ok()
            .hears_field("x-a", "1"),
        r(
            "what Connection names does not pass",
            "9110 7.6.1",
            "Connection: x-hop\r\nX-Hop: 1\r\n",
        )
        .proxied()
        .ok()
        .want(Want::SaysNot("X-Hop".into())),
        r(
            "Keep-Alive does not pass",
            "9110 7.6.1",
            "Keep-Alive: timeout=77\r\n",
        )
        .proxied()
        .ok()
        .want(Want::SaysNot("timeout=77".into())),
        r(
            "Proxy-Authenticate does not pass",
            "9110 11.7.1",
            "Proxy-Authenticate: Basic realm=x\r\n",
        )
        .proxied()
        .ok()
        .want(Want::SaysNot("realm=x".into())),
        r("Via is added", "9110 7.6.3", "")
            .proxied()
            .ok()
            .hears("Via: 1.1 "),
        r(
            "Date is left as it is",
            "9110 6.6.1",
            "Date: Tue, 15 Nov 1994 08:12:31 GMT\r\n",
        )
        .ok()
        .hears_field("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
        r(
            "Server is left as it is",
            "9110 10.2.4",
            "Server: x/1 (y)\r\n",
        )
        .ok()
        .hears_field("server", "x/1 (y)"),
        r(
            "Location is left as it is",
            "9110 10.2.2",
            "Location: http://other:81/a\r\n",
        )
        .ok()
        .hears_field("location", "http://other:81/a"),
        r(
            "Content-Encoding and its body are left as they are",
            "9110 8.4",
            "Content-Encoding: gzip\r\n",
        )
        .ok()
        .hears_field("content-encoding", "gzip"),
        r(
            "WWW-Authenticate: two on two lines",
            "9110 11.6.1",
            "WWW-Authenticate: Basic realm=\"a\"\r\nWWW-Authenticate: Bearer\r\n",
        )
        .ok()
        .hears("Basic realm=\"a\"\r\n")
        .hears("Bearer\r\n"),
        r(
            "Warning and Age are left as they are",
            "9111 5",
            "Age: 5\r\nWarning: 110 x \"y\"\r\n",
        )
        .ok()
        .hears_field("age", "5"),
    ];
    for count in [150, 500, 900] {
        let many: String = (0..count).map(|i| format!("X-{i}: y\r\n")).collect();
        let last = format!("X-{}: y\r\n", count - 1);
        rows.push(
            r(&format!("{count} of them"), "9110 5.4", &many)
                .ok()
                .hears(&last),
        );
    }
    for kib in [8, 30, 60] {
        let long = format!("Set-Cookie: {}\r\n", "x".repeat(kib * 1024));
        rows.push(
            r(&format!("a value of {kib} KiB"), "9110 5.4", &long)
                .ok()
                .hears(&long),
        );
    }
    rows
}

fn odd() -> Vec<OddRow> {
    let r = |name: &str, rule, answer: &str| {
        row(format!("odd server: {name}"), rule)
            .says(answer)
            .closes()
            .proxied()
    };
    vec![
        r("closes without a word", "9110 15.6.3", "").want(Want::Or(Box::new([Want::Status(502), Want::Status(503)]))),
        r("resets without a word", "9110 15.6.3", "").then(Then::Reset).want(Want::Or(Box::new([Want::Status(502), Want::Status(503)]))),
        r("closes in its head", "9112 8", "HTTP/1.1 200 OK\r\nContent-Le").want(Want::Or(Box::new([Want::Status(502), Want::Status(503)]))),
        r("speaks SSH", "9112 4", "SSH-2.0-OpenSSH_9.2\r\n\r\n").want(Want::Status(502)),
        r("speaks HTTP/2 at once", "9113 3.4", "\0\0\x12\x04\0\0\0\0\0").want(Want::Status(502)),
        r("says HTTP/1.0", "9110 2.5", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok").ok(),
        r("says HTTP/1.0 and keep-alive", "9112 C.2.2", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok").then(Then::Stay).ok(),
        r("says http/1.1 in small letters", "9112 2.3", "http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").want(Want::Or(Box::new([Want::Status(502), Want::Body(b"ok".into())]))),
        r("says a status of two digits", "9112 4", "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok").want(Want::Status(502)),
        r("says a status of four digits", "9112 4", "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok").want(Want::Status(502)),
        r("sends an event, and another when asked again", "9112 7.1", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n0\r\n\r\n").body("data: a\n\n"),
    ]
}
