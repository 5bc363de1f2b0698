//! `PodPort` → `PodStream`: connections to Pods over pooled Kubernetes port-forward sessions.
//!
//! It is given a Pod and a port. It does not resolve names, choose among replicas, or try another replica.
//!
//! The path of a dial: [`Forwarder`] (`forward.rs`) → a session of the Pod (`pool.rs`, chosen in `pool/choose.rs`), else
//! an upgrade (`transport.rs` and its three transports) → a data and an error stream (`pair.rs`) → the port's fate if it
//! is not known → [`PodStream`] (`stream.rs`: how it ends). A failure is a [`ForwardError`] (`error.rs`).
//! Meanwhile `pool/keep.rs` pings, evicts and retires sessions.
//!
//! ```no_run
//! # async fn run(client: kube::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use kubevpn_portforward::{Config, Forwarder, PodPort};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tower::{Service, ServiceExt};
//!
//! let mut forwarder = Forwarder::new(client, Config::default());
//! let to = PodPort { namespace: "shop".into(), pod: "web-0".into(), uid: None, port: 8080 };
//! let mut stream = forwarder.ready().await?.call(to).await?;
//! stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
//! let mut answer = Vec::new();
//! stream.read_to_end(&mut answer).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Sources: KEP-4006 for SPDY in WebSocket; `k8s.io/kubelet/pkg/cri/streaming/portforward` and containerd for what the
//! other side does, none of which is specified; `docs/decisions/0003-sessions.md` for what was measured.

#![warn(missing_docs)]

mod config;
mod dial;
mod error;
mod fate;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod news;
mod pair;
mod pod;
mod pool;
mod stats;
mod stream;
#[cfg(test)]
mod testing;
mod transport;

pub use self::config::{Config, Transport, TransportChoice, UnknownTransport};
pub use self::error::{ForwardError, Rejection};
pub use self::forward::Forwarder;
pub use self::news::{SessionHealth, SessionName, SessionNews, SessionState};
pub use self::pod::{PodPort, PodSessionState};
pub use self::stats::Stats;
pub use self::stream::PodStream;
