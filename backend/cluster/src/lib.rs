//! What exists in the cluster: names and addresses to [`Candidates`].
//!
//! It says what could serve a host and port, and what is known of its readiness. It refuses to choose, to
//! wait, to dial, or to decide about hosts outside: those are layers above. It never asks a DNS: it says what
//! to ask the cluster's for ([`Question`]), and which Pods that is ([`Cluster::dns`]).
//!
//! The path of one lookup: [`Cluster::lookup`] (`cluster.rs`) → what a name can mean, in order (`name.rs`,
//! `cluster/names.rs`), or whose an address is (`cluster/addresses.rs`) → the objects behind it (`view.rs`,
//! one question each) → ports and endpoints (`index.rs`, pure) → [`Answer`] (`candidates.rs`) or
//! [`LookupError`] (`error.rs`). `trust.rs` rides along and
//! notes how long the answer may be trusted.
//!
//! What has just failed may be asked for past all that is kept: [`Candidates::fate`] (`cluster/fate.rs`).
//!
//! The same objects as a DNS server sees them: [`Cluster::records`] and [`Cluster::pointers`]
//! (`cluster/records.rs`) → [`Records`] (`records.rs`, pure).
//!
//! The path of an object: a call (`fetch.rs`) or a watch (`watch.rs`) → the little of it that is read
//! (`kind.rs`) → kept while somebody uses it (`keep.rs`, which has the ladder of access rights). So a lookup
//! that was made before asks the API server nothing.
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

#![cfg_attr(
    not(feature = "watch"),
    allow(dead_code, reason = "what only watching uses")
)]

mod candidates;
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
mod objects;
mod records;
mod select;
mod store;
mod survey;

pub use self::candidates::{
    Answer, Candidates, Endpoint, Fate, Outside, PodRef, Question, Readiness, Stray,
};
pub use self::cluster::{Cluster, Settings};
pub use self::error::LookupError;
pub use self::name::Domain;
pub use self::records::{Known, Record, RecordKind, Records};
pub use self::store::Stats;
pub use self::survey::{Failed, Listed, Survey};
