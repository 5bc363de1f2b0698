//! Forwards a port of a Pod, or dials it once from the terminal.
//!
//! ```text
//! cargo run -p kubevpn-portforward --example forward -- default/web-0:8080            # stdin and stdout
//! cargo run -p kubevpn-portforward --example forward -- default/web-0:8080 --listen 127.0.0.1:8080
//! cargo run -p kubevpn-portforward --example forward -- default/web-0:8080 --transport spdy-ws
//! ```
//!
//! The kubeconfig is found as kubectl finds it. At the end it prints what the pool did on standard error.

use anyhow::{Context as _, Result, bail};
use kubevpn_client::{Env, KubeconfigArgs, Options, build, load};
use kubevpn_portforward::{Config, Forwarder, PodPort};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, join, split, stdin, stdout};
use tokio::net::TcpListener;
use tower::ServiceExt;

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let (mut to, mut listen, mut config) = (None, None, Config::default());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match &*arg {
            "--listen" => listen = Some(value()?),
            "--transport" => config.transport = value()?.parse()?,
            pod => to = Some(parse(pod)?),
        }
    }
    let to = to.context("which namespace/pod:port?")?;
    let loaded = load(&KubeconfigArgs::default(), &Env::of_process())?;
    let client = build(loaded.config, &Options::new("kubevpn-example"))?;
    let forwarder = Forwarder::new(client, config);
    match listen {
        None => {
            let local = join(stdin(), stdout());
            serve(local, to, forwarder.clone()).await?;
        }
        Some(address) => {
            let listener = TcpListener::bind(address).await?;
            say(&format!("listening on {}", listener.local_addr()?)).await;
            loop {
                let local = tokio::select! {
                    accepted = listener.accept() => accepted?.0,
                    interrupted = tokio::signal::ctrl_c() => break interrupted?,
                };
                local.set_nodelay(true)?;
                let (to, forwarder) = (to.clone(), forwarder.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve(local, to, forwarder).await {
                        say(&format!("{error:#}")).await;
                    }
                });
            }
        }
    }
    say(&format!("{:#?}", forwarder.stats())).await;
    forwarder.shutdown().await;
    Ok(())
}

/// Dials, and copies both ways; each direction ends on its own.
async fn serve(
    local: impl AsyncRead + AsyncWrite + Unpin,
    to: PodPort,
    forwarder: Forwarder,
) -> Result<()> {
    let stream = forwarder.oneshot(to).await?;
    let (mut local_read, mut local_write) = split(local);
    let (mut pod_read, mut pod_write) = split(stream);
    let out = async {
        copy(&mut local_read, &mut pod_write).await?;
        pod_write.shutdown().await
    };
    let back = async {
        copy(&mut pod_read, &mut local_write).await?;
        local_write.shutdown().await
    };
    // An error in one direction ends both.
    tokio::try_join!(out, back)?;
    Ok(())
}

fn parse(text: &str) -> Result<PodPort> {
    let Some((pod, port)) = text.rsplit_once(':') else {
        bail!("{text}: no port");
    };
    let Some((namespace, pod)) = pod.split_once('/') else {
        bail!("{text}: no namespace");
    };
    Ok(PodPort {
        namespace: namespace.into(),
        pod: pod.into(),
        uid: None,
        port: port.parse()?,
    })
}

async fn say(line: &str) {
    // A terminal that is gone is no reason to stop.
    let _ = tokio::io::stderr()
        .write_all(format!("{line}\n").as_bytes())
        .await;
}
