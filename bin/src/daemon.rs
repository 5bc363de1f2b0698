//! Managed mode: one process per user that owns connections, and what the commands say to it.
//!
//! A command finds or starts the daemon (`client.rs`) and speaks HTTP and JSON to it over a Unix socket (`api.rs` has
//! the words, `server.rs` answers). The daemon keeps a `Registry` of connections; each is one cluster, context and
//! namespace with its listeners (`connection.rs`), watched by `keep.rs`. What outlives the process is in `saved.rs`,
//! where it lies in `home.rs`; everything a platform does in its own way is in `sys.rs`.

pub(crate) mod api;
pub(crate) mod client;
mod connection;
mod count;
mod fault;
pub(crate) mod home;
pub(crate) mod identity;
mod keep;
pub(crate) mod listener;
mod lock;
pub(crate) mod log;
pub(crate) mod probe;
mod registry;
pub(crate) mod run;
mod saved;
mod server;
mod sys;
mod tell_ready;

pub(crate) use self::client::Daemon;
pub(crate) use self::home::Home;

/// The version of this program, as the daemon and its clients tell each other.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
