//! A gateway of the lab's own, for behaviour that no product has by name. Plain HTTP in front, the administrator's
//! certificate behind; each connection carries one request, or one upgrade.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// A head is small; a request with a larger one is dropped.
const HEAD: usize = 64 << 10;

/// Behaviour of a gateway.
#[derive(Debug, Clone, Copy)]
pub(super) enum Does {
    /// Passes an upgrade on as a plain request.
    Strips,
    /// Passes the 101 back, and nothing after it in either direction.
    Swallows,
    /// The same for SPDY alone.
    SwallowsSpdy,
    /// Answers an upgrade with this status.
    Refuses(&'static str),
    /// Answers 403 to SPDY, and passes WebSocket on.
    RefusesSpdy,
    /// Cuts a connection on which nothing passed for this long.
    CutsSilence(Duration),
    /// Cuts a connection when it is this old.
    CutsAfter(Duration),
    /// Writes every byte by itself.
    Dribbles,
    /// Delays the first byte of every answer.
    Holds(Duration),
}

/// Ends with its connections when dropped.
#[derive(Debug)]
pub(super) struct Gateway(AbortHandle);

impl Drop for Gateway {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Gateway {
    pub(super) fn start(
        listener: TcpListener,
        api: SocketAddr,
        tls: TlsConnector,
        does: Does,
    ) -> Self {
        let serve = async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let tls = tls.clone();
                connections.spawn(async move {
                    // A broken connection is part of the experiment.
                    let _ = pass(client, api, &tls, does).await;
                });
                while connections.try_join_next().is_some() {}
            }
        };
        Self(tokio::spawn(serve).abort_handle())
    }
}

async fn pass(
    mut client: TcpStream,
    api: SocketAddr,
    tls: &TlsConnector,
    does: Does,
) -> Result<()> {
    client.set_nodelay(true)?;
    let (head, body) = read_head(&mut client).await?;
    let mut upgrade = header(&head, "upgrade").map(str::to_owned);
    if let Some(to) = &upgrade {
        let refusal = match does {
            Does::Refuses(status) => Some(status),
            Does::RefusesSpdy if to.starts_with("SPDY") => Some("403 Forbidden"),
            _ => None,
        };
        if let Some(status) = refusal {
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{status}",
                status.len()
            );
            client.write_all(answer.as_bytes()).await?;
            return Ok(client.shutdown().await?);
        }
        if matches!(does, Does::Strips) {
            upgrade = None;
        }
    }
    let head = match &upgrade {
        Some(_) => head,
        None => one_request(&head),
    };
    let server = TcpStream::connect(api).await?;
    server.set_nodelay(true)?;
    let mut server = tls
        .connect(ServerName::try_from("127.0.0.1")?, server)
        .await?;
    server.write_all(head.as_bytes()).await?;
    server.write_all(&body).await?;
    let swallowed = match (does, &upgrade) {
        (Does::Swallows, Some(_)) => true,
        (Does::SwallowsSpdy, Some(to)) => to.starts_with("SPDY"),
        _ => false,
    };
    if swallowed {
        let (head, _) = read_head(&mut server).await?;
        client.write_all(head.as_bytes()).await?;
        let (mut nowhere, mut also) = (tokio::io::sink(), tokio::io::sink());
        let (mut from_client, _keep) = client.split();
        let _ = tokio::join!(
            tokio::io::copy(&mut from_client, &mut nowhere),
            tokio::io::copy(&mut server, &mut also)
        );
        return Ok(());
    }
    if let Does::Holds(long) = does {
        sleep(long).await;
    }
    let last = Mutex::new(Instant::now());
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = tokio::io::split(server);
    let both = async {
        tokio::join!(
            copy(from_client, to_server, &last, does),
            copy(from_server, to_client, &last, does)
        )
    };
    tokio::select! {
        _ = both => {}
        () = cut(&last, does) => {}
    }
    Ok(())
}

/// Returns when the connection has to go.
async fn cut(last: &Mutex<Instant>, does: Does) {
    match does {
        Does::CutsAfter(age) => sleep(age).await,
        Does::CutsSilence(limit) => loop {
            let until = *last.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        },
        _ => std::future::pending().await,
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    last: &Mutex<Instant>,
    does: Does,
) -> Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(to.shutdown().await?);
        }
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let at_once = match does {
            Does::Dribbles => 1,
            _ => n,
        };
        for piece in buffer[..n].chunks(at_once) {
            to.write_all(piece).await?;
            to.flush().await?;
        }
    }
}

/// Up to its empty line, and the bytes behind it that came along.
async fn read_head(from: &mut (impl AsyncRead + Unpin)) -> Result<(String, Vec<u8>)> {
    let mut got = Vec::new();
    loop {
        if let Some(end) = got.windows(4).position(|end| end == b"\r\n\r\n") {
            let rest = got.split_off(end + 4);
            return Ok((String::from_utf8(got)?, rest));
        }
        ensure!(got.len() < HEAD, "a head without an end");
        ensure!(from.read_buf(&mut got).await? > 0, "no head");
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The same request, on a connection that ends with its answer, and no upgrade.
fn one_request(head: &str) -> String {
    let kept = head.trim_end().lines().filter(|line| {
        let key = line.split(':').next().unwrap_or_default();
        !["connection", "upgrade"]
            .iter()
            .any(|name| key.eq_ignore_ascii_case(name))
    });
    let mut kept: Vec<&str> = kept.collect();
    kept.extend(["Connection: close", "", ""]);
    kept.join("\r\n")
}

/// Of the API server.
pub(super) fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("no address: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_its_upgrade() {
        let head =
            "POST /x HTTP/1.1\r\nHost: a\r\nUPGRADE: SPDY/3.1\r\nConnection: Upgrade\r\n\r\n";
        assert_eq!(header(head, "upgrade"), Some("SPDY/3.1"));
        assert_eq!(
            one_request(head),
            "POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        );
    }
}
