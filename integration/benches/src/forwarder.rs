//! The peer that a Rust program would write in an hour: kube-rs's own port-forward, one upgrade per connection.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::client::{Body, ConfigExt as _};
use kube::{Api, Client, Config};
use tokio::net::TcpListener;

/// Forwards 127.0.0.1:`port` to the Pod behind `reviews`, for ever.
pub(crate) async fn run(port: u16, nodelay: bool) -> anyhow::Result<()> {
    let config = Config::infer().await?;
    let client = if nodelay {
        with_nodelay(config)?
    } else {
        Client::try_from(config)?
    };
    let pods = Api::<Pod>::default_namespaced(client);
    let pod = pods
        .list(&ListParams::default().labels("app=reviews"))
        .await?
        .items
        .pop();
    let pod = pod
        .and_then(|pod| pod.metadata.name)
        .ok_or_else(|| anyhow::anyhow!("no Pod behind reviews"))?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    say(port);
    loop {
        let (mut client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        let (pods, pod) = (pods.clone(), pod.clone());
        tokio::spawn(async move {
            let mut forward = pods.portforward(&pod, &[9080]).await?;
            let mut stream = forward
                .take_stream(9080)
                .ok_or_else(|| anyhow::anyhow!("no stream"))?;
            tokio::io::copy_bidirectional(&mut client, &mut stream).await?;
            anyhow::Ok(())
        });
    }
}

#[expect(clippy::print_stdout, reason = "the bench waits for this line")]
fn say(port: u16) {
    println!("Forwarding from 127.0.0.1:{port}");
}

/// kube's stack over a connector that differs in one flag.
fn with_nodelay(config: Config) -> anyhow::Result<Client> {
    let mut http = hyper_util::client::legacy::connect::HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let https = config.rustls_https_connector_with_connector(http)?;
    let executor = hyper_util::rt::TokioExecutor::new();
    let client = hyper_util::client::legacy::Client::builder(executor).build::<_, Body>(https);
    let namespace = config.default_namespace.clone();
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(tower::BoxError::from)
        .service(client);
    Ok(Client::new(service, namespace))
}
