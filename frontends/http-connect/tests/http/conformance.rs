//! RFC 9110 and 9112, case by case: the bytes that reach the server, and refusals.

use kubevpn_http_connect::Settings;

use crate::harness::{OK, Rig};

/// The result of a request.
enum Fate {
    /// Refused with this status before a dial, and the connection ends.
    No(u16),
    /// Refused with this status before a dial, and the connection continues.
    NoButStays(u16),
    /// The server gets exactly this, and the connection continues.
    Sent(&'static str),
    /// The server gets exactly this, and the connection ends with the answer.
    SentLast(&'static str),
}
use Fate::{No, NoButStays, Sent, SentLast};

struct Case {
    name: &'static str,
    request: &'static [u8],
    fate: Fate,
}

const fn case(name: &'static str, request: &'static [u8], fate: Fate) -> Case {
    Case {
        name,
        request,
        fate,
    }
}

const PLAIN: &str = "GET / HTTP/1.1\r\nHost: web\r\nVia: 1.1 kubevpn\r\n\r\n";

const CASES: &[Case] = &[
    // === RFC 9112 section 2: messages ===
    case("a request", b"GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n", Sent(PLAIN)),
    case("2.2 empty lines in front are skipped", b"\r\n\r\nGET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n", Sent(PLAIN)),
    case("2.2 a lone LF ends a line, and is a CRLF behind us", b"GET http://web/ HTTP/1.1\nHost: web\n\n", Sent(PLAIN)),
    case("2.2 a bare CR in a value", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nA: b\rc: d\r\n\r\n", No(400)),
    case("2.2 a bare CR in the request line", b"GET http://web/\rx HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("2.2 whitespace before the first field", b"GET http://web/ HTTP/1.1\r\n Host: web\r\n\r\n", No(400)),
    case("2.3 HTTP/1.2 and up are not known", b"GET http://web/ HTTP/1.2\r\nHost: web\r\n\r\n", No(400)),
    case("2.3 HTTP/2.0 in words", b"GET http://web/ HTTP/2.0\r\nHost: web\r\n\r\n", No(400)),
    case("2.3 the HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", No(505)),
    case("2.3 no version at all", b"GET http://web/\r\n\r\n", No(400)),
    case("2.3 the version is case-sensitive", b"GET http://web/ http/1.1\r\nHost: web\r\n\r\n", No(400)),
    // === section 3: the request line ===
    case("3 two spaces", b"GET  http://web/ HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3 a tab for a space", b"GET\thttp://web/ HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.1 any method passes, as it is written", b"pROPfind http://web/ HTTP/1.1\r\nHost: web\r\n\r\n", Sent("pROPfind / HTTP/1.1\r\nHost: web\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("3.1 a method that is no token", b"G[ET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2 a space in the target", b"GET http://web/a b HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2 no field Host", b"GET http://web/ HTTP/1.1\r\nA: b\r\n\r\n", NoButStays(400)),
    case("3.2 two fields Host", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nHost: web\r\n\r\n", NoButStays(400)),
    case("3.2 a Host that is none", b"GET http://web/ HTTP/1.1\r\nHost: we b\r\n\r\n", NoButStays(400)),
    case("3.2 a Host with a path", b"GET http://web/ HTTP/1.1\r\nHost: web/x\r\n\r\n", NoButStays(400)),
    case("3.2 an empty Host", b"GET http://web/ HTTP/1.1\r\nHost:\r\n\r\n", Sent(PLAIN)),
    case("3.2.2 the target wins over Host", b"GET http://web/ HTTP/1.1\r\nHost: evil:81\r\n\r\n", Sent(PLAIN)),
    case("3.2.2 Host keeps a port that is not 80", b"GET http://Web:081/ HTTP/1.1\r\nHost: x\r\n\r\n", Sent("GET / HTTP/1.1\r\nHost: web:81\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("3.2.2 a bracketed IPv6 address", b"GET http://[FD00::1]:8080/a HTTP/1.1\r\nHost: x\r\n\r\n", Sent("GET /a HTTP/1.1\r\nHost: [fd00::1]:8080\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("3.2.2 an unbracketed IPv6 address", b"GET http://fd00::1/ HTTP/1.1\r\nHost: x\r\n\r\n", No(400)),
    case("3.2.2 a user name goes no further", b"GET http://user:pass@web/ HTTP/1.1\r\nHost: web\r\n\r\n", Sent(PLAIN)),
    case("3.2.2 a user name in Host", b"GET http://web/ HTTP/1.1\r\nHost: user@web\r\n\r\n", NoButStays(400)),
    case("3.2.2 port 0", b"GET http://web:0/ HTTP/1.1\r\nHost: web\r\n\r\n", NoButStays(400)),
    case("3.2.2 port 65536", b"GET http://web:65536/ HTTP/1.1\r\nHost: web\r\n\r\n", NoButStays(400)),
    case("3.2.2 a port that is no number", b"GET http://web:8o/ HTTP/1.1\r\nHost: web\r\n\r\n", NoButStays(400)),
    case("3.2.2 no host", b"GET http:///x HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.2 an encoded host", b"GET http://we%62/ HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.2 https is for a tunnel", b"GET https://web/ HTTP/1.1\r\nHost: web\r\n\r\n", NoButStays(400)),
    case("3.2.2 another scheme", b"GET ftp://web/ HTTP/1.1\r\nHost: web\r\n\r\n", NoButStays(400)),
    case("3.2.2 a query without a path", b"GET http://web?a=b HTTP/1.1\r\nHost: web\r\n\r\n", Sent("GET /?a=b HTTP/1.1\r\nHost: web\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("3.2.3 host:port is for CONNECT", b"GET web:80 HTTP/1.1\r\nHost: web\r\n\r\n", NoButStays(400)),
    case("3.2.3 a tunnel without a port", b"CONNECT web HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.3 a tunnel to an address without brackets", b"CONNECT fd00::1:80 HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.3 a tunnel in small letters", b"connect web:80 HTTP/1.1\r\nHost: web\r\n\r\n", NoButStays(400)),
    case("3.2.3 a tunnel to port 0", b"CONNECT web:0 HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.3 a tunnel to port 65536", b"CONNECT web:65536 HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.3 a tunnel to an empty port", b"CONNECT web: HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.3 a tunnel for a user", b"CONNECT u@web:80 HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.3 a tunnel to a path", b"CONNECT /x HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.3 a tunnel to a whole address", b"CONNECT http://web:80/ HTTP/1.1\r\nHost: web\r\n\r\n", No(400)),
    case("3.2.3 a tunnel with a body", b"CONNECT web:80 HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\nx", No(400)),
    case("3.2.3 a tunnel with a chunked body", b"CONNECT web:80 HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", No(400)),
    case("3.2.4 * is for OPTIONS", b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", NoButStays(400)),
    // === section 5: fields ===
    case("5.1 a space before the colon", b"GET http://web/ HTTP/1.1\r\nHost : web\r\n\r\n", No(400)),
    case("5.1 a field without a name", b"GET http://web/ HTTP/1.1\r\nHost: web\r\n: x\r\n\r\n", No(400)),
    case("5.1 a field without a colon", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nnonsense\r\n\r\n", No(400)),
    case("5.1 a field whose name is no token is left out", b"GET http://web/ HTTP/1.1\r\na(b: c\r\nHost: web\r\na[0]:\r\n c\r\n\r\n", Sent(PLAIN)),
    case("5.1 a name with a space in it", b"GET http://web/ HTTP/1.1\r\nHost: web\r\na b: c\r\n\r\n", No(400)),
    case("5.2 a folded line is joined", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nA: b\r\n c\r\n\r\n", Sent("GET / HTTP/1.1\r\nHost: web\r\nA: b   c\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("5.2 a folded Transfer-Encoding is one", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", Sent("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nVia: 1.1 kubevpn\r\n\r\n0\r\n\r\n")),
    case("5.2 a folded Host is one", b"GET http://web/ HTTP/1.1\r\nHost:\r\n\tweb\r\n\r\n", Sent(PLAIN)),
    case("5.5 a NUL in a value", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nA: b\0c\r\n\r\n", No(400)),
    case("5.1 names and their order pass as they are written", b"GET http://web/ HTTP/1.1\r\nX-ONE: 1\r\nhOST: web\r\nConnection: B\r\nx-two: 2\r\nB: x\r\nX-one: 3\r\naccept: *\r\n\r\n", Sent("GET / HTTP/1.1\r\nX-ONE: 1\r\nX-one: 3\r\nhOST: web\r\nx-two: 2\r\naccept: *\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("5.5 bytes beyond ASCII pass", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nA: \xc3\xbc\r\n\r\n", Sent("GET / HTTP/1.1\r\nHost: web\r\nA: ü\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("5.5 spaces around a value go", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nA: \t b \t\r\n\r\n", Sent("GET / HTTP/1.1\r\nHost: web\r\nA: b\r\nVia: 1.1 kubevpn\r\n\r\n")),
    // === section 6: bodies ===
    case("6.1 chunked and a length: one reading is left", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", SentLast("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nVia: 1.1 kubevpn\r\n\r\n3\r\nabc\r\n0\r\n\r\n")),
    case("6.1 the same the other way round", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n3\r\nabc\r\n0\r\n\r\n", SentLast("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nVia: 1.1 kubevpn\r\n\r\n3\r\nabc\r\n0\r\n\r\n")),
    case("6.1 another coding under chunked", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", No(501)),
    case("6.1 another coding on a line of its own", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", No(501)),
    case("6.1 chunked twice", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", No(501)),
    case("6.1 chunked in two fields", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", No(501)),
    case("6.1 chunked not last", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", No(400)),
    case("6.1 identity", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: identity\r\n\r\n", No(400)),
    case("6.1 something like chunked", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: xchunked\r\n\r\n", No(400)),
    case("6.1 chunked behind a vertical tab", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", No(400)),
    case("6.1 chunked in HTTP/1.0", b"POST http://web/ HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", No(400)),
    case("6.2 two lengths", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", No(400)),
    case("6.2 two lengths on one line", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 1, 2\r\n\r\nxx", No(400)),
    case("6.2 one length twice", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nxx", Sent("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\nVia: 1.1 kubevpn\r\n\r\nxx")),
    case("6.2 one length twice on one line", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 2, 2\r\n\r\nxx", No(400)),
    case("6.2 a length with a sign", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: +2\r\n\r\nxx", No(400)),
    case("6.2 a length in hex", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 0x2\r\n\r\nxx", No(400)),
    case("6.2 a negative length", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: -1\r\n\r\n", No(400)),
    case("6.2 a length beyond all numbers", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 18446744073709551616\r\n\r\n", No(400)),
    case("6.2 a length beyond any body", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 18446744073709551615\r\n\r\n", No(400)),
    case("6.2 an empty length", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length:\r\n\r\n", No(400)),
    case("6.3 a body with a GET", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nxx", Sent("GET / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\nVia: 1.1 kubevpn\r\n\r\nxx")),
    case("6.3 a chunked body with a GET", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", Sent("GET / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nVia: 1.1 kubevpn\r\n\r\n1\r\nx\r\n0\r\n\r\n")),
    // === RFC 9110 section 7.6: what a proxy does to a message ===
    case("7.6.1 fields of one connection", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: A, keep-alive\r\nA: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: x\r\nProxy-Authorization: Basic x\r\n\r\n", Sent(PLAIN)),
    case("7.6.1 Connection cannot take Host away", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: host\r\n\r\n", Sent("GET / HTTP/1.1\r\nHost: web\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("7.6.1 Connection cannot change the framing", b"POST http://web/ HTTP/1.1\r\nHost: web\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nxx", Sent("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\nVia: 1.1 kubevpn\r\n\r\nxx")),
    case("7.6.1 a client that closes", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n", SentLast(PLAIN)),
    case("7.6.2 Max-Forwards is for two methods", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\n\r\n", Sent("GET / HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("7.6.2 Max-Forwards counts down", b"OPTIONS http://web/ HTTP/1.1\r\nHost: web\r\nMax-Forwards: 1\r\n\r\n", Sent("OPTIONS / HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("7.6.2 a Max-Forwards that is no number", b"TRACE http://web/ HTTP/1.1\r\nHost: web\r\nMax-Forwards: -1\r\n\r\n", NoButStays(400)),
    case("7.6.2 two of them", b"TRACE http://web/ HTTP/1.1\r\nHost: web\r\nMax-Forwards: 1\r\nMax-Forwards: 1\r\n\r\n", NoButStays(400)),
    case("7.6.3 Via grows", b"GET http://web/ HTTP/1.1\r\nHost: web\r\nVia: 1.0 a\r\n\r\n", Sent("GET / HTTP/1.1\r\nHost: web\r\nVia: 1.0 a\r\nVia: 1.1 kubevpn\r\n\r\n")),
    case("2.5 HTTP/1.0 is sent on as what we speak", b"GET http://web/ HTTP/1.0\r\n\r\n", SentLast("GET / HTTP/1.1\r\nHost: web\r\nVia: 1.0 kubevpn\r\n\r\n")),
    case("2.5 HTTP/1.0 that would stay", b"GET http://web/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", Sent("GET / HTTP/1.1\r\nHost: web\r\nVia: 1.0 kubevpn\r\n\r\n")),
];

#[tokio::test(start_paused = true)]
async fn every_case() {
    for Case {
        name,
        request,
        fate,
    } in CASES
    {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        client.send(request).await;
        let stays = match fate {
            Sent(expected) | SentLast(expected) => {
                let (_, mut server) = rig.server().await;
                let mut got = Vec::new();
                while got.len() < expected.len() && !server.is_silent().await {
                    got.extend(server.take(1).await);
                }
                assert_eq!(String::from_utf8_lossy(&got), *expected, "{name}");
                assert!(server.is_silent().await, "{name}: more");
                server.send(OK).await;
                assert_eq!(client.answer().await.text(), "ok", "{name}");
                matches!(fate, Sent(_))
            }
            No(status) | NoButStays(status) => {
                let answer = client.answer().await;
                let error = "http_request_error";
                let sentence = answer.assert_refused(*status, error);
                assert!(sentence.len() > 20, "{name}: {sentence}");
                assert_eq!(rig.dials(), 0, "{name}");
                assert!(!matches!(fate, NoButStays(_)) || !answer.closes(), "{name}");
                matches!(fate, NoButStays(_))
            }
        };
        if stays {
            client
                .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await;
            assert_eq!(client.answer().await.status, 200, "{name}");
        } else {
            assert!(client.peer.has_ended().await, "{name}: goes on");
        }
    }
}

/// An invalid chunk: the head was forwarded, but the request is never complete.
#[tokio::test(start_paused = true)]
async fn malformed_chunks_are_not_sent_on() {
    for (name, body) in [
        ("no size", &b"\r\nabc\r\n0\r\n\r\n"[..]),
        ("a size that is no number", b"zz\r\nabc\r\n0\r\n\r\n"),
        ("a size with a sign", b"+3\r\nabc\r\n0\r\n\r\n"),
        ("a size with 0x", b"0x3\r\nabc\r\n0\r\n\r\n"),
        (
            "a size beyond all numbers",
            b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        ),
        ("a size that is too small", b"2\r\nabc\r\n0\r\n\r\n"),
        ("a lone LF behind the size", b"3\nabc\r\n0\r\n\r\n"),
        ("a lone LF behind the data", b"3\r\nabc\n0\r\n\r\n"),
        ("a lone LF in an extension", b"3;a=\nb\r\nabc\r\n0\r\n\r\n"),
        ("a lone CR at the end", b"3\r\nabc\r\n0\r\n\rX"),
    ] {
        let mut rig = Rig::new(Settings::default());
        let mut client = rig.client();
        client
            .send("POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        client.send(body).await;
        let (_, mut server) = rig.server().await;
        let got = String::from_utf8(server.rest().await).unwrap();
        assert!(!got.ends_with("\r\n0\r\n\r\n"), "{name}: {got:?}");
        let answer = client.answer().await;
        answer.assert_refused(400, "http_request_error");
        assert!(client.peer.has_ended().await, "{name}");
    }
}

/// A chunk extension has no meaning, and is not forwarded.
#[tokio::test(start_paused = true)]
async fn chunk_extensions_are_dropped_and_bounded() {
    let head = "POST http://web/ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client
        .send(format!("{head}3;a=\"b\"\r\nabc\r\n0;c\r\n\r\n"))
        .await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    assert_eq!(server.take(13).await, b"3\r\nabc\r\n0\r\n\r\n");

    let mut client = rig.client();
    client.send(head).await;
    let (_, mut server) = rig.server().await;
    let endless = format!("1;{}\r\n", "x".repeat(1024));
    let sending = tokio::spawn(async move {
        for _ in 0..64 {
            let sent = tokio::io::AsyncWriteExt::write_all(&mut client.peer.io, endless.as_bytes());
            if sent.await.is_err() {
                break;
            }
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client.peer.io, b"x\r\n").await;
        }
        client
    });
    let got = server.rest().await;
    assert!(got.len() < 1024, "{} bytes", got.len());
    let mut client = sending.await.unwrap();
    client
        .answer()
        .await
        .assert_refused(400, "http_request_error");
}

/// Two requests in one write: the answers come in order, and neither consumes bytes of the other.
#[tokio::test(start_paused = true)]
async fn pipelined_requests() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client
        .send("POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET http://b/ HTTP/1.1\r\nHost: b\r\n\r\nGET")
        .await;
    let (target, mut a) = rig.server().await;
    assert_eq!(target.to_string(), "a:80");
    a.head().await;
    assert_eq!(a.take(3).await, b"abc");
    assert!(a.is_silent().await);
    assert_eq!(rig.dials(), 1, "one at a time");
    a.send(OK).await;
    assert_eq!(client.answer().await.text(), "ok");
    let (target, mut b) = rig.server().await;
    assert_eq!(target.to_string(), "b:80");
    b.head().await;
    b.send(OK).await;
    assert_eq!(client.answer().await.text(), "ok");
    client.send(" http://a/ HTTP/1.1\r\nHost: a\r\n\r\n").await;
    a.head().await;
    a.send(OK).await;
    assert_eq!(client.answer().await.text(), "ok");
}

/// hyper gets nothing of the next head while the body before it is read, however the body ends.
#[tokio::test(start_paused = true)]
async fn heads_behind_bodies_are_read_as_the_first_one() {
    let bodies = [
        "Host: a\r\n\r\n",
        "Host: a\r\nContent-Length: 3\r\n\r\nabc",
        "Host: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
    ];
    for body in bodies {
        let next =
            "POST http://b/ HTTP/1.1\r\nHost: b\r\nContent-Length: 1\r\nA:\r\n folded\r\n\r\nx";
        let sent = format!("POST http://a/ HTTP/1.1\r\n{body}{next}");
        for cut in 0..sent.len() {
            let mut rig = Rig::new(Settings::default());
            let mut client = rig.client();
            client.send(&sent[..cut]).await;
            tokio::task::yield_now().await;
            client.send(&sent[cut..]).await;
            for host in ["a:80", "b:80"] {
                let (target, mut server) = rig.server().await;
                assert_eq!(target.to_string(), host, "{body:?} {cut}");
                let head = server.head().await;
                assert_eq!(head.contains("A: folded"), host == "b:80", "{head} {cut}");
                while !server.is_silent().await {
                    server.take(1).await;
                }
                server.send(OK).await;
                assert_eq!(client.answer().await.text(), "ok", "{body:?} {cut}");
            }
        }
    }
}

/// A malformed head after a valid request is answered by us too, after the other answer.
#[tokio::test(start_paused = true)]
async fn a_malformed_head_behind_a_good_one() {
    let mut rig = Rig::new(Settings::default());
    let mut client = rig.client();
    client
        .send("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\nGET \x01\r\n\r\n")
        .await;
    let (_, mut server) = rig.server().await;
    server.head().await;
    server.send(OK).await;
    assert_eq!(client.answer().await.text(), "ok");
    client
        .answer()
        .await
        .assert_refused(400, "http_request_error");
    assert!(client.peer.has_ended().await);
}
