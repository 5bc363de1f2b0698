//! The API server, names that only the cluster's DNS knows, and hosts outside.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::scenario;
use crate::cluster::cluster_ips;
use crate::row::Leads::{Nowhere, To, ToPod};
use crate::row::{check, row};
use crate::space::{Echo, Space, service};
use crate::{Context, Curl, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("targets", the_api_server_itself, One),
        scenario!("targets", names_that_only_the_dns_knows, One),
        scenario!("targets", hosts_outside, One),
    ]
}

async fn the_api_server_itself(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let ip = cluster_ips(&space.api, "default", "kubernetes")
        .await?
        .swap_remove(0);
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    let socks = format!("socks5h://{}", proxy.socks);
    for host in [
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        &ip,
    ] {
        let url = format!("https://{host}/version");
        let version = Curl::run(&["--insecure", "--proxy", &socks, &url])
            .await?
            .json()?;
        anyhow::ensure!(
            version["gitVersion"].is_string(),
            "{url} answered {version}"
        );
    }
    let known = ["default/kubernetes has no TCP port 80", "443"];
    check(
        &mut proxy,
        &[
            row("kubernetes.default.svc:80", Nowhere(5, &known)),
            row("kubernetes:443", Nowhere(4, &["kubernetes"])),
        ],
    )
    .await
}

/// A CoreDNS of the scenario's own, with a stub domain and a name under the cluster's.
async fn names_that_only_the_dns_knows(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let ns = &space.name;
    let via = "---\napiVersion: v1\nkind: Service\nmetadata: {name: via}\nspec: {type: ExternalName, externalName: shop.corp.test}\n";
    let web = service("web", "web", "{port: 80, targetPort: 8080}");
    space.create(&(Echo::default().pod() + &web + via)).await?;
    let pod = space.pod_ip("web").await?;
    space.ready("web", 1).await?;
    let ip = cluster_ips(&space.api, ns, "web").await?.swap_remove(0);
    let hosts = [
        format!("{ip} shop.corp.test rewritten.{ns}.svc.cluster.local"),
        format!("{pod} peer.corp.test"),
        "198.51.100.80 far.corp.test".into(),
        "127.0.0.1 loopback.corp.test".into(),
        "169.254.169.254 link.corp.test".into(),
        "0.0.0.0 nobody.corp.test".into(),
    ];
    let hosts = hosts.map(|line| format!("            {line}\n")).concat();
    space
        .create(&format!(
            "
apiVersion: v1
kind: ConfigMap
metadata: {{name: dns}}
data:
  Corefile: |
    .:53 {{
        errors
        ready
        hosts {{
{hosts}        }}
    }}
---
apiVersion: v1
kind: Pod
metadata: {{name: dns, labels: {{app: dns}}}}
spec:
  automountServiceAccountToken: false
  dnsPolicy: Default
  terminationGracePeriodSeconds: 1
  containers:
  - name: coredns
    image: lab.local/coredns:1
    imagePullPolicy: Never
    args: [-conf, /etc/coredns/Corefile]
    readinessProbe: {{httpGet: {{path: /ready, port: 8181}}, periodSeconds: 1}}
    volumeMounts: [{{name: config, mountPath: /etc/coredns, readOnly: true}}]
  volumes: [{{name: config, configMap: {{name: dns}}}}]
{}",
            service(
                "dns",
                "dns",
                "{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}"
            )
        ))
        .await?;
    space.ready("dns", 1).await?;
    let dns = format!("{ns}/dns");
    let flags = ["--cluster-dns", &dns, "--cluster-suffix", "corp.test"];
    let flags = [&space.flags()[..], &flags].concat();
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &flags).await?;
    let by = "the cluster's DNS";
    let rows = [
        row("shop.corp.test:80", To("web")),
        row("Shop.Corp.Test.:80", To("web")),
        row(
            "shop.corp.test:8080",
            Nowhere(5, &["web has no TCP port 8080"]),
        ),
        row("peer.corp.test:8080", ToPod("web")),
        row(format!("rewritten.{ns}.svc.cluster.local:80"), To("web")),
        // As a Pod would search for it.
        row("rewritten:80", To("web")),
        row("via:80", To("web")),
        row(
            "nosuch.corp.test:80",
            Nowhere(
                3,
                &[
                    "only the cluster's DNS can know nosuch.corp.test",
                    "Server Failure",
                ],
            ),
        ),
        row("nosuch:80", Nowhere(4, &["nosuch"])),
    ];
    check(&mut proxy, &rows).await?;
    let denied = ["far.corp.test", "198.51.100.80", by, "--outside direct"];
    check(&mut proxy, &[row("far.corp.test:80", Nowhere(2, &denied))]).await?;
    // Even where hosts outside are dialled, no cluster says that we are one.
    let mut proxy = cx
        .proxy(
            &cx.cluster.kubeconfig(),
            &[&flags[..], &["--outside", "direct"]].concat(),
        )
        .await?;
    let never = "no cluster is let reach this machine";
    check(
        &mut proxy,
        &[
            row(
                "loopback.corp.test:80",
                Nowhere(2, &["127.0.0.1", by, never]),
            ),
            row(
                "link.corp.test:80",
                Nowhere(2, &["169.254.169.254", by, never]),
            ),
            row("nobody.corp.test:80", Nowhere(2, &["0.0.0.0", by, never])),
        ],
    )
    .await
}

async fn hosts_outside(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let here = on_this_host().await?;
    let port = here.port();
    let mut deny = cx.proxy(&kubeconfig, &[]).await?;
    check(
        &mut deny,
        &[
            row(
                "www.example.test:80",
                Nowhere(2, &["www.example.test", "outside"]),
            ),
            row("198.51.100.7:80", Nowhere(2, &["198.51.100.7", "outside"])),
            row(
                here.to_string(),
                Nowhere(2, &[&here.ip().to_string(), "outside"]),
            ),
            row(format!("localhost:{port}"), Nowhere(4, &["localhost"])),
        ],
    )
    .await?;
    let looped = |proxy: &crate::Proxy| proxy.socks.to_string();
    let caught = ["proxy loop detected"];
    let mut direct = cx.proxy(&kubeconfig, &["--outside", "direct"]).await?;
    let own = looped(&direct);
    check(
        &mut direct,
        &[
            row(here.to_string(), To("this host")),
            row("productpage:9080", To("productpage")),
            // A single label is the cluster's, whatever this host calls it.
            row(format!("localhost:{port}"), Nowhere(4, &["localhost"])),
            row(own, Nowhere(2, &caught)),
        ],
    )
    .await?;
    let mut egress = cx.proxy(&kubeconfig, &["--egress"]).await?;
    let own = looped(&egress);
    check(
        &mut egress,
        &[
            row(here.to_string(), To("this host")),
            row(format!("localhost:{port}"), To("this host")),
            row(own, Nowhere(2, &caught)),
        ],
    )
    .await
}

/// A web server on loopback, for as long as the runtime.
async fn on_this_host() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 23\r\nConnection: close\r\n\r\n{\"service\":\"this host\"}";
            // Who has gone away is not answered.
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    Ok(address)
}
