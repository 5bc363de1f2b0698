//! Redirected connections over plain TCP: the frontend, and one line for a backend. Nothing of Kubernetes.
//!
//! As a user of its own, so that its own connections are not redirected to it again:
//!
//!     cargo run -p kubevpn-transparent --example transparent-direct -- 127.0.0.1:15001
//!     nft 'table ip example { chain output { type nat hook output priority -100; skuid 1000 tcp dport 80 redirect to :15001; }; }'

use kubevpn_conn::{Drain, Gate, Limits, Listener};
use kubevpn_target::Target;
use kubevpn_transparent::{Settings, serve_connection};
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr = std::env::args().nth(1);
    let addr = addr.as_deref().unwrap_or("127.0.0.1:15001").parse()?;
    let listener = Listener::bind(&addr).await?;
    #[allow(clippy::print_stdout)]
    {
        println!("{}", listener.addr());
    }

    let dialer = tower::service_fn(|target: Target| TcpStream::connect(target.to_string()));
    listener
        .serve(
            Gate::new(Limits::default()),
            Drain::new(),
            |client| async move {
                let settings = Settings::default();
                let _ended = serve_connection(client, dialer, &settings).await;
            },
        )
        .await;
    Ok(())
}
