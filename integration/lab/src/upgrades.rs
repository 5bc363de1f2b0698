//! Asks the API server for a `pods/portforward` upgrade in every way a client might. What it answers is
//! what the simulation must answer (`cluster/README.md` holds a run).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::Lab;

/// An answer is small; a session sends nothing by itself but what is opened with it.
const ANSWER: u64 = 64 << 10;

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNEL: &str = "v4.channel.k8s.io";

enum UpgradeOffer {
    /// `Upgrade: SPDY/3.1`, offering this stream protocol.
    Spdy(Option<&'static str>),
    /// `Upgrade: websocket`, offering these subprotocols.
    WebSocket(&'static [&'static str]),
    Nothing,
}

/// Method, whether the pod exists, query, what is asked.
type UpgradeQuestion = (&'static str, bool, &'static str, UpgradeOffer);

const QUESTIONS: [UpgradeQuestion; 20] = [
    (
        "POST",
        true,
        "",
        UpgradeOffer::Spdy(Some("portforward.k8s.io")),
    ),
    (
        "GET",
        true,
        "",
        UpgradeOffer::Spdy(Some("portforward.k8s.io")),
    ),
    ("POST", true, "", UpgradeOffer::Spdy(None)),
    ("POST", true, "", UpgradeOffer::Spdy(Some("nope"))),
    ("GET", true, "", UpgradeOffer::WebSocket(&[TUNNEL])),
    (
        "GET",
        true,
        "?ports=9080",
        UpgradeOffer::WebSocket(&[TUNNEL]),
    ),
    ("POST", true, "", UpgradeOffer::WebSocket(&[TUNNEL])),
    (
        "GET",
        true,
        "?ports=9080",
        UpgradeOffer::WebSocket(&[CHANNEL]),
    ),
    (
        "GET",
        true,
        "?ports=9080&ports=7000",
        UpgradeOffer::WebSocket(&[CHANNEL]),
    ),
    (
        "GET",
        true,
        "?ports=9080,7000",
        UpgradeOffer::WebSocket(&[CHANNEL]),
    ),
    (
        "GET",
        true,
        "?ports=9999",
        UpgradeOffer::WebSocket(&[CHANNEL]),
    ), // nothing listens there
    ("GET", true, "", UpgradeOffer::WebSocket(&[CHANNEL])),
    (
        "GET",
        true,
        "?ports=9080",
        UpgradeOffer::WebSocket(&["portforward.k8s.io"]),
    ),
    (
        "GET",
        true,
        "?ports=9080",
        UpgradeOffer::WebSocket(&["v4.base64.channel.k8s.io"]),
    ),
    (
        "GET",
        true,
        "?ports=9080",
        UpgradeOffer::WebSocket(&["v5.channel.k8s.io"]),
    ),
    (
        "GET",
        true,
        "?ports=9080",
        UpgradeOffer::WebSocket(&[TUNNEL, CHANNEL]),
    ),
    (
        "GET",
        true,
        "?ports=9080",
        UpgradeOffer::WebSocket(&[CHANNEL, TUNNEL]),
    ),
    ("GET", true, "?ports=9080", UpgradeOffer::WebSocket(&[])),
    ("POST", true, "", UpgradeOffer::Nothing),
    (
        "POST",
        false,
        "",
        UpgradeOffer::Spdy(Some("portforward.k8s.io")),
    ),
];

/// What came back for one question.
#[derive(Debug)]
pub struct UpgradeAnswer {
    /// The question, in one line.
    pub question: String,
    /// `HTTP/1.1 101 Switching Protocols`.
    pub status: String,
    /// Those that matter, as they were sent.
    pub headers: Vec<String>,
    /// An error's body; or the first frames, if they came within a second.
    pub rest: Vec<u8>,
}

impl Lab {
    /// Asks all of it for a pod of the namespace `default`, or the first of `productpage`.
    ///
    /// # Errors
    /// An API server that cannot be reached at all; what it refuses is an answer.
    pub async fn upgrades(&self, pod: Option<&str>) -> Result<Vec<UpgradeAnswer>> {
        let pod = match pod {
            Some(pod) => pod.to_owned(),
            None => self.productpage().await?,
        };
        try_join_all(QUESTIONS.iter().map(|question| self.put(question, &pod))).await
    }

    /// Whether the node answers `SPDY/3.1+portforward.k8s.io` over WebSocket: Kubernetes 1.30 does not.
    ///
    /// # Errors
    /// An API server that cannot be reached at all.
    pub async fn carries_spdy_in_websocket(&self) -> Result<bool> {
        let question = ("GET", true, "", UpgradeOffer::WebSocket(&[TUNNEL]));
        let answer = self.put(&question, &self.productpage().await?).await?;
        Ok(answer.status.contains(" 101 ") && answer.headers.iter().any(|h| h.ends_with(TUNNEL)))
    }

    /// A Pod to ask about.
    async fn productpage(&self) -> Result<String> {
        self.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=productpage",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])
        .await
    }

    async fn put(&self, question: &UpgradeQuestion, pod: &str) -> Result<UpgradeAnswer> {
        let (method, exists, query, ask) = question;
        let pod = if *exists { pod } else { "nosuch" };
        let path = format!("/api/v1/namespaces/default/pods/{pod}/portforward{query}");
        let (words, headers) = headers(ask);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n{headers}\r\n"
        );
        let there = if *exists { "" } else { ", no such pod" };
        let question = format!("{method} {query} {words}{there}").replace("  ", " ");
        self.ask(&self.tls()?, question, &head).await
    }

    /// With the administrator's certificate, HTTP/1.1 only: HTTP/2 has no upgrade.
    pub(crate) fn tls(&self) -> Result<TlsConnector> {
        let pki = self.settings.path("pki");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(format!("{pki}/ca.crt"))?)?;
        let certificate = CertificateDer::from_pem_file(format!("{pki}/admin.crt"))?;
        let key = PrivateKeyDer::from_pem_file(format!("{pki}/admin.key"))?;
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }

    async fn ask(&self, tls: &TlsConnector, question: String, head: &str) -> Result<UpgradeAnswer> {
        let tcp = TcpStream::connect(("127.0.0.1", self.settings.api_port())).await?;
        let mut stream = tls.connect(ServerName::try_from("127.0.0.1")?, tcp).await?;
        stream.write_all(head.as_bytes()).await?;
        let mut got = Vec::new();
        let mut bounded = stream.take(ANSWER);
        let header = async {
            while !got.windows(4).any(|end| end == b"\r\n\r\n")
                && bounded.read_buf(&mut got).await? > 0
            {}
            anyhow::Ok(())
        };
        timeout(Duration::from_secs(10), header)
            .await
            .with_context(|| format!("no answer to {question}"))??;
        // Whatever comes by itself: a session that was opened stays open and says no more.
        let more = async { while matches!(bounded.read_buf(&mut got).await, Ok(n) if n > 0) {} };
        let _ = timeout(Duration::from_secs(1), more).await;
        let end = got
            .windows(4)
            .position(|end| end == b"\r\n\r\n")
            .unwrap_or(got.len());
        let head = String::from_utf8_lossy(&got[..end]).into_owned();
        let mut lines = head.lines();
        let matters = [
            "upgrade",
            "connection",
            "sec-websocket-protocol",
            "x-stream-protocol-version",
            "content-type",
        ];
        Ok(UpgradeAnswer {
            question,
            status: lines.next().unwrap_or_default().to_owned(),
            headers: lines
                .filter(|line| {
                    line.split(':')
                        .next()
                        .is_some_and(|name| matters.contains(&name.to_ascii_lowercase().as_str()))
                })
                .map(str::to_owned)
                .collect(),
            rest: got.get(end + 4..).unwrap_or_default().to_vec(),
        })
    }
}

/// In words, and as header lines.
fn headers(ask: &UpgradeOffer) -> (String, String) {
    match ask {
        UpgradeOffer::Spdy(protocol) => {
            let mut text = String::from("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n");
            if let Some(protocol) = protocol {
                let _ = write!(text, "X-Stream-Protocol-Version: {protocol}\r\n");
            }
            (
                format!("SPDY/3.1 ({})", protocol.unwrap_or("no stream protocol")),
                text,
            )
        }
        UpgradeOffer::WebSocket(protocols) => {
            // The key is RFC 6455's example: nothing here checks the accept that comes back.
            let mut text = String::from(
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            );
            if protocols.is_empty() {
                return ("WebSocket (no subprotocol)".to_owned(), text);
            }
            let list = protocols.join(", ");
            let _ = write!(text, "Sec-WebSocket-Protocol: {list}\r\n");
            (format!("WebSocket ({list})"), text)
        }
        UpgradeOffer::Nothing => ("no upgrade".to_owned(), String::new()),
    }
}
