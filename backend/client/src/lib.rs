//! How kubevpn reaches the API server: kubectl's kubeconfig rules in, a [`kube::Client`] out.
//!
//! This crate does not know the requests: no resource, no port-forward protocol. It reads neither the process
//! environment nor flags: the caller passes both in.
//!
//! The path of a start: [`KubeconfigArgs`] and [`Env`] → [`load`] (`kubeconfig.rs`: files, merging,
//! overrides, proxy) → [`Loaded`] → [`build`] (`client.rs`) → [`kube::Client`].
//! The path of a request: base URL, headers and credentials (`recipe.rs`; `login.rs` obtains and renews them) →
//! `transport.rs` (calls share HTTP/2 connections, upgrades get an HTTP/1.1 connection each, the next one made ahead:
//! `spare.rs`) → `connector.rs` (TCP, perhaps through a proxy, then TLS). A failure → [`classify_api`] (`classify.rs`).
//! [`ApiServer`] (`raw.rs`) opens bare connections to the API server for other programs.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use kubevpn_client::{Env, KubeconfigArgs, Options, build, load};
//!
//! let loaded = load(&KubeconfigArgs::default(), &Env::of_process())?;
//! let client = build(loaded.config, &Options::new("kubevpn/0.1.0"))?;
//! println!("{} runs {}", loaded.server, client.apiserver_version().await?.git_version);
//! # Ok(())
//! # }
//! ```
//!
//! Sources: kubernetes.io "Organizing Cluster Access Using kubeconfig Files" for merging, RFC 7540 and
//! RFC 9110 section 7.8 for HTTP/2 and upgrades, RFC 9110 section 9.3.6 and RFC 1928 for the proxies.

#![warn(missing_docs)]

mod action;
mod ahead;
mod classify;
mod client;
mod connector;
mod credential;
mod dialer;
mod error;
mod kubeconfig;
mod login;
mod options;
mod p521;
mod pem;
mod plugin;
mod proxy;
mod raw;
mod recipe;
mod renewal;
mod retry;
mod shown;
mod spare;
mod tls;
mod transport;

pub use self::action::Action;
pub use self::ahead::ReadAhead;
pub use self::classify::{classify_api, classify_status, is_unconnected};
pub use self::client::{build, build_renewable};
pub use self::connector::ReachError;
pub use self::dialer::{DialedSocket, Dialer};
pub use self::error::{ClientError, PluginError, PluginFailure};
pub use self::kubeconfig::{
    EntryNames, Env, KubeconfigArgs, KubeconfigError, Loaded, NameList, OWN_PROXIES, entry_names,
    load, own_proxies,
};
pub use self::login::LoginNews;
pub use self::options::Options;
pub use self::proxy::ProxyError;
pub use self::raw::{ApiServer, RawStream};
pub use self::renewal::Renewal;
pub use self::shown::ShownCredentials;
