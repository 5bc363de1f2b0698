//! The commands of the pages under `docs/` do what the pages say, as a reader would paste them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kubevpn_sim::Sim;

fn page(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(name)).unwrap()
}

/// The `sh` blocks of a page, in order, as one script.
fn script(page: &str) -> String {
    let mut script = String::from("set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || :' EXIT\n");
    let mut inside = false;
    let mut started = 0;
    for line in page.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => {
                script.push_str(line);
                script.push('\n');
                // A proxy in the background: go on when it has said what it listens on, as a reader would. That ends with the
                // line for a shell, or, of forwards alone, with their lines.
                if line.ends_with('&') {
                    started += 1;
                    script.push_str(&format!(
                        "until [ \"$(grep -c '^Shell: \\|^Forwarding 127' \"$OUT\")\" = {started} ]; do kill -0 $!; sleep 0.05; done\n"
                    ));
                }
            }
            _ => {}
        }
    }
    script
}

/// Runs a page's commands against a cluster in memory, with its ports moved to free ones.
fn run(name: &str) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sim = runtime.block_on(Sim::builder().sample().start()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = sim.write_kubeconfig(dir.path()).unwrap();
    let free = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let script = script(&page(name)).replace("127.0.0.1:1080", &free());
    let script = script.replace("127.0.0.1:3128", &free());
    let dns = free();
    let script = script.replace("127.0.0.1:5353", &dns);
    let script = script.replace("5353", dns.rsplit(':').next().unwrap());
    let forwarded = free();
    let script = script.replace("127.0.0.1:15432", &forwarded);
    let script = script.replace("15432", forwarded.rsplit(':').next().unwrap());
    let program = PathBuf::from(env!("CARGO_BIN_EXE_kubevpn"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let out = dir.path().join("out");
    let file = std::fs::File::create(&out).unwrap();
    let status = Command::new("bash")
        .args(["-c", &script])
        .env("PATH", path)
        .env("KUBECONFIG", kubeconfig)
        .env("OUT", &out)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stderr(file.try_clone().unwrap())
        .stdout(file)
        .status()
        .unwrap();
    let said = std::fs::read_to_string(&out).unwrap();
    assert!(status.success(), "{name} ended with {status}:\n{said}");
    said
}

#[test]
fn proxy_out() {
    let said = run("docs/proxy-out.md");
    assert_eq!(
        said.matches(r#""service":"productpage""#).count(),
        6,
        "{said}"
    );
    assert_eq!(said.matches(r#""service":"reviews""#).count(), 1, "{said}");
}

#[test]
fn dns() {
    let said = run("docs/dns.md");
    let is_address = |line: &&str| line.parse::<std::net::Ipv4Addr>().is_ok();
    assert_eq!(said.lines().filter(is_address).count(), 2, "{said}");
    assert_eq!(said.matches(r#""service":"reviews""#).count(), 1, "{said}");
}

#[test]
fn environment() {
    let said = run("docs/environment.md");
    assert_eq!(
        said.matches(r#""service":"productpage""#).count(),
        4,
        "{said}"
    );
    assert_eq!(said.matches(r#""service":"reviews""#).count(), 1, "{said}");
    assert!(said.contains("function FindProxyForURL"), "{said}");
}

#[test]
fn resolution() {
    let said = run("docs/resolution.md");
    for step in [
        "the name productpage.default.svc.cluster.local, in namespace default, port 9080",
        "service default/productpage has port 9080 (http)",
        "session opened",
        "open, to default/productpage-",
        "open, to default/db-0:5432",
        r#""kind": "pods""#,
        r#""service": "default/productpage""#,
        "there is no service default/nosuch",
        "has no TCP port 81",
        "and that did not change within 100ms",
        "www.example.com is a host outside the cluster",
    ] {
        assert!(said.contains(step), "{step}: {said}");
    }
}

/// The second README command: everything the demo prints works when pasted.
#[test]
fn what_the_demo_prints_works_when_pasted() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut demo = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubevpn"));
        demo.args(["demo", "--listen-socks", "127.0.0.1:0"])
            .env_remove("KUBECONFIG");
        let mut proxy = kubevpn_scenarios::Proxy::spawn(demo).await.unwrap();
        proxy.logged(&["Shell: "]).await.unwrap();
        let lines: Vec<String> = proxy
            .log()
            .lines()
            .filter(|l| l.starts_with("  curl "))
            .map(str::to_owned)
            .collect();
        assert!(lines.len() >= 5, "{}", proxy.log());
        for line in lines {
            let refusal = line.contains("notready") || line.contains(":81");
            let output = tokio::process::Command::new("bash")
                .args(["-c", &line])
                .output()
                .await
                .unwrap();
            let code = output.status.code();
            assert_eq!(
                code,
                Some(if refusal { 97 } else { 0 }),
                "{line}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    });
}
