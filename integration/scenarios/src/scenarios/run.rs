//! `kubevpn run`: programs that find their proxy in the environment.

use std::process::Output;

use tokio::process::Command;

use super::scenario;
use crate::{Context, Scenario, run_to_end};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("run", curl),
        scenario!("run", kubectl, One, &["kubectl", "--help"]),
        scenario!("run", python, One, &["python3", "--version"]),
        scenario!("run", node, One, NODE),
        scenario!("run", java, One, &["java", "-version"]),
        scenario!("run", go, One, &["go", "version"]),
    ]
}

/// Node reads the environment since version 24.
const NODE: &[&str] = &[
    "node",
    "-e",
    "if (parseInt(process.versions.node) < 24) throw process.version + ' has no NODE_USE_ENV_PROXY'",
];

/// Runs words behind `kubevpn run --`, in a directory.
async fn run(cx: &Context, words: &[&str]) -> anyhow::Result<Output> {
    let kubeconfig = cx.cluster.kubeconfig();
    let kubeconfig = kubeconfig.to_string_lossy();
    let mut args = vec!["run", "--kubeconfig", &*kubeconfig];
    args.extend(&cx.flags);
    args.push("--");
    args.extend(words);
    run_to_end(&cx.kubevpn, args, &[("KUBECONFIG", &*kubeconfig)]).await
}

/// It ends well and prints an answer of this Service.
async fn answers(cx: &Context, words: &[&str], service: &str) -> anyhow::Result<()> {
    let Output {
        status,
        stdout,
        stderr,
    } = run(cx, words).await?;
    let said = String::from_utf8_lossy(&stdout);
    let wanted = format!(r#""service":"{service}""#);
    anyhow::ensure!(
        status.success() && said.contains(&wanted),
        "{words:?} ended with {status}: {said}{}",
        String::from_utf8_lossy(&stderr)
    );
    Ok(())
}

async fn curl(cx: Context) -> anyhow::Result<()> {
    answers(
        &cx,
        &["curl", "-sS", "http://productpage:9080/"],
        "productpage",
    )
    .await?;
    // From ALL_PROXY alone.
    let socks = "unset http_proxy HTTP_PROXY; exec curl -sS http://reviews.default/";
    answers(&cx, &["sh", "-c", socks], "reviews").await?;
    Ok(())
}

/// Reaches the API server as before, not through the proxy.
async fn kubectl(cx: Context) -> anyhow::Result<()> {
    let words = ["kubectl", "get", "service", "productpage", "-o", "name"];
    let output = run(&cx, &words).await?;
    anyhow::ensure!(
        output.stdout == b"service/productpage\n",
        "kubectl beside the proxy: {output:?}"
    );
    Ok(())
}

async fn python(cx: Context) -> anyhow::Result<()> {
    let program =
        "import urllib.request as r; print(r.urlopen('http://productpage:9080/').read().decode())";
    answers(&cx, &["python3", "-c", program], "productpage").await
}

async fn node(cx: Context) -> anyhow::Result<()> {
    let program = "fetch('http://productpage:9080/').then(r => r.text()).then(console.log)";
    answers(&cx, &["node", "-e", program], "productpage").await
}

async fn java(cx: Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("Get.java");
    std::fs::write(
        &source,
        r#"
import java.net.*;
import java.net.http.*;

public class Get {
    public static void main(String[] args) throws Exception {
        try (var old = new URL("http://reviews.default/").openStream()) {
            if (old.readAllBytes().length == 0) throw new Exception("empty");
        }
        var request = HttpRequest.newBuilder(URI.create("http://productpage:9080/")).build();
        var client = HttpClient.newHttpClient();
        System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"#,
    )?;
    answers(&cx, &["java", &source.to_string_lossy()], "productpage").await
}

async fn go(cx: Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("get.go");
    std::fs::write(
        &source,
        r#"package main

import (
	"io"
	"net/http"
	"os"
)

func main() {
	answer, err := http.Get("http://productpage:9080/")
	if err != nil {
		panic(err)
	}
	io.Copy(os.Stdout, answer.Body)
}
"#,
    )?;
    let program = dir.path().join("get");
    let mut build = Command::new("go");
    // Nothing is fetched: the standard library alone, which takes minutes on an empty cache.
    build
        .args(["build", "-o"])
        .args([&program, &source])
        .envs([("GOFLAGS", "-mod=mod"), ("GOPROXY", "off")]);
    let built = build.output().await?;
    anyhow::ensure!(built.status.success(), "go build: {built:?}");
    answers(&cx, &[&program.to_string_lossy()], "productpage").await
}
