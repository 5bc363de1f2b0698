//! Services that are not ready yet, or no longer.

use super::scenario;
use crate::row::Leads::Nowhere;
use crate::row::{check, row};
use crate::space::{Echo, Space, service};
use crate::{Context, Scenario, Socks};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("ready", a_connection_is_held_until_an_endpoint_appears, One),
        scenario!("ready", waiting_ends_with_what_is_missing, One),
    ]
}

async fn a_connection_is_held_until_an_endpoint_appears(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let web = Echo {
        env: &[("GREET_PORTS", "2525")],
        ..Echo::default()
    };
    let port = service("web", "web", "{port: 2525}");
    space
        .create(&(web.workload("Deployment", 0) + &port))
        .await?;
    let flags = [&space.flags()[..], &["--wait-ready", "60s", "-v"]].concat();
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &flags).await?;
    let socks = proxy.socks;
    let held = tokio::spawn(async move { Socks::who(socks, "web", 2525).await });
    proxy
        .logged(&["web port 2525 has no ready endpoint", "waiting"])
        .await?;
    anyhow::ensure!(!held.is_finished(), "it was not held");
    space.scale("web", 1).await?;
    let pods = space.ready("web", 1).await?;
    let answered = held.await??;
    anyhow::ensure!(
        answered == pods[0],
        "answered by {answered}, not by {pods:?}"
    );
    Ok(())
}

async fn waiting_ends_with_what_is_missing(cx: Context) -> anyhow::Result<()> {
    let flags = ["--wait-ready", "300ms"];
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &flags).await?;
    let unready = [
        "default/notready port 80 has no ready endpoint: 1 exists: 1 not ready",
        "did not change within 300ms",
    ];
    let empty = [
        "default/empty port 80 has no ready endpoint: no running pod matches its selector",
        "did not change within 300ms",
    ];
    check(
        &mut proxy,
        &[
            row("notready:80", Nowhere(6, &unready)),
            row("empty:80", Nowhere(6, &empty)),
            // What no waiting helps is said at once.
            row("manual:80", Nowhere(3, &["manual", "198.51.100.55"])),
        ],
    )
    .await
}
