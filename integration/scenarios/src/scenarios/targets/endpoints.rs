//! What is behind a Service: headless ones, endpoints by name, slices written by hand, Pods on their way out.

use kube::api::DeleteParams;

use super::scenario;
use crate::row::Leads::{Nowhere, To, ToPod, ToPort};
use crate::row::{check, row};
use crate::scenarios::explain::explain;
use crate::space::{Echo, Space, service, service_with, slice, until};
use crate::{Context, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("targets", headless_services_and_their_endpoints, One),
        scenario!("targets", addresses_published_before_they_are_ready, One),
        scenario!("targets", services_without_a_selector, One),
        scenario!("targets", endpoints_on_their_way_out, One),
    ]
}

async fn headless_services_and_their_endpoints(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let ns = &space.name;
    let db = Echo {
        name: "db",
        app: "db",
        ports: &[9080, 9081],
        ..Echo::default()
    };
    let headless = service_with("db", "db", "{name: pg, port: 5432}", "clusterIP: None");
    space
        .create(&(db.workload("StatefulSet", 2) + &headless))
        .await?;
    space.ready("db", 2).await?;
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    check(
        &mut proxy,
        &[
            // The asked port, whatever the Service says.
            row("db:9080", To("db")),
            row("db:9081", ToPort(9081)),
            row("db-0.db:9080", ToPod("db-0")),
            row("db-1.db:9080", ToPod("db-1")),
            row(format!("db-0.db.{ns}:9080"), ToPod("db-0")),
            row(format!("db-0.db.{ns}.svc:9080"), ToPod("db-0")),
            row(
                format!("DB-1.db.{ns}.svc.cluster.local:9081"),
                ToPod("db-1"),
            ),
            // Nobody listens there, which the name does not tell.
            row("db:9082", Nowhere(5, &["db", "9082", "refused"])),
            row("db-0.db:9083", Nowhere(5, &["db-0:9083", "refused"])),
            // By the rule for what is outside: no namespace is called db.
            row("db-7.db:9080", Nowhere(2, &["db-7.db", "outside"])),
            row(
                format!("db-7.db.{ns}.svc.cluster.local:9080"),
                Nowhere(4, &["db-7"]),
            ),
        ],
    )
    .await
}

async fn addresses_published_before_they_are_ready(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let shy = Echo {
        name: "shy",
        app: "shy",
        env: &[("NEVER_READY", "1")],
        ..Echo::default()
    };
    let published = "publishNotReadyAddresses: true";
    let port = "{port: 80, targetPort: 8080}";
    let objects = [
        shy.pod(),
        service("shy", "shy", port),
        service_with("early", "shy", port, published),
        service_with(
            "peers",
            "shy",
            port,
            &format!("clusterIP: None, {published}"),
        ),
    ];
    space.create(&objects.concat()).await?;
    space.ready("early", 1).await?;
    space.ready("peers", 1).await?;
    until("the endpoint that is not ready", async || {
        Ok((space.endpoints("shy").await?.len() == 1).then_some(()))
    })
    .await?;
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    let why = ["shy", "no ready endpoint", "1 not ready", "readiness probe"];
    check(
        &mut proxy,
        &[
            row("early:80", To("shy")),
            row("peers:8080", To("shy")),
            row("shy:80", Nowhere(5, &why)),
        ],
    )
    .await
}

async fn services_without_a_selector(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let ns = &space.name;
    let port = "{name: http, port: 80, targetPort: 8080}";
    let bare = |name: &str| service(name, "", port);
    let services = ["byhand", "twice", "stray", "foreign", "nothing"].map(bare);
    space
        .create(&(Echo::default().pod() + &services.concat()))
        .await?;
    let ip = space.pod_ip("web").await?;
    let at = "{name: http, port: 8080}";
    let endpoint = |address: &str| format!("{{addresses: [\"{address}\"]}}");
    let named =
        format!("{{addresses: [\"{ip}\"], targetRef: {{kind: Pod, name: web, namespace: {ns}}}}}");
    let slices = [
        slice("byhand-1", "byhand", "IPv4", &endpoint(&ip), at),
        slice("twice-1", "twice", "IPv4", &named, at),
        slice("twice-2", "twice", "IPv4", &named, at),
        slice("stray-1", "stray", "IPv4", &endpoint("198.51.100.55"), at),
        slice(
            "foreign-1",
            "foreign",
            "FQDN",
            &endpoint("www.example.test"),
            at,
        ),
    ];
    space.create(&slices.concat()).await?;
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    check(
        &mut proxy,
        &[
            row("byhand:80", ToPod("web")),
            row("twice:80", ToPod("web")),
            row(
                "stray:80",
                Nowhere(3, &["stray", "198.51.100.55", "no pod's address"]),
            ),
            row(
                "foreign:80",
                Nowhere(3, &["foreign", "www.example.test", "host name"]),
            ),
            row(
                "nothing:80",
                Nowhere(5, &["nothing", "nobody wrote endpoints"]),
            ),
        ],
    )
    .await?;
    // A Pod in two slices is one candidate.
    let (_, document) = explain(&cx, &cx.cluster.kubeconfig(), &space.flags(), "twice:80").await?;
    let endpoints = document["endpoints"].as_array().map_or(0, Vec::len);
    anyhow::ensure!(endpoints == 1, "not one candidate per pod: {document}");
    Ok(())
}

/// Used when there is nothing better, as kube-proxy does.
async fn endpoints_on_their_way_out(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let leaving = Echo {
        name: "leaving",
        spec: "terminationGracePeriodSeconds: 30",
        container: "lifecycle: {preStop: {sleep: {seconds: 20}}}",
        ..Echo::default()
    };
    let staying = Echo {
        name: "staying",
        ..Echo::default()
    };
    let web = service("web", "web", "{port: 80, targetPort: 8080}");
    space
        .create(&(leaving.pod() + &staying.pod() + &web))
        .await?;
    space.ready("web", 2).await?;
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    check(&mut proxy, &[row("web:80", ToPort(8080))]).await?;
    let delete = async |pod: &str| space.pods().delete(pod, &DeleteParams::default()).await;
    delete("leaving").await?;
    space.ready("web", 1).await?;
    // A watch of ours is not the proxy's: it has the news when it is told apart from the other by an answer.
    let only = async |pod: &str| {
        until(&format!("{pod} alone to be used"), async || {
            for _ in 0..4 {
                let answer = crate::Curl::get(proxy.socks, "http://web/").await?.json()?;
                if answer["hostname"] != pod {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    };
    only("staying").await?;
    delete("staying").await?;
    until("the ready pod to be gone", async || {
        let left = space.endpoints("web").await?;
        Ok((!left.contains_key("staying")).then_some(()))
    })
    .await?;
    only("leaving").await
}
