//! A byte stream to a Pod of a Service.
//!
//!     cargo run -p kubevpn-embed --example embed-stream -- web.shop:80

use std::io::Write as _;

use kubevpn_embed::Cluster;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = std::env::args().nth(1).ok_or("which HOST:PORT?")?;
    let mut stream = Cluster::try_default().await?.connect(&target).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(std::io::stdout().write_all(&answer)?)
}
