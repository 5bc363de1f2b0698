//! SPDY/3.1 as Kubernetes speaks it: many byte streams over one upgraded connection.
//!
//! This crate takes a connection that has been upgraded to SPDY already, in either role, and provides
//! streams that read, write and half-close like sockets. It knows neither HTTP nor Kubernetes, has
//! no time-outs, and starts no tasks: the caller spawns the [`Driver`] and sets its own time limits.
//! It has no flow control: servers of Kubernetes never open a window, so a sender that respected windows
//! would stop at 64 KiB. [`Config`] limits what a stream may hold, and [`Stats`] shows which streams
//! hold up a session.
//!
//! The path of a byte: a [`SpdyStream`] (`stream.rs`) passes it to the session's state machine
//! (`session.rs`, which has no I/O), which turns it into frames (`frame.rs`, the wire format); the
//! [`Driver`] (`driver.rs`) writes them to the socket, control frames first and streams in turn.
//! The other way round, the driver reads, the state machine finds the stream, and the stream's
//! reader is woken.
//!
//! ```
//! use kubevpn_spdy::{Config, Headers, client, server};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (near, far) = duplex(64 * 1024);
//!
//! // A server that sends back in one piece what a stream carried.
//! let (server, mut incoming, driver) = server(far, Config::default());
//! tokio::spawn(driver);
//! tokio::spawn(async move {
//!     while let Some(request) = incoming.next().await {
//!         assert_eq!(request.headers().get("port"), Some("8080"));
//!         let mut stream = request.accept(&Headers::new(), false);
//!         let mut all = Vec::new();
//!         stream.read_to_end(&mut all).await?;
//!         stream.write_all(&all).await?;
//!         stream.shutdown().await?;
//!     }
//!     Ok::<_, std::io::Error>(())
//! });
//!
//! let (session, driver) = client(near, Config::default());
//! tokio::spawn(driver);
//! let headers = Headers::try_from([("streamType", "data"), ("port", "8080")])?;
//! let mut stream = session.open(&headers, false)?;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer).await?;
//! assert_eq!(answer, "hello");
//! # drop(server);
//! # Ok(())
//! # }
//! ```
//!
//! The protocol: draft-mbelshe-httpbis-spdy-00, which is SPDY/3; 3.1 adds the session's window.

#![warn(missing_docs)]

mod config;
mod driver;
mod error;
#[cfg_attr(
    not(any(test, feature = "fuzzing")),
    allow(
        dead_code,
        reason = "frames that are never sent are encoded by the fuzz targets alone"
    )
)]
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod incoming;
mod session;
mod shared;
mod stream;

pub use self::{
    config::{Config, Unread},
    driver::{Driver, client, server},
    error::{SessionError, StreamError, StreamOpenError},
    frame::{GoAwayStatus, HeaderError, Headers, ResetStatus, StreamId, WireError},
    handle::{Cork, Session, Stalled, Stats},
    incoming::{Incoming, StreamRequest},
    stream::SpdyStream,
};
