//! A local port for an integration test, which uses it like a server on this machine.
//!
//!     cargo run -p kubevpn-embed --example embed-forward -- web.shop:80

use std::io::{Read as _, Write as _};

use kubevpn_embed::Cluster;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = std::env::args().nth(1).ok_or("which HOST:PORT?")?;
    let port = Cluster::try_default().await?.forward(&target).await?;
    let mut client = std::net::TcpStream::connect(port.addr())?;
    write!(
        client,
        "GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(std::io::stdout().write_all(answer.as_bytes())?)
}
