//! The frontend alone is a proxy: the example program under real curl.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, Command};

/// The example's process; ends with the test.
struct Direct {
    addr: String,
    _process: Child,
}

impl Direct {
    async fn start() -> Self {
        let program = example("http-direct");
        let mut process = Command::new(&program)
            .arg("127.0.0.1:0")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| {
                panic!(
                    "cannot run {}: {e}; `cargo test -p kubevpn-http-connect` builds it, `--test http` alone does not",
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

    /// Runs curl with the proxy in its environment; the exit code and what was printed.
    async fn curl(&self, args: &[&str]) -> (Option<i32>, String) {
        let out = Command::new("curl")
            // No .curlrc, and no other proxy.
            .arg("--disable")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("http_proxy", format!("http://{}", self.addr))
            .args(["--silent", "--show-error", "--max-time", "20"])
            .args(["--write-out", " %{http_code}"])
            .args(args)
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

/// Answers every request with its request line, its `Host` and `Via`, and its body.
async fn http_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(BufReader::new(stream)));
        }
    });
    port
}

async fn serve(mut stream: BufReader<TcpStream>) -> std::io::Result<()> {
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        let mut answer = vec![request.trim_end().to_owned()];
        let (mut length, mut chunked) = (0, false);
        loop {
            let mut field = String::new();
            stream.read_line(&mut field).await?;
            let field_name = field.split(':').next().unwrap_or_default();
            let lower = field_name.to_ascii_lowercase();
            match field.trim_end().split_once(": ").map(|(_, v)| (&*lower, v)) {
                Some(("host" | "via", _)) => answer.push(field.trim_end().to_owned()),
                Some(("content-length", n)) => length = n.parse().unwrap(),
                Some(("transfer-encoding", _)) => chunked = true,
                Some(("expect", _)) => stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?,
                Some(_) => {}
                None => break,
            }
        }
        while chunked {
            let mut size = String::new();
            stream.read_line(&mut size).await?;
            let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
            length += size;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await?;
            chunked = size > 0;
            if !chunked {
                answer.push(format!("{length} bytes in chunks"));
                length = 0;
            }
        }
        if length > 0 {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            answer.push(format!("{length} bytes"));
        }
        let answer = answer.join("|");
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        stream
            .write_all(format!("{head}{answer}").as_bytes())
            .await?;
    }
}

#[tokio::test]
async fn curl_gets_its_answer() {
    let (direct, port) = (Direct::start().await, http_server().await);
    let url = format!("http://127.0.0.1:{port}/path?query");
    let got = direct.curl(&[&url]).await;
    let text = format!("GET /path?query HTTP/1.1|Host: 127.0.0.1:{port}|Via: 1.1 kubevpn 200");
    assert_eq!(got, (Some(0), text));
    // Two on one connection of curl's, and one that speaks HTTP/1.0.
    let got = direct.curl(&[&url, &url, "--http1.0"]).await;
    let text = format!("GET /path?query HTTP/1.1|Host: 127.0.0.1:{port}|Via: 1.0 kubevpn 200");
    assert_eq!(got, (Some(0), text.repeat(2)));
}

#[tokio::test]
async fn curl_uploads() {
    let (direct, port) = (Direct::start().await, http_server().await);
    let url = format!("http://127.0.0.1:{port}/");
    let file = std::env::current_exe().unwrap();
    let length = std::fs::metadata(&file).unwrap().len();
    let file = format!("@{}", file.display());
    for (field, sent) in [
        // Larger than a megabyte, so that curl expects to be told to go ahead.
        ("Accept: */*", format!("{length} bytes")),
        (
            "Transfer-Encoding: chunked",
            format!("{length} bytes in chunks"),
        ),
    ] {
        let (code, answer) = direct
            .curl(&["--data-binary", &file, "--header", field, &url])
            .await;
        assert_eq!(code, Some(0), "{answer}");
        assert!(answer.ends_with(&format!("|{sent} 200")), "{answer}");
    }
}

#[tokio::test]
async fn curl_tunnels() {
    let (direct, port) = (Direct::start().await, http_server().await);
    let url = format!("http://127.0.0.1:{port}/path");
    let got = direct.curl(&["--proxytunnel", &url]).await;
    let text = format!("GET /path HTTP/1.1|Host: 127.0.0.1:{port} 200");
    assert_eq!(got, (Some(0), text));
}

#[tokio::test]
async fn curl_is_told_why_not() {
    let direct = Direct::start().await;
    // Bound, so that no other program gets it, and not listening.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://127.0.0.1:{}/", closed.local_addr().unwrap().port());
    let (code, answer) = direct.curl(&[&url]).await;
    assert_eq!(code, Some(0));
    assert!(
        answer.contains("refused") && answer.ends_with(" 502"),
        "{answer}"
    );
    let (code, answer) = direct.curl(&["--proxytunnel", "--include", &url]).await;
    assert_eq!(
        code,
        Some(56),
        "curl's code for a proxy that refuses: {answer}"
    );
    assert!(
        answer.contains("Proxy-Status: kubevpn; error=connection_refused; details="),
        "{answer}"
    );
}

/// A client that uses the proxy like a server, or speaks SOCKS or TLS to it, is told what is wrong.
#[tokio::test]
async fn curl_at_the_wrong_door() {
    let direct = Direct::start().await;
    let (code, answer) = direct
        .curl(&["--noproxy", "*", &format!("http://{}/", direct.addr)])
        .await;
    assert_eq!(code, Some(0));
    assert!(
        answer.contains(&format!("http_proxy=http://{}", direct.addr)),
        "{answer}"
    );
    for (hello, word) in [
        (&b"\x05\x01\x00"[..], "SOCKS"),
        (b"\x16\x03\x01\x02\x00", "TLS"),
    ] {
        let mut stream = TcpStream::connect(&direct.addr).await.unwrap();
        stream.write_all(hello).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains(word),
            "{answer}"
        );
    }
}
