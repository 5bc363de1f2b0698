//! A cluster in memory: an API server on real loopback sockets, with pods behind it.

mod access;
mod audit;
mod faults;
mod sim;

pub use self::access::{Rule, User};
pub use self::audit::Request;
pub use self::faults::{Answer, FaultId, Faults, Match, Reject, StreamFault, Transport};
pub use self::sim::{Builder, Error, Session, Sim};
