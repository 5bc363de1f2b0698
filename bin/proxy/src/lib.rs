//! A local proxy into one cluster, from its settings to its end.
//!
//! [`ListenerSpec`] says what to listen on and [`Policy`] what a host means; [`Bound`] is a socket that does not accept
//! clients yet, and [`Server`] serves bound sockets over a [`Backend`] until [`Server::end`] drains them. [`connect`]
//! builds the stack of a backend. The crate reads no command line, prints nothing and handles no signal; its errors name
//! the listener.
//!
//! ```
//! use std::time::Duration;
//! use kubevpn_proxy::{Backend, Bound, ListenerSpec, Protocol, Server};
//! use kubevpn_stack::FromHost;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let spec = ListenerSpec::new(Protocol::Socks, "127.0.0.1:0".parse()?);
//! let bound = spec.bind(&spec.address, false).await?;
//! let own: Vec<_> = bound.iter().filter_map(Bound::address).collect();
//! let mut server = Server::new(Backend::of_host(FromHost::default()), spec.clients(&own)?);
//! bound.into_iter().for_each(|bound| server.add(bound));
//! server.end(Duration::from_secs(5), std::future::pending()).await;
//! # Ok(())
//! # }
//! ```

mod admin;
mod descriptors;
mod error;
mod guard;
mod inside;
pub mod journal;
mod listener;
mod metrics;
mod pac;
mod pac_file;
mod policy;
pub mod probe;
mod reread;
mod server;
mod stack;
mod suggest;
pub mod text;
mod tls;

pub use self::admin::{Admin, ProxyReadiness};
pub use self::descriptors::allow_for;
pub use self::error::{AuthError, AuthReason, ListenerError};
pub use self::guard::{Guard, PatternError, Rules, TargetPattern};
pub use self::inside::{HOST, Inside, InsideSockets};
pub use self::journal::{Journal, ProxyView};
pub use self::listener::{
    Bound, Clients, ForwardTo, HttpSettings, ListenerSpec, Listening, PacSettings, Protocol,
    credentials_in, dns_settings, own, reachable,
};
pub use self::metrics::{METRICS, Metric};
pub use self::pac::{AddressRange, KnownList, PacFacts, text as pac_text};
pub use self::pac_file::facts;
pub use self::policy::{DnsService, DomainName, NotAService, Policy, StackConfig};
pub use self::reread::Reread;
pub use self::server::Server;
pub use self::stack::{Backend, ClusterStack, Expect, NameService, chain, connect, endings};
pub use self::suggest::{Suggest, nearest, suggestion};
pub use self::tls::{ListenerTls, TlsError};
