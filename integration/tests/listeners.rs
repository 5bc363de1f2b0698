//! The flags that say where to listen, who may connect, and how many.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use kubevpn_scenarios::{Curl, Proxy, Socks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::{Ended, Rig, kubevpn, run};

impl Rig {
    /// `proxy-out` with these words alone; it is to fail.
    async fn fails(&self, flags: &[&str], environment: &[(&str, &str)]) -> Ended {
        let words = [&["proxy-out", "--kubeconfig", &*self.kubeconfig], flags].concat();
        run(&words, environment).await
    }

    /// `proxy-out` on a free port.
    async fn proxy(&self, flags: &[&str], environment: &[(&str, &str)]) -> Proxy {
        let mut command = Command::new(kubevpn());
        command
            .args(["proxy-out", "--listen-socks", "127.0.0.1:0"])
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(flags)
            .envs(environment.iter().copied());
        Proxy::spawn(command).await.unwrap()
    }
}

const FLAGS: [&str; 4] = [
    "--listen-socks",
    "--listen-http",
    "--listen-http-connect",
    "--listen",
];

#[tokio::test]
async fn addresses_that_cannot_be_used() {
    let rig = Rig::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let own = format!("(process {})", std::process::id());
    let no_socket = format!("unix:{}", rig.files.write("file", "not a socket"));
    let no_folder = "unix:/nonexistent/socket";
    for flag in FLAGS {
        // A value is refused by the flag's name, an alias as what it stands for; a socket by the listener's.
        let named = flag.trim_end_matches("-connect");
        let listener = match named {
            "--listen-socks" => "SOCKS5 listener",
            "--listen-http" => "HTTP listener",
            _ => "SOCKS5 and HTTP listener",
        };
        for (addr, code, words) in [
            (
                taken.as_str(),
                53,
                &["already in use", "  try: end ", &own][..],
            ),
            ("localhost", 23, &["no port", "127.0.0.1:1080"]),
            ("127.0.0.1", 23, &["no port", "127.0.0.1:1080"]),
            ("127.0.0.1:65536", 23, &["127.0.0.1:65536", "65535"]),
            ("example.com:1080", 23, &["no IP address", "unix:/path"]),
            ("unix:", 23, &["path", "missing"]),
            (&no_socket, 1, &["is no socket"]),
            (no_folder, 1, &["cannot listen on", "caused by: "]),
            (
                "0.0.0.0:0",
                23,
                &["other machines", "--auth-file", "--allow-unauthenticated"],
            ),
            ("[::]:0", 23, &["other machines"]),
        ] {
            let flags = match flag {
                "--listen-socks" => vec![flag, addr],
                _ => vec!["--listen-socks", "", flag, addr],
            };
            let is_value = words.iter().any(|w| {
                ["no port", "no IP address"].contains(w) || *w == "65535" || *w == "missing"
            });
            let words = [&[if is_value { named } else { listener }], words].concat();
            rig.fails(&flags, &[]).await.with(code, &words);
        }
        // Flags without a value.
        rig.fails(&[flag], &[]).await.with(2, &[named]);
    }
    let nothing = &["--listen-socks", "--listen-http", "--listen"];
    rig.fails(&["--listen-socks", ""], &[])
        .await
        .with(23, nothing);
    // One that cannot be had: the others are not kept.
    let flags = ["--listen-socks", "127.0.0.1:0", "--listen-http", &taken];
    rig.fails(&flags, &[]).await.with(53, &["HTTP listener"]);
}

/// A port alone is of 127.0.0.1 and of ::1, which is what a program may take `localhost` for.
#[tokio::test]
async fn a_port_alone_is_of_both_families() {
    let rig = Rig::start().await;
    let mut proxy = rig.proxy(&["--listen-http", "0"], &[]).await;
    let http = proxy.http().await.unwrap();
    let second = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, http.port()));
    let said = format!("HTTP proxy listening on {second}");
    proxy.logged(&[&said]).await.unwrap();
    TcpStream::connect(http).await.unwrap();
    TcpStream::connect(second).await.unwrap();
    // An address is that address.
    let at = (std::net::Ipv6Addr::LOCALHOST, proxy.socks.port());
    assert!(TcpStream::connect(at).await.is_err());
}

#[tokio::test]
async fn credentials_that_cannot_be_used() {
    let rig = Rig::start().await;
    let free = ["--listen-socks", "127.0.0.1:0"];
    for (text, words) in [
        ("", "no user"),
        ("ann", "line 1: the credentials have no colon"),
        ("ann:s\n\n:secret", "line 3: the user name has 0 bytes"),
        ("ann:", "password has 0 bytes"),
        ("\u{feff}ann:secret", "byte order mark"),
        (&"ann:secret\n".repeat(129), "more than 128 users"),
    ] {
        let file = rig.files.write("auth", text);
        let flags = [&free[..], &["--auth-file", &file]].concat();
        rig.fails(&flags, &[])
            .await
            .with(23, &["--auth-file", &file, words]);
        rig.fails(&free, &[("KUBEVPN_AUTH_FILE", &file)])
            .await
            .with(23, &[&file, words]);
    }
    for (text, words) in [
        ("ann", "no colon"),
        (":secret", "user name has 0 bytes"),
        ("ann:", "password has 0 bytes"),
        ("ann:secret\nbob:secret\n", "second line"),
        ("\u{feff}ann:secret", "byte order mark"),
    ] {
        let ended = rig.fails(&free, &[("KUBEVPN_AUTH", text)]).await;
        assert!(!ended.said.contains("secret"), "{}", ended.said);
        ended.with(23, &["KUBEVPN_AUTH", words]);
    }
    for path in ["/nonexistent/auth", "/"] {
        let flags = [&free[..], &["--auth-file", path]].concat();
        rig.fails(&flags, &[])
            .await
            .with(23, &["--auth-file", path]);
    }
    // More than any credentials, and without an end.
    let flags = [&free[..], &["--auth-file", "/dev/zero"]].concat();
    rig.fails(&flags, &[])
        .await
        .with(23, &["--auth-file", "more than 64 KiB"]);
    // An empty variable is none: still nobody may come from outside.
    rig.fails(&["--listen-socks", "0.0.0.0:0"], &[("KUBEVPN_AUTH", "")])
        .await
        .with(23, &["--allow-unauthenticated"]);
}

#[tokio::test]
async fn limits_that_are_none() {
    let rig = Rig::start().await;
    for flag in ["--max-connections", "--max-connections-per-client"] {
        for (value, words) in [("0", "at least 1"), ("many", "number"), ("-1", "-1")] {
            rig.fails(&[flag, value], &[]).await.with(2, &[words]);
        }
    }
}

/// From the environment, so that no command line shows them; then other machines may come.
#[tokio::test]
async fn credentials_from_the_environment() {
    let rig = Rig::start().await;
    let auth = [("KUBEVPN_AUTH", "ann:s3:cret")];
    let flags = ["--listen-socks", "0.0.0.0:0"];
    let mut command = Command::new(kubevpn());
    command
        .arg("proxy-out")
        .args(flags)
        .arg("--kubeconfig")
        .arg(&rig.kubeconfig)
        .envs(auth);
    let proxy = Proxy::spawn(command).await.unwrap();
    let at = SocketAddr::from(([127, 0, 0, 1], proxy.socks.port()));
    let nobody = Curl::get(at, "http://reviews/").await.unwrap();
    assert_eq!(nobody.code, 97, "{}", nobody.message);
    let ann = format!("socks5h://ann:s3%3Acret@{at}");
    let answer = Curl::run(&["--proxy", &ann, "http://reviews/"]).await;
    assert_eq!(answer.unwrap().json().unwrap()["service"], "reviews");
    assert!(!proxy.log().contains("cret"), "{}", proxy.log());
}

/// A file that can be read once only, as a shell's `<(…)` makes them.
#[tokio::test]
async fn credentials_from_a_pipe() {
    let rig = Rig::start().await;
    let mut command = Command::new("bash");
    command
        .args(["-c", r#"exec "$0" proxy-out --listen-socks 127.0.0.1:0 --kubeconfig "$1" --auth-file <(echo ann:s3cret)"#])
        .arg(kubevpn())
        .arg(&rig.kubeconfig);
    let proxy = Proxy::spawn(command).await.unwrap();
    let ann = format!("socks5h://ann:s3cret@{}", proxy.socks);
    let answer = Curl::run(&["--proxy", &ann, "http://reviews/"]).await;
    assert_eq!(answer.unwrap().json().unwrap()["service"], "reviews");
}

/// A certificate of this machine's own, and its key, in PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// As a Secret is changed under a program that runs; curl takes an HTTPS proxy.
#[tokio::test]
async fn users_and_certificate_follow_their_files() {
    let rig = Rig::start().await;
    let files = [certificate(), certificate()];
    let users = rig.files.write("users", "ann:x\nbob:y\n");
    let crt = rig.files.write("tls.crt", &files[0].0);
    let key = rig.files.write("tls.key", &files[0].1);
    let flags = [
        "--listen-http",
        "127.0.0.1:0",
        "--auth-file",
        &users,
        "--tls-cert",
        &crt,
        "--tls-key",
        &key,
    ];
    let mut proxy = rig.proxy(&flags, &[]).await;
    let at = proxy.https().await.unwrap();
    let ask = async |user: &str, trusted: &str| {
        let proxy = format!("https://{user}@{at}");
        let asked = [
            "--proxy",
            &proxy,
            "--proxy-cacert",
            trusted,
            "http://reviews/",
        ];
        Curl::run(&asked).await.unwrap()
    };
    for user in ["ann:x", "bob:y"] {
        assert_eq!(ask(user, &crt).await.json().unwrap()["service"], "reviews");
    }
    let refused = ask("bob:x", &crt).await;
    assert!(refused.body.contains("password"), "{}", refused.body);

    let trusted = rig.files.write("new.crt", &files[1].0);
    rig.files.write("users", "carol:z\n");
    rig.files.write("tls.crt", &files[1].0);
    rig.files.write("tls.key", &files[1].1);
    let changed = async { while ask("carol:z", &trusted).await.json().is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), changed)
        .await
        .expect("the new user is let in, by the new certificate");
    let refused = ask("ann:x", &trusted).await;
    assert!(refused.body.contains("password"), "{}", refused.body);
    let log = proxy.log();
    assert!(
        !log.contains("PRIVATE") && !log.contains("carol:z"),
        "{log}"
    );
}

#[tokio::test]
async fn certificates_that_cannot_be_used() {
    let rig = Rig::start().await;
    let (certificate, key) = certificate();
    let certificate = rig.files.write("tls.crt", &certificate);
    let key = rig.files.write("tls.key", &key);
    for (crt, key, words) in [
        ("/nonexistent", key.as_str(), "/nonexistent: No such file"),
        (&key, &key, "no CERTIFICATE"),
        (&certificate, &certificate, "the key: "),
        ("/dev/zero", &key, "more than 64 KiB"),
    ] {
        rig.fails(&["--tls-cert", crt, "--tls-key", key], &[])
            .await
            .with(23, &["--tls-cert", words]);
    }
    rig.fails(&["--tls-cert", &certificate], &[])
        .await
        .with(2, &["--tls-key"]);
    // A certificate asks nobody who they are.
    let exposed = ["--listen-socks", "0.0.0.0:0", "--tls-cert", &certificate];
    rig.fails(&[&exposed[..], &["--tls-key", &key]].concat(), &[])
        .await
        .with(23, &["--auth-file"]);
}

/// As in a Deployment: what is open may finish, and probes are told.
#[tokio::test]
async fn probes_are_answered_to_the_end_of_the_drain() {
    let rig = Rig::start().await;
    let flags = ["--admin", "127.0.0.1:0", "--drain", "10m"];
    let mut proxy = rig.proxy(&flags, &[]).await;
    let admin = proxy.admin().await.unwrap();
    let ask = async |path: &str| {
        let url = format!("http://{admin}{path}");
        let asked = ["--noproxy", "*", "--include", &url];
        Curl::run(&asked).await.unwrap().body
    };
    assert!(ask("/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(ask("/readyz").await.starts_with("HTTP/1.1 200 "));
    let mut client = Socks::connect(proxy.socks, "multi", 7007).await.unwrap();
    proxy.signal("TERM").await.unwrap();
    proxy
        .logged(&["waiting up to 10m for 1 open connection"])
        .await
        .unwrap();
    assert!(ask("/livez").await.starts_with("HTTP/1.1 200 "));
    let unready = ask("/readyz").await;
    assert!(unready.starts_with("HTTP/1.1 503 "), "{unready}");
    // Once the accept loop has seen it.
    let refused = async { while TcpStream::connect(proxy.socks).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), refused)
        .await
        .expect("it accepts nobody");
    client.write_all(b"still here").await.unwrap();
    let mut heard = [0; 10];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
    reset(client);
    assert_eq!(proxy.ended().await.unwrap().code(), Some(0));
}

/// Ends a connection both ways: one that only says its own end may still be answered for a while.
fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
}

#[tokio::test]
async fn a_client_has_no_more_connections_than_its_limit() {
    let rig = Rig::start().await;
    let proxy = rig.proxy(&["--max-connections-per-client", "2"], &[]).await;
    let open = async || Socks::connect(proxy.socks, "multi", 7007).await;
    let (first, _second) = (open().await.unwrap(), open().await.unwrap());
    open().await.expect_err("the third is closed");
    // The place is free once the proxy has seen that: soon, not at once.
    reset(first);
    let free = async { while open().await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), free)
        .await
        .expect("a place is free again");
}

#[tokio::test]
async fn clients_beyond_the_total_wait() {
    let rig = Rig::start().await;
    let proxy = rig.proxy(&["--max-connections", "1"], &[]).await;
    let first = Socks::connect(proxy.socks, "multi", 7007).await.unwrap();
    let mut second = Socks::send_early(proxy.socks, "multi", 7007, b"")
        .await
        .unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(300), second.read_u8()).await;
    assert!(answer.is_err(), "answered beside the first: {answer:?}");
    reset(first);
    Socks::read_replies(&mut second).await.unwrap();
}

/// Most shells let a program open 1,024 files; it may have more when it asks.
#[tokio::test]
async fn a_shells_limit_on_open_files_is_raised() {
    let rig = Rig::start().await;
    let mut command = Command::new("bash");
    command
        .args([
            "-c",
            r#"ulimit -Sn 64; exec "$0" proxy-out --listen-socks 127.0.0.1:0 --kubeconfig "$1""#,
        ])
        .arg(kubevpn())
        .arg(&rig.kubeconfig);
    let proxy = Proxy::spawn(command).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(Socks::connect(proxy.socks, "multi", 7007).await.unwrap());
    }
    assert!(proxy.descriptors().unwrap() > 100);
}

/// A closed terminal and Ctrl-\ end it as `kill` does: the Unix socket's file goes, and the code says success.
#[tokio::test]
async fn each_signal_that_ends_it_ends_it_orderly() {
    let rig = Rig::start().await;
    for signal in ["TERM", "HUP", "QUIT"] {
        let socket = rig.files.0.path().join("http.sock");
        let listen = format!("unix:{}", socket.display());
        let proxy = rig.proxy(&["--listen-http", &listen], &[]).await;
        assert!(socket.exists());
        // A tunnel that would end by itself only later: it is cut with a reset, and not closed as if it were whole.
        let mut client = Socks::connect(proxy.socks, "productpage", 9080)
            .await
            .unwrap();
        let (ended, cut) = tokio::join!(proxy.stop(signal), client.read_u8());
        assert_eq!(ended.unwrap().code(), Some(0), "{signal}");
        assert_eq!(
            cut.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset,
            "{signal}"
        );
        assert!(!socket.exists(), "{signal}");
    }
}

/// `nohup` has the program ignore SIGHUP: it goes on.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn nohup_keeps_it_running() {
    let rig = Rig::start().await;
    let mut command = Command::new("nohup");
    command
        .arg(kubevpn())
        .args(["proxy-out", "--listen-socks", "127.0.0.1:0"]);
    command.arg("--kubeconfig").arg(&rig.kubeconfig);
    let proxy = Proxy::spawn(command).await.unwrap();
    let pid = proxy.pid().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-HUP", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    let answer = Curl::get(proxy.socks, "http://reviews/").await.unwrap();
    assert_eq!(answer.json().unwrap()["service"], "reviews");
    assert_eq!(proxy.stop("TERM").await.unwrap().code(), Some(0));
}

/// An ingress is asked by name, and the proxy's own pages answer under the name a LAN has for it.
#[tokio::test]
async fn names_over_http() {
    let rig = Rig::start().await;
    for (keep, host) in [(&[][..], "reviews"), (&["--keep-host"], "shop.example")] {
        let flags = [
            "--listen-http",
            "127.0.0.1:0",
            "--listen-name",
            "Proxy.corp",
        ];
        let mut proxy = rig.proxy(&[&flags[..], keep].concat(), &[]).await;
        let http = format!("http://{}", proxy.http().await.unwrap());
        let asked = [
            "-H",
            "Host: shop.example",
            "--proxy",
            &http,
            "http://reviews/",
        ];
        let answer = Curl::run(&asked).await.unwrap();
        assert_eq!(answer.json().unwrap()["host"], host);
        for (name, status) in [
            ("proxy.corp", 200),
            ("host.docker.internal", 200),
            ("corp", 421),
        ] {
            let (name, page) = (format!("Host: {name}"), format!("{http}/"));
            let asked = ["--noproxy", "*", "--include", "-H", &name, &page];
            let answer = Curl::run(&asked).await.unwrap().body;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{name}: {answer}"
            );
        }
    }
    rig.fails(&["--listen-name", "a b"], &[])
        .await
        .with(2, &["a b"]);
}

/// As kubectl port-forward says it at once; a Service may come later, so that the port is there all the same.
#[tokio::test]
async fn a_forward_to_nothing_is_told_at_the_start() {
    let rig = Rig::start().await;
    for (forward, words) in [
        ("127.0.0.1:0:productpge:9080", "did you mean productpage?"),
        (
            "127.0.0.1:0:productpage:81",
            "has no TCP port 81, it has 9080",
        ),
    ] {
        let mut proxy = rig.proxy(&["--forward", forward], &[]).await;
        proxy.logged(&["warning: ", words]).await.unwrap();
        proxy.logged(&["Forwarding "]).await.unwrap();
    }
}
