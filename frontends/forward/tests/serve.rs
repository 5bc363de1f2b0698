//! A forward between a client and backends that answer, refuse or are slow.

use std::io;

use kubevpn_conn::TunnelError;
use kubevpn_forward::serve_connection;
use kubevpn_target::{ConnectError, Frontend, Origin, Refusal, Target};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tower::service_fn;

fn to() -> Target {
    Target::parse("db.shop:5432", Origin::default()).unwrap()
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// Data that a client sends during the dial is the first that the target gets, and the target has its origin.
#[tokio::test]
async fn early_bytes_and_the_servers_first_words() {
    let (mut app, client) = pair().await;
    let (open, opened) = oneshot::channel::<()>();
    let (stream, mut server) = tokio::io::duplex(64);
    let peer = app.local_addr().unwrap();
    let backend = {
        let parts = std::sync::Mutex::new(Some((opened, stream)));
        service_fn(move |target: Target| {
            assert_eq!(target.origin.frontend, Frontend::Forward);
            assert_eq!(target.origin.peer, Some(peer));
            let (opened, stream) = parts.lock().unwrap().take().unwrap();
            async move {
                let _ = opened.await;
                Ok::<_, io::Error>(stream)
            }
        })
    };
    let to = to();
    let served = serve_connection(client, &to, backend, None);
    let conversation = async {
        app.write_all(b"early").await.unwrap();
        app.shutdown().await.unwrap();
        open.send(()).unwrap();
        server.write_all(b"banner").await.unwrap();
        let mut got = String::new();
        server.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "early");
        drop(server);
        let mut got = String::new();
        app.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "banner");
    };
    let (served, ()) = tokio::join!(served, conversation);
    let relayed = served.unwrap();
    assert_eq!((relayed.up, relayed.down), (5, 6));
}

#[tokio::test]
async fn a_client_whose_target_is_refused_is_reset() {
    let (mut app, client) = pair().await;
    let backend = service_fn(|_: Target| async {
        Err::<TcpStream, _>(ConnectError::new(Refusal::NotReady, "no ready endpoint"))
    });
    let served = serve_connection(client, &to(), backend, None).await;
    let Err(TunnelError::Refused(error)) = served else {
        panic!("{served:?}");
    };
    assert_eq!(error.to_string(), "no ready endpoint");
    let error = app.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_dial() {
    let (app, client) = pair().await;
    let (dialling, cancelled) = oneshot::channel::<()>();
    let held = std::sync::Mutex::new(Some(dialling));
    let backend = service_fn(move |_: Target| {
        let held = held.lock().unwrap().take();
        async move {
            std::future::pending::<()>().await;
            drop(held);
            Err::<TcpStream, _>(io::Error::other("never"))
        }
    });
    app.set_zero_linger().unwrap();
    drop(app);
    let served = serve_connection(client, &to(), backend, None).await;
    assert!(matches!(served, Err(TunnelError::Gone(_))), "{served:?}");
    assert!(cancelled.await.is_err());
}
