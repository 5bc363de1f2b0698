//! An HTTP proxy frontend: serves one client connection over any [`Service<Target>`](kubevpn_target::Connect).
//!
//! It tunnels (CONNECT) and forwards (`GET http://host/path`, what `http_proxy` makes programs send), with
//! keep-alive on both sides, streaming bodies, trailers and protocol upgrades. It does not listen, resolve,
//! dial, cache or decrypt. A request to the proxy itself gets a help page or the PAC file, never a target's
//! answer. An ambiguous message is refused, or forwarded in a form with one meaning.
//!
//! The path of a connection: [`serve_connection`] (`serve.rs`) reads the first head (`head.rs`) and lets hyper
//! speak HTTP on the client's stream, which passes one message at a time (`client.rs`, `content.rs`), in one phase at
//! a time (`exchange.rs`). `request.rs` classifies a request, `authority.rs` parses its target. A CONNECT takes the
//! stream from hyper, and is dialled and relayed (`tunnel.rs`, `kubevpn-conn`). Any other request is forwarded
//! (`forward.rs`) with the fields that may pass (`headers.rs`), on an idle connection (`pool.rs`) or a new one
//! (`upstream.rs`); bodies stream through `upload.rs` and `reply.rs`. A failure is a problem (`problem.rs`), with its
//! status in `refusal.rs` and its answer in `answer.rs`.
//!
//! ```
//! use kubevpn_http_connect::{Settings, serve_connection};
//! use kubevpn_target::Target;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! // A backend: whatever is asked for, it answers "hello" and ends.
//! let backend = tower::service_fn(|target: Target| async move {
//!     assert_eq!(target.to_string(), "web.shop:80");
//!     let (stream, mut server) = tokio::io::duplex(64);
//!     server.write_all(b"hello").await?;
//!     Ok::<_, std::io::Error>(stream)
//! });
//! let (mut app, client) = tokio::io::duplex(1024);
//! let served = tokio::spawn(async move { serve_connection(client, backend, &Settings::default()).await });
//!
//! app.write_all(b"CONNECT web.shop:80 HTTP/1.1\r\nHost: web.shop:80\r\n\r\n").await?;
//! app.shutdown().await?;
//! let mut answer = String::new();
//! app.read_to_string(&mut answer).await?;
//! assert_eq!(answer, "HTTP/1.1 200 OK\r\n\r\nhello");
//! served.await?.unwrap();
//! # Ok(())
//! # }
//! ```
//!
//! Specified in RFC 9110 (what a proxy does), RFC 9112 (HTTP/1.1 on the wire), RFC 7617 (Basic), RFC 9209
//! (`Proxy-Status`).

#![warn(missing_docs)]

mod answer;
mod authority;
mod client;
mod content;
mod exchange;
mod forward;
mod head;
mod headers;
mod pac;
mod pool;
mod problem;
mod refusal;
mod reply;
mod request;
mod serve;
mod settings;
mod tunnel;
mod upload;
mod upstream;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use self::pac::Pac;
pub use self::pool::{PoolLimits, UpstreamPool};
pub use self::refusal::status;
pub use self::serve::{ServeError, serve_connection};
pub use self::settings::Settings;

/// The largest head of a message, and hyper's buffer for a body.
const MAX_HEAD: usize = 64 * 1024;
/// Limit on the fields of a head. A head of 64 KiB with more would have fields of less than 64 bytes; and hyper's memory
/// for so many is an allocation that an allocator still caches (32 KiB).
const MAX_FIELDS: usize = 1024;
