//! A real Kubernetes on this machine: etcd, the control plane, containerd, a kubelet and pods.
//!
//! The simulation claims how an API server behaves; this is where the claims are confirmed. It boots in
//! seconds, needs root and no image registry, and leaves nothing behind. It is no tool for anything but
//! tests: no limits, no persistence, one node, and credentials for the asking.
//!
//! One `up` through the modules: `settings` says where things are, `binaries` builds them from
//! `cluster/`, `cluster` has `supervise` start what `daemon` lists (every flag is there), `node` makes the
//! namespaces that containerd and the kubelet live in, `process` writes down what was started, and
//! `workload` fills the cluster, and `scale` measures what that costs a client. `check` asks whether it is a real one;
//! `audit` reads who asked the API server for what; `clients` sends real programs through the proxy, to the `guests`;
//! `upgrades` asks for a port-forward in every way a client might; `line` is a long way to a server; `hops` are gateways
//! and proxies on the way; `versions` names what a cluster consists of, and `matrix` tries all of it, with what
//! `transports` cost; `gateway` runs
//! `deploy/gateway` under load; `isolated` runs real programs in a namespace of their own;
//! `terminal` sits down at real shells; `metrics` has a real Prometheus look on while things go wrong; `page` opens the status
//! page in a real browser. `interrupt` has what a command has changed for a while changed back, though it fails or is interrupted.
//!
//! The command line (`main.rs`) and the tests use the same [`Lab`]. It is Rust and not shell because of
//! what must not go wrong: which process may be ended, what is already running, what is waited for.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! let lab = lab::Lab::attach().await?; // fails, with the command to run, unless `lab up` was run
//! let before = lab.audit_mark()?;
//! // … whatever uses lab.kubeconfig() …
//! let upgrades = lab.audit_since(&before).await?;
//! let upgrades = upgrades.iter().filter(|e| e.subresource == "portforward").count();
//! assert!(upgrades <= 8);
//! # Ok(())
//! # }
//! ```
//!
//! Sources: the components' own reference, <https://kubernetes.io/docs/reference/command-line-tools-reference/>,
//! and `cluster/README.md` for what was learned on the way.

mod audit;
mod away;
mod binaries;
mod check;
mod clients;
mod cluster;
mod command;
mod daemon;
mod debian;
mod gateway;
mod guests;
mod half_close;
mod hops;
mod interrupt;
mod isolated;
mod line;
mod machine;
mod matrix;
mod metrics;
mod node;
mod package;
mod page;
mod process;
mod proxy;
mod scale;
mod section;
mod settings;
mod supervise;
mod terminal;
mod transports;
mod upgrades;
mod versions;
mod vpn;
mod workload;

pub use self::audit::{AuditEvent, AuditMark};
pub use self::away::{Away, Recovery, table as away_table};
pub use self::check::Claim;
pub use self::clients::{Passage, ProxyPort, TestedClient, write_page};
pub use self::cluster::{Extent, Lab};
pub use self::daemon::ClusterDaemon;
pub use self::hops::{Crossing, Hop, write_hops};
pub use self::interrupt::{interruptible, undone};
pub use self::isolated::{IsolatedProgram, ProgramOutcome, write_programs};
pub use self::line::{Length, LineRelay, round_trip};
pub use self::matrix::{Scenarios, VersionPair, pairs, table as matrix_table, write_pair};
pub use self::metrics::{Scraped, lasting};
pub use self::package::{
    BUDGET, FileDifference, PackageBuild, PackageOptions, Packages, PackedProgram, ReleaseTools,
    clone_elsewhere, differences, package, try_packages,
};
pub use self::page::SeenPage;
pub use self::process::Signal;
pub use self::proxy::ProxiedConnection;
pub use self::scale::{ApiCalls, Connections, ScaleMeasured, contradictions};
pub use self::section::write_section;
pub use self::terminal::{Completed, TerminalView, write_terminal_page};
pub use self::upgrades::UpgradeAnswer;
pub use self::versions::{Containerd, Versions};
pub use self::vpn::{Claimed, Vpn, table as vpn_table};
