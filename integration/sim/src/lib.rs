//! A cluster in memory: an API server on real loopback sockets, with pods behind it, that fails on command.
//!
//! It lets tests, and `kubevpn demo`, run everywhere. Where it and a real cluster differ, it is wrong:
//! answers, messages and times were taken from Kubernetes 1.34 with containerd, and the same scenarios
//! run on both.
//!
//! **Simulated**: GET, LIST (pages, resource versions) and WATCH (bookmarks, `sendInitialEvents`, 410) of
//! Services, Endpoints, EndpointSlices, Pods, ConfigMaps, Secrets, Namespaces with their default ServiceAccount,
//! Deployments, StatefulSets, IPAddresses and ServiceCIDRs, as JSON over HTTP/1.1 and HTTP/2; creating,
//! replacing, merge-patching (the status by itself, too) and deleting them;
//! the controllers that make pods, addresses and endpoints of them; bearer tokens, rules as RBAC has them,
//! impersonation, SelfSubjectAccessReview; port-forward over SPDY/3.1, SPDY in WebSocket and
//! `v4.channel.k8s.io`, with containerd's rules for the end of a connection; the lab's echo program in
//! every pod, or CoreDNS with its plugin `hosts` over TCP; discovery enough for kubectl.
//!
//! **Not simulated**, on purpose: a network between pods, the DNS of Services, exec and logs (nothing here asks);
//! nodes, ReplicaSets and the states a pod passes through as it starts; server-side apply, other patches,
//! deletecollection, validation beyond names and ports; mirroring of hand-written Endpoints; protobuf,
//! tables and compression; client certificates; base64 channels. One difference is gentler than reality:
//! data for a forward that has failed is thrown away here, while the real server's session may get stuck
//! on it ([`Sim::silence_session`] has the worst of that).
//!
//! The path of a request: `link.rs` (the socket) → `server.rs` (TLS, HTTP) → `api.rs` (faults, who, may
//! they) → `api/` (the resource, in `store.rs`) or `portforward.rs` → `portforward/` (the transport, then
//! one connection) → `pod.rs` (the program). What changes objects goes through `world.rs`.
//!
//! ```
//! use k8s_openapi::api::core::v1::Service;
//! use kube::{Api, Client};
//! use kubevpn_sim::{FaultAnswer, Match, Sim};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sim = Sim::builder().sample().start().await?;
//! let services: Api<Service> = Api::default_namespaced(Client::try_from(sim.config())?);
//! assert!(services.get("productpage").await.is_ok());
//!
//! sim.faults().answer_times(Match::any().verb("get"), FaultAnswer::Unauthorized, 1);
//! assert!(services.get("productpage").await.is_err());
//! assert_eq!(sim.requests().last().map(|r| r.code), Some(401));
//! # Ok(())
//! # }
//! ```
//!
//! With a paused clock use [`Sim::connect`], a connection in memory, or [`Sim::line`], which delays its bytes: the clock
//! runs ahead while sockets are on their way.
//!
//! Sources: the Kubernetes API conventions and reference, RFC 6455 (WebSocket), RFC 7386 (merge patch), and
//! `cri/sbserver` and `streaming/portforward` of containerd and the kubelet for what a forward does.

mod access;
mod api;
mod audit;
mod cluster;
mod faults;
mod kind;
mod kubeconfig;
mod line;
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

pub use self::access::{AccessRule, User};
pub use self::audit::AuditedRequest;
pub use self::faults::{FaultAnswer, FaultId, Faults, Match, Reject, SimTransport, StreamFault};
pub use self::line::Line;
pub use self::portforward::SimSession;
pub use self::sim::{Error, Sim, SimBuilder};
