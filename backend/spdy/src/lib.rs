//! SPDY/3.1 as Kubernetes speaks it: many byte streams over one upgraded connection.

mod config;
mod driver;
mod error;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod incoming;
mod session;
mod shared;
mod stream;

pub use self::{
    config::Config,
    driver::{Driver, client, server},
    error::{OpenError, SessionError, StreamError},
    frame::{GoAwayStatus, HeaderError, Headers, ResetStatus, StreamId, WireError},
    handle::{Cork, Session, Stalled, Stats},
    incoming::{Incoming, Request},
    stream::Stream,
};
