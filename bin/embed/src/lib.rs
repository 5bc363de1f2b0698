//! A Kubernetes cluster from inside a program: streams to its Services and Pods, local ports, HTTP connections.
//!
//! Nothing is installed in the cluster, and no process is started: bytes travel over the Kubernetes API's port-forward, by
//! the kubeconfig that kubectl uses. It carries TCP only, and refuses hosts outside the cluster.
//!
//! The path of a connection: [`Cluster`] (`cluster.rs`) reads the target and dials it through the stack of `kubevpn-stack`,
//! which resolves the name as the cluster's DNS would, waits for a ready Pod if told to, and opens a [`ClusterStream`]
//! (`stream.rs`). A [`LocalPort`] (`port.rs`) does so for each TCP client it accepts, and a [`Connector`] (`connector.rs`)
//! for an HTTP client, or for custom layers and frontends.
//!
//! ```no_run
//! use kubevpn_embed::Cluster;
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = Cluster::try_default().await?;
//!
//! // A byte stream to a Pod of the Service.
//! let mut stream = cluster.connect("web.shop:80").await?;
//! stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer).await?;
//!
//! // A local port, for a client that needs an address. Closed when it is dropped.
//! let database = cluster.forward("db.shop:5432").await?;
//! println!("postgres://{}/shop", database.addr());
//! # Ok(())
//! # }
//! ```
//!
//! # Names
//!
//! A target is `HOST:PORT`. A host is a Service (`db`, `db.shop`, `db.shop.svc.cluster.local`), a Pod (`db-0.db.shop`), or the
//! address of either. Short names are looked up in the namespace of the kubeconfig's context.
//!
//! # Errors
//!
//! [`ConnectError`] is one sentence for a person, and a [`Refusal`] for a program: not found, not ready, forbidden, and so on.
//! Nothing is retried that may have reached the server: a stream that breaks ends with an error.
//!
//! # Cancellation
//!
//! Dropping a future cancels its operation. Dropping a stream closes its connection; dropping a [`LocalPort`] closes the
//! port and cuts its connections; a [`Cluster`] may be dropped before its streams and ports, which stay open.
//!
//! Everything runs on the tokio runtime that [`Cluster`] was made on, with its I/O and time enabled, and ends with it.
//!
//! Sources: kubernetes.io "DNS for Services and Pods" for names, "Organizing Cluster Access Using kubeconfig Files" for
//! the configuration.

#![warn(missing_docs)]

mod cluster;
mod connector;
mod error;
mod port;
mod stream;

pub use kube::Config;
pub use kubevpn_client::{ClientError, KubeconfigError};
pub use kubevpn_conn::BindError;
pub use kubevpn_target::{ConnectError, Origin, Refusal, Target, TargetError, Via};

pub use self::cluster::{Cluster, ClusterBuilder};
pub use self::connector::Connector;
pub use self::error::{BuildError, LocalPortError};
pub use self::port::LocalPort;
pub use self::stream::ClusterStream;
