//! What other implementations wrote; see `tests/golden/README.md`.

use super::*;

macro_rules! golden {
    ($name:literal) => {
        &include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/", $name))[..]
    };
}

#[test]
fn a_client_of_client_gos_library_is_understood() {
    let bytes = golden!("spdystream-0.5.0/client.bin");
    let mut server = machine(Role::Server);
    let mut requests = Vec::new();
    for event in received(&mut server, bytes).unwrap() {
        if let Event::Request {
            stream,
            headers,
            fin,
        } = event
        {
            assert_eq!(headers.get("port"), Some("8080"));
            assert_eq!(headers.get("requestID"), Some("0"));
            assert_eq!(headers.iter().len(), 3);
            let kind = headers.get("streamType").unwrap().to_owned();
            requests.push((stream.get(), kind, fin));
        }
    }
    let expected = [
        (1, "error", true),
        (3, "data", false),
        (5, "refused", false),
        (7, "error", false),
    ];
    assert_eq!(
        requests,
        expected.map(|(id, kind, fin)| (id, kind.to_owned(), fin))
    );
    assert_eq!(read_all(&mut server, id(1)), (vec![], "end"));
    assert_eq!(read_all(&mut server, id(3)), (b"hello".to_vec(), "end"));
    assert_eq!(read_all(&mut server, id(5)), (vec![], "wait"));
    assert_eq!(read_all(&mut server, id(7)), (vec![], "reset"));
    assert_eq!(server.gone_away(), Some(GoAwayStatus::OK));
    assert_eq!(frames(written(&mut server)), ["PING 1", "PING 3"]);
}

#[test]
fn a_server_of_the_kubelets_library_is_understood() {
    let mut client = machine(Role::Client);
    for fin in [true, false, false, false] {
        client.open(&headers(), fin).unwrap();
    }
    client.ping();
    client.ping();
    written(&mut client);
    let bytes = golden!("spdystream-0.5.0/server.bin");
    let events = received(&mut client, bytes).unwrap();
    let pongs = events.iter().filter(|e| matches!(e, Event::Pong(1 | 3)));
    assert_eq!(pongs.count(), 2);
    for stream in [1, 3, 5, 7] {
        assert_eq!(client.reply(id(stream)).unwrap(), Some(&Headers::new()));
    }
    assert_eq!(read_all(&mut client, id(1)), (vec![], "end"));
    let echo = (b"echo: hello".to_vec(), "end");
    assert_eq!(read_all(&mut client, id(3)), echo);
    assert_eq!(read_all(&mut client, id(5)), (vec![], "reset"));
    assert_eq!(read_all(&mut client, id(7)), (vec![], "wait"));
}

/// No prefix of what was captured is an error, however it is cut.
#[test]
fn captured_bytes_may_be_cut_anywhere() {
    let captures = [
        (Role::Server, golden!("spdystream-0.5.0/client.bin")),
        (Role::Client, golden!("spdystream-0.5.0/server.bin")),
    ];
    for (role, bytes) in captures {
        let whole = read_in_parts(role, bytes, bytes.len());
        for cut in 1..bytes.len() {
            assert_eq!(
                read_in_parts(role, bytes, cut),
                whole,
                "{role:?}, parts of {cut}"
            );
        }
    }
}

/// What a session looks like after `bytes`, received in parts of `len`.
fn read_in_parts(role: Role, bytes: &[u8], len: usize) -> String {
    let mut machine = machine(role);
    if role == Role::Client {
        for fin in [true, false, false, false] {
            machine.open(&headers(), fin).unwrap();
        }
    }
    let (mut input, mut events) = (BytesMut::new(), Vec::new());
    for part in bytes.chunks(len) {
        input.extend_from_slice(part);
        machine.receive(&mut input, &mut events).unwrap();
    }
    assert!(input.is_empty());
    let reads = [1, 3, 5, 7].map(|stream| read_all(&mut machine, id(stream)));
    format!("{reads:?} {:?}", frames(written(&mut machine)))
}
