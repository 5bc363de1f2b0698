//! What exists in the cluster: names and addresses to [`Candidates`].
//!
//! This crate returns the endpoints that could serve a host and port, and their readiness. It does not choose, wait, dial, or decide
//! about hosts outside: layers above do. It never queries a DNS server: it returns the query for the cluster's DNS
//! ([`DnsQuestion`]) and the Pods of that DNS ([`Cluster::dns`]).
//!
//! The path of a query: [`Cluster::subscribe`] (`cluster.rs`) → the answer that subscribers share (`subscribe.rs`) → a pure
//! function (`resolve.rs`; names in `resolve/names.rs`, addresses in `resolve/addresses.rs`, ports and endpoints in
//! `objects.rs`) over a snapshot of known objects (`snapshot.rs`) → missing objects are read (`store.rs`), and the function
//! is called again → [`Answer`] or [`LookupError`]. A [`Subscription`] to Pods reports when they may have changed.
//!
//! Pods that have just failed can be read past the store: [`Subscription::check_pods`] (`check.rs`).
//!
//! The same objects as a DNS server sees them: [`Cluster::records`] and [`Cluster::pointers`]
//! (`resolve/records.rs`) → [`Records`] (`records.rs`, pure).
//!
//! The path of an object: a call (`fetch.rs`) or a watch (`store/watch.rs`) → the fields that are used (`kind.rs`) → kept
//! while it is in use (`store/shelf.rs`). So a query that was answered before causes no call to the API server.
//!
//! ```
//! use kubevpn_cluster::{Candidates, Endpoint, PodRef, Readiness};
//!
//! let endpoint = |name: &str, readiness| Endpoint {
//!     pod: PodRef { namespace: "shop".into(), name: name.into(), uid: None },
//!     port: 8080,
//!     readiness,
//!     addresses: vec![],
//! };
//! let found = vec![
//!     endpoint("web-0", Readiness::NotReady),
//!     endpoint("web-1", Readiness::ServingTerminating),
//! ];
//! let candidates = Candidates::new("service shop/web port 80", found);
//! let usable = candidates.usable()?;
//! assert_eq!(usable[0].pod.name, "web-1"); // nothing is ready, and this one still serves
//! # Ok::<(), kubevpn_cluster::LookupError>(())
//! ```
//!
//! Sources: kubernetes.io "DNS for Services and Pods" for names, the EndpointSlice API reference for
//! conditions, kube-proxy for the use of terminating endpoints (KEP-1669).

#![warn(missing_docs)]
#![cfg_attr(
    not(feature = "watch"),
    allow(dead_code, reason = "what only watching uses")
)]

mod candidates;
mod check;
mod cluster;
mod corefile;
mod error;
#[cfg(test)]
mod fake;
mod fetch;
mod kind;
#[cfg(test)]
mod log;
mod name;
mod neighbours;
mod objects;
mod records;
mod resolve;
mod select;
mod settings;
mod snapshot;
mod store;
mod subscribe;
mod survey;

pub use self::candidates::{
    Candidates, DnsQuestion, Endpoint, OutsideHost, PodRef, Query, Readiness, Resolution, Stray,
};
pub use self::check::PodCheck;
pub use self::cluster::Cluster;
pub use self::error::LookupError;
pub use self::name::Domain;
pub use self::records::{KnownRecords, NameRecord, RecordKind, Records};
pub use self::settings::Settings;
pub use self::store::{Stats, WatchHealth, WatchNews, WatchState};
pub use self::subscribe::{Answer, Subscription};
pub use self::survey::{ListFailure, Survey, SurveyedList};
