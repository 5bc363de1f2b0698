//! Refusals that reach the client before its connection is closed.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::ClientIo;

/// How long a refused client has to read its answer, and how long it may then stay without sending anything.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long in all further data of the client is read and discarded: an upload of 30 MB is not broken off by its answer.
const LINGER: Duration = Duration::from_secs(30);

/// Writes `reply` and closes in a way that lets the client read it.
///
/// A socket that is closed with unread bytes sends a reset, which may reach the client before it has read the
/// reply. So the writing side is ended first, and further data of the client is read and discarded until it closes
/// or sends nothing for 2 seconds, for at most 30 seconds (RFC 9112 section 9.6). That needs 4 KiB, whatever the
/// amount.
///
/// Errors: the client's connection broke first. A time-out is not an error.
///
/// ```
/// use tokio::io::AsyncReadExt;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let (client, mut app) = tokio::io::duplex(64);
/// let refused = tokio::spawn(kubevpn_conn::reply_and_close(client, b"no"));
/// let mut reply = String::new();
/// app.read_to_string(&mut reply).await?;
/// assert_eq!(reply, "no");
/// drop(app);
/// refused.await?
/// # }
/// ```
pub async fn reply_and_close<C: ClientIo>(mut client: C, reply: &[u8]) -> io::Result<()> {
    let said = timeout(PATIENCE, async {
        client.write_all(reply).await?;
        client.shutdown().await
    });
    let Ok(said) = said.await else {
        return Ok(());
    };
    said?;
    let rest = async {
        let mut chunk = vec![0; 4096];
        while let Ok(read) = timeout(PATIENCE, client.read(&mut chunk)).await {
            if read? == 0 {
                break;
            }
        }
        Ok(())
    };
    timeout(LINGER, rest).await.unwrap_or(Ok(()))
}

/// [`reply_and_close`] without its result, for an answer that need not arrive.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (client, app) = tokio::io::duplex(64);
/// drop(app);
/// kubevpn_conn::farewell(client, b"no").await;
/// # }
/// ```
pub async fn farewell<C: ClientIo>(client: C, reply: &[u8]) {
    if let Err(error) = reply_and_close(client, reply).await {
        tracing::debug!(%error, "the client did not wait for its answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use crate::mock::mock;

    #[tokio::test]
    async fn a_client_that_is_still_sending_gets_the_reply_and_no_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut app = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (client, _) = listener.accept().await.unwrap();
        // Data that the proxy does not read otherwise.
        app.write_all(&[b'x'; 100_000]).await.unwrap();
        let refused = tokio::spawn(reply_and_close(client, b"no, thank you"));
        let mut reply = String::new();
        app.read_to_string(&mut reply).await.unwrap();
        assert_eq!(reply, "no, thank you");
        app.write_all(b"so be it").await.unwrap();
        app.shutdown().await.unwrap();
        refused.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stays_is_left_after_a_while() {
        for takes_it in [true, false] {
            let (client, control) = mock();
            if !takes_it {
                control.room(0);
            }
            let started = Instant::now();
            reply_and_close(client, b"no").await.unwrap();
            // The clock ticks in milliseconds.
            assert_eq!(started.elapsed().as_secs(), PATIENCE.as_secs());
            assert_eq!(control.shutdown_asked(), takes_it);
        }
    }

    /// The amount does not matter: a reset could destroy the answer.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_keeps_sending_is_left_after_a_while() {
        let (client, control) = mock();
        for _ in 0..1000 {
            control.give(vec![0; 4096]);
        }
        let sending = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(control.all_read());
                control.give("more");
            }
        };
        let started = Instant::now();
        tokio::select! {
            closed = reply_and_close(client, b"no") => closed.unwrap(),
            () = sending => {}
        }
        assert_eq!(control.written(), b"no");
        assert_eq!(started.elapsed().as_secs(), LINGER.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_gone_is_an_error() {
        let (client, control) = mock();
        control.fail_read(io::ErrorKind::ConnectionReset);
        let error = reply_and_close(client, b"no").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
