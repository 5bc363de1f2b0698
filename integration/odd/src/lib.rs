//! Odd but real HTTP: what our HTTP frontend makes of it, beside other proxies that people use.
//!
//! A [`OddRow`] (`row.rs`; all of them are in `rows.rs` and below) is a client's bytes, a server's bytes, and what is
//! right by which section of an RFC. It is played directly, through our frontend over plain TCP, and through
//! squid, tinyproxy and Apache's mod_proxy (`peers.rs`), with a raw client (`client.rs`) and a raw server
//! (`server.rs`), neither of which knows HTTP beyond where a message ends (`message.rs`). `play.rs` does that and
//! judges; `page.rs` writes `docs/odd.md`.
//!
//! `libraries.rs` has real clients in place of raw bytes.
//!
//! It needs no cluster: `cargo test -p kubevpn-odd`. The peers are installed by the run where it may use
//! `apt-get`.

mod client;
mod libraries;
mod message;
mod page;
mod peers;
mod play;
mod row;
mod rows;
mod server;

pub use self::libraries::{Library, Ran, install_libraries, libraries};
pub use self::page::write;
pub use self::peers::{MissingProgram, Peers};
pub use self::play::{Played, RouteVerdict, play};
pub use self::row::OddRow;
pub use self::rows::rows;
