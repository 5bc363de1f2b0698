//! Programs that use the proxy: curl, and SOCKS5 and HTTP clients that do what curl does not.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::proxy::PATIENCE;

/// One run of curl through a SOCKS5 proxy.
pub struct Curl {
    /// curl's exit code: 0, or 97 for a refusal of the proxy.
    pub code: i32,
    /// The answer's body.
    pub body: String,
    /// What curl said went wrong.
    pub message: String,
}

impl Curl {
    /// `curl --proxy socks5h://PROXY URL`
    pub async fn get(proxy: SocketAddr, url: &str) -> anyhow::Result<Self> {
        let proxy = format!("socks5h://{proxy}");
        Self::run(&["--proxy", &proxy, url]).await
    }

    /// curl with these words; silent but for errors, and without this machine's proxy settings.
    pub async fn run(args: &[&str]) -> anyhow::Result<Self> {
        Self::run_in(&[], args).await
    }

    /// The same with these variables in its environment.
    pub async fn run_in(environment: &[(&str, &str)], args: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("curl");
        command
            .args([
                "--disable",
                "--silent",
                "--show-error",
                "--fail-with-body",
                "--max-time",
                "60",
            ])
            .args(args);
        for variable in [
            "http_proxy",
            "https_proxy",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
            "no_proxy",
            "NO_PROXY",
        ] {
            command.env_remove(variable);
        }
        command.envs(environment.iter().copied());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = command
            .output()
            .await
            .context("starting curl: is it installed?")?;
        Ok(Self {
            code: output.status.code().unwrap_or(-1),
            body: String::from_utf8_lossy(&output.stdout).into_owned(),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// The JSON answer of one of the sample Services.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        anyhow::ensure!(
            self.code == 0,
            "curl ended with {}: {}",
            self.code,
            self.message
        );
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }

    /// Expects that the proxy refused with this SOCKS5 reply code.
    pub fn refused_with(&self, reply: u8) -> anyhow::Result<()> {
        let wanted = format!("({reply})");
        anyhow::ensure!(
            self.code == 97 && self.message.contains(&wanted),
            "expected SOCKS5 reply {reply}, but curl ended with {}: {}",
            self.code,
            self.message
        );
        Ok(())
    }
}

/// A SOCKS5 client for what curl cannot do.
pub struct Socks;

impl Socks {
    /// The Pod that answers on a port whose program speaks first (`GREET_PORTS`), by its host name.
    pub async fn who(proxy: SocketAddr, host: &str, port: u16) -> anyhow::Result<String> {
        let mut stream = Self::connect(proxy, host, port).await?;
        let mut greeting = Vec::new();
        let greeted = async {
            while !greeting.ends_with(b"\r\n") {
                greeting.push(stream.read_u8().await?);
                anyhow::ensure!(greeting.len() < 200, "no greeting: {greeting:?}");
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, greeted)
            .await
            .context("no greeting")??;
        let text = String::from_utf8(greeting)?;
        Ok(text.split(' ').nth(1).unwrap_or_default().to_owned())
    }

    /// Greeting, CONNECT by name, reply: an open connection.
    pub async fn connect(proxy: SocketAddr, host: &str, port: u16) -> anyhow::Result<TcpStream> {
        let mut stream = Self::send_early(proxy, host, port, b"").await?;
        Self::read_replies(&mut stream).await?;
        Ok(stream)
    }

    /// Sends greeting, request and `early` in one write, without waiting for anything.
    pub async fn send_early(
        proxy: SocketAddr,
        host: &str,
        port: u16,
        early: &[u8],
    ) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(proxy).await?;
        let mut bytes = vec![5, 1, 0, 5, 1, 0, 3, u8::try_from(host.len())?];
        bytes.extend_from_slice(host.as_bytes());
        bytes.extend_from_slice(&port.to_be_bytes());
        bytes.extend_from_slice(early);
        stream.write_all(&bytes).await?;
        Ok(stream)
    }

    /// Reads both answers; anything but success is an error with the reply code.
    pub async fn read_replies(stream: &mut TcpStream) -> anyhow::Result<()> {
        let mut answer = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer))
            .await
            .context("no SOCKS reply")??;
        if answer[..2] != [5, 0] || answer[2] != 5 {
            bail!("not an answer of SOCKS5: {answer:?}");
        }
        if answer[3] != 0 {
            bail!("SOCKS5 reply {}", answer[3]);
        }
        Ok(())
    }

    /// Reads to the end; what came, and whether it ended well is in the error.
    pub async fn read_all(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
        let mut all = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all))
            .await
            .context("no end of stream")??;
        Ok(all)
    }
}

/// A client of the HTTP proxy for what curl cannot do.
pub struct TunnelClient;

impl TunnelClient {
    /// CONNECT, and the answer: an open connection.
    pub async fn connect(proxy: SocketAddr, host: &str, port: u16) -> anyhow::Result<TcpStream> {
        let mut stream = Self::send_early(proxy, host, port, b"").await?;
        read_head(&mut stream, "200").await?;
        Ok(stream)
    }

    /// Sends the request and `early` in one write, without waiting for anything.
    pub async fn send_early(
        proxy: SocketAddr,
        host: &str,
        port: u16,
        early: &[u8],
    ) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(proxy).await?;
        let head = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), early].concat()).await?;
        Ok(stream)
    }
}

/// Reads the head of an HTTP answer, and nothing behind it. Another status is an error.
pub(crate) async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    status: &str,
) -> anyhow::Result<String> {
    const LARGEST: usize = 4096;
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
            anyhow::ensure!(head.len() < LARGEST, "no end of the head");
        }
        anyhow::Ok(())
    };
    let read = tokio::time::timeout(PATIENCE, read).await;
    let head = String::from_utf8_lossy(&head).into_owned();
    read.with_context(|| format!("no whole head, only {head:?}"))?
        .with_context(|| format!("after {head:?}"))?;
    anyhow::ensure!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
    Ok(head)
}

/// The ways through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyRoute {
    /// SOCKS5.
    Socks,
    /// HTTP's CONNECT.
    Tunnel,
    /// HTTP requests that name the whole address.
    Forward,
}

impl ProxyRoute {
    pub const ALL: [Self; 3] = [Self::Socks, Self::Tunnel, Self::Forward];

    /// A connection on which an HTTP/1 client sends its requests to the target, and what it puts before their paths.
    pub async fn open(
        self,
        socks: SocketAddr,
        http: SocketAddr,
        host: &str,
        port: u16,
    ) -> anyhow::Result<(TcpStream, String)> {
        Ok(match self {
            Self::Socks => (Socks::connect(socks, host, port).await?, String::new()),
            Self::Tunnel => (
                TunnelClient::connect(http, host, port).await?,
                String::new(),
            ),
            Self::Forward => (
                TcpStream::connect(http).await?,
                format!("http://{host}:{port}"),
            ),
        })
    }
}
