//! Craft of the command line: completion, the configuration file, manual pages, the name under kubectl, and long waits.

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use kubevpn_scenarios::{Curl, Proxy, run_to_end};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

#[cfg(target_os = "linux")]
use crate::terminal::Terminal;
use crate::{Files, Rig, kubevpn, run};

/// What a shell is told; standard error is not looked at by shells, and is empty all the same.
async fn candidates(shell: &str, words: &[&str], environment: &[(&str, &str)]) -> String {
    let words = [&["--", "kubevpn"], words].concat();
    let index = (words.len() - 2).to_string();
    let environment = [
        &[
            // However busy this machine is.
            ("KUBEVPN_COMPLETE_WITHIN", "60s"),
            ("KUBEVPN_COMPLETE", shell),
            ("_CLAP_COMPLETE_INDEX", &index),
            ("_CLAP_IFS", "\n"),
        ],
        environment,
    ]
    .concat();
    let output = run_to_end(kubevpn(), words, &environment).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn names_of_the_cluster_are_completed() {
    let rig = Rig::start().await;
    let environment = [
        ("KUBECONFIG", &*rig.kubeconfig),
        ("KUBEVPN_HOME", "/nonexistent/kubevpn"),
    ];
    for (words, wanted) in [
        (&["port-f"][..], &["port-forward"][..]),
        (&["services", "--context", "s"], &["sim"]),
        (&["services", "--cluster", ""], &["sim"]),
        (&["services", "-n", "team"], &["team-a"]),
        (&["nc", "product"], &["productpage"]),
        (&["nc", "api.t"], &["api.team-a"]),
        (&["nc", "-n", "team-a", "a"], &["api"]),
        (&["nc", "productpage", ""], &["9080"]),
        (&["resolve", "reviews:"], &["reviews:80"]),
        (&["open", "produ"], &["productpage"]),
        (&["port-forward", "svc/prod"], &["svc/productpage"]),
        (&["port-forward", "svc/productpage", ""], &["9080"]),
        (&["run", "--forward", "9080:p"], &["9080:productpage:9080"]),
        (&["run", "--", "tru"], &["true"]),
        (&["proxy-out", "--outside", ""], &["deny", "direct"]),
        (&["nc", "nosuch"], &[]),
        // No daemon is started for it.
        (&["disconnect", "0"], &[]),
    ] {
        let said = candidates("fish", words, &environment).await;
        let values = said.lines().map(|line| line.split('\t').next().unwrap());
        let found: Vec<_> = values.collect();
        match wanted {
            ["true"] => assert!(found.contains(&"true"), "{words:?}: {said}"),
            wanted => assert_eq!(found, wanted, "{words:?}"),
        }
    }
}

/// bash breaks words at colons, and replaces what is behind the last one.
#[tokio::test]
async fn each_shell_is_told_in_its_way() {
    let rig = Rig::start().await;
    let environment = [("KUBECONFIG", &*rig.kubeconfig)];
    let broken = ["resolve", "productpage", ":", ""];
    assert_eq!(candidates("bash", &broken, &environment).await, "9080\n");
    let broken = ["services", "--context", "=", "s"];
    assert_eq!(candidates("bash", &broken, &environment).await, "sim\n");
    let words = ["resolve", "productpage:"];
    let zsh = candidates("zsh", &words, &environment).await;
    assert_eq!(zsh, "productpage\\:9080:http");
    let powershell = candidates("powershell", &words, &environment).await;
    assert_eq!(powershell, "productpage:9080\thttp\n");
    assert_eq!(candidates("nosuch", &words, &environment).await, "");
}

/// The scripts are what their shells can read, and call this very program.
#[tokio::test]
async fn scripts_are_read_by_their_shells() {
    for (shell, words) in [
        ("bash", &["complete -o nosort -F _kubevpn kubevpn"][..]),
        ("zsh", &["#compdef kubevpn", "compdef "]),
        (
            "fish",
            &["complete --keep-order --exclusive --command kubevpn"],
        ),
        (
            "powershell",
            &["Register-ArgumentCompleter -Native -CommandName kubevpn"],
        ),
        ("elvish", &["edit:completion:arg-completer[kubevpn]"]),
    ] {
        let said = run(&["completion", shell], &[]).await;
        let own = kubevpn().display().to_string();
        let words = [words, &["KUBEVPN_COMPLETE", &own]].concat();
        said.with(0, &words);
    }
    let script = run(&["completion", "bash"], &[]).await.said;
    let mut bash = Command::new("bash");
    let loaded = bash.args(["--norc", "-c", &format!("{script}\ncomplete -p kubevpn")]);
    let loaded = loaded.output().await.unwrap();
    assert!(loaded.status.success(), "{loaded:?}");
    assert_eq!(loaded.stderr, b"");
}

/// A server that takes connections and says nothing; an address that nothing listens on; no kubeconfig; a broken one.
#[tokio::test]
async fn without_a_cluster_completion_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap();
    drop(free);
    let files = Files::new();
    let of = |server: &dyn std::fmt::Display| {
        format!(
            "{{current-context: a, contexts: [{{name: a, context: {{cluster: a}}}}], clusters: [{{name: a, cluster: {{server: 'https://{server}'}}}}]}}"
        )
    };
    for kubeconfig in [
        files.write("silent", &of(&silent.local_addr().unwrap())),
        files.write("nobody", &of(&nobody)),
        files.write("broken", "{"),
        "/nonexistent/config".to_owned(),
    ] {
        let environment = [
            ("KUBECONFIG", &*kubeconfig),
            ("KUBEVPN_COMPLETE_WITHIN", ""),
        ];
        for words in [&["nc", "prod"][..], &["services", "-n", "d"]] {
            let said = candidates("bash", words, &environment).await;
            assert_eq!(said, "", "{words:?} with {kubeconfig}");
        }
    }
}

#[tokio::test]
async fn a_name_under_kubectl() {
    let rig = Rig::start().await;
    let dir = tempfile::tempdir().unwrap();
    let [plugin, complete] = ["kubectl-kubevpn", "kubectl_complete-kubevpn"].map(|name| {
        let path = dir.path().join(name);
        symlink(kubevpn(), &path).unwrap();
        path
    });
    let output = run_to_end(&plugin, ["run", "--help"], &[]).await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("Usage: kubectl kubevpn run "), "{help}");
    assert!(help.contains("\n  kubectl kubevpn run -- curl"), "{help}");
    let environment = [
        ("KUBECONFIG", &*rig.kubeconfig),
        ("KUBEVPN_COMPLETE_WITHIN", "60s"),
    ];
    let output = run_to_end(&complete, ["nc", "produ"], &environment);
    let output = output.await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "productpage\tport 9080\n:4\n"
    );
}

#[tokio::test]
async fn defaults_are_in_a_file() {
    let rig = Rig::start().await;
    let config = |text: &str| rig.files.write("config.toml", text);
    // The address of a listener, and a namespace.
    let path =
        config("listen-http = '127.0.0.1:0'\nlisten-socks = '127.0.0.1:0'\nnamespace = 'team-a'\n");
    let mut command = Command::new(kubevpn());
    command
        .args(["proxy-out", "--kubeconfig", &rig.kubeconfig])
        .env("KUBEVPN_CONFIG", &path);
    let mut proxy = Proxy::spawn(command).await.unwrap();
    for said in ["HTTP proxy listening on", "namespace team-a"] {
        proxy.logged(&[said]).await.unwrap();
    }
    let answer = Curl::get(proxy.socks, "http://api/").await.unwrap();
    assert_eq!(answer.json().unwrap()["service"], "api");
    // A flag overrides it.
    let environment = [("KUBEVPN_CONFIG", &*path), ("KUBECONFIG", &*rig.kubeconfig)];
    let listed = run(&["services", "-o", "name"], &environment).await;
    listed.with(0, &["service/api"]);
    let listed = run(&["services", "-n", "default", "-o", "name"], &environment).await;
    listed.with(0, &["service/productpage"]);
    // So does the environment.
    config("kubeconfig = '/nonexistent/config'\nnamespace = 'team-a'\n");
    run(&["config", "view"], &environment).await.with(
        0,
        &[
            "# kubeconfig = \"/nonexistent/config\" # overridden by the environment\n",
            "\nnamespace = \"team-a\"\n",
        ],
    );
    run(&["services"], &environment).await.with(0, &["api"]);
    let path_said = run(&["config", "path"], &environment).await.said;
    assert_eq!(path_said, format!("{path}\n"));
    // A proxy that is named has flags of its own: those of the file are no mistake.
    config("outside = 'direct'\n");
    let words = ["run", "--use-http", "127.0.0.1:1", "--", "true"];
    run(&words, &environment).await.with(0, &[]);
}

#[tokio::test]
async fn mistakes_in_the_file_are_named() {
    let files = Files::new();
    for (text, words) in [
        (
            "\ncontxt = 'a'",
            &[
                ", line 2: unknown field `contxt`, expected one of",
                "`context`",
            ][..],
        ),
        (
            "outside = 'maybe'",
            &["invalid value 'maybe' for '--outside", "deny, direct"],
        ),
        (
            "wait-ready = 'soon'",
            &["invalid value 'soon' for '--wait-ready"],
        ),
        ("max-connections = 0", &["--max-connections", "at least 1"]),
    ] {
        let path = files.write("config.toml", text);
        let environment = [("KUBEVPN_CONFIG", &*path)];
        let words = [&["error: ", &path][..], words].concat();
        run(&["status"], &environment).await.with(23, &words);
        run(&["config", "view"], &environment)
            .await
            .with(23, &words);
        // What helps to mend it goes on.
        run(&["config", "path"], &environment).await.with(0, &[]);
        run(&["status", "--help"], &environment).await.with(0, &[]);
    }
    let missing = [("KUBEVPN_CONFIG", "/nonexistent/config.toml")];
    let said = run(&["status"], &missing).await;
    said.with(1, &["cannot read /nonexistent/config.toml"]);
}

#[tokio::test]
async fn manual_pages() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().to_str().unwrap();
    run(&["man", to], &[]).await.with(0, &[]);
    let names: Vec<_> = std::fs::read_dir(to)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in ["kubevpn.1", "kubevpn-run.1", "kubevpn-proxy-out.1"] {
        assert!(names.iter().any(|it| it == name), "{name} in {names:?}");
        let page = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    run(&["man"], &[]).await.with(0, &[".TH kubevpn 1"]);
    run(&["man", "/nonexistent/dir"], &[])
        .await
        .with(1, &["cannot write to /nonexistent/dir"]);
}

/// On a terminal a wait is shown after a second, with what is waited for, and leaves no trace.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn long_waits_are_shown_on_a_terminal() {
    let rig = Rig::start().await;
    let line = format!(
        "'{}' nc notready 80 --wait-ready 3s --kubeconfig '{}'",
        kubevpn().display(),
        rig.kubeconfig
    );
    let (said, code) = Terminal::start(&line).ended().await;
    let (_, after) = said
        .split_once("\r\u{1b}[Kwaiting for notready:80 (1 s)")
        .unwrap_or_else(|| panic!("{said:?}"));
    let (_, last) = after.rsplit_once("\r\u{1b}[K").unwrap();
    assert!(last.contains("error: "), "{said:?}");
    assert!(!last.contains("waiting"), "{said:?}");
    assert_eq!(code, Some(42));
    // Nobody looks at a pipe.
    let words = ["nc", "notready", "80", "--wait-ready", "1500ms"];
    let said = run(&words, &[("KUBECONFIG", &*rig.kubeconfig)]).await;
    assert!(!said.said.contains("waiting"), "{}", said.said);
}

/// The live line of a proxy tells of a connection that waits for its Pod; the end, of connections that are still open.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn waits_of_a_proxy_are_shown_on_a_terminal() {
    let rig = Rig::start().await;
    let line = format!(
        "'{}' proxy-out --listen 127.0.0.1:0 --wait-ready 5m --drain 1500ms --kubeconfig '{}'",
        kubevpn().display(),
        rig.kubeconfig
    );
    let mut terminal = Terminal::start(&line);
    let said = terminal.until("Shell: ").await;
    let at = said.lines().next().unwrap().rsplit(' ').next().unwrap();
    let proxy = format!("http://{at}");
    let mut client = Command::new("curl");
    let client = client.args(["-s", "--proxy", &proxy, "http://notready/"]);
    let _client = client.kill_on_drop(true).spawn().unwrap();
    terminal
        .until("\r\u{1b}[K1 connection open, 0 B/s; waiting for notready:80 (1 s)")
        .await;
    terminal.interrupt().await;
    terminal
        .until("waiting up to 1s 500ms for 1 open connection to finish; Ctrl-C again ends at once")
        .await;
    let (said, code) = terminal.ended().await;
    assert!(
        said.contains("\r\u{1b}[Kwaiting for open connections to finish (1 s)"),
        "{said:?}"
    );
    // Whatever was said above it, nothing of it is left.
    assert!(said.ends_with("\r\u{1b}[K"), "{said:?}");
    assert_eq!(code, Some(130));
}

/// What is nearly there, or in another namespace, is in the refusals of a proxy.
#[tokio::test]
async fn proxies_suggest_names() {
    let rig = Rig::start().await;
    let mut command = Command::new(kubevpn());
    command.args(["proxy-out", "--kubeconfig", &rig.kubeconfig]);
    command.args(["--listen", "127.0.0.1:0"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let mut stdout = child.stdout.take().unwrap();
    while !String::from_utf8_lossy(&said).contains("Shell: ") {
        assert!(stdout.read_buf(&mut said).await.unwrap() > 0, "{said:?}");
    }
    let said = String::from_utf8_lossy(&said);
    let at = said.lines().next().unwrap().rsplit(' ').next().unwrap();
    let proxy = format!("http://{at}");
    for (url, words) in [
        (
            "http://api/",
            "a Service api is in team-a: ask for api.team-a",
        ),
        ("http://productpge:9080/", "did you mean productpage?"),
        ("http://api.team-b/", "did you mean api.team-a?"),
    ] {
        let mut curl = Command::new("curl");
        let asked = curl.args(["-sS", "--proxy", &proxy, url]).output().await;
        let answer = String::from_utf8_lossy(&asked.unwrap().stdout).into_owned();
        assert!(answer.contains(words), "{url}: {answer}");
    }
}
