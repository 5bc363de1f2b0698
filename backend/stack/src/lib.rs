//! The policy between a [`Target`](kubevpn_target::Target) and a stream to a Pod: one tower layer per step.
//!
//! It contains no protocol: `kubevpn-cluster` resolves names, `kubevpn-portforward` opens streams.
//!
//! The path of a request, outermost first (`stack.rs` has the reasons): [`Deadline`] → [`Resolve`] (`Target` to a
//! [`Subscription`]: the Pods and their changes) → [`Dispatch`] (to [`PodPort`](kubevpn_portforward::PodPort): the ready
//! Pod with the fewest streams, then the next if a dial fails) → the [`Forwarder`]. Targets that no Pod serves go from
//! [`Resolve`] to the [`Egress`]: the API server itself, and hosts outside, which are dialled [`FromHost`] or refused.
//! Each layer is public: leave one out (`examples/without_ready.rs`), or add your own (`examples/own_layers.rs`).
//!
//! ```no_run
//! use kubevpn_client::{ApiServer, Options, build};
//! use kubevpn_stack::{
//!     Cluster, ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Outside, Settings, stack,
//! };
//! use kubevpn_target::{Connect, Origin, Target};
//!
//! # async fn example(config: kube::Config) -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::new("example/1.0");
//! let api_server = ApiServer::new(config.clone(), &options)?;
//! let client = build(config, &options)?;
//! let cluster = Cluster::new(client.clone(), ClusterSettings::default());
//! let forwarder = Forwarder::new(client, ForwarderConfig::default());
//! let egress = Egress::new(api_server, Outside::Deny, FromHost::default());
//! let connect = stack(cluster, forwarder, egress, Settings::default());
//! let stream = connect.connect(Target::parse("web.shop:80", Origin::default())?).await?;
//! # Ok(())
//! # }
//! ```
//!
//! DNS clients are answered from the same objects: [`Resolve::answer`].
//!
//! Every layer is always ready (`poll_ready`): a call drives a clone of the service below with `oneshot`.

#![warn(missing_docs)]

mod ahead;
mod deadline;
mod dispatch;
mod dns;
mod egress;
mod either;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod held;
mod host;
mod resolve;
mod stack;

pub use kubevpn_cluster::{
    Answer, Candidates, Cluster, Domain, Query, Settings as ClusterSettings, Subscription, Survey,
    SurveyedList, WatchHealth, WatchNews, WatchState,
};
pub use kubevpn_portforward::{
    Config as ForwarderConfig, Forwarder, PodSessionState, SessionHealth, SessionName, SessionNews,
    SessionState, Transport, TransportChoice,
};

pub use self::ahead::Ahead;
pub use self::deadline::{Deadline, DeadlineLayer};
pub use self::dispatch::{Blame, DialError, Dispatch, DispatchLayer, PodLease};
pub use self::egress::{Egress, Elsewhere, Outside};
pub use self::either::Either;
pub use self::held::Held;
pub use self::host::{FromHost, Outbound, OwnListeners};
pub use self::resolve::{Resolve, ResolveLayer, Resolved, Took};
pub use self::stack::{Settings, Stack, stack};
