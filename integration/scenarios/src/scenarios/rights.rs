//! The ladder of access rights: each account serves what it can, and names what it cannot.

use super::scenario;
use crate::cluster::cluster_ips;
use crate::row::Leads::{Nowhere, To, ToPod};
use crate::row::{TargetRow, check, row};
use crate::scenarios::explain::explain;
use crate::space::{Echo, Space, service};
use crate::{AccountRight, Context, Curl, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("rights", to_read_the_whole_cluster, One),
        scenario!("rights", to_list_and_watch_in_one_namespace, One),
        scenario!("rights", to_get_in_one_namespace, One),
        scenario!("rights", to_pods_in_one_namespace, One),
        scenario!("rights", to_nothing, One),
        scenario!("rights", to_read_and_not_to_forward, One),
    ]
}

const READ: &[&str] = &["get", "list", "watch"];

const fn right(
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
    everywhere: bool,
) -> AccountRight {
    AccountRight {
        verbs,
        group,
        resources,
        everywhere,
    }
}

const FORWARD_HERE: AccountRight = right(&["create"], "", &["pods/portforward"], false);

/// What there is to be asked for in the account's namespace.
struct RightsFixture {
    space: Space,
    cluster_ip: String,
    pod_ip: String,
}

/// An account with these rights, and what a proxy under it makes of the rows; where `Nowhere(2, …)` is the answer,
/// the HTTP proxy says 403 and `kubevpn resolve` ends with 31, with the same words.
async fn rung(
    cx: &Context,
    rights: &'static [AccountRight],
    rows: impl AsyncFnOnce(&RightsFixture) -> anyhow::Result<Vec<TargetRow<'static>>>,
) -> anyhow::Result<()> {
    let space = Space::new(cx).await?;
    let web = service("web", "web", "{port: 80, targetPort: 8080}");
    let closed = service("closed", "web", "{port: 80, targetPort: 9}");
    space
        .create(&(Echo::default().pod() + &web + &closed))
        .await?;
    let pod_ip = space.pod_ip("web").await?;
    space.ready("web", 1).await?;
    space.ready("closed", 1).await?;
    let cluster_ip = cluster_ips(&space.api, &space.name, "web")
        .await?
        .swap_remove(0);
    let account = cx.cluster.account(&space.name, rights).await?;
    let facts = RightsFixture {
        space,
        cluster_ip,
        pod_ip,
    };
    let rows = rows(&facts).await?;
    let mut proxy = cx
        .proxy(&account, &["--listen-http", "127.0.0.1:0"])
        .await?;
    check(&mut proxy, &rows).await?;
    let http = format!("http://{}", proxy.http().await?);
    for TargetRow(target, leads) in &rows {
        let Nowhere(2, words) = leads else {
            continue;
        };
        let url = format!("http://{target}/");
        let answer = Curl::run(&["--proxy", &http, "--write-out", "%{http_code}", &url]).await?;
        let said = |text: &str| words.iter().all(|word| text.contains(word));
        anyhow::ensure!(
            answer.body.ends_with("403") && said(&answer.body),
            "{target} by HTTP: {}",
            answer.body
        );
        let (code, document) = explain(cx, &account, &[], target).await?;
        let sentence = document["refusal"]["sentence"].as_str().unwrap_or_default();
        anyhow::ensure!(
            code == 31
                && said(sentence)
                && (!words.contains(&RULE) || sentence.contains(r#"apiGroups [""]"#)),
            "resolve {target} ended with {code}: {document}"
        );
    }
    Ok(())
}

/// The missing rule, in the words of a refusal: verb, resource, namespace, and the core API group.
macro_rules! missing {
    ($verb:literal, $resource:literal, $namespace:literal) => {
        Nowhere(
            2,
            &[concat!("cannot ", $verb, " ", $resource), $namespace, RULE],
        )
    };
}

/// Where a refusal begins to say which rule would help; in the log quotes are escaped.
const RULE: &str = "Role with apiGroups [";

async fn to_read_the_whole_cluster(cx: Context) -> anyhow::Result<()> {
    const RIGHTS: &[AccountRight] = &[
        right(READ, "", &["services", "pods", "namespaces"], true),
        right(READ, "discovery.k8s.io", &["endpointslices"], true),
        right(&["get"], "networking.k8s.io", &["ipaddresses"], true),
        right(&["create"], "", &["pods/portforward"], true),
    ];
    rung(&cx, RIGHTS, async |facts| {
        let RightsFixture {
            space,
            cluster_ip,
            pod_ip,
        } = facts;
        let ns = &space.name;
        Ok(vec![
            row("web:80", To("web")),
            row(format!("web.{ns}.svc.cluster.local:80"), To("web")),
            row(format!("{cluster_ip}:80"), To("web")),
            row(format!("{pod_ip}:8080"), ToPod("web")),
            row(format!("web.{ns}.pod:8080"), ToPod("web")),
            row("productpage.default:9080", To("productpage")),
            row("db-0.db.default.svc:9080", ToPod("db-0")),
            row("nosuch.default:80", Nowhere(4, &["nosuch"])),
            row("closed:80", Nowhere(5, &["nothing listens"])),
            row("www.example.test:80", Nowhere(2, &["outside"])),
        ])
    })
    .await
}

async fn to_list_and_watch_in_one_namespace(cx: Context) -> anyhow::Result<()> {
    const RIGHTS: &[AccountRight] = &[
        right(&["list", "watch"], "", &["services", "pods"], false),
        right(
            &["list", "watch"],
            "discovery.k8s.io",
            &["endpointslices"],
            false,
        ),
        FORWARD_HERE,
    ];
    rung(&cx, RIGHTS, async |facts| {
        let ns = &facts.space.name;
        let other = cluster_ips(&facts.space.api, "default", "productpage").await?;
        Ok(vec![
            row("web:80", To("web")),
            row(format!("web.{ns}.svc.cluster.local:80"), To("web")),
            row(format!("{}:80", facts.cluster_ip), To("web")),
            row(format!("{}:8080", facts.pod_ip), ToPod("web")),
            row(format!("web.{ns}.pod:8080"), ToPod("web")),
            row("nosuch:80", Nowhere(4, &["nosuch"])),
            // Whether the Pod was replaced may not be asked.
            row("closed:80", Nowhere(5, &["nothing listens"])),
            row(
                "productpage.default.svc:9080",
                missing!("get", "services", "namespace default"),
            ),
            row(
                format!("{}:9080", other[0]),
                missing!("list", "services", "all namespaces"),
            ),
            row(
                "db-0.default.pod:9080",
                missing!("get", "pods", "namespace default"),
            ),
        ])
    })
    .await
}

/// EndpointSlices have generated names: the Endpoints object of the Service's name has to do.
async fn to_get_in_one_namespace(cx: Context) -> anyhow::Result<()> {
    const RIGHTS: &[AccountRight] = &[
        right(&["get"], "", &["services", "endpoints", "pods"], false),
        FORWARD_HERE,
    ];
    rung(&cx, RIGHTS, async |facts| {
        let ns = &facts.space.name;
        Ok(vec![
            row("web:80", To("web")),
            row(format!("web.{ns}.svc.cluster.local:80"), To("web")),
            row(format!("web.{ns}.pod:8080"), ToPod("web")),
            row("web:81", Nowhere(5, &["web has no TCP port 81"])),
            row("nosuch:80", Nowhere(4, &["nosuch"])),
            row(
                "productpage.default.svc:9080",
                missing!("get", "services", "namespace default"),
            ),
            row(
                format!("{}:80", facts.cluster_ip),
                missing!("list", "services", "namespace t-"),
            ),
        ])
    })
    .await
}

async fn to_pods_in_one_namespace(cx: Context) -> anyhow::Result<()> {
    const RIGHTS: &[AccountRight] = &[right(&["get", "list"], "", &["pods"], false), FORWARD_HERE];
    rung(&cx, RIGHTS, async |facts| {
        let ns = &facts.space.name;
        let dashed = facts.pod_ip.replace('.', "-");
        Ok(vec![
            row(format!("web.{ns}.pod:8080"), ToPod("web")),
            row(format!("{}:8080", facts.pod_ip), ToPod("web")),
            row(format!("{dashed}.{ns}.pod:8080"), ToPod("web")),
            row("web:80", missing!("get", "services", "namespace t-")),
            row(
                "productpage.default.svc:9080",
                missing!("get", "services", "namespace default"),
            ),
            row(
                format!("{}:80", facts.cluster_ip),
                missing!("list", "services", "namespace t-"),
            ),
        ])
    })
    .await
}

async fn to_nothing(cx: Context) -> anyhow::Result<()> {
    rung(&cx, &[], async |facts| {
        let ns = &facts.space.name;
        Ok(vec![
            row("web:80", missing!("get", "services", "namespace t-")),
            row(
                format!("web.{ns}.pod:8080"),
                missing!("get", "pods", "namespace t-"),
            ),
            row(
                format!("{}:8080", facts.pod_ip),
                missing!("list", "pods", "namespace t-"),
            ),
            row(
                format!("{}:80", facts.cluster_ip),
                missing!("list", "services", "namespace t-"),
            ),
            // It may be a Service in a namespace `test`, or a host outside.
            row(
                "example.test:80",
                Nowhere(
                    2,
                    &["or a host outside", "cannot get services", "namespace test"],
                ),
            ),
        ])
    })
    .await
}

async fn to_read_and_not_to_forward(cx: Context) -> anyhow::Result<()> {
    const RIGHTS: &[AccountRight] = &[
        right(READ, "", &["services", "pods"], false),
        right(READ, "discovery.k8s.io", &["endpointslices"], false),
    ];
    rung(&cx, RIGHTS, async |_| {
        Ok(vec![row(
            "web:80",
            Nowhere(
                2,
                &[
                    "not allowed to forward ports",
                    "pods/portforward",
                    "namespace t-",
                    RULE,
                ],
            ),
        )])
    })
    .await
}
