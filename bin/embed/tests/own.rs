//! An integration test as in a user's repository: it forwards a port, and passes its address to the code under test, as if
//! the server ran on this machine. It runs on the simulation, and with `KUBEVPN_LAB=1` on the real cluster.

use kubevpn_embed::Cluster;
use kubevpn_sim::Sim;
use serde_json::Value;

/// The code under test. It knows nothing of Kubernetes.
async fn name_of_the_service(address: std::net::SocketAddr) -> reqwest::Result<String> {
    let answer = reqwest::get(format!("http://{address}/")).await?;
    let answer: Value = serde_json::from_slice(&answer.bytes().await?).unwrap_or_default();
    Ok(answer["service"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn service_answers_with_its_name() {
    let (_sim, cluster) = cluster().await;
    let port = cluster.forward("productpage:9080").await.unwrap();
    let name = name_of_the_service(port.addr()).await.unwrap();
    assert_eq!(name, "productpage");
    // The port is closed when its value is dropped, and the code under test gets an error.
    let address = port.addr();
    port.close().await;
    assert!(name_of_the_service(address).await.unwrap_err().is_connect());
}

/// In other repositories this is `Cluster::try_default().await`.
async fn cluster() -> (Option<Sim>, Cluster) {
    if std::env::var_os("KUBEVPN_LAB").is_some() {
        let lab = lab::Lab::attach().await.unwrap();
        let cluster = Cluster::builder().kubeconfig(lab.kubeconfig());
        return (None, cluster.build().await.unwrap());
    }
    let sim = Sim::builder().sample().start().await.unwrap();
    let cluster = Cluster::builder().build_from(sim.config()).unwrap();
    (Some(sim), cluster)
}
