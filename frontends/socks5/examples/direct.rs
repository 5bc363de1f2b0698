//! A SOCKS5 proxy over plain TCP: the frontend, and one line for a backend. Nothing of Kubernetes.
//!
//!     cargo run -p kubevpn-socks5 --example direct -- 127.0.0.1:1080
//!     curl --proxy socks5h://127.0.0.1:1080 http://example.com

use kubevpn_conn::{Drain, Gate, Limits, Listener};
use kubevpn_socks5::{Settings, serve_connection};
use kubevpn_target::Target;
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr = std::env::args().nth(1);
    let addr = addr.as_deref().unwrap_or("127.0.0.1:1080").parse()?;
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
