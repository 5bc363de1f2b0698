//! Addresses of Services and of Pods, and the names that are made of them.

use serde_json::json;

use super::scenario;
use crate::cluster::cluster_ips;
use crate::row::Leads::{Nowhere, To, ToPod};
use crate::row::{check, row};
use crate::scenarios::explain::explain;
use crate::space::{Echo, Space, service_with};
use crate::{Context, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("targets", addresses_of_a_service, One),
        scenario!("targets", addresses_and_names_of_a_pod, One),
        scenario!("targets", pods_that_share_the_nodes_address, One),
        scenario!("targets", pods_with_ipv6_addresses, One),
    ]
}

/// Every ClusterIP, externalIPs, and what a load balancer gave; of Services that share one, the one with the port.
async fn addresses_of_a_service(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let port = "{port: 80, targetPort: 8080}";
    let external =
        "type: LoadBalancer, ipFamilyPolicy: PreferDualStack, externalIPs: [198.51.100.61]";
    space
        .create(&(Echo::default().pod() + &service_with("web", "web", port, external)))
        .await?;
    let admin = Echo {
        name: "admin",
        app: "admin",
        ..Echo::default()
    };
    let port = "{port: 8443, targetPort: 8080}";
    let external = "externalIPs: [198.51.100.61]";
    space
        .create(&(admin.pod() + &service_with("admin", "admin", port, external)))
        .await?;
    let given = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.62"}]}});
    space.set_status("web", given).await?;
    space.ready("web", 1).await?;
    space.ready("admin", 1).await?;
    let ips = cluster_ips(&space.api, &space.name, "web").await?;
    anyhow::ensure!(ips.len() == 2, "not of both families: {ips:?}");
    let mut rows = vec![
        row("198.51.100.61:80", To("web")),
        row("198.51.100.61:8443", To("admin")),
        row("198.51.100.62:80", To("web")),
        row("198.51.100.62:81", Nowhere(5, &["web has no TCP port 81"])),
        row(
            "198.51.100.63:80",
            Nowhere(2, &["198.51.100.63", "outside"]),
        ),
    ];
    for ip in &ips {
        let host = in_url(ip);
        rows.push(row(format!("{host}:80"), To("web")));
        rows.push(row(
            format!("{host}:8080"),
            Nowhere(5, &["web has no TCP port 8080", "it has 80"]),
        ));
    }
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    check(&mut proxy, &rows).await
}

async fn addresses_and_names_of_a_pod(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let ns = &space.name;
    let headless = service_with("peers", "web", "{port: 80}", "clusterIP: None");
    space.create(&(Echo::default().pod() + &headless)).await?;
    let ip = space.pod_ip("web").await?;
    space.ready("peers", 1).await?;
    let dashed = ip.replace('.', "-");
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    check(
        &mut proxy,
        &[
            row(format!("{ip}:8080"), ToPod("web")),
            row(format!("web.{ns}.pod:8080"), ToPod("web")),
            row(format!("web.{ns}.pod.cluster.local:8080"), ToPod("web")),
            row(format!("nosuch.{ns}.pod:8080"), Nowhere(4, &["nosuch"])),
            row(format!("{dashed}.{ns}.pod:8080"), ToPod("web")),
            row(
                format!("{dashed}.{ns}.pod.cluster.local:8080"),
                ToPod("web"),
            ),
            // An endpoint's name where it has no hostname.
            row(format!("{dashed}.peers:8080"), ToPod("web")),
            row(
                format!("{dashed}.peers.{ns}.svc.cluster.local:8080"),
                ToPod("web"),
            ),
        ],
    )
    .await
}

/// They are told apart by the ports they declare, and from a Service with that address by its ports.
async fn pods_that_share_the_nodes_address(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let ns = &space.name;
    for (name, port) in [("agent", 28_801), ("exporter", 28_802)] {
        let pod = Echo {
            name,
            app: name,
            ports: &[port],
            declares: &[("web", port)],
            spec: "hostNetwork: true, terminationGracePeriodSeconds: 1",
            ..Echo::default()
        };
        space.create(&pod.pod()).await?;
    }
    let node = space.pod_ip("agent").await?;
    anyhow::ensure!(
        space.pod_ip("exporter").await? == node,
        "not on the node's network"
    );
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    let ambiguous = [
        "node address",
        "agent",
        "exporter",
        "28803",
        "<pod-name>.<namespace>.pod",
    ];
    check(
        &mut proxy,
        &[
            row(format!("{node}:28801"), To("agent")),
            row(format!("{node}:28802"), To("exporter")),
            row(format!("{node}:28803"), Nowhere(3, &ambiguous)),
            row(format!("agent.{ns}.pod:28801"), To("agent")),
        ],
    )
    .await?;
    let port = "{port: 28805, targetPort: 28801}";
    let external = format!("externalIPs: [{node}]");
    space
        .create(&service_with("front", "agent", port, &external))
        .await?;
    space.ready("front", 1).await?;
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    let of_service = ["front has no TCP port 28803", "it has 28805"];
    check(
        &mut proxy,
        &[
            row(format!("{node}:28802"), To("exporter")),
            row(format!("{node}:28805"), To("agent")),
            row(format!("{node}:28801"), To("agent")),
            row(format!("{node}:28803"), Nowhere(5, &of_service)),
        ],
    )
    .await
}

/// Every entry of podIPs, and one candidate per Pod across families.
async fn pods_with_ipv6_addresses(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let ns = &space.name;
    let dual =
        Echo::default().pod() + "status: {podIPs: [{ip: 10.244.7.7}, {ip: \"fd00:244::7\"}]}\n";
    let only = Echo {
        name: "six",
        app: "six",
        ..Echo::default()
    };
    let only = only.pod() + "status: {podIPs: [{ip: \"fd00:244::8\"}]}\n";
    let port = "{port: 80, targetPort: 8080}";
    let both = service_with("web", "web", port, "ipFamilyPolicy: PreferDualStack");
    let six = service_with("six", "six", port, "ipFamilies: [IPv6]");
    let headless = service_with("peers", "six", port, "clusterIP: None, ipFamilies: [IPv6]");
    space
        .create(&(dual + &only + &both + &six + &headless))
        .await?;
    space.ready("web", 1).await?;
    space.ready("six", 1).await?;
    let six_ip = cluster_ips(&space.api, ns, "six").await?.swap_remove(0);
    anyhow::ensure!(six_ip.contains(':'), "not an IPv6 Service: {six_ip}");
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    check(
        &mut proxy,
        &[
            row("10.244.7.7:8080", ToPod("web")),
            row("[fd00:244::7]:8080", ToPod("web")),
            row("[fd00:244::8]:8080", ToPod("six")),
            row(
                "[fd00:244::9]:8080",
                Nowhere(2, &["fd00:244::9", "outside"]),
            ),
            row(format!("{}:80", in_url(&six_ip)), ToPod("six")),
            row("six:80", ToPod("six")),
            row("peers:8080", ToPod("six")),
            row(format!("fd00-244--8.{ns}.pod:8080"), ToPod("six")),
            row(
                format!("fd00-244--7.{ns}.pod.cluster.local:8080"),
                ToPod("web"),
            ),
            row(format!("fd00-244--8.peers.{ns}.svc:8080"), ToPod("six")),
        ],
    )
    .await?;
    let (_, document) = explain(&cx, &cx.cluster.kubeconfig(), &space.flags(), "web:80").await?;
    let endpoints = document["endpoints"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let addresses = endpoints.first().and_then(|e| e["addresses"].as_array());
    anyhow::ensure!(
        endpoints.len() == 1 && addresses.is_some_and(|a| a.len() == 2),
        "not one candidate with both addresses: {document}"
    );
    Ok(())
}

fn in_url(ip: &str) -> String {
    match ip.contains(':') {
        true => format!("[{ip}]"),
        false => ip.to_owned(),
    }
}
