//! Redirected clients, and backends that answer, refuse or are slow.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use kubevpn_conn::ClientIo;
use kubevpn_target::{ConnectError, Frontend, Name, Refusal, Target};
use kubevpn_transparent::{NameTable, ServeError, Settings, serve_connection};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
    DuplexStream, ReadBuf,
};
use tokio::net::TcpStream;
use tower::service_fn;

/// A client as redirected by the kernel.
struct Redirected {
    io: DuplexStream,
    to: Option<SocketAddr>,
    reset: Arc<Mutex<bool>>,
}

const PEER: &str = "198.18.0.1:40000";

fn redirected(to: &str) -> (DuplexStream, Redirected, Arc<Mutex<bool>>) {
    let (app, io) = tokio::io::duplex(64);
    let reset = Arc::new(Mutex::new(false));
    let client = Redirected {
        io,
        to: to.parse().ok(),
        reset: reset.clone(),
    };
    (app, client, reset)
}

impl ClientIo for Redirected {
    fn peer(&self) -> Option<SocketAddr> {
        PEER.parse().ok()
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        self.to
    }

    fn reset_on_drop(&mut self) {
        *self.reset.lock().unwrap() = true;
    }

    fn close_on_drop(&mut self) {
        *self.reset.lock().unwrap() = false;
    }
}

impl AsyncRead for Redirected {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Redirected {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Serves a client with this original destination; returns the dialled target, and the answer to `early`.
async fn dialled(to: &str, settings: Settings) -> (String, String) {
    let (mut app, client, _) = redirected(to);
    let asked = Arc::new(Mutex::new(String::new()));
    let backend = {
        let asked = asked.clone();
        service_fn(move |target: Target| {
            assert_eq!(target.origin.frontend, Frontend::Transparent);
            assert_eq!(target.origin.peer, PEER.parse().ok());
            *asked.lock().unwrap() = target.to_string();
            async move {
                let (stream, mut server) = tokio::io::duplex(64);
                tokio::spawn(async move {
                    server.write_all(b"banner ").await.unwrap();
                    let mut got = String::new();
                    server.read_to_string(&mut got).await.unwrap();
                    server.write_all(got.as_bytes()).await.unwrap();
                });
                Ok::<_, io::Error>(stream)
            }
        })
    };
    let conversation = async {
        app.write_all(b"early").await.unwrap();
        app.shutdown().await.unwrap();
        let mut got = String::new();
        app.read_to_string(&mut got).await.unwrap();
        got
    };
    let served = serve_connection(client, backend, &settings);
    let (served, got) = tokio::join!(served, conversation);
    assert_eq!(served.unwrap().up, 5);
    let asked = asked.lock().unwrap().clone();
    (asked, got)
}

#[tokio::test]
async fn leads_where_it_was_meant_to_go() {
    for to in ["10.96.0.1:80", "[fd00::5]:443", "127.0.0.1:80"] {
        let (asked, got) = dialled(to, Settings::default()).await;
        assert_eq!((asked.as_str(), got.as_str()), (to, "banner early"));
    }
    let (asked, _) = dialled("[::ffff:10.0.0.1]:80", Settings::default()).await;
    assert_eq!(asked, "10.0.0.1:80");
}

#[tokio::test]
async fn an_address_that_was_given_to_a_name_is_the_name() {
    let names = NameTable::default();
    let name = Name::parse("ext.shop.svc.cluster.local.").unwrap();
    let addresses = names.assign(&name).unwrap();
    let settings = Settings {
        names: Some(names),
        ..Settings::default()
    };
    for to in [
        format!("{}:443", addresses.v4),
        format!("[{}]:443", addresses.v6),
    ] {
        let (asked, _) = dialled(&to, settings.clone()).await;
        assert_eq!(asked, "ext.shop.svc.cluster.local.:443");
    }
    // Without a table of names it is an ordinary address.
    let to = format!("{}:443", addresses.v4);
    assert_eq!(dialled(&to, Settings::default()).await.0, to);
}

/// The client is reset, because an orderly end would look like a server without an answer.
async fn refused(to: &str, settings: Settings, answer: Option<Refusal>) -> ServeError {
    let (app, client, reset) = redirected(to);
    let backend = service_fn(move |_: Target| async move {
        let refusal = answer.expect("nothing is dialled");
        Err::<DuplexStream, _>(ConnectError::new(refusal, "no ready endpoint"))
    });
    let served = serve_connection(client, backend, &settings).await;
    assert!(*reset.lock().unwrap(), "{to}: not reset");
    drop(app);
    served.unwrap_err()
}

#[tokio::test]
async fn a_refused_client_is_reset() {
    let error = refused("10.96.0.1:80", Settings::default(), Some(Refusal::NotReady)).await;
    assert_eq!(error.to_string(), "no ready endpoint");
}

#[tokio::test]
async fn a_connection_to_the_listener_itself_leads_nowhere() {
    let error = refused("", Settings::default(), None).await;
    assert!(matches!(error, ServeError::NotRedirected), "{error}");
}

#[tokio::test]
async fn an_address_of_no_name_is_refused() {
    let settings = Settings {
        names: Some(NameTable::default()),
        ..Settings::default()
    };
    let ServeError::Refused(error) = refused("198.18.1.7:80", settings, None).await else {
        panic!("not refused");
    };
    assert_eq!(error.refusal(), Refusal::NameNotFound);
    assert!(error.to_string().contains("198.18.1.7"), "{error}");
}

/// The example is a program of its own; what is redirected to it needs a network namespace, and is tested with one in
/// `integration/scenarios/src/scenarios/isolated.rs`.
#[tokio::test]
async fn example_resets_a_client_that_nobody_redirected() {
    let mut program = std::env::current_exe().unwrap();
    program.pop();
    if program.ends_with("deps") {
        program.pop();
    }
    let program = program.join("examples/transparent-direct");
    let mut process = tokio::process::Command::new(&program)
        .arg("127.0.0.1:0")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "cannot run {}: {error}; `cargo test -p kubevpn-transparent` builds it, `--test serve` alone does not",
                program.display()
            )
        });
    let mut addr = String::new();
    let mut stdout = BufReader::new(process.stdout.take().unwrap());
    stdout.read_line(&mut addr).await.unwrap();
    let mut client = TcpStream::connect(addr.trim_end()).await.unwrap();
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
