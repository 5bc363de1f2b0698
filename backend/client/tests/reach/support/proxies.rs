//! Proxies that connect every client to one server, and record the requested address.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
    copy_bidirectional,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::Ca;

/// What a proxy was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// As it was written: `name:port`, or `ip:port` where an address was sent.
    pub(crate) target: String,
    /// SOCKS: whether a name was sent, and not an address. HTTP knows no difference.
    pub(crate) by_name: bool,
    /// `user:password`, or the header's value.
    pub(crate) login: Option<String>,
}

type Log = Arc<Mutex<Vec<Asked>>>;

pub(crate) struct HttpProxy {
    pub(crate) address: SocketAddr,
    log: Log,
}

impl HttpProxy {
    /// Connects clients to `server`; with `login`, only those that send this header value.
    pub(crate) async fn start(server: SocketAddr, login: Option<&str>) -> Self {
        Self::run(server, login, None).await
    }

    /// The same over TLS, with a certificate of this CA.
    pub(crate) async fn over_tls(server: SocketAddr, login: Option<&str>, ca: &Ca) -> Self {
        let identity = ca.issue(&["127.0.0.1"], 4000);
        let tls = ca.server(&identity, &[], false);
        Self::run(server, login, Some(Arc::new(tls).into())).await
    }

    async fn run(server: SocketAddr, login: Option<&str>, tls: Option<TlsAcceptor>) -> Self {
        let login = login.map(str::to_owned);
        let log = Log::default();
        let logging = log.clone();
        let address = accept(move |tcp| {
            let (login, log, tls) = (login.clone(), logging.clone(), tls.clone());
            async move {
                match tls {
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(tcp).await {
                            tunnel(stream, server, login, log).await;
                        }
                    }
                    None => tunnel(tcp, server, login, log).await,
                }
            }
        })
        .await;
        Self { address, log }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

async fn tunnel<T>(io: T, server: SocketAddr, login: Option<String>, log: Log)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut io = BufReader::new(io);
    let (mut target, mut given) = (String::new(), None);
    loop {
        let mut line = String::new();
        if io.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("CONNECT ") {
            target = rest.strip_suffix(" HTTP/1.1").unwrap().to_owned();
        } else if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("proxy-authorization")
        {
            given = Some(value.to_owned());
        }
    }
    let welcome = login.is_none() || login == given;
    log.lock().unwrap().push(Asked {
        by_name: false,
        login: given,
        target: target.clone(),
    });
    let reply: &[u8] = match (welcome, target.starts_with("forbidden.")) {
        (false, _) => b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        (_, true) => b"HTTP/1.1 403 Forbidden\r\n\r\n",
        _ => b"HTTP/1.1 200 Connection established\r\n\r\n",
    };
    io.write_all(reply).await.unwrap();
    if reply.starts_with(b"HTTP/1.1 200") {
        let mut server = TcpStream::connect(server).await.unwrap();
        let _ = copy_bidirectional(&mut io, &mut server).await;
    }
}

pub(crate) struct SocksProxy {
    pub(crate) address: SocketAddr,
    log: Log,
}

impl SocksProxy {
    /// Connects clients to `server`; with `login`, only those that send this `user:password`.
    pub(crate) async fn start(server: SocketAddr, login: Option<&str>) -> Self {
        let login = login.map(str::to_owned);
        let log = Log::default();
        let logging = log.clone();
        let address = accept(move |tcp| {
            let (login, log) = (login.clone(), logging.clone());
            async move {
                // A client that gives up closes in the middle.
                let _ = socks(tcp, server, login, log).await;
            }
        })
        .await;
        Self { address, log }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

/// RFC 1928 and RFC 1929, the server's side.
async fn socks(
    mut io: TcpStream,
    server: SocketAddr,
    login: Option<String>,
    log: Log,
) -> std::io::Result<()> {
    assert_eq!(io.read_u8().await?, 5);
    let mut methods = vec![0; io.read_u8().await?.into()];
    io.read_exact(&mut methods).await?;
    let method = if login.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        return io.write_all(&[5, 0xff]).await;
    }
    io.write_all(&[5, method]).await?;
    let mut given = None;
    if login.is_some() {
        assert_eq!(io.read_u8().await?, 1);
        let user = text(&mut io).await?;
        let password = text(&mut io).await?;
        given = Some(format!("{user}:{password}"));
        let welcome = given == login;
        io.write_all(&[1, u8::from(!welcome)]).await?;
        if !welcome {
            return Ok(());
        }
    }
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    assert_eq!(head[..3], [5, 1, 0]);
    let host = match head[3] {
        1 => Ipv4Addr::from_bits(io.read_u32().await?).to_string(),
        3 => text(&mut io).await?,
        4 => format!("[{}]", Ipv6Addr::from_bits(io.read_u128().await?)),
        other => panic!("address type {other}"),
    };
    let port = io.read_u16().await?;
    let refused = host.starts_with("forbidden.");
    log.lock().unwrap().push(Asked {
        target: format!("{host}:{port}"),
        by_name: head[3] == 3,
        login: given,
    });
    let reply = if refused { 2 } else { 0 };
    io.write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    if refused {
        return Ok(());
    }
    let mut server = TcpStream::connect(server).await?;
    copy_bidirectional(&mut io, &mut server).await.map(drop)
}

async fn text(io: &mut TcpStream) -> std::io::Result<String> {
    let mut bytes = vec![0; io.read_u8().await?.into()];
    io.read_exact(&mut bytes).await?;
    Ok(String::from_utf8(bytes).unwrap())
}

/// A line that can be cut without an error on either side.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    /// How often it was cut.
    cuts: watch::Sender<usize>,
}

impl Relay {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let (cuts, hears) = watch::channel(0);
        let address = accept(move |mut tcp| {
            let mut hears = hears.clone();
            let cut = *hears.borrow_and_update();
            async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut tcp, &mut server) => {}
                    _ = async { hears.wait_for(|cuts| *cuts != cut).await.map(drop) } => {}
                }
                // After a cut both sockets stay open; otherwise the transfer is complete.
                std::future::pending::<()>().await;
            }
        })
        .await;
        Self { address, cuts }
    }

    /// Cuts the existing connections; later ones work.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn accept<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(tcp));
        }
    });
    address
}
