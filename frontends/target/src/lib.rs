//! The seam between proxy frontends and backends: targets, streams, refusals.
//!
//! A frontend (SOCKS5, HTTP) turns a client's request into a [`Target`] and calls a [`Connect`]: any
//! [`tower_service::Service<Target>`] that answers with a [`Stream`] or one classified [`ConnectError`].
//! This crate contains these types and nothing else: no protocol, no Kubernetes, no dialling.
//!
//! The path of a request: [`Target`] (`target.rs`) → [`Connect`] (`connect.rs`) → [`Stream`], or
//! [`ConnectError`] with its [`Refusal`] (`refusal.rs`), which every frontend maps in one `match`.
//!
//! ```
//! use kubevpn_target::{Connect, Origin, Refusal, Target};
//! use tokio::net::TcpStream;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // Any tower service is a backend: here a plain TCP dialer.
//! let dialer = tower::service_fn(|target: Target| async move {
//!     TcpStream::connect((target.host.to_string(), target.port.get())).await
//! });
//! let target = Target::parse("127.0.0.1:1", Origin::default()).unwrap();
//! let error = dialer.connect(target).await.unwrap_err();
//! assert_eq!(error.refusal(), Refusal::Refused);
//! # }
//! ```
//!
//! Sources: RFC 1123 section 2.1 for host names, RFC 3986 section 3.2.2 for the bracketed IPv6 form.

#![warn(missing_docs)]

// Placed here because nearly every crate depends on this one: a build for Windows fails with this sentence only.
#[cfg(not(unix))]
compile_error!("kubevpn needs Unix sockets, sessions and signals: see docs/platforms.md");

mod connect;
mod refusal;
#[cfg(feature = "test-support")]
pub mod table;
mod target;

pub use self::connect::{Connect, Plain, Stream, Via};
pub use self::refusal::{BoxError, ConnectError, Fault, Refusal, classify};
pub use self::target::{Frontend, Host, Name, Origin, Target, TargetError};
