//! What the refusal check costs: dials of the engine in this process, without a frontend, with and without it.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use kubevpn_client::{Options, build};
use kubevpn_portforward::{Config, Forwarder, PodPort, PodStream};
use lab::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::client::GET;
use super::{Figure, Measured, Sizes};
use crate::wire::quantile;

/// `reviews`, and a port of it that nothing listens on.
const HTTP: u16 = 9080;
const NOTHING: u16 = 9999;

pub(super) async fn dials(lab: &Lab, sizes: Sizes) -> anyhow::Result<Measured> {
    let count = sizes.sequential / 5;
    let known = Config::default();
    let checked = Config {
        good_for: Duration::ZERO,
        ..known.clone()
    };
    let unchecked = Config {
        fate_wait: Duration::ZERO,
        ..checked.clone()
    };
    let mut figures = Vec::new();
    for (what, config) in [
        ("a port known to be good", known.clone()),
        ("a port not known, with the refusal check", checked),
        ("a port not known, without the refusal check", unchecked),
    ] {
        let engine = DialEngine::new(lab, config).await?;
        engine.get().await.context("warm-up")?;
        let (mut dials, mut gets) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (dial, get) = engine.get().await?;
            dials.push(dial);
            gets.push(get);
        }
        let p50 = quantile(&mut dials, 0.5);
        figures.push(Figure::less(format!("dial to {what}, p50"), "ms", p50));
        let p50 = quantile(&mut gets, 0.5);
        figures.push(Figure::less(
            format!("dial to {what} + GET, p50"),
            "ms",
            p50,
        ));
        engine.forwarder.shutdown().await;
    }
    let engine = DialEngine::new(lab, known).await?;
    engine.get().await.context("warm-up")?;
    let mut refused = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let dialed = engine.dial(NOTHING).await;
        anyhow::ensure!(dialed.is_err(), "a port nothing listens on was dialled");
        refused.push(start.elapsed());
    }
    engine.forwarder.shutdown().await;
    let p50 = quantile(&mut refused, 0.5);
    figures.push(Figure::less(
        "dial to a port nothing listens on, p50",
        "ms",
        p50,
    ));
    let p99 = quantile(&mut refused, 0.99);
    figures.push(Figure::less(
        "dial to a port nothing listens on, p99",
        "ms",
        p99,
    ));
    Ok(Measured::from(figures))
}

struct DialEngine {
    forwarder: Forwarder,
    pod: PodPort,
}

impl DialEngine {
    async fn new(lab: &Lab, config: Config) -> anyhow::Result<Self> {
        let kubeconfig = kube::config::Kubeconfig::read_from(lab.kubeconfig())?;
        let cluster = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        let client = build(cluster, &Options::new("kubevpn-benches"))?;
        let pods = Api::<Pod>::default_namespaced(client.clone());
        let labelled = ListParams::default().labels("app=reviews");
        let pod = pods.list(&labelled).await?.items.pop();
        let pod = pod.context("no Pod behind reviews")?;
        Ok(Self {
            forwarder: Forwarder::new(client, config),
            pod: PodPort {
                namespace: pod.namespace().context("a Pod has a namespace")?,
                pod: pod.name_any(),
                uid: pod.uid(),
                port: HTTP,
            },
        })
    }

    async fn dial(&self, port: u16) -> anyhow::Result<PodStream> {
        let pod = self.pod.clone();
        let to = PodPort { port, ..pod };
        Ok(self.forwarder.clone().oneshot(to).await?)
    }

    /// How long until the dial was through, and until the answer began.
    async fn get(&self) -> anyhow::Result<(Duration, Duration)> {
        let start = Instant::now();
        let mut stream = self.dial(HTTP).await?;
        let dial = start.elapsed();
        stream.write_all(GET).await?;
        anyhow::ensure!(stream.read(&mut [0; 4096]).await? > 0, "no answer");
        Ok((dial, start.elapsed()))
    }
}
