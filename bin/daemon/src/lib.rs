//! The daemon, one process per user that keeps managed connections, and its client for commands.
//!
//! A command finds or starts the daemon ([`DaemonClient`]) and speaks HTTP and JSON to it over a Unix socket ([`api`] has
//! the types, `server.rs` answers). The daemon ([`run`]) keeps a `Registry` of connections; each is one cluster, context
//! and namespace with its listeners (`connection.rs`), watched by `monitor.rs`. An [`Engine`] makes the way into a cluster:
//! [`ProxyEngine`] does it with `kubevpn-proxy`, and tests use a fake. `saved.rs` has what outlives the process, and
//! [`StateDir`] where; everything a platform does in its own way is in `sys.rs`. The crate reads no command line, prints
//! nothing but the one line that tells the command which started the daemon that it is ready, and knows no exit codes.

pub mod api;
mod client;
mod connection;
mod console;
mod engine;
mod error;
mod failpoint;
#[cfg(test)]
mod fake;
pub mod identity;
mod lock;
pub mod log;
mod monitor;
mod proxy_engine;
mod readiness;
mod registry;
mod run;
mod saved;
mod server;
mod signals;
mod state_dir;
mod sys;

pub use self::client::DaemonClient;
pub use self::console::{Console, EventLines};
pub use self::engine::{Engine, EngineSession, ServedListener, SessionSettings, Stats};
pub use self::error::{ApiError, Code};
pub use self::proxy_engine::{ProxyEngine, ProxyListener, ProxySession};
pub use self::run::{IDLE_VARIABLE, run};
pub use self::signals::{EndSignal, Termination};
pub use self::state_dir::{StateDir, VARIABLE as HOME_VARIABLE};

/// Version of this program, in the API.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
