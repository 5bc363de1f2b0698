//! `kubevpn resolve`: the steps, the document, and the exit code of each refusal.

use std::path::Path;

use serde_json::Value;

use super::scenario;
use crate::account::kubeconfig;
use crate::{Context, Scenario, run_to_end};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("explain", every_step_has_a_line, One),
        scenario!("explain", what_is_found_is_in_the_document, One),
        scenario!("explain", each_refusal_has_its_exit_code, One),
    ]
}

/// The exit code of `kubevpn resolve TARGET -o json`, and its document.
pub(crate) async fn explain(
    cx: &Context,
    kubeconfig: &Path,
    flags: &[&str],
    target: &str,
) -> anyhow::Result<(i32, Value)> {
    let path = kubeconfig.to_str().unwrap_or_default();
    let args = [
        &["resolve", target, "-o", "json", "--kubeconfig", path],
        flags,
    ]
    .concat();
    let ended = run_to_end(&cx.kubevpn, args, &[]).await?;
    let code = ended.status.code().unwrap_or(-1);
    let document = serde_json::from_slice(&ended.stdout).map_err(|error| {
        let said = String::from_utf8_lossy(&ended.stderr);
        anyhow::anyhow!("{target} ended with {code} and no document ({error}): {said}")
    })?;
    Ok((code, document))
}

async fn every_step_has_a_line(cx: Context) -> anyhow::Result<()> {
    let path = cx.cluster.kubeconfig();
    let path = path.to_str().unwrap_or_default();
    let args = ["resolve", "multi:25", "--kubeconfig", path];
    let ended = run_to_end(&cx.kubevpn, args, &[]).await?;
    let said = String::from_utf8_lossy(&ended.stdout);
    anyhow::ensure!(
        ended.status.success(),
        "ended with {}: {said}",
        ended.status
    );
    let mut lines = said.lines();
    // In this order, each with its time.
    for (by, words) in [
        ("parse", "the name multi, in namespace default, port 25"),
        ("resolve", "service default/multi has port 25 (greet)"),
        (
            "resolve",
            "service default/multi port 25 has default/multi-",
        ),
        ("found", "service default/multi port 25: 1 of 1 endpoints"),
        ("dial", "dialing to=default/multi-"),
        ("session", ""),
        ("stream", "open, to default/multi-"),
        ("byte", "the first one is here"),
    ] {
        let found = lines.find(|line| {
            let (at, rest) = line.split_once(" ms  ").unwrap_or_default();
            let timed = at.trim().parse::<f64>().is_ok();
            timed && rest.starts_with(by) && rest.contains(words)
        });
        anyhow::ensure!(
            found.is_some(),
            "no line of {by} with {words:?} in its place:\n{said}"
        );
    }
    Ok(())
}

async fn what_is_found_is_in_the_document(cx: Context) -> anyhow::Result<()> {
    let path = cx.cluster.kubeconfig();
    let (code, pods) = explain(&cx, &path, &[], "productpage:2525").await?;
    anyhow::ensure!(
        code == 50 && pods["refusal"]["class"] == "no_such_port",
        "{pods}"
    );
    let (code, pods) = explain(&cx, &path, &[], "productpage:9080").await?;
    let endpoints = pods["endpoints"].as_array().cloned().unwrap_or_default();
    let each = |e: &Value| {
        let pod = e["pod"].as_str().unwrap_or_default();
        let addresses = e["addresses"].as_array().map_or(0, Vec::len);
        pod.starts_with("default/productpage-")
            && e["port"] == 9080
            && e["readiness"] == "ready"
            && addresses == 1
    };
    let to = pods["via"]["to"].as_str().unwrap_or_default();
    anyhow::ensure!(
        code == 0
            && pods["target"] == "productpage:9080"
            && pods["kind"] == "pods"
            && pods["service"] == "default/productpage"
            && endpoints.len() == 2
            && endpoints.iter().all(each)
            && to.starts_with("default/productpage-")
            && pods["via"]["transport"].is_string()
            && pods["firstByteMs"].is_null()
            && pods["steps"].as_array().is_some_and(|s| s.len() > 5),
        "{pods}"
    );
    let (code, greeted) = explain(&cx, &path, &[], "multi:25").await?;
    anyhow::ensure!(code == 0 && greeted["firstByteMs"].is_number(), "{greeted}");
    // Without a port nothing is dialled.
    let (code, named) = explain(&cx, &path, &[], "db-0.db").await?;
    let endpoint = &named["endpoints"][0];
    anyhow::ensure!(
        code == 0
            && endpoint["pod"] == "default/db-0"
            && endpoint["port"].is_null()
            && named["via"].is_null(),
        "{named}"
    );
    let (code, server) = explain(&cx, &path, &[], "kubernetes.default.svc:443").await?;
    anyhow::ensure!(code == 0 && server["kind"] == "api-server", "{server}");
    let (code, stray) = explain(&cx, &path, &[], "manual:80").await?;
    anyhow::ensure!(
        code == 1 && stray["endpoints"][0]["notAPod"].is_string(),
        "{stray}"
    );
    let (code, outside) = explain(&cx, &path, &[], "external:80").await?;
    anyhow::ensure!(
        code == 31
            && outside["kind"] == "outside"
            && outside["to"][0] == "outside.example.test."
            && outside["learnedFrom"] == "service default/external",
        "{outside}"
    );
    Ok(())
}

async fn each_refusal_has_its_exit_code(cx: Context) -> anyhow::Result<()> {
    let admin = cx.cluster.kubeconfig();
    let viewer = cx.cluster.viewer_kubeconfig();
    let stale = kubeconfig(&admin, "default", "revoked")?;
    let mut away = kube::config::Kubeconfig::read_from(&admin)?;
    // A port that was free a moment ago, on loopback.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await?
        .local_addr()?;
    for cluster in away.clusters.iter_mut().filter_map(|c| c.cluster.as_mut()) {
        cluster.server = Some(format!("https://{closed}"));
    }
    let file = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(&file, &away)?;
    let mut wrong = Vec::new();
    for (kubeconfig, target, flags, code, class) in [
        (&*admin, "nosuch:80", &[][..], 50, "name_not_found"),
        (&admin, "productpage:81", &[], 50, "no_such_port"),
        (&admin, "notready:80", &[], 43, "not_ready"),
        (&admin, "multi:9999", &[], 1, "refused"),
        (&admin, "manual:80", &[], 1, "unreachable"),
        (&admin, "www.example.test:443", &[], 31, "denied"),
        (&viewer, "productpage:9080", &[], 31, "forbidden"),
        (
            &admin,
            "notready:80",
            &["--wait-ready", "100ms"],
            42,
            "timed_out",
        ),
        (&stale, "productpage:9080", &[], 32, "unauthenticated"),
        (file.path(), "productpage:9080", &[], 40, "cluster_away"),
    ] {
        let (ended, document) = explain(&cx, kubeconfig, flags, target).await?;
        let refusal = &document["refusal"];
        let sentence = refusal["sentence"].as_str().unwrap_or_default();
        if ended != code || refusal["class"] != class || sentence.is_empty() {
            wrong.push(format!(
                "{target} {flags:?} should end with {code} {class}, not {ended}: {refusal}"
            ));
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
