//! One local port for one target.

use std::collections::HashSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::scenario;
use crate::cluster::{client, pods};
use crate::proxy::PATIENCE;
use crate::{Context, Curl, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("forward", several_forwards_and_no_proxy),
        scenario!("forward", a_rolling_restart_costs_only_open_connections),
        scenario!("forward", who_cannot_be_forwarded_is_reset, One),
    ]
}

/// Where the proxy told us to forward each of these.
const TARGETS: [&str; 3] = ["productpage:9080", "multi.default.svc:25", "notready:80"];

async fn several_forwards_and_no_proxy(cx: Context) -> anyhow::Result<()> {
    let forwards = TARGETS.map(|to| format!("--forward=0:{to}"));
    let flags: Vec<_> = forwards.iter().map(String::as_str).collect();
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &flags).await?;
    let web = proxy.forward(TARGETS[0]).await?;
    let answer = Curl::run(&[&format!("http://{web}/")]).await?.json()?;
    anyhow::ensure!(answer["service"] == "productpage", "{answer}");
    // A server that speaks first.
    let mut greeted = TcpStream::connect(proxy.forward(TARGETS[1]).await?).await?;
    let mut said = Vec::new();
    let both_ways = async {
        while !said.ends_with(b"\r\n") {
            said.push(greeted.read_u8().await?);
        }
        greeted.write_all(b"ping").await?;
        let mut back = [0; 4];
        greeted.read_exact(&mut back).await?;
        std::io::Result::Ok(back)
    };
    let back = tokio::time::timeout(PATIENCE, both_ways).await??;
    anyhow::ensure!(said.starts_with(b"220 ") && &back == b"ping", "{said:?}");
    Ok(())
}

/// Every Pod of the Deployment is replaced; the forward's port stays, and the next connection works.
async fn a_rolling_restart_costs_only_open_connections(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let mut proxy = cx
        .proxy(&kubeconfig, &["--forward", "0:productpage:9080"])
        .await?;
    let url = format!("http://{}/", proxy.forward(TARGETS[0]).await?);
    Curl::run(&[&url]).await?.json()?;
    let names = async || -> anyhow::Result<HashSet<String>> {
        let pods = pods(&api, "default", "productpage").await?;
        Ok(pods.into_iter().filter_map(|p| p.metadata.name).collect())
    };
    let old = names().await?;
    let deployments = Api::<Deployment>::namespaced(api.clone(), "default");
    deployments.restart("productpage").await?;
    let replaced = async {
        loop {
            let deployment = deployments.get("productpage").await?;
            let wanted = deployment.spec.and_then(|s| s.replicas).unwrap_or(1);
            let status = deployment.status.unwrap_or_default();
            let rolled = status.updated_replicas == Some(wanted)
                && status.available_replicas == Some(wanted)
                && status.replicas == Some(wanted)
                && status.observed_generation == deployment.metadata.generation;
            if rolled && names().await?.is_disjoint(&old) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced).await??;
    for _ in 0..10 {
        let answer = Curl::run(&[&url]).await?.json()?;
        let pod = answer["hostname"].as_str().unwrap_or_default().to_owned();
        anyhow::ensure!(!old.contains(&pod), "{pod} was replaced: {answer}");
    }
    Ok(())
}

async fn who_cannot_be_forwarded_is_reset(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let mut proxy = cx.proxy(&kubeconfig, &["--forward=0:notready:80"]).await?;
    let addr = proxy.forward(TARGETS[2]).await?;
    // The reset may come before this side has looked at the connection: then connecting fails with it.
    let ended = async { TcpStream::connect(addr).await?.read_u8().await };
    let ended = tokio::time::timeout(PATIENCE, ended).await?;
    let kind = ended.err().map(|error| error.kind());
    anyhow::ensure!(
        kind == Some(std::io::ErrorKind::ConnectionReset),
        "not reset, but {kind:?}"
    );
    proxy.logged(&["frontend=\"forward\"", "not_ready"]).await
}
