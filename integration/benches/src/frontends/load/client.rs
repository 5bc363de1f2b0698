//! A client that does as little as a client can, so that what is measured is the proxy.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::wire;

/// No single exchange may take longer: all of it is on loopback.
const LIMIT: Duration = Duration::from_secs(5);

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestMode {
    Socks5,
    /// A tunnel through an HTTP proxy.
    Connect,
    /// `GET http://…`, no tunnel.
    Forward,
}

pub(super) struct BenchClient {
    stream: TcpStream,
    get: String,
    buffer: Vec<u8>,
}

impl BenchClient {
    /// Connects and, where there is a tunnel, opens it.
    pub(super) async fn open(
        proxy: SocketAddr,
        to: SocketAddr,
        way: RequestMode,
    ) -> anyhow::Result<Self> {
        let open = async {
            let stream = TcpStream::connect(proxy).await?;
            stream.set_nodelay(true)?;
            let at = match way {
                RequestMode::Forward => format!("http://{to}"),
                RequestMode::Socks5 | RequestMode::Connect => String::new(),
            };
            let mut client = Self {
                stream,
                get: format!("GET {at}/ HTTP/1.1\r\nHost: {to}\r\n\r\n"),
                buffer: Vec::with_capacity(2048),
            };
            match way {
                RequestMode::Socks5 => {
                    let SocketAddr::V4(to) = to else {
                        anyhow::bail!("the server is on IPv4");
                    };
                    let mut address = vec![1];
                    address.extend_from_slice(&to.ip().octets());
                    address.extend_from_slice(&to.port().to_be_bytes());
                    wire::socks5(&mut client.stream, &address).await?;
                }
                RequestMode::Connect => {
                    let ask = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
                    client.stream.write_all(ask.as_bytes()).await?;
                    wire::head(&mut client.stream, &mut client.buffer).await?;
                }
                RequestMode::Forward => {}
            }
            anyhow::Ok(client)
        };
        timeout(LIMIT, open).await.context("no tunnel in time")?
    }

    /// A GET and its answer; whether the connection can take another.
    pub(super) async fn get(&mut self) -> anyhow::Result<bool> {
        let exchange = wire::exchange(&mut self.stream, self.get.as_bytes(), &mut self.buffer);
        timeout(LIMIT, exchange)
            .await
            .context("no answer in time")?
    }

    /// Another GET. `None` when the proxy had ended the connection meanwhile, which it may; as every client does,
    /// one then asks again on a new one.
    pub(super) async fn again(mut self) -> anyhow::Result<Option<(Self, bool)>> {
        use io::ErrorKind as K;
        match self.get().await {
            Ok(keeps) => Ok(Some((self, keeps))),
            Err(error) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
                Some(K::ConnectionReset | K::BrokenPipe) if self.buffer.is_empty() => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// The tunnel itself.
    pub(super) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}
