//! A SOCKS5 frontend: serves one client connection over any [`Service<Target>`](kubevpn_target::Connect).
//!
//! It speaks SOCKS5 CONNECT, with a user name and password where asked for, and SOCKS4 and 4a CONNECT,
//! which programs made for `ssh -D` use. It does not listen, resolve or dial, and refuses BIND and UDP
//! ASSOCIATE. Success is reported only once the backend's stream exists. Bytes that a client sends ahead are the
//! first that the backend gets. A handshake is limited in bytes and time.
//!
//! The path of a connection: [`serve_connection`] (`serve.rs`) feeds the client's bytes to a handshake without
//! I/O (`session.rs`), which parses them with `wire/` and returns answers and at last a
//! [`Target`](kubevpn_target::Target). The target is dialled; a failure becomes a reply (`refusal.rs`), a stream is
//! relayed (`kubevpn-conn`).
//!
//! ```
//! use kubevpn_socks5::{Settings, serve_connection};
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
//! app.write_all(b"\x05\x01\x00\x05\x01\x00\x03\x08web.shop\x00\x50").await?;
//! app.shutdown().await?;
//! let mut answer = Vec::new();
//! app.read_to_end(&mut answer).await?;
//! assert_eq!(answer, b"\x05\x00\x05\x00\x00\x01\0\0\0\0\0\0hello");
//! assert_eq!(served.await?.unwrap().down, 5);
//! # Ok(())
//! # }
//! ```
//!
//! Specified in RFC 1928 (SOCKS5) and RFC 1929 (its passwords); SOCKS4 in Ying-Da Lee's "SOCKS: A protocol
//! for TCP proxy across firewalls" and its 4A note, which no RFC has.

#![warn(missing_docs)]

mod refusal;
mod serve;
mod session;
mod wire;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use self::refusal::reply_code;
pub use self::serve::{ServeError, Settings, serve_connection};
pub use self::session::HandshakeError;
