//! reqwest, whose connections go into the cluster through a proxy for this program only, because reqwest accepts no
//! connector.
//!
//!     cargo run -p kubevpn-embed --example embed-reqwest -- http://web.shop/

use std::io::Write as _;

use kubevpn_embed::Cluster;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("which URL?")?;
    let proxy = Cluster::try_default().await?.http_proxy().await?;
    let all = reqwest::Proxy::all(format!("http://{}", proxy.addr()))?;
    let client = reqwest::Client::builder().proxy(all).build()?;
    let answer = client.get(url).send().await?.error_for_status()?;
    Ok(std::io::stdout().write_all(&answer.bytes().await?)?)
}
