//! A cluster in memory: an API server on real loopback sockets, with pods behind it.

mod access;
mod api;
mod audit;
mod cluster;
mod faults;
mod kind;
mod kubeconfig;
mod link;
mod names;
mod pod;
mod portforward;
mod selector;
mod server;
mod sim;
mod status;
mod store;
mod tls;
mod world;

pub use self::access::{Rule, User};
pub use self::audit::Request;
pub use self::faults::{Answer, FaultId, Faults, Match, Reject, StreamFault, Transport};
pub use self::portforward::Session;
pub use self::sim::{Builder, Error, Sim};
