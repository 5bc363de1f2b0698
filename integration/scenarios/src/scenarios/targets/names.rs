//! Names of Services and of their ports.

use super::scenario;
use crate::row::Leads::{Nowhere, To, ToPort};
use crate::row::{check, row};
use crate::space::{Echo, Space, service, service_with};
use crate::{Context, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("targets", names_of_a_service_and_their_order, One),
        scenario!("targets", ports_of_a_service, One),
        scenario!("targets", target_ports_that_differ_from_pod_to_pod, One),
        scenario!("targets", external_names, One),
    ]
}

/// Looked up as a Pod of the active namespace would: `here` has a headless Service that is called like the other
/// namespace, with an endpoint that is called like the Service there.
async fn names_of_a_service_and_their_order(cx: Context) -> anyhow::Result<()> {
    let (here, there) = (Space::new(&cx).await?, Space::new(&cx).await?);
    let (ns, other) = (&here.name, &there.name);
    let web = Echo::default();
    let endpoint = format!("hostname: web, subdomain: {other}, terminationGracePeriodSeconds: 1");
    let first = Echo {
        name: "first",
        app: "first",
        ports: &[9080],
        spec: &endpoint,
        ..Echo::default()
    };
    let headless = service_with(other, "first", "{port: 5432}", "clusterIP: None");
    let web80 = service("web", "web", "{port: 80, targetPort: 8080}");
    here.create(&(web.pod() + &web80 + &first.pod() + &headless))
        .await?;
    let elsewhere = Echo {
        name: "elsewhere",
        ..Echo::default()
    };
    there.create(&(elsewhere.pod() + &web80)).await?;
    here.ready("web", 1).await?;
    here.ready(other, 1).await?;
    there.ready("web", 1).await?;
    let kubeconfig = cx.cluster.kubeconfig();

    let mut proxy = cx.proxy(&kubeconfig, &here.flags()).await?;
    let upper = format!("Web.{}.SVC.Cluster.Local.", ns.to_uppercase());
    check(
        &mut proxy,
        &[
            row("web:80", To("web")),
            row(format!("web.{ns}:80"), To("web")),
            row(format!("web.{ns}.svc:80"), To("web")),
            row(format!("web.{ns}.svc.cluster.local:80"), To("web")),
            row(format!("web.{ns}.svc.cluster.local.:80"), To("web")),
            row(format!("{upper}:80"), To("web")),
            // <ns>.svc.<domain> before svc.<domain>, and no search for what has one more label or is absolute.
            row(format!("web.{other}:9080"), To("first")),
            row(format!("web.{other}.svc:80"), To("elsewhere")),
            row(format!("web.{other}.svc.cluster.local:80"), To("elsewhere")),
            row("web.:80", Nowhere(4, &["web.", "trailing dot"])),
            row("nosuch:80", Nowhere(4, &["nosuch", "kubectl get services"])),
            row(format!("nosuch.{other}:80"), Nowhere(4, &["nosuch", other])),
            row(
                "web.no-such-ns.svc:80",
                Nowhere(4, &["there is no namespace no-such-ns"]),
            ),
        ],
    )
    .await?;
    // In a namespace without such an endpoint the same name is the Service.
    let mut proxy = cx.proxy(&kubeconfig, &there.flags()).await?;
    check(
        &mut proxy,
        &[
            row("web:80", To("elsewhere")),
            row(format!("web.{other}:80"), To("elsewhere")),
            row(format!("web.{ns}:80"), To("web")),
        ],
    )
    .await
}

async fn ports_of_a_service(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let pod = Echo {
        name: "multi",
        app: "multi",
        ports: &[8080, 8081],
        declares: &[("admin", 8081)],
        ..Echo::default()
    };
    let ports = "{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81, targetPort: admin}, \
                 {name: dns, port: 53, protocol: UDP}, {name: lost, port: 83, targetPort: no-such-port}";
    let udp = service("udp", "multi", "{port: 53, protocol: UDP}");
    let single = service("single", "multi", "{port: 80, targetPort: 8080}");
    space
        .create(&(pod.pod() + &service("multi", "multi", ports) + &udp + &single))
        .await?;
    space.ready("multi", 1).await?;
    space.ready("single", 1).await?;
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    let known = ["multi has no TCP port 8080", "80 (http)", "81 (admin)"];
    check(
        &mut proxy,
        &[
            row("multi:80", ToPort(8080)),
            row("multi:81", ToPort(8081)),
            row("multi:8080", Nowhere(5, &known)),
            row(
                "multi:53",
                Nowhere(5, &["multi has no TCP port 53", "UDP", "TCP only"]),
            ),
            row(
                "multi:83",
                Nowhere(5, &["multi", "83", "none has the port"]),
            ),
            row("udp:53", Nowhere(5, &["udp", "UDP", "TCP only"])),
            // Never silently the only one.
            row("single:81", Nowhere(5, &["single", "81", "it has 80"])),
        ],
    )
    .await
}

/// One name for a port, and another number in each Pod: number and address come from the same slice.
async fn target_ports_that_differ_from_pod_to_pod(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let versions = [("old", 8080), ("new", 9090)];
    for (name, port) in versions {
        let pod = Echo {
            name,
            app: "mixed",
            ports: &[port],
            declares: &[("web", port)],
            ..Echo::default()
        };
        space.create(&pod.pod()).await?;
    }
    space
        .create(&service("mixed", "mixed", "{port: 80, targetPort: web}"))
        .await?;
    space.ready("mixed", 2).await?;
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..6 {
        let answer = crate::Curl::get(proxy.socks, "http://mixed/")
            .await?
            .json()?;
        let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
        let (pod, local) = (text("hostname"), text("local"));
        let port = versions.iter().find(|(name, _)| *name == pod);
        let right = port.is_some_and(|(_, port)| local.ends_with(&format!(":{port}")));
        anyhow::ensure!(
            right,
            "the port of one pod and the address of another: {answer}"
        );
        seen.insert(pod);
    }
    anyhow::ensure!(seen.len() == 2, "only one pod was used: {seen:?}");
    let known = ["mixed", "8080", "it has 80"];
    check(&mut proxy, &[row("mixed:8080", Nowhere(5, &known))]).await
}

async fn external_names(cx: Context) -> anyhow::Result<()> {
    let space = Space::new(&cx).await?;
    let ns = &space.name;
    let named = |name: &str, to: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: ExternalName, externalName: {to}}}\n"
        )
    };
    let full = |name: &str| format!("{name}.{ns}.svc.cluster.local");
    let mut objects = Echo::default().pod();
    objects += &service("web", "web", "{port: 80, targetPort: 8080}");
    objects += &named("inside", &full("web"));
    objects += &named("again", &full("inside"));
    objects += &named("far", "www.example.test");
    objects += &named("gone", &full("nosuch"));
    objects += &named("ping", &full("pong"));
    objects += &named("pong", &full("ping"));
    objects += &named("here", "localhost");
    // A chain of nine: c1 leads to c2, and so on, c9 to the Service.
    for n in 1..9 {
        objects += &named(&format!("c{n}"), &full(&format!("c{}", n + 1)));
    }
    objects += &named("c9", &full("web"));
    space.create(&objects).await?;
    space.ready("web", 1).await?;
    let mut proxy = cx.proxy(&cx.cluster.kubeconfig(), &space.flags()).await?;
    check(
        &mut proxy,
        &[
            row("inside:80", To("web")),
            row("again:80", To("web")),
            row(format!("{}:80", full("again")), To("web")),
            row("inside:81", Nowhere(5, &["web has no TCP port 81"])),
            row(
                "far:80",
                Nowhere(2, &["www.example.test", "far", "--outside direct"]),
            ),
            row("gone:80", Nowhere(4, &["nosuch", "gone points"])),
            row("ping:80", Nowhere(3, &["ExternalName", "leads nowhere"])),
            row("here:80", Nowhere(4, &["localhost", "here points"])),
            row("c2:80", To("web")),
            row("c1:80", Nowhere(3, &["c9", "leads nowhere", "after 8"])),
        ],
    )
    .await
}
