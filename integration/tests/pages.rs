//! The commands of the book (`docs/`) and of the README do what the pages say, as a reader would paste them.
//!
//! A block that begins with ```` ```sh ```` is run, on a cluster in memory. Words after `sh` say what becomes of it: `fails`,
//! each line ends with another code than 0; anything else is the reason why it is not run. Each line of a block
//! ```` ```text output ```` is in what the page's commands have printed; `…` stands for any text, and a space for any number
//! of them, since columns are as wide as what is in them.
#![expect(clippy::print_stdout, reason = "counts, and the page that runs")]

#[path = "pages/links.rs"]
mod links;
#[path = "pages/messages.rs"]
mod messages;
#[path = "pages/picture.rs"]
mod picture;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kubevpn_sim::Sim;
use links::{book, root};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

/// Pages that hold lines for the lab in indented blocks, which are not run; those of the README are typed by `lab -- terminal`.
const OF_THE_LAB: [&str; 13] = [
    "README.md",
    "docs/odd.md",
    "docs/platforms.md",
    "docs/clients.md",
    "docs/compatibility.md",
    "docs/gateway.md",
    "docs/isolated.md",
    "docs/performance.md",
    "docs/performance/resolve-50ms.md",
    "docs/resolution.md",
    "docs/terminal.md",
    "docs/testing.md",
    "docs/vpn.md",
];

/// The languages of blocks that hold no commands. `text` holds usages and what is printed.
const NO_COMMANDS: [&str; 8] = [
    "text",
    "ini",
    "toml",
    "json",
    "yaml",
    "rust",
    "js",
    "dockerfile",
];

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The code blocks of a page: the words behind the fence, none for an indented block, and the text.
fn blocks(page: &str) -> Vec<(Option<String>, String)> {
    let mut blocks = Vec::new();
    let mut inside = false;
    for event in Parser::new(page) {
        match event {
            Event::Start(Tag::CodeBlock(kind)) => {
                inside = true;
                let words = match kind {
                    CodeBlockKind::Fenced(words) => Some(words.to_string()),
                    CodeBlockKind::Indented => None,
                };
                blocks.push((words, String::new()));
            }
            Event::Text(text) if inside => blocks.last_mut().unwrap().1.push_str(&text),
            Event::End(TagEnd::CodeBlock) => inside = false,
            _ => {}
        }
    }
    blocks
}

/// The lines that are commands.
fn commands(block: &str) -> usize {
    let mut continued = false;
    let lines = block.lines().filter(|line| {
        let begins = !continued && !line.trim().is_empty() && !line.starts_with('#');
        continued = line.ends_with('\\');
        begins
    });
    lines.count()
}

/// The blocks that are run, in order, as one script.
fn script(page: &str) -> String {
    let mut script = String::from(
        "set -eu\ntrap '{ kubevpn quit; kill $(jobs -p); } >/dev/null 2>&1 || :' EXIT\n",
    );
    let mut started = 0;
    for (words, block) in blocks(page) {
        let words = words.unwrap_or_default();
        for line in block.lines() {
            match &*words {
                "sh fails" => script.push_str(&format!(
                    "if {line}; then echo 'did not fail: {}'; exit 1; fi\n",
                    line.replace('\'', "")
                )),
                "sh" => script.push_str(&format!("{line}\n")),
                _ => break,
            }
            // A proxy in the background: go on when it has said what it listens on, as a reader would. That ends with the
            // line for a shell, or, of forwards alone, with their lines.
            if line.ends_with('&') {
                started += 1;
                script.push_str(&format!(
                    "until [ \"$(grep -c '^Shell: \\|^Forwarding 127' \"$OUT\")\" = {started} ]; do kill -0 $!; sleep 0.05; done\n"
                ));
            }
        }
    }
    script
}

fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Runs a page's commands against a cluster in memory, in a home of its own, with its ports moved to free ones.
fn run(name: &str) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sim = runtime.block_on(Sim::builder().sample().start()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let kubeconfig = sim.write_kubeconfig(home.path()).unwrap();
    let text = page(name);
    let mut script = script(&text);
    let moved = ["127.0.0.1:1080", "127.0.0.1:3128", "127.0.0.1:8080"].map(|of| (of, free()));
    for (address, free) in &moved {
        script = script.replace(address, free);
    }
    // These have addresses of their own, and others than the configuration file's.
    let [(_, socks), (_, http), _] = &moved;
    let demo = format!("kubevpn demo --listen-socks {socks} &");
    script = script.replace("kubevpn demo &", &demo);
    script = script.replace("connect --http ", &format!("connect --http {http} "));
    for port in ["5300", "15432"] {
        let free = free();
        script = script.replace(&format!("127.0.0.1:{port}"), &free);
        script = script.replace(port, free.rsplit(':').next().unwrap());
    }
    let config = home.path().join(".config/kubevpn");
    std::fs::create_dir_all(&config).unwrap();
    let listener = format!("listen-socks = \"{socks}\"\n");
    std::fs::write(config.join("config.toml"), listener).unwrap();
    // An answer of 400 or more is a failure.
    std::fs::write(home.path().join(".curlrc"), "fail\nsilent\nshow-error\n").unwrap();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_kubevpn"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let out = home.path().join("out");
    let file = std::fs::File::create(&out).unwrap();
    let status = Command::new("bash")
        .args(["-c", &script])
        .env("PATH", path)
        .env("HOME", home.path())
        .env("KUBECONFIG", kubeconfig)
        .env("OUT", &out)
        .env("SHELL", "/bin/bash")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("KUBEVPN_HOME")
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stderr(file.try_clone().unwrap())
        .stdout(file)
        .status()
        .unwrap();
    let mut said = std::fs::read_to_string(&out).unwrap();
    for (address, free) in &moved {
        said = said.replace(free, address);
    }
    assert!(status.success(), "{name} ended with {status}:\n{said}");
    for (words, block) in blocks(&text) {
        if words.as_deref() != Some("text output") {
            continue;
        }
        for line in block.lines() {
            let printed = said.lines().any(|printed| matches(printed, line));
            assert!(printed, "{name}: nobody has printed {line:?}:\n{said}");
        }
    }
    said
}

/// Whether a line is as it stands in the book.
fn matches(printed: &str, line: &str) -> bool {
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let printed = squeezed(printed);
    let mut rest = Some(&*printed);
    for part in line.split('…') {
        rest = rest
            .and_then(|rest| rest.split_once(&squeezed(part)))
            .map(|(_, rest)| rest);
    }
    rest.is_some()
}

#[test]
fn columns_are_as_wide_as_what_is_in_them() {
    assert!(matches(
        "default   web   80(http)   1",
        "default  web  80(http)  …"
    ));
    assert!(matches("a line: here", "line: …"));
    assert!(!matches("default   api   80(http)   1", "default  web  …"));
    assert!(!matches("web default", "default … web"));
}

/// Each block is run, or says why not; each language is one that this test knows.
#[test]
fn every_command_runs_or_says_why_not() {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    let mut not_run = Vec::new();
    for name in book() {
        for (words, block) in blocks(&page(&name)) {
            let Some(words) = words else {
                assert!(
                    OF_THE_LAB.contains(&&*name),
                    "{name}: fence this block:\n{block}"
                );
                *counts.entry("for the lab").or_default() += commands(&block);
                continue;
            };
            let (language, reason) = words.split_once(' ').unwrap_or((&*words, ""));
            match (language, reason) {
                ("sh", "" | "fails") => *counts.entry("run").or_default() += commands(&block),
                ("sh", reason) => {
                    *counts.entry("not run").or_default() += commands(&block);
                    not_run.push(format!("{name}: {reason}"));
                }
                (language, _) => assert!(
                    NO_COMMANDS.contains(&language.split(',').next().unwrap()),
                    "{name}: a block of {words:?}"
                ),
            }
        }
    }
    println!("commands of the book: {counts:?}\n{}", not_run.join("\n"));
    assert!(counts["run"] > 90, "{counts:?}");
}

/// The pages whose output other tests look at.
const ELSEWHERE: [&str; 4] = [
    "docs/proxy-out.md",
    "docs/dns.md",
    "docs/environment.md",
    "docs/resolution.md",
];

#[test]
fn the_commands_of_the_other_pages_work() {
    let mut pages = 0;
    for name in book() {
        let runs = blocks(&page(&name))
            .iter()
            .any(|(words, _)| matches!(words.as_deref(), Some("sh" | "sh fails")));
        if runs && !ELSEWHERE.contains(&&*name) {
            println!("{name}");
            run(&name);
            pages += 1;
        }
    }
    assert!(pages > 5, "{pages}");
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
            // As on a machine without certificates, such as a container.
            .env("SSL_CERT_FILE", "/dev/null")
            .env("SSL_CERT_DIR", "/nonexistent")
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
