//! An HTTP proxy over plain TCP: the frontend, and one line for a backend. Nothing of Kubernetes.
//!
//!     cargo run -p kubevpn-http-connect --example http-direct -- 127.0.0.1:8118
//!     http_proxy=http://127.0.0.1:8118 curl http://example.com

use std::sync::Arc;

use kubevpn_conn::{Gate, Limits, Listener};
use kubevpn_http_connect::{Settings, serve_connection};
use kubevpn_target::Target;
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr = std::env::args().nth(1);
    let addr = addr.as_deref().unwrap_or("127.0.0.1:8118").parse()?;
    let listener = Listener::bind(&addr).await?;
    #[allow(clippy::print_stdout)]
    {
        println!("{}", listener.addr());
    }

    let dialer = tower::service_fn(|target: Target| TcpStream::connect(target.to_string()));
    // One value for all connections: it contains the idle connections to targets.
    let settings = Arc::new(Settings::default());
    let (gate, drain) = (Gate::new(Limits::default()), settings.drain.clone());
    listener
        .serve(gate, drain, |client| {
            let settings = Arc::clone(&settings);
            async move {
                let _ended = serve_connection(client, dialer, &settings).await;
            }
        })
        .await;
    Ok(())
}
