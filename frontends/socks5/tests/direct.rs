//! The frontend alone is a proxy: the example program under real curl.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// The example's process; ends with the test.
struct Direct {
    addr: String,
    _process: Child,
}

impl Direct {
    async fn start() -> Self {
        let program = example("direct");
        let mut process = Command::new(&program)
            .arg("127.0.0.1:0")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| {
                panic!(
                    "cannot run {}: {e}; `cargo test -p kubevpn-socks5` builds it, `--test direct` alone does not",
                    program.display()
                )
            });
        let mut addr = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut addr).await.unwrap();
        Self {
            addr: addr.trim_end().to_owned(),
            _process: process,
        }
    }

    /// Runs curl through it; the exit code and what was printed.
    async fn curl(&self, scheme: &str, url: &str) -> (Option<i32>, String) {
        let out = Command::new("curl")
            // No .curlrc.
            .arg("--disable")
            .args([
                "--silent",
                "--show-error",
                "--noproxy",
                "",
                "--max-time",
                "20",
            ])
            .args(["--write-out", " %{http_code}", "--proxy"])
            .arg(format!("{scheme}://{}", self.addr))
            .arg(url)
            .output()
            .await
            .expect("this test needs curl: install it, e.g. with `apt-get install curl`");
        (out.status.code(), String::from_utf8(out.stdout).unwrap())
    }
}

/// Cargo puts examples beside the directory of the tests.
fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join("examples")
        .join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// Answers every connection's first request with its request line.
async fn http_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let (mut request, mut header) = (String::new(), String::new());
                stream.read_line(&mut request).await?;
                while stream.read_line(&mut header).await? > 2 {
                    header.clear();
                }
                let body = request.trim_end();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await
            });
        }
    });
    port
}

#[tokio::test]
async fn curl_gets_its_answer() {
    let (direct, port) = (Direct::start().await, http_server().await);
    for (scheme, host) in [
        ("socks5h", "localhost"),
        ("socks5h", "127.0.0.1"),
        ("socks5", "127.0.0.1"),
        ("socks4", "127.0.0.1"),
        ("socks4a", "localhost"),
    ] {
        let got = direct
            .curl(scheme, &format!("http://{host}:{port}/path"))
            .await;
        assert_eq!(
            got,
            (Some(0), "GET /path HTTP/1.1 200".into()),
            "{scheme} {host}"
        );
    }
}

#[tokio::test]
async fn curl_is_told_of_a_refused_port() {
    let direct = Direct::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let (code, _) = direct
        .curl("socks5h", &format!("http://127.0.0.1:{port}/"))
        .await;
    assert_eq!(code, Some(97), "curl's code for a failed SOCKS handshake");
}

#[tokio::test]
async fn curl_with_http_at_the_socks_port_reads_what_is_wrong() {
    let direct = Direct::start().await;
    let (code, answer) = direct.curl("http", "http://127.0.0.1:1/").await;
    assert_eq!(code, Some(0));
    assert!(
        answer.contains("SOCKS5") && answer.ends_with(" 400"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_end_of_file_gets_through_at_once_and_the_answer_back() {
    let direct = Direct::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();

    let mut app = TcpStream::connect(&direct.addr).await.unwrap();
    let ask = [
        b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\x01",
        &port.to_be_bytes()[..],
        b"question",
    ];
    app.write_all(&ask.concat()).await.unwrap();
    app.shutdown().await.unwrap();

    // The server answers only after the client's end of stream.
    let (mut server, _) = listener.accept().await.unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    server.write_all(b"answer").await.unwrap();
    drop(server);

    let mut answer = Vec::new();
    app.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"\x05\x00\x05\x00\x00\x01\0\0\0\0\0\0answer");
}
