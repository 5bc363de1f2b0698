//! The stack with one of its layers set otherwise: nothing looks whether an endpoint is ready, so that a Pod which fails its
//! readiness probe can be reached by its Service's name and be asked what is wrong.
//!
//! ```text
//! printf 'GET / HTTP/1.0\r\n\r\n' | cargo run -p kubevpn-stack --example without_ready -- notready:80
//! ```
//!
//! Standard input goes there, and what comes back to standard output; the kubeconfig is found as kubectl finds it.

use std::error::Error;
use std::time::Duration;

use kubevpn_client::{ApiServer, Env, KubeconfigArgs, Options, build, load};
use kubevpn_stack::{
    Cluster, ClusterSettings, DeadlineLayer, DispatchLayer, Egress, Forwarder, ForwarderConfig,
    FromHost, Outside, ResolveLayer,
};
use kubevpn_target::{Connect as _, Origin, Target};
use tokio::io::{AsyncWriteExt as _, copy, split, stdin, stdout};
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("which host:port?")?;
    let target = Target::parse(&target, Origin::default())?;
    let loaded = load(&KubeconfigArgs::default(), &Env::of_process())?;
    let options = Options::new("kubevpn-example");
    let api_server = ApiServer::new(loaded.config.clone(), &options)?;
    let client = build(loaded.config, &options)?;
    let cluster = Cluster::new(client.clone(), ClusterSettings::default());
    let egress = Egress::new(api_server, Outside::Deny, FromHost::default());

    let connect = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_secs(30)))
        .layer(ResolveLayer::new(cluster, egress))
        .layer(DispatchLayer::new(Duration::from_secs(10)).also_unready())
        .service(Forwarder::new(client, ForwarderConfig::default()));

    let stream = connect.connect(target).await?;
    let (mut from, mut to) = split(stream);
    let up = async {
        copy(&mut stdin(), &mut to).await?;
        to.shutdown().await
    };
    let down = async {
        let mut out = stdout();
        copy(&mut from, &mut out).await?;
        out.flush().await
    };
    tokio::try_join!(up, down)?;
    Ok(())
}
