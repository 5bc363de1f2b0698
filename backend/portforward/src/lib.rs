//! PodPort → PodStream: connections to Pods over pooled port-forward sessions.

mod config;
mod error;
mod forward;
mod stream;

pub use self::config::{Config, Transport, TransportChoice, UnknownTransport};
pub use self::error::{ForwardError, Rejection};
pub use self::forward::{Forwarder, PodPort, Stats};
pub use self::stream::PodStream;
