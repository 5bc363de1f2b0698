//! What a target may be called.

use super::scenario;
use crate::cluster::{client, cluster_ips, pod_ips};
use crate::{Context, Curl, Proxy, Scenario};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("names", six_forms_of_name_and_address),
        scenario!("names", any_case_and_a_trailing_dot),
        scenario!("names", a_named_target_port),
        scenario!("names", ports_that_cross),
        scenario!("names", every_cluster_ip_of_a_dual_stack_service),
        scenario!("names", short_names_in_the_namespace_of_the_context),
    ]
}

async fn answers(proxy: &Proxy, url: &str, service: &str) -> anyhow::Result<()> {
    let answer = Curl::get(proxy.socks, url)
        .await?
        .json()
        .map_err(|e| e.context(url.to_owned()))?;
    anyhow::ensure!(answer["service"] == service, "{url} answered {answer}");
    Ok(())
}

async fn six_forms_of_name_and_address(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let api = client(&kubeconfig).await?;
    let cluster_ip = cluster_ips(&api, "default", "productpage")
        .await?
        .swap_remove(0);
    let pod_ip = pod_ips(&api, "default", "productpage")
        .await?
        .swap_remove(0);
    let proxy = cx.proxy(&kubeconfig, &[]).await?;
    for host in [
        "productpage",
        "productpage.default",
        "productpage.default.svc",
        "productpage.default.svc.cluster.local",
        &cluster_ip,
        &pod_ip,
    ] {
        answers(&proxy, &format!("http://{host}:9080/"), "productpage").await?;
    }
    Ok(())
}

async fn any_case_and_a_trailing_dot(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    answers(
        &proxy,
        "http://ProductPage.Default.SVC.Cluster.Local.:9080/",
        "productpage",
    )
    .await?;
    answers(
        &proxy,
        "http://productpage.default.svc.cluster.local.:9080/",
        "productpage",
    )
    .await
}

async fn a_named_target_port(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    answers(&proxy, "http://reviews/", "reviews").await
}

/// Service port 8080 goes to Pod port 8081 and the other way round; the answer tells the Pod's port.
async fn ports_that_cross(cx: Context) -> anyhow::Result<()> {
    let proxy = cx.proxy(&cx.cluster.kubeconfig(), &[]).await?;
    for (asked, pod) in [(8080, ":8081"), (8081, ":8080")] {
        let answer = Curl::get(proxy.socks, &format!("http://crossed:{asked}/"))
            .await?
            .json()?;
        let local = answer["local"].as_str().unwrap_or_default();
        anyhow::ensure!(
            local.ends_with(pod),
            "port {asked} should reach {pod}: {answer}"
        );
    }
    Ok(())
}

async fn every_cluster_ip_of_a_dual_stack_service(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let ips = cluster_ips(&client(&kubeconfig).await?, "default", "dual").await?;
    anyhow::ensure!(
        ips.len() == 2,
        "the Service should have two ClusterIPs: {ips:?}"
    );
    let proxy = cx.proxy(&kubeconfig, &[]).await?;
    for ip in ips {
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip
        };
        answers(&proxy, &format!("http://{host}:9080/"), "productpage").await?;
    }
    Ok(())
}

async fn short_names_in_the_namespace_of_the_context(cx: Context) -> anyhow::Result<()> {
    let kubeconfig = cx.cluster.kubeconfig();
    let flag = cx.proxy(&kubeconfig, &["--namespace", "team-a"]).await?;
    answers(&flag, "http://api/", "api").await?;
    answers(&flag, "http://productpage.default:9080/", "productpage").await?;
    Curl::get(flag.socks, "http://productpage:9080/")
        .await?
        .refused_with(4)?;

    // The same by a context of the kubeconfig.
    let mut config = kube::config::Kubeconfig::read_from(&kubeconfig)?;
    for context in config
        .contexts
        .iter_mut()
        .filter_map(|named| named.context.as_mut())
    {
        context.namespace = Some("team-a".into());
    }
    let file = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(&file, &config)?;
    let context = cx.proxy(file.path(), &[]).await?;
    answers(&context, "http://api/", "api").await
}
