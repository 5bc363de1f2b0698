//! Errors of a dial, and the bounded text of the Pod's side.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use kubevpn_target::{BoxError, ConnectError, Refusal};

use crate::config::Transport;

/// Why a dial failed. No byte was exchanged with the Pod.
///
/// `Display` is the sentence for the user; the cause, where there is one, is the source.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The API server knows no such Pod.
    #[error("pod {pod} does not exist (any more): try again, it may have been replaced")]
    PodNotFound {
        /// `namespace/name`.
        pod: String,
    },

    /// Nothing listens on the port.
    #[error(
        "{to} refused the connection: nothing listens on localhost:{} inside the pod, which is all that a port-forward \
         reaches",
        to.rsplit(':').next().unwrap_or_default()
    )]
    Refused {
        /// `namespace/name:port`.
        to: String,
        /// What the container runtime said, bounded.
        said: String,
    },

    /// The Pod's node could not connect to the port for another reason.
    #[error("the node of the pod cannot connect to {to}: {said}")]
    NotForwarded {
        /// `namespace/name:port`, or `pod namespace/name` where it forwards no port at all.
        to: String,
        /// What the container runtime said, bounded.
        said: String,
    },

    /// The API server's access rules forbid the forward by every verb it can be asked with.
    #[error(
        "not allowed to forward ports of pod {pod}: ask for a Role with apiGroups [\"\"], resources \
         [\"pods/portforward\"], verbs {verbs:?} in namespace {namespace} (the API server says: {message})"
    )]
    Forbidden {
        /// `namespace/name`.
        pod: String,
        /// Where the rights are missing.
        namespace: String,
        /// The verbs that were refused.
        verbs: Vec<&'static str>,
        /// The API server's own words, bounded.
        message: String,
    },

    /// The request did not reach the API server, or the credentials were rejected.
    #[error("{0}")]
    Api(ConnectError),

    /// Every transport was turned down on the way to the Pod's node.
    #[error("no port-forward to pod {pod} ({}): {}", list(.tried), advice(.tried))]
    Rejected {
        /// `namespace/name`.
        pod: String,
        /// What was tried and what came back.
        tried: Vec<Rejection>,
    },

    /// Upgrades were granted, and nothing was received on their connections, nor on any before them.
    #[error(
        "pod {pod}: upgrades were granted ({}), but nothing was received after them: have proxies before the API server pass \
         on the bytes that follow a 101 answer, and check the pod's node",
        names(.transports)
    )]
    Silent {
        /// `namespace/name`.
        pod: String,
        /// The transports, in the order in which they were tried.
        transports: Vec<Transport>,
    },

    /// A step took longer than its limit.
    #[error("pod {pod}: {step} took longer than {} s: try again", .after.as_secs_f32())]
    TimedOut {
        /// `namespace/name`.
        pod: String,
        /// The step.
        step: &'static str,
        /// Its limit.
        after: Duration,
    },

    /// The session broke before the stream was answered.
    #[error("the port-forward to pod {pod} broke while the connection was being opened: try again")]
    SessionLost {
        /// `namespace/name`.
        pod: String,
        /// What broke it.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },

    /// A bound on open connections is reached.
    #[error("{what} has {limit} {of} open, which is the limit: close some and try again")]
    Overloaded {
        /// The Pod, or this program.
        what: String,
        /// The limit.
        limit: usize,
        /// What is limited.
        of: &'static str,
    },

    /// The forwarder was shut down.
    #[error("the proxy is shutting down and opens no new connections")]
    ShutDown,
}

/// One transport's refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The transport.
    pub transport: Transport,
    /// The status of the answer; none where the connection was dropped instead.
    pub status: Option<StatusCode>,
    /// Nothing came back at all, within the bound.
    pub silent: bool,
    /// Whether the answer is the API server's own, not that of a proxy or gateway before it.
    pub by_api_server: bool,
    /// What was said, bounded.
    pub message: String,
}

impl Rejection {
    /// `502 Bad Gateway, what was said`
    fn answer(&self) -> String {
        match self.status {
            Some(status) if self.message.is_empty() || repeats(status, &self.message) => {
                status.to_string()
            }
            Some(status) => format!("{status}, {}", self.message),
            None => self.message.clone(),
        }
    }
}

/// `spdy: 502 Bad Gateway, what was said`
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.transport, self.answer())
    }
}

impl ForwardError {
    pub(crate) fn session_lost(pod: String, source: impl Into<BoxError>) -> Self {
        let source = source.into().into();
        Self::SessionLost { pod, source }
    }

    /// The class a frontend answers with.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::PodNotFound { .. } => Refusal::NameNotFound,
            Self::Refused { .. } => Refusal::Refused,
            Self::NotForwarded { .. } => Refusal::Unreachable,
            Self::Forbidden { .. } => Refusal::Forbidden,
            Self::Api(error) => error.refusal(),
            // The API server answered, so the path from there to the Pod is broken.
            Self::Rejected { tried, .. } if tried.iter().any(|r| r.by_api_server) => {
                Refusal::Unreachable
            }
            Self::Rejected { .. } | Self::SessionLost { .. } => Refusal::ClusterAway,
            Self::Silent { .. } | Self::TimedOut { .. } => Refusal::TimedOut,
            Self::Overloaded { .. } | Self::ShutDown => Refusal::Overloaded,
        }
    }

    /// Whether a dial to another Pod may succeed.
    ///
    /// Every error of a dial occurs before a byte was exchanged, so nothing else has to be considered.
    pub fn retryable(&self) -> bool {
        match self {
            Self::PodNotFound { .. }
            | Self::Refused { .. }
            | Self::NotForwarded { .. }
            | Self::Rejected { .. }
            | Self::TimedOut { .. }
            | Self::SessionLost { .. }
            | Self::Overloaded { .. } => true,
            // Nothing was ever received on a session of either transport: other Pods are most likely behind the same gateway.
            Self::Silent { transports, .. } => transports.len() < 2,
            Self::Forbidden { .. } | Self::Api(_) | Self::ShutDown => false,
        }
    }

    /// Whether a limit of this program or of the API server was reached: such an error says nothing about the Pod.
    pub fn is_limit(&self) -> bool {
        match self {
            Self::Overloaded { .. } | Self::ShutDown => true,
            Self::Api(error) => error.refusal() == Refusal::Overloaded,
            _ => false,
        }
    }
}

impl From<ForwardError> for ConnectError {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Api(error) => error,
            error => Self::new(error.refusal(), error.to_string()).with_source(error),
        }
    }
}

fn names(transports: &[Transport]) -> String {
    let names: Vec<_> = transports.iter().map(|t| t.as_str()).collect();
    names.join(", ")
}

/// Whether a page says no more than its status, as those of some gateways.
fn repeats(status: StatusCode, page: &str) -> bool {
    status.canonical_reason() == Some(page) || status.to_string() == page
}

/// Each distinct answer once, with the transports that received it.
fn list(tried: &[Rejection]) -> String {
    let mut answers: Vec<(String, String)> = Vec::new();
    for rejection in tried {
        let (transport, answer) = (rejection.transport, rejection.answer());
        match answers.iter_mut().find(|(_, known)| *known == answer) {
            Some((transports, _)) => transports.push_str(&format!(", {transport}")),
            None => answers.push((transport.to_string(), answer)),
        }
    }
    let answers = answers.iter().map(|(of, answer)| format!("{of}: {answer}"));
    answers.collect::<Vec<_>>().join("; ")
}

/// Advice after every transport was turned down.
fn advice(tried: &[Rejection]) -> &'static str {
    // The API server gives this answer to a request without an upgrade. We always send one, so it was removed on the way.
    let stripped = |r: &Rejection| {
        r.status == Some(StatusCode::BAD_REQUEST) && r.message.contains("Upgrade request required")
    };
    // A kubelet before 1.31 reads the request as one for `v4.channel.k8s.io`, which needs this parameter.
    let older = |r: &Rejection| {
        r.transport == Transport::SpdyWs
            && r.status == Some(StatusCode::BAD_REQUEST)
            && r.message.contains("query parameter \"port\" is required")
    };
    if tried.iter().all(stripped) {
        "a gateway before the API server takes upgrades away: have it pass the headers Upgrade and Connection on"
    } else if tried.iter().all(older) {
        "the API server is older than Kubernetes 1.31, which has no spdy-ws: use another transport"
    } else {
        "check the pod's node, and proxies before the API server"
    }
}

/// One line of at most 300 characters, for foreign text in our errors and logs.
pub(crate) fn clip(text: &str) -> String {
    const MOST: usize = 300;
    let mut chars = text.trim().chars();
    let mut line: String = (&mut chars)
        .take(MOST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

/// Text of a connection's error stream; what exceeds 4 KiB is ignored.
#[derive(Default)]
pub(crate) struct ErrorText(Vec<u8>);

/// As text, for logs.
impl fmt::Debug for ErrorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.whole(), f)
    }
}

impl ErrorText {
    const MOST: usize = 4096;

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let room = Self::MOST - self.0.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole text; for matching, not for people.
    pub(crate) fn whole(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// The end of the text, in one line: the cause comes last, after names of sandboxes and namespaces.
    fn said(&self) -> String {
        const MOST: usize = 200;
        let text = self.whole();
        let text = text.trim();
        let skip = text.chars().count().saturating_sub(MOST);
        match text.char_indices().nth(skip) {
            Some((at, _)) if skip > 0 => clip(&format!("…{}", &text[at..])),
            _ => clip(text),
        }
    }

    /// The error of a dial that received this text.
    pub(crate) fn refusal(&self, to: String) -> ForwardError {
        let said = self.said();
        if self.whole().contains("connection refused") {
            ForwardError::Refused { to, said }
        } else {
            ForwardError::NotForwarded { to, said }
        }
    }

    /// The error of an open connection; `None` if the text only says that the Pod closed while more was being written
    /// to it.
    pub(crate) fn failure(&self) -> Option<ConnectionFailure> {
        if self.is_empty() {
            return None;
        }
        let whole = self.whole();
        let kind = if whole.contains("connection refused") {
            io::ErrorKind::ConnectionRefused
        } else if whole.contains("connection reset") {
            io::ErrorKind::ConnectionReset
        } else if whole.contains("broken pipe") || whole.contains("use of closed network") {
            return None;
        } else {
            io::ErrorKind::ConnectionAborted
        };
        let said = self.said();
        Some(ConnectionFailure { kind, said })
    }
}

/// Why a connection failed; kept so that every later use reports the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{said}")]
pub(crate) struct ConnectionFailure {
    pub(crate) kind: io::ErrorKind,
    pub(crate) said: String,
}

impl From<ConnectionFailure> for io::Error {
    fn from(failure: ConnectionFailure) -> Self {
        Self::new(failure.kind, failure)
    }
}

impl From<io::Error> for ConnectionFailure {
    fn from(error: io::Error) -> Self {
        // The stream's text ends with a reference to the session's error, which names the cause.
        let mut said = error.to_string();
        let mut next = error.get_ref().and_then(|e| e.source());
        while let Some(cause) = next {
            let words = cause.to_string();
            // rustls's text about a truncated connection continues with the address of its manual.
            let words = words.split(": https://").next().unwrap_or_default();
            said = format!("{said}: {words}");
            next = cause.source();
        }
        Self {
            kind: error.kind(),
            said: clip(&said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From containerd 1.6.20, for a port on which nothing listens.
    const REFUSED: &str = "error forwarding port 9999 to pod \
        c49810eb38d7e827cabe5c81f3e16e1d9ac444b8b06ce65be849e94e25556be6, uid : failed to execute portforward in \
        network namespace \"/run/containerd/io.containerd.grpc.v1.cri/netns/cni-3aa4ea89-fcfb-9c29-77bb-\
        96b3ad861270\": failed to connect to localhost:9999 inside namespace \
        \"c49810eb38d7e827cabe5c81f3e16e1d9ac444b8b06ce65be849e94e25556be6\", IPv4: dial tcp4 127.0.0.1:9999: \
        connect: connection refused IPv6 dial tcp6: address localhost: no suitable address found ";

    fn text(said: &str) -> ErrorText {
        let mut text = ErrorText::default();
        text.push(said.as_bytes());
        text
    }

    #[test]
    fn a_closed_port_is_refused() {
        let error = text(REFUSED).refusal("shop/web-0:9999".into());
        assert_eq!(error.refusal(), Refusal::Refused);
        assert!(error.retryable());
        assert_eq!(
            error.to_string(),
            "shop/web-0:9999 refused the connection: nothing listens on localhost:9999 inside the pod, which is all \
             that a port-forward reaches"
        );
        let ForwardError::Refused { said, .. } = error else {
            panic!("refused");
        };
        assert!(
            said.starts_with('…') && said.ends_with("no suitable address found"),
            "{said}"
        );
    }

    #[test]
    fn other_failures_keep_their_text() {
        let error = text("error forwarding port 80 to pod abc, uid : container not running")
            .refusal("shop/web-0:80".into());
        assert_eq!(error.refusal(), Refusal::Unreachable);
        assert_eq!(
            error.to_string(),
            "the node of the pod cannot connect to shop/web-0:80: error forwarding port 80 to pod abc, uid : container not running"
        );
    }

    #[test]
    fn errors_that_end_an_open_connection() {
        let kind = |said: &str| text(said).failure().map(|f| f.kind);
        assert_eq!(kind(""), None);
        assert_eq!(kind(REFUSED), Some(io::ErrorKind::ConnectionRefused));
        assert_eq!(
            kind("read tcp4 127.0.0.1:1->127.0.0.1:7666: read: connection reset by peer"),
            Some(io::ErrorKind::ConnectionReset)
        );
        // The Pod had closed already.
        assert_eq!(kind("write tcp4 127.0.0.1:1: write: broken pipe"), None);
        assert_eq!(kind("read: use of closed network connection"), None);
        assert_eq!(kind("odd"), Some(io::ErrorKind::ConnectionAborted));
    }

    /// rustls's text for a connection that was cut.
    #[test]
    fn causes_are_sentences_with_advice() {
        #[derive(Debug, thiserror::Error)]
        #[error("the connection failed")]
        struct Outer(#[source] io::Error);
        let cut =
            "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/x";
        let cut = io::Error::new(io::ErrorKind::UnexpectedEof, cut);
        let failure = ConnectionFailure::from(io::Error::other(Outer(cut)));
        assert_eq!(
            failure.said,
            "the connection failed: peer closed connection without sending TLS close_notify"
        );
    }

    #[test]
    fn texts_are_bounded() {
        let mut text = ErrorText::default();
        for _ in 0..1000 {
            text.push(&[b'x'; 1000]);
        }
        assert_eq!(text.0.len(), ErrorText::MOST);
        assert!(text.said().chars().count() <= 301);
        assert_eq!(clip(" a\nb\r\n "), "a b");
    }

    #[test]
    fn one_class_each() {
        let rejected = |by_api_server, message: &str| ForwardError::Rejected {
            pod: "shop/web-0".into(),
            tried: vec![Rejection {
                transport: Transport::Spdy,
                status: Some(StatusCode::BAD_GATEWAY),
                silent: false,
                by_api_server,
                message: message.to_owned(),
            }],
        };
        assert_eq!(rejected(true, "").refusal(), Refusal::Unreachable);
        assert_eq!(rejected(false, "").refusal(), Refusal::ClusterAway);
        for message in ["", "Bad Gateway", "502 Bad Gateway"] {
            assert_eq!(
                rejected(false, message).to_string(),
                "no port-forward to pod shop/web-0 (spdy: 502 Bad Gateway): check the pod's node, and proxies before the API server"
            );
        }
        let stripped = |transport| Rejection {
            transport,
            status: Some(StatusCode::BAD_REQUEST),
            silent: false,
            by_api_server: true,
            message: "Upgrade request required".into(),
        };
        let stripped = ForwardError::Rejected {
            pod: "shop/web-0".into(),
            tried: Transport::ALL.into_iter().map(stripped).collect(),
        };
        assert_eq!(
            stripped.to_string(),
            "no port-forward to pod shop/web-0 (spdy, spdy-ws, ws: 400 Bad Request, Upgrade request required): a gateway before the API \
             server takes upgrades away: have it pass the headers Upgrade and Connection on"
        );
        let older = ForwardError::Rejected {
            pod: "shop/web-0".into(),
            tried: vec![Rejection {
                transport: Transport::SpdyWs,
                status: Some(StatusCode::BAD_REQUEST),
                silent: false,
                by_api_server: false,
                message: r#"query parameter "port" is required"#.into(),
            }],
        };
        assert_eq!(
            older.to_string(),
            "no port-forward to pod shop/web-0 (spdy-ws: 400 Bad Request, query parameter \"port\" is required): the API server is \
             older than Kubernetes 1.31, which has no spdy-ws: use another transport"
        );
        let forbidden = ForwardError::Forbidden {
            pod: "shop/web-0".into(),
            namespace: "shop".into(),
            verbs: vec!["create", "get"],
            message: "no".into(),
        };
        assert!(!forbidden.retryable());
        assert!(forbidden.to_string().contains(
            "resources [\"pods/portforward\"], verbs [\"create\", \"get\"] in namespace shop"
        ));
        assert_eq!(ConnectError::from(forbidden).refusal(), Refusal::Forbidden);
    }
}
