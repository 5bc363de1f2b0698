use super::*;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Limits;
use crate::mock::settle;

async fn bind(addr: &str) -> Listener {
    Listener::bind(&addr.parse().unwrap()).await.unwrap()
}

/// A listener that hands what it accepts to the test.
async fn accepting(limits: Limits) -> (String, mpsc::Receiver<Client>, Gate, Drain) {
    let listener = bind("127.0.0.1:0").await;
    let addr = listener.addr().to_string();
    let (gate, drain) = (Gate::new(limits), Drain::new());
    let (give, accepted) = mpsc::channel(16);
    tokio::spawn(listener.serve(gate.clone(), drain.clone(), move |client| {
        let give = give.clone();
        async move { give.send(client).await.unwrap() }
    }));
    (addr, accepted, gate, drain)
}

#[tokio::test]
async fn port_0_becomes_a_real_one() {
    let listener = bind("127.0.0.1:0").await;
    assert!(matches!(listener.addr(), Addr::Tcp(addr) if addr.port() != 0));
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let first = bind("127.0.0.1:0").await;
    let error = Listener::bind(first.addr()).await.unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {}", first.addr())
    );
}

#[tokio::test]
async fn a_port_is_free_again_right_after_its_listener() {
    let (addr, mut accepted, _, drain) = accepting(Limits::default()).await;
    let mut app = TcpStream::connect(&addr).await.unwrap();
    // Our side closes first, so that the kernel keeps the pair for a while.
    drop(accepted.recv().await.unwrap());
    let mut rest = Vec::new();
    app.read_to_end(&mut rest).await.unwrap();
    drop(app);
    drain.stop();
    assert!(accepted.recv().await.is_none(), "the accept loop has ended");
    bind(&addr).await;
}

#[tokio::test]
async fn accepted_connections_do_not_wait_to_fill_packets() {
    let (addr, mut accepted, _, _drain) = accepting(Limits::default()).await;
    let app = TcpStream::connect(&addr).await.unwrap();
    let client = accepted.recv().await.unwrap();
    assert_eq!(client.peer(), app.local_addr().ok());
    let ClientSocket::Tcp(stream) = &client.io else {
        panic!("a TCP listener gave {client:?}")
    };
    assert!(stream.nodelay().unwrap());
}

#[tokio::test]
async fn a_client_holds_its_place_until_it_is_dropped() {
    let limits = Limits {
        total: 1,
        per_client: None,
    };
    let (addr, mut accepted, gate, _drain) = accepting(limits).await;
    let _first_app = TcpStream::connect(&addr).await.unwrap();
    let mut second_app = TcpStream::connect(&addr).await.unwrap();
    // The task that got the client is long over: the place is the stream's.
    let first = accepted.recv().await.unwrap();
    assert_eq!(gate.open(), 1);
    assert!(accepted.try_recv().is_err());
    drop(first);
    let mut second = accepted.recv().await.unwrap();
    assert_eq!(gate.open(), 1);
    second_app.write_all(b"x").await.unwrap();
    assert_eq!(second.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn a_client_beyond_its_own_limit_is_closed() {
    let limits = Limits {
        total: 10,
        per_client: Some(1),
    };
    let (addr, mut accepted, _, _drain) = accepting(limits).await;
    let _first_app = TcpStream::connect(&addr).await.unwrap();
    let first = accepted.recv().await.unwrap();
    let mut second_app = TcpStream::connect(&addr).await.unwrap();
    assert_eq!(second_app.read(&mut [0]).await.unwrap(), 0);
    drop(first);
    let _third_app = TcpStream::connect(&addr).await.unwrap();
    accepted.recv().await.unwrap();
}

#[tokio::test]
async fn stopping_closes_the_listener_and_leaves_connections_alone() {
    let (addr, mut accepted, _, drain) = accepting(Limits::default()).await;
    let mut app = TcpStream::connect(&addr).await.unwrap();
    let mut client = accepted.recv().await.unwrap();
    drain.stop();
    assert!(accepted.recv().await.is_none());
    let error = TcpStream::connect(&addr).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    app.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
}

// === clients that have yet to show a password ===

/// Takes every client for one on another machine.
struct FromElsewhere(Listener);

impl Accept for FromElsewhere {
    async fn accept(&mut self) -> io::Result<(ClientSocket, Option<SocketAddr>)> {
        self.0.accept().await
    }

    fn is_stranger(&self, _: Option<SocketAddr>) -> bool {
        true
    }
}

#[tokio::test]
async fn a_stranger_beyond_their_part_is_closed() {
    let listener = bind("127.0.0.1:0").await;
    let addr = listener.addr().to_string();
    let (gate, drain) = (Gate::new(Limits::default()), Drain::new());
    let (give, mut accepted) = mpsc::channel(16);
    tokio::spawn({
        let (gate, mut listener) = (gate.clone(), FromElsewhere(listener));
        async move {
            let connection = |client| {
                let give = give.clone();
                async move { give.send(client).await.unwrap() }
            };
            accept_loop(&mut listener, &gate, &drain, connection).await;
        }
    });
    let mut others: Vec<_> = std::iter::from_fn(|| gate.stranger()).collect();
    let mut app = TcpStream::connect(&addr).await.unwrap();
    assert_eq!(app.read(&mut [0]).await.unwrap(), 0);
    drop(others.pop());
    let _app = TcpStream::connect(&addr).await.unwrap();
    let mut client = accepted.recv().await.unwrap();
    assert!(gate.stranger().is_none(), "the client has the last place");
    client.authenticated();
    assert!(gate.stranger().is_some());
}

#[tokio::test]
async fn only_a_listener_that_asks_has_strangers_and_none_on_its_machine() {
    let asks = bind("127.0.0.1:0").await.asks_for_password();
    let open = bind("127.0.0.1:0").await;
    let elsewhere = "192.0.2.1:5".parse().ok();
    assert!(asks.is_stranger(elsewhere) && !open.is_stranger(elsewhere));
    for near in ["127.0.0.1:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
        assert!(!asks.is_stranger(near.parse().ok()), "{near}");
    }
    assert!(!asks.is_stranger(None), "a Unix socket");
}

// === errors of accepting ===

/// Gives its script, then nothing for ever.
struct Script(VecDeque<io::Result<TcpStream>>);

impl Accept for Script {
    async fn accept(&mut self) -> io::Result<(ClientSocket, Option<SocketAddr>)> {
        match self.0.pop_front() {
            Some(next) => next.map(|stream| (ClientSocket::Tcp(stream), None)),
            None => std::future::pending().await,
        }
    }

    fn is_stranger(&self, _: Option<SocketAddr>) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn errors_do_not_end_the_loop_and_do_not_spin_it() {
    const EMFILE: i32 = 24;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let good = || {
        let app = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        app.set_nonblocking(true).unwrap();
        TcpStream::from_std(app)
    };
    let emfile = || Err(io::Error::from_raw_os_error(EMFILE));
    let aborted = || Err(io::ErrorKind::ConnectionAborted.into());
    let mut script = Script(VecDeque::from([
        aborted(),
        good(),
        emfile(),
        emfile(),
        emfile(),
        good(),
        emfile(),
        good(),
    ]));
    let served = Arc::new(AtomicUsize::new(0));
    let (times, mut seen) = mpsc::channel(8);
    let (gate, drain) = (Gate::new(Limits::default()), Drain::new());
    let accepting = tokio::spawn({
        let (served, drain) = (Arc::clone(&served), drain.clone());
        async move {
            accept_loop(&mut script, &gate, &drain, |_client| {
                served.fetch_add(1, Ordering::Relaxed);
                times.try_send(Instant::now()).unwrap();
                std::future::ready(())
            })
            .await;
        }
    });
    let started = Instant::now();
    let mut waits = Vec::new();
    for _ in 0..3 {
        waits.push(
            seen.recv()
                .await
                .unwrap()
                .duration_since(started)
                .as_millis(),
        );
    }
    // A client that was gone costs nothing; a lack of descriptors 10, 20, 40 ms; then from 10 again.
    assert_eq!(waits, [0, 70, 80]);
    drain.stop();
    accepting.await.unwrap();
    settle().await;
    assert_eq!(served.load(Ordering::Relaxed), 3);
}

// === Unix sockets ===

mod unix {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use tokio::net::UnixStream;

    fn addr(path: &Path) -> Addr {
        Addr::Unix(path.to_owned())
    }

    #[tokio::test]
    async fn a_socket_is_its_owners_alone_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socks");
        let mut listener = Listener::bind(&addr(&path)).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (mut app, accepted) =
            tokio::join!(async { UnixStream::connect(&path).await.unwrap() }, async {
                let (io, peer) = listener.accept().await.unwrap();
                Client::new(io, peer)
            });
        let mut client = accepted;
        assert_eq!(client.peer(), None);
        client.write_all(b"x").await.unwrap();
        assert_eq!(app.read_u8().await.unwrap(), b'x');
        drop(listener);
        assert!(!path.exists());
    }

    /// Two programs that start at the same time where a killed one has left its file.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_of_two_starters_on_a_stale_socket_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socks");
        for _ in 0..100 {
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            let bind = || {
                let addr = addr(&path);
                tokio::spawn(async move { Listener::bind(&addr).await })
            };
            let (one, other) = (bind(), bind());
            let (one, other) = (one.await.unwrap(), other.await.unwrap());
            let (listens, refused) = match one {
                Ok(listener) => (listener, other),
                Err(error) => (other.unwrap(), Err(error)),
            };
            assert_eq!(refused.unwrap_err().source.kind(), io::ErrorKind::AddrInUse);
            UnixStream::connect(&path).await.unwrap();
            drop(listens);
        }
    }

    #[tokio::test]
    async fn a_live_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socks");
        let _first = Listener::bind(&addr(&path)).await.unwrap();
        let error = Listener::bind(&addr(&path)).await.unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_file_without_a_listener_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socks");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = Listener::bind(&addr(&path)).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let error = Listener::bind(&addr(&path)).await.unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("precious"));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        // Nor a link to one.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        Listener::bind(&addr(&link)).await.unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn another_ones_file_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socks");
        let first = Listener::bind(&addr(&path)).await.unwrap();
        // Kept, so that the new file cannot get its inode.
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        let _second = Listener::bind(&addr(&path)).await.unwrap();
        drop(first);
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_an_error_with_the_path() {
        let error = Listener::bind(&addr(Path::new("/nonexistent/socks")))
            .await
            .unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
        assert_eq!(
            error.to_string(),
            "cannot listen on unix:/nonexistent/socks"
        );
    }
}

#[tokio::test]
async fn a_socket_that_listens_already_is_served() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    let listener = Listener::of(socket).unwrap();
    assert_eq!(listener.addr(), &Addr::Tcp(addr));
    let (give, mut accepted) = mpsc::channel(1);
    let drain = Drain::new();
    let serving = listener.serve(Gate::new(Limits::default()), drain, move |client| {
        let give = give.clone();
        async move { give.send(client).await.unwrap() }
    });
    let serving = tokio::spawn(serving);
    let app = TcpStream::connect(addr).await.unwrap();
    let client = accepted.recv().await.unwrap();
    assert_eq!(client.peer(), app.local_addr().ok());
    // This connection was not redirected, whether or not the kernel tracks connections.
    assert_eq!(client.original_destination(), None);
    serving.abort();
}
