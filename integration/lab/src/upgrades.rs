//! Asks the API server for a `pods/portforward` upgrade in every way a client might: as the administrator, and as accounts
//! with one right or none. The simulation must give the same answers (`cluster/README.md` holds a run).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use self::UpgradeOffer::{Nothing, Spdy, WebSocket};
use crate::Lab;
use crate::command::output_of_input;
use crate::interrupt::undone;
use crate::process::until;
use crate::section::table_cell;
use crate::versions::Versions;

/// An answer is small; a session sends nothing by itself but what is opened with it.
const ANSWER: u64 = 64 << 10;

/// Limit of the wait for the head of an answer.
const UNANSWERED: Duration = Duration::from_secs(10);

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNEL: &str = "v4.channel.k8s.io";

/// Verbs on `pods/portforward`, each granted to an account of its own.
const GRANTED: [&str; 2] = ["get", "create"];

#[derive(Clone, Copy)]
enum UpgradeOffer {
    /// `Upgrade: SPDY/3.1`, offering this stream protocol.
    Spdy(Option<&'static str>),
    /// `Upgrade: websocket`, offering these subprotocols.
    WebSocket(&'static [&'static str]),
    Nothing,
}

/// One request for an upgrade.
#[derive(Clone, Copy)]
struct UpgradeQuestion {
    method: &'static str,
    query: &'static str,
    offer: UpgradeOffer,
    pod_exists: bool,
    /// Right of the account that asks: one of [`GRANTED`], or `none`. `None` is the administrator.
    rights: Option<&'static str>,
}

const SPDY: UpgradeOffer = Spdy(Some("portforward.k8s.io"));

const QUESTIONS: [UpgradeQuestion; 22] = [
    post(SPDY),
    get("", SPDY),
    post(Spdy(None)),
    post(Spdy(Some("nope"))),
    get("", WebSocket(&[TUNNEL])),
    get("?ports=9080", WebSocket(&[TUNNEL])),
    post(WebSocket(&[TUNNEL])),
    get("?ports=9080", WebSocket(&[CHANNEL])),
    get("?ports=9080&ports=7000", WebSocket(&[CHANNEL])),
    get("?ports=9080,7000", WebSocket(&[CHANNEL])),
    get("?ports=9999", WebSocket(&[CHANNEL])), // nothing listens there
    get("", WebSocket(&[CHANNEL])),
    get("?ports=9080", WebSocket(&["portforward.k8s.io"])),
    get("?ports=9080", WebSocket(&["v4.base64.channel.k8s.io"])),
    get("?ports=9080", WebSocket(&["v5.channel.k8s.io"])),
    get("?ports=9080", WebSocket(&[TUNNEL, CHANNEL])),
    get("?ports=9080", WebSocket(&[CHANNEL, TUNNEL])),
    get("?ports=9080", WebSocket(&[])),
    post(Nothing),
    post(SPDY).of_no_pod(),
    get("", WebSocket(&[TUNNEL])).of_no_pod(),
    get("?ports=9080", WebSocket(&[CHANNEL])).of_no_pod(),
];

/// Asked by every account.
const BY_RIGHTS: [UpgradeQuestion; 4] = [
    post(SPDY),
    get("", SPDY),
    get("", WebSocket(&[TUNNEL])),
    get("?ports=9080", WebSocket(&[CHANNEL])),
];

const fn post(offer: UpgradeOffer) -> UpgradeQuestion {
    UpgradeQuestion {
        method: "POST",
        query: "",
        offer,
        pod_exists: true,
        rights: None,
    }
}

const fn get(query: &'static str, offer: UpgradeOffer) -> UpgradeQuestion {
    UpgradeQuestion {
        method: "GET",
        query,
        ..post(offer)
    }
}

/// Questions of the administrator, then those of each account.
fn questions() -> Vec<UpgradeQuestion> {
    let by_account = ["none"].into_iter().chain(GRANTED).flat_map(|rights| {
        BY_RIGHTS.map(|question| UpgradeQuestion {
            rights: Some(rights),
            ..question
        })
    });
    QUESTIONS.into_iter().chain(by_account).collect()
}

impl UpgradeQuestion {
    const fn of_no_pod(self) -> Self {
        Self {
            pod_exists: false,
            ..self
        }
    }

    /// `GET ?ports=9080 WebSocket (v4.channel.k8s.io), rights: get`
    fn label(&self) -> String {
        let (method, query, offer) = (self.method, self.query, headers(&self.offer).0);
        let mut label = format!("{method} {query} {offer}").replace("  ", " ");
        if !self.pod_exists {
            label += ", no such pod";
        }
        if let Some(rights) = self.rights {
            let _ = write!(label, ", rights: {rights}");
        }
        label
    }

    /// The head of the request.
    fn head(&self, pod: &str) -> String {
        let (method, query, mut headers) = (self.method, self.query, headers(&self.offer).1);
        let pod = if self.pod_exists { pod } else { "nosuch" };
        if let Some(rights) = self.rights {
            let _ = write!(headers, "Impersonate-User: {}\r\n", account(rights));
        }
        format!(
            "{method} /api/v1/namespaces/default/pods/{pod}/portforward{query} HTTP/1.1\r\n\
             Host: 127.0.0.1\r\nContent-Length: 0\r\n{headers}\r\n"
        )
    }
}

/// The user that has these rights, and no group but `system:authenticated`.
fn account(rights: &str) -> String {
    format!("upgrades-{rights}")
}

/// A Role and a RoleBinding for each account with a right.
fn roles() -> String {
    let roles = GRANTED.map(|verb| {
        let name = account(verb);
        format!(
            r#"---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: {name}, namespace: default}}
rules: [{{apiGroups: [""], resources: [pods/portforward], verbs: [{verb}]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {name}, namespace: default}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {name}}}]
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}
"#
        )
    });
    roles.concat()
}

/// The answer to one question.
#[derive(Debug)]
pub struct UpgradeAnswer {
    /// The question, in one line.
    pub question: String,
    /// `HTTP/1.1 101 Switching Protocols`; `none` if there was no answer within 10 s.
    pub status: String,
    /// Those that matter, as they were sent.
    pub headers: Vec<String>,
    /// An error's body; or the first frames, if they came within a second.
    pub rest: Vec<u8>,
    /// The name of the Pod that was asked about.
    pod: String,
}

impl UpgradeAnswer {
    /// The answer in a cell of a table, equal in every run: the status code, and at most 120 characters of the text of an
    /// error or of the first frames. `Status` after the code is the API server's own object, of which its message is shown.
    pub(crate) fn cell(&self) -> String {
        let code = self.status.split(' ').nth(1).unwrap_or("none");
        if self.rest.is_empty() {
            return code.to_owned();
        }
        let body = serde_json::from_slice::<Value>(&self.rest).ok();
        let body = body.filter(|body| body["kind"] == "Status");
        let message = body.as_ref().and_then(|body| body["message"].as_str());
        let (kind, text) = match message {
            Some(message) => (" Status", message.as_bytes()),
            None => ("", self.rest.as_slice()),
        };
        let text: String = self.masked(text).chars().take(120).collect();
        let text = table_cell(&text).replace('`', "'");
        format!("{code}{kind} `{text}`")
    }

    /// The text with `…` for the Pod's name, ids of containers (64 hexadecimal digits) and uids, which differ from run to
    /// run. Bytes that cannot be printed are escaped.
    fn masked(&self, text: &[u8]) -> String {
        let in_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
        let words = text.chunk_by(|a, b| in_word(a) == in_word(b));
        let masked = words.map(|word| {
            let container = word.len() == 64 && word.iter().all(u8::is_ascii_hexdigit);
            if container || word == self.pod.as_bytes() {
                return "…".to_owned();
            }
            match word.split_last_chunk::<36>() {
                // `cni-` stands before the uid in the name of a network namespace.
                Some((before, uid)) if is_uid(uid) => format!("{}…", before.escape_ascii()),
                _ => word
                    .escape_ascii()
                    .to_string()
                    .replace("\\\"", "\"")
                    .replace("\\'", "'"),
            }
        });
        masked.collect()
    }
}

fn is_uid(word: &[u8]) -> bool {
    let groups = word.split(|b| *b == b'-').map(<[u8]>::len);
    groups.eq([8_usize, 4, 4, 4, 12]) && word.iter().all(|b| *b == b'-' || b.is_ascii_hexdigit())
}

/// Whether this Kubernetes answers `SPDY/3.1+portforward.k8s.io` over WebSocket.
fn carries_spdy_in_websocket(versions: &Versions) -> bool {
    versions.age().0.as_slice() >= [1_u32, 31].as_slice()
}

impl Lab {
    /// Asks everything of a Pod of the namespace `default`, or the first of `productpage`. The accounts have their rights
    /// for the time of the call.
    ///
    /// # Errors
    /// An API server that cannot be reached at all, or that does not grant the rights. A refusal is an answer, and so is
    /// none.
    pub async fn upgrades(&self, pod: Option<&str>) -> Result<Vec<UpgradeAnswer>> {
        let pod = match pod {
            Some(pod) => pod.to_owned(),
            None => self.productpage().await?,
        };
        let questions = questions();
        let asked = async {
            self.grant().await?;
            try_join_all(questions.iter().map(|question| self.put(question, &pod))).await
        };
        undone(asked, self.revoke()).await
    }

    /// Whether the API server carries `SPDY/3.1+portforward.k8s.io` over WebSocket, as Kubernetes does since 1.31.
    ///
    /// # Errors
    /// An API server that cannot be reached at all, or whose answer is not that of its version.
    pub async fn carries_spdy_in_websocket(&self) -> Result<bool> {
        let question = get("", WebSocket(&[TUNNEL]));
        let answer = self.put(&question, &self.productpage().await?).await?;
        let carries =
            answer.status.contains(" 101 ") && answer.headers.iter().any(|h| h.ends_with(TUNNEL));
        let expected = carries_spdy_in_websocket(self.versions());
        ensure!(
            carries == expected,
            "{}: {} was answered {}, but {} was expected of this version",
            self.versions(),
            answer.question,
            answer.cell(),
            if expected { "101" } else { "a refusal" }
        );
        Ok(carries)
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

    /// Grants each account its right, and waits until the API server's authorizer knows it.
    async fn grant(&self) -> Result<()> {
        let mut apply = self.kubectl_command(&["apply", "-f", "-"]);
        output_of_input(&mut apply, &roles()).await?;
        for verb in GRANTED {
            let account = account(verb);
            let may = [
                "auth",
                "can-i",
                verb,
                "pods",
                "--subresource=portforward",
                "--namespace=default",
                "--as",
                &account,
            ];
            // kubectl fails while the answer is "no".
            until(
                Duration::from_secs(30),
                "the rights of an account",
                async || Ok(self.kubectl(&may).await.ok()),
            )
            .await?;
        }
        Ok(())
    }

    async fn revoke(&self) -> Result<()> {
        let [get, create] = GRANTED.map(account);
        self.kubectl(&[
            "delete",
            "role,rolebinding",
            "--namespace=default",
            "--ignore-not-found",
            &get,
            &create,
        ])
        .await
        .map(drop)
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

    async fn put(&self, question: &UpgradeQuestion, pod: &str) -> Result<UpgradeAnswer> {
        let tcp = TcpStream::connect(("127.0.0.1", self.settings.api_port())).await?;
        let tls = self.tls()?;
        let mut stream = tls.connect(ServerName::try_from("127.0.0.1")?, tcp).await?;
        stream.write_all(question.head(pod).as_bytes()).await?;
        let mut got = Vec::new();
        let mut bounded = stream.take(ANSWER);
        let header = async {
            while !got.windows(4).any(|end| end == b"\r\n\r\n")
                && matches!(bounded.read_buf(&mut got).await, Ok(1..))
            {}
        };
        let _ = timeout(UNANSWERED, header).await;
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
            question: question.label(),
            status: lines.next().unwrap_or("none").to_owned(),
            headers: lines
                .filter(|line| {
                    line.split(':')
                        .next()
                        .is_some_and(|name| matters.contains(&name.to_ascii_lowercase().as_str()))
                })
                .map(str::to_owned)
                .collect(),
            rest: got.get(end + 4..).unwrap_or_default().to_vec(),
            pod: pod.to_owned(),
        })
    }
}

/// In words, and as header lines.
fn headers(ask: &UpgradeOffer) -> (String, String) {
    match ask {
        Spdy(protocol) => {
            let mut text = String::from("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n");
            if let Some(protocol) = protocol {
                let _ = write!(text, "X-Stream-Protocol-Version: {protocol}\r\n");
            }
            (
                format!("SPDY/3.1 ({})", protocol.unwrap_or("no stream protocol")),
                text,
            )
        }
        WebSocket(protocols) => {
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
        Nothing => ("no upgrade".to_owned(), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::versions::Containerd;

    const POD: &str = "productpage-76d75bfd64-kpxhv";

    fn answer(status: &str, rest: &[u8]) -> UpgradeAnswer {
        UpgradeAnswer {
            question: post(SPDY).label(),
            status: status.to_owned(),
            headers: Vec::new(),
            rest: rest.to_vec(),
            pod: POD.to_owned(),
        }
    }

    #[test]
    fn every_question_has_a_label_of_its_own() {
        let questions = questions();
        assert_eq!(questions.len(), QUESTIONS.len() + 3 * BY_RIGHTS.len());
        let labels: BTreeSet<String> = questions.iter().map(UpgradeQuestion::label).collect();
        assert_eq!(labels.len(), questions.len());
        for label in [
            "POST SPDY/3.1 (portforward.k8s.io)",
            "POST SPDY/3.1 (portforward.k8s.io), no such pod",
            "GET WebSocket (SPDY/3.1+portforward.k8s.io), no such pod",
            "POST SPDY/3.1 (portforward.k8s.io), rights: none",
            "GET ?ports=9080 WebSocket (v4.channel.k8s.io), rights: get",
            "GET WebSocket (SPDY/3.1+portforward.k8s.io), rights: create",
        ] {
            assert!(labels.contains(label), "{label}");
        }
    }

    #[test]
    fn accounts_are_impersonated() {
        let [question, ..] = BY_RIGHTS;
        assert!(!question.head(POD).contains("Impersonate"));
        let head = UpgradeQuestion {
            rights: Some("get"),
            ..question
        }
        .head(POD);
        assert!(
            head.contains("\r\nImpersonate-User: upgrades-get\r\n"),
            "{head}"
        );
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        assert!(roles().contains("kind: User, name: upgrades-get}"));
    }

    #[test]
    fn ids_are_masked() {
        let id = "c49810eb38d7e827cabe5c81f3e16e1d9ac444b8b06ce65be849e94e25556be6";
        let text = format!(
            "\u{1}error forwarding port 9999 to pod {id}, uid : namespace \"/run/netns/cni-3aa4ea89-fcfb-9c29-77bb-\
             96b3ad861270\": pods '{POD}' (3aa4ea89-fcfb-9c29-77bb-96b3ad861270), {POD}-0 and beef-12\n"
        );
        assert_eq!(
            answer("", b"").masked(text.as_bytes()),
            format!(
                "\\x01error forwarding port 9999 to pod …, uid : namespace \"/run/netns/cni-…\": pods '…' (…), \
                 {POD}-0 and beef-12\\n"
            )
        );
    }

    #[test]
    fn an_answer_is_a_cell() {
        let refused = "HTTP/1.1 403 Forbidden";
        let status = format!(
            r#"{{"kind":"Status","status":"Failure","message":"pods \"{POD}\" is forbidden: a | b"}}"#
        );
        for (answer, cell) in [
            (answer("none", b""), "none"),
            (answer("HTTP/1.1 101 Switching Protocols", b""), "101"),
            (
                answer("HTTP/1.1 101 Switching Protocols", b"\x82\x03\x00x#"),
                r"101 `\x82\x03\x00x#`",
            ),
            (
                answer("HTTP/1.1 400 Bad Request", br#"parameter "port" of `x`"#),
                r#"400 `parameter "port" of 'x'`"#,
            ),
            (
                answer(refused, status.as_bytes()),
                r#"403 Status `pods "…" is forbidden: a \| b`"#,
            ),
        ] {
            assert_eq!(answer.cell(), cell);
        }
        let long = answer(refused, "x ".repeat(100).as_bytes()).cell();
        assert_eq!(long.chars().count(), "403 ``".len() + 119); // without the last blank
    }

    #[test]
    fn spdy_in_websocket_came_with_1_31() {
        let carries = |kubernetes: &str| {
            carries_spdy_in_websocket(&Versions {
                kubernetes: kubernetes.to_owned(),
                containerd: Containerd::Two,
            })
        };
        assert!(!carries("1.30.14"));
        assert!(carries("1.31.0") && carries("1.37.2"));
    }
}
