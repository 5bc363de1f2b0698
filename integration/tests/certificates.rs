//! `kubevpn resolve` to the end, through TLS terminators with certificates of every kind that kubectl takes.
//!
//! One nginx stands before the API server, with two ports for each row of the table: TLS 1.2 and TLS 1.3.

use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use kubevpn_scenarios::run_to_end;
use lab::Lab;
use serde_json::json;
use tokio::process::Command;

use crate::nginx::{nginx, write};

/// One way to log in. Files are called by their names in [`OPENSSL`].
struct Row {
    is: &'static str,
    /// The certificate the server shows.
    server: &'static str,
    /// The certificate authority in the kubeconfig.
    authority: &'static str,
    /// The client's certificate, if the server demands one; it may be empty.
    client: Option<&'static str>,
    /// What kubevpn says, where it is not to succeed.
    refused: Option<&'static str>,
}

const fn row(is: &'static str, server: &'static str, authority: &'static str) -> Row {
    Row {
        is,
        server,
        authority,
        client: None,
        refused: None,
    }
}

const fn client(is: &'static str, client: &'static str) -> Row {
    Row {
        client: Some(client),
        ..row(is, "p256", "ca")
    }
}

const ROWS: [Row; 11] = [
    row("server's key on P-521", "p521", "ca"),
    row("authority on P-521", "p256-by-p521", "ca-p521"),
    row("both on P-521", "p521-by-p521", "ca-p521"),
    row("self-signed, CA:TRUE", "self-signed-ca", "self-signed-ca"),
    row("self-signed, no CA:TRUE", "self-signed", "self-signed"),
    row("leaf as authority", "p256", "p256"),
    client("client's, version 1", "v1"),
    client("client's, key on P-521", "p521"),
    client("client's, all on P-521", "p521-by-p521"),
    Row {
        refused: Some("is signed by nobody we trust"),
        ..row("another self-signed one", "self-signed", "self-signed-ca")
    },
    Row {
        refused: Some("a gateway before the API server wants a client certificate"),
        ..client("no client certificate", "")
    },
];

/// The clients' authorities are in `clients.pem`.
const OPENSSL: &str = r#"
set -e
key() { openssl genpkey -algorithm EC -pkeyopt "ec_paramgen_curve:$2" -out "$1.key"; }
request() { openssl req -new -key "$1.key" -subj "/CN=$1"; }
itself() { key "$1" "$2"; openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -addext subjectAltName=IP:127.0.0.1 -days 2 -out "$1.crt"; }
signed() { key "$1" "$2"; request "$1" | openssl x509 -req -CA "$3.crt" -CAkey "$3.key" -days 2 -extfile extensions -out "$1.crt"; }
printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' >extensions
for name in ca self-signed-ca; do itself $name P-256; done
itself ca-p521 P-521
for name in p256 p521; do
  signed $name P-${name#p} ca
  signed $name-by-p521 P-${name#p} ca-p521
done
key self-signed P-256
request self-signed | openssl x509 -req -signkey self-signed.key -days 2 -extfile extensions -out self-signed.crt
# OpenSSL makes version 1 unasked, or since 3.2 if it is asked.
key v1 P-256
openssl req -x509v1 -new -key v1.key -subj /CN=v1 -CA ca.crt -CAkey ca.key -days 2 -out v1.crt ||
  request v1 | openssl x509 -req -CA ca.crt -CAkey ca.key -days 2 -out v1.crt
openssl x509 -in v1.crt -noout -text | grep 'Version: 1 '
cat ca.crt ca-p521.crt >clients.pem
"#;

const VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];

#[expect(clippy::print_stdout, reason = "the table")]
pub(crate) async fn of_every_kind() -> anyhow::Result<()> {
    let lab = Lab::attach().await?;
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let made = Command::new("bash")
        .args(["-c", OPENSSL])
        .current_dir(dir)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "openssl: {said}");

    let rows = ROWS.iter().flat_map(|row| VERSIONS.map(|tls| (row, tls)));
    let rows: Vec<_> = rows.collect();
    let servers = rows.iter().map(|(row, tls)| {
        let (here, shown) = (dir.display(), row.server);
        let verify = match row.client {
            Some(_) => format!("ssl_client_certificate {here}/clients.pem; ssl_verify_client on;"),
            None => String::new(),
        };
        format!(
            "listen ADDRESS ssl http2; ssl_protocols {tls}; ssl_certificate {here}/{shown}.crt; ssl_certificate_key {here}/{shown}.key; \
             {verify} location / {{ proxy_buffering off; proxy_pass API; }}"
        )
    });
    let (_nginx, ports) = nginx(&lab, dir, &servers.collect::<Vec<_>>()).await?;
    let resolved = rows.iter().zip(&ports);
    let resolved = resolved.map(|((row, _), port)| resolve(dir, row, *port));
    let resolved = try_join_all(resolved).await?;
    println!("\n| certificate | TLS | resolve |\n|-|-|-|");
    let mut wrong = Vec::new();
    for ((row, tls), output) in rows.into_iter().zip(resolved) {
        let (code, is) = (output.status.code(), row.is);
        println!("| {is} | {tls} | {} |", code.unwrap_or(-1));
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let fits = match row.refused {
            None => code == Some(0) && said.contains("open, to default/productpage-"),
            Some(words) => code != Some(0) && said.contains(words),
        };
        if !fits {
            wrong.push(format!("{is}, {tls}: {said}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// `kubevpn resolve` with a kubeconfig for this port.
async fn resolve(dir: &Path, row: &Row, port: u16) -> anyhow::Result<Output> {
    let user = match row.client {
        None | Some("") => json!({}),
        Some(name) => json!({
            "client-certificate": format!("{name}.crt"),
            "client-key": format!("{name}.key"),
        }),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": format!("{}.crt", row.authority),
        }}],
        "users": [{"name": "x", "user": user}],
    });
    let config = write(dir, &format!("kubeconfig-{port}"), &config.to_string())?;
    let kubevpn = Path::new(env!("CARGO_BIN_EXE_kubevpn"));
    let words = [
        "resolve",
        "productpage.default:9080",
        "--kubeconfig",
        &config,
    ];
    let ended = run_to_end(kubevpn, words, &[]).await;
    ended.with_context(|| format!("resolve: {}", row.is))
}
