//! The life of a client connection, the same for every frontend.
//!
//! A frontend crate speaks one protocol; what is not that protocol is here: listening and limits,
//! the two directions of a connection that is through, its orderly end, its one line in the log. Nothing
//! here knows what a client asked for beyond its [`Target`](kubevpn_target::Target), and nothing here dials.
//!
//! The path of a connection: [`Addr`] and [`Listener`] accept it as a [`Client`] that holds its permit from
//! the [`Gate`]; [`Drain`] runs it; the frontend reads a handshake, checks [`Credentials`] where there are
//! any, and either says no with [`reply_and_close`] or makes a [`Tunnel`] of the client: that dials inside
//! [`while_connected`] and hands both streams to [`relay()`]. A [`Record`] tells the end.
//!
//! ```
//! use kubevpn_conn::{End, RelayOptions, relay};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let (mut app, client) = duplex(64);
//! let (upstream, mut server) = duplex(64);
//! let relayed = tokio::spawn(relay(client, upstream, RelayOptions::default()));
//!
//! app.write_all(b"ping").await?;
//! app.shutdown().await?; // half-closed: the server sees the end, and still answers
//! let mut asked = String::new();
//! server.read_to_string(&mut asked).await?;
//! server.write_all(b"pong!").await?;
//! drop(server);
//!
//! let relayed = relayed.await?;
//! assert_eq!((relayed.up, relayed.down), (4, 5));
//! assert!(matches!(relayed.end, End::Eof));
//! # Ok(())
//! # }
//! ```
//!
//! Sources: RFC 9293 section 3.6 (half-closed connections, resets); RFC 1929 for the size of credentials.

mod addr;
mod auth;
mod close;
mod drain;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod io;
mod limits;
mod listen;
#[cfg(test)]
mod mock;
mod observe;
#[cfg(target_os = "linux")]
mod peer;
mod record;
mod relay;
mod rewind;
mod seldom;
mod sniff;
mod tunnel;
mod wait;

use std::time::Duration;

pub use self::addr::{Addr, AddrError};
pub use self::auth::{Credentials, CredentialsError, CredentialsLineError};
pub use self::close::{farewell, reply_and_close};
pub use self::drain::{Drain, Drained};
pub use self::io::{ClientIo, Closed};
pub use self::limits::{Gate, Limits, Permit};
pub use self::listen::{BindError, Client, Listener};
pub use self::observe::{
    DialStep, ENDS, Ended, Exchange, Head, Live, News, Observed, Observer, Route,
};
pub use self::record::{Record, Recorder, Traffic};
pub use self::relay::{End, RelayOptions, Relayed, Side, relay};
pub use self::rewind::Rewind;
pub use self::seldom::Backoff;
pub use self::sniff::SniffedProtocol;
pub use self::tunnel::{Tunnel, TunnelError};
pub use self::wait::while_connected;

/// How long a client may take from the accepted connection to a complete request. Dialing is not counted.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
