//! A custom layer between a program and the cluster: it prints the dialled targets and permits one port.
//!
//!     cargo run -p kubevpn-embed --example embed-layer -- web.shop:80 80

use kubevpn_embed::{Cluster, ConnectError, Origin, Refusal, Target};
use tower::{ServiceBuilder, ServiceExt as _};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let target = Target::parse(&words.next().ok_or("which HOST:PORT?")?, Origin::default())?;
    let port: u16 = words.next().ok_or("which port is allowed?")?.parse()?;
    let only = move |target: Target| match target.port.get() == port {
        true => Ok(target),
        false => Err(ConnectError::new(Refusal::Denied, "another port")),
    };
    let connect = ServiceBuilder::new()
        .filter(only)
        .service(Cluster::try_default().await?.connector());
    let said = match connect.oneshot(target.clone()).await {
        Ok(stream) => format!("{target} is {}\n", stream.via()),
        Err(error) => format!("{target}: {error}\n"),
    };
    Ok(std::io::Write::write_all(
        &mut std::io::stdout(),
        said.as_bytes(),
    )?)
}
