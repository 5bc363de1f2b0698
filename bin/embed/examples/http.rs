//! An HTTP client whose connections go into the cluster.
//!
//!     cargo run -p kubevpn-embed --example embed-http -- http://web.shop/

use std::io::Write as _;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use kubevpn_embed::Cluster;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let uri = std::env::args().nth(1).ok_or("which URI?")?;
    let connector = Cluster::try_default().await?.connector();
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let request = http::Request::get(uri).body(Empty::<&[u8]>::new())?;
    let answer = client.request(request).await?.collect().await?;
    Ok(std::io::stdout().write_all(&answer.to_bytes())?)
}
