//! CONNECT.

use crate::client::Do;
use crate::row::{OddRow, Want};
use crate::server::Then;

fn connect(target: &str, fields: &str) -> Vec<u8> {
    format!("CONNECT {target} HTTP/1.1\r\n{fields}\r\n").into_bytes()
}

/// Through the tunnel: a request that turns the server into one that sends back what it gets.
fn through(name: &str, rule: &'static str, connect: Vec<u8>) -> OddRow {
    OddRow::new(format!("tunnel: {name}"), rule)
        .proxied()
        .does(vec![
            Do::SendToProxy(connect),
            Do::HearProxy,
            Do::Send(b"GET / HTTP/1.1\r\n\r\nping".to_vec()),
            Do::Read(7),
            Do::End,
            Do::ReadAll,
        ])
        .says("go ")
        .then(Then::Echo)
}

fn passes(row: OddRow) -> OddRow {
    row.status(200).want(Want::Raw(b"go pingbye".into()))
}

fn refused(name: &str, rule: &'static str, bytes: &[u8]) -> OddRow {
    OddRow::new(format!("tunnel: {name}"), rule)
        .proxied()
        .does(vec![Do::Send(bytes.to_vec()), Do::Hear])
        .refused()
}

pub(super) fn rows() -> Vec<OddRow> {
    let host = "Host: {host}\r\n";
    let large = vec![b'x'; 5_000_000];
    let mut rows = vec![
        passes(through(
            "a name and a port",
            "9110 9.3.6",
            connect("{host}", host),
        )),
        passes(through(
            "without Host",
            "9112 3.2 (must be 400)",
            connect("{host}", ""),
        ))
        .because("without"),
        passes(through(
            "Host of another server",
            "9110 9.3.6",
            connect("{host}", "Host: other.example\r\n"),
        )),
        passes(through(
            "HTTP/1.0",
            "9110 9.3.6",
            b"CONNECT {host} HTTP/1.0\r\n\r\n".to_vec(),
        )),
        passes(through(
            "fields of a client's own",
            "9110 9.3.6",
            connect(
                "{host}",
                "Host: {host}\r\nUser-Agent: x\r\nProxy-Connection: keep-alive\r\n",
            ),
        )),
        passes(through(
            "a length of 0",
            "9110 9.3.6",
            connect("{host}", "Host: {host}\r\nContent-Length: 0\r\n"),
        )),
        through(
            "no Content-Length in the answer",
            "9110 9.3.6",
            connect("{host}", host),
        )
        .status(200)
        .want(Want::SaysNot("ontent-Length".into())),
        through(
            "no Transfer-Encoding in the answer",
            "9110 9.3.6",
            connect("{host}", host),
        )
        .status(200)
        .want(Want::SaysNot("ransfer-Encoding".into())),
        passes(through(
            "what the client sends ends, what the server sends does not",
            "9293 3.6",
            connect("{host}", host),
        )),
        OddRow::new("tunnel: bytes right behind the head", "9110 9.3.6")
            .proxied()
            .does(vec![
                Do::Send(
                    b"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\nGET / HTTP/1.1\r\n\r\nping"
                        .to_vec(),
                ),
                Do::Hear,
                Do::Read(7),
                Do::End,
                Do::ReadAll,
            ])
            .says("go ")
            .then(Then::Echo)
            .status(200)
            .want(Want::Raw(b"go pingbye".into())),
        OddRow::new("tunnel: behind a request", "9112 9.3")
            .proxied()
            .does(vec![
                Do::Send(b"GET {http}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".to_vec()),
                Do::Hear,
                Do::Send(connect("{host}", host)),
                Do::Hear,
                Do::Send(b"GET / HTTP/1.1\r\n\r\nping".to_vec()),
                Do::Read(7),
                Do::End,
                Do::ReadAll,
            ])
            .says_with("Content-Length: 2\r\n")
            .says("go ")
            .then(Then::Echo)
            .want(Want::Answers(2))
            .want(Want::Raw(b"go pingbye".into())),
        OddRow::new("tunnel: 5 MB up and down", "9110 9.3.6")
            .proxied()
            .does(vec![
                Do::Send(connect("{host}", host)),
                Do::Hear,
                Do::Send(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
                Do::Send(large.clone()),
                Do::Read(3 + large.len()),
                Do::End,
                Do::ReadAll,
            ])
            .says("go ")
            .then(Then::Echo)
            .want(Want::ServerRest(large)),
        OddRow::new("tunnel: a server that is reset", "9112 9.6; 9293 3.6")
            .proxied()
            .does(vec![
                Do::Send(connect("{host}", host)),
                Do::Hear,
                Do::Send(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
                Do::ReadAll,
            ])
            .says("half")
            .then(Then::Reset)
            .want(Want::Raw(b"half".into())),
        refused(
            "to a port where nothing listens",
            "9110 9.3.6",
            b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .want(Want::Or(Box::new([Want::Status(502), Want::Status(503)]))),
        refused(
            "without a port",
            "9110 9.3.6",
            b"CONNECT 127.0.0.1 HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        refused(
            "without a port: told so",
            "9110 9.3.6",
            b"CONNECT 127.0.0.1 HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .want(Want::Told("port")),
        refused(
            "with an empty port",
            "9110 9.3.6",
            b"CONNECT 127.0.0.1: HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        refused(
            "to port 0",
            "9110 9.3.6",
            b"CONNECT 127.0.0.1:0 HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        refused(
            "to port 99999",
            "9110 9.3.6",
            b"CONNECT 127.0.0.1:99999 HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        refused(
            "an IPv6 address without brackets: told so",
            "3986 3.2.2",
            b"CONNECT ::1:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .want(Want::Told("[")),
        refused(
            "in small letters: told so",
            "9110 9.1",
            b"connect 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .want(Want::Told("CONNECT")),
        refused(
            "to a whole address",
            "9110 9.3.6",
            b"CONNECT http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        refused(
            "for a user",
            "9110 9.3.6",
            b"CONNECT ann@127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        refused(
            "to a name with a space",
            "9112 3.2",
            b"CONNECT a b:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        refused(
            "to an IPv6 address where nothing listens",
            "3986 3.2.2",
            b"CONNECT [::1]:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .want(Want::Or(Box::new([Want::Status(502), Want::Status(503)]))),
    ];
    for row in &mut rows {
        if row.because == Some("without") {
            // A request without Host must be refused (RFC 9112), and clients that leave it out of a CONNECT exist.
            row.because = None;
            row.wants = vec![Want::Or(Box::new([
                Want::Status(400),
                Want::Raw(b"go pingbye".into()),
            ]))];
        }
    }
    rows
}
