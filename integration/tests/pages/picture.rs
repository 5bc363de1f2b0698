//! The picture of a terminal in the README: what the demo and curl print, drawn.
//!
//!     cargo test -p kubevpn --test pages -- --ignored picture

use std::fmt::Write as _;

use kubevpn_scenarios::Proxy;

use crate::links::root;

/// Columns of the picture.
const WIDTH: usize = 96;
const LINE: usize = 20;

struct Terminal(Vec<(&'static str, String)>);

impl Terminal {
    fn typed(&mut self, line: &str) {
        self.0.push(("typed", format!("$ {line}")));
    }

    /// Longer lines go on below, as on a terminal.
    fn said(&mut self, text: &str) {
        for line in text.lines() {
            let letters: Vec<char> = line.chars().collect();
            let rows = letters
                .chunks(WIDTH)
                .map(|row| ("said", row.iter().collect()));
            self.0.extend(rows);
        }
    }

    fn gap(&mut self) {
        self.0.push(("said", String::new()));
    }

    fn svg(&self) -> String {
        let width = 24 + WIDTH * 84 / 10;
        let height = 56 + self.0.len() * LINE;
        let mut svg = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" font-family="ui-monospace, SFMono-Regular, Menlo, 'DejaVu Sans Mono', monospace" font-size="14">
<title>kubevpn demo in one terminal, and curl in another</title>
<style>.said {{ fill: #c9d4df; }} .typed {{ fill: #ffffff; font-weight: 600; }}</style>
<rect width="{width}" height="{height}" rx="8" fill="#161c24"/>
<circle cx="20" cy="18" r="6" fill="#e0635b"/><circle cx="40" cy="18" r="6" fill="#e0b34f"/><circle cx="60" cy="18" r="6" fill="#5fb768"/>
"##
        );
        for (n, (class, line)) in self.0.iter().enumerate() {
            let text = line
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;");
            let y = 52 + n * LINE;
            let _ = writeln!(
                svg,
                r#"<text class="{class}" x="14" y="{y}" xml:space="preserve">{text}</text>"#
            );
        }
        svg + "</svg>\n"
    }
}

#[test]
#[ignore = "writes docs/demo.svg"]
fn picture() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut demo = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubevpn"));
        demo.args(["demo", "--listen-socks", "127.0.0.1:0"])
            .env("SHELL", "/bin/bash")
            .env_remove("KUBECONFIG");
        let mut proxy = Proxy::spawn(demo).await.unwrap();
        proxy.logged(&["Shell: "]).await.unwrap();
        let socks = proxy.socks.to_string();
        let port = |text: &str| text.replace(&socks, "127.0.0.1:1080");
        let said = proxy.log();
        let mut terminal = Terminal(Vec::new());
        terminal.typed("kubevpn demo");
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| !line.contains("notready") && !line.contains("bytes?"))
            .collect();
        terminal.said(&port(&lines.join("\n")));
        for url in ["http://productpage.default:9080", "http://productpage:81"] {
            terminal.gap();
            terminal.typed(&format!("curl --proxy socks5h://127.0.0.1:1080 {url}"));
            let mut curl = tokio::process::Command::new("curl");
            curl.args(["-sS", "--proxy", &format!("socks5h://{}", proxy.socks), url]);
            let output = curl.output().await.unwrap();
            terminal.said(String::from_utf8_lossy(&output.stdout).trim_end());
            terminal.said(&port(String::from_utf8_lossy(&output.stderr).trim_end()));
        }
        let before = said.len();
        proxy.logged(&["has no TCP port 81"]).await.unwrap();
        terminal.gap();
        terminal
            .0
            .push(("typed", "and the first terminal:".to_owned()));
        let log = proxy.log();
        let reasons = log[before..]
            .lines()
            .filter(|line| line.contains("no TCP port 81"));
        terminal.said(&port(&reasons.collect::<Vec<_>>().join("\n")));
        std::fs::write(root().join("docs/demo.svg"), terminal.svg()).unwrap();
    });
}
