//! What the tests share: simulations, clients, and a very plain HTTP/1.1 client.

#![allow(dead_code, reason = "no test uses all of it")]

use std::time::Duration;

use hyper_util::rt::TokioExecutor;
use kube::Client;
use kubevpn_sim::Sim;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// Ends a test that would hang. No test relies on it.
pub(crate) async fn within<F: Future>(what: F) -> F::Output {
    let limit = tokio::time::timeout(Duration::from_secs(60), what);
    limit.await.expect("it takes far too long")
}

/// A client as kube makes it: HTTP/1.1.
pub(crate) fn h1(sim: &Sim) -> Client {
    Client::try_from(sim.config()).unwrap()
}

/// A client over HTTP/2.
pub(crate) fn h2(sim: &Sim) -> Client {
    use kube::client::ConfigExt;
    let config = sim.config();
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config().unwrap())
        .https_only()
        .enable_http2()
        .build();
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build(connector);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().unwrap())
        .map_err(tower::BoxError::from)
        .service(client);
    Client::new(service, config.default_namespace)
}

/// The code and message of a failed call.
pub(crate) fn refusal<T: std::fmt::Debug>(answer: kube::Result<T>) -> (u16, String) {
    match answer.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.message),
        other => panic!("no answer of an API server: {other:?}"),
    }
}

/// An answer, as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    /// The message of a `Status`.
    pub(crate) fn message(&self) -> String {
        let status: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(status["kind"], "Status");
        status["message"].as_str().unwrap().to_owned()
    }
}

/// Sends a request with the default user's token and reads the head of the answer, and the body unless it
/// is a 101. The rest of the connection is given back.
pub(crate) async fn ask<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (Answer, BufReader<T>) {
    let mut io = BufReader::new(io);
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: sim\r\n");
    if !headers.iter().any(|(n, _)| *n == "Authorization") {
        request += "Authorization: Bearer admin\r\n";
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "Content-Length: 0\r\n\r\n";
    io.write_all(request.as_bytes()).await.unwrap();
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        io.read_line(&mut line).await.unwrap();
        assert!(
            line.ends_with('\n'),
            "the answer ends in its head: {lines:?} {line:?}"
        );
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut lines = lines.into_iter();
    let status = lines
        .next()
        .unwrap()
        .strip_prefix("HTTP/1.1 ")
        .unwrap()
        .to_owned();
    let split = |l: String| l.split_once(": ").map(|(n, v)| (n.into(), v.into()));
    let headers: Vec<(String, String)> = lines
        .map(|l| split(format!("{l} ").replace(":  ", ": ")).unwrap())
        .collect();
    let headers: Vec<_> = headers
        .into_iter()
        .map(|(n, v)| (n, v.trim().to_owned()))
        .collect();
    let mut answer = Answer {
        status,
        headers,
        body: String::new(),
    };
    if !answer.status.starts_with("101") {
        let length = answer
            .header("content-length")
            .unwrap_or("0")
            .parse()
            .unwrap();
        let mut body = vec![0; length];
        io.read_exact(&mut body).await.unwrap();
        answer.body = String::from_utf8(body).unwrap();
    }
    (answer, io)
}

pub(crate) const SPDY: [(&str, &str); 3] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "SPDY/3.1"),
    ("X-Stream-Protocol-Version", "portforward.k8s.io"),
];

/// The headers of a WebSocket's handshake, with these subprotocols.
pub(crate) fn websocket(protocols: &str) -> Vec<(&str, &str)> {
    let mut headers = vec![
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    if !protocols.is_empty() {
        headers.push(("Sec-WebSocket-Protocol", protocols));
    }
    headers
}

/// Where a pod's port-forward is.
pub(crate) fn portforward(pod: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{pod}/portforward")
}
