//! A static forward: one local port for one target, for programs without proxy support (`psql`, JDBC).
//!
//! It reads no protocol and keeps no state between connections: each one dials the target anew, so that the
//! replacement of a Pod ends its own connections only. It does not listen, resolve or dial.
//!
//! The path of a connection: a [`Forward`] (`forward.rs`) has the listen address and the target;
//! [`serve_connection`] (`serve.rs`) dials the target through any [`Service<Target>`](kubevpn_target::Connect) and
//! relays (`kubevpn-conn`). There is no protocol for a refusal: if the target cannot be dialled, the client is reset, and
//! the access record has the reason.
//!
//! ```
//! use kubevpn_forward::{Forward, serve_connection};
//! use kubevpn_target::Target;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A backend: whatever is asked for, it answers "hello" and ends.
//! let backend = tower::service_fn(|target: Target| async move {
//!     assert_eq!(target.to_string(), "db.shop:5432");
//!     let (stream, mut server) = tokio::io::duplex(64);
//!     server.write_all(b"hello").await?;
//!     Ok::<_, std::io::Error>(stream)
//! });
//! let forward: Forward = "15432:db.shop:5432".parse()?;
//! assert_eq!(forward.listen.to_string(), "127.0.0.1:15432");
//!
//! let (mut app, client) = tokio::io::duplex(64);
//! let served = tokio::spawn(async move { serve_connection(client, &forward.to, backend, None).await });
//! let mut answer = String::new();
//! app.shutdown().await?;
//! app.read_to_string(&mut answer).await?;
//! assert_eq!(answer, "hello");
//! assert_eq!(served.await??.down, 5);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod forward;
mod serve;

pub use self::forward::{Forward, ParseForwardError};
pub use self::serve::serve_connection;
