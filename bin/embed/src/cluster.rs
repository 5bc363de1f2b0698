//! The cluster: streams, local ports and connectors.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Config;
use kubevpn_client::{ApiServer, Env, KubeconfigArgs, Options, build_renewable, load};
use kubevpn_conn::Drain;
use kubevpn_http_connect::Settings as HttpSettings;
use kubevpn_stack::{
    ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Outside, Settings, Stack, stack,
};
use kubevpn_target::{Connect as _, ConnectError, Origin, Refusal, Target};

use crate::{BuildError, ClusterStream, Connector, LocalPort, LocalPortError};

/// The dialer of targets.
pub(crate) type TargetDialer = Stack<Egress<ApiServer>>;

/// A Kubernetes cluster. Clones share its connections and what is known of its objects.
///
/// Objects are watched while they are in use, so that another connection to the same target costs no call to the API
/// server. A watch ends 10 minutes after its last use.
#[derive(Clone)]
pub struct Cluster {
    dialer: TargetDialer,
}

impl Cluster {
    /// The cluster that kubectl would use: by `KUBECONFIG`, else `~/.kube/config`, else, in a Pod, by its service account.
    ///
    /// Reads files and sends nothing: the first connection shows whether the API server answers.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = kubevpn_embed::Cluster::try_default().await?;
    /// let stream = cluster.connect("db.shop:5432").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn try_default() -> Result<Self, BuildError> {
        Self::builder().build().await
    }

    /// A builder, for other settings than the defaults.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::new()
    }

    /// Opens a byte stream to `target`, written `HOST:PORT`.
    ///
    /// For a Service, the stream goes to the ready Pod with the fewest streams of this `Cluster`; if that Pod cannot be
    /// reached, the next one is tried. When this returns, a process in the Pod has accepted the connection, unless the
    /// transport reports that only at the first read.
    ///
    /// Errors: [`ConnectError::refusal`] has the class. An invalid target is [`Refusal::NameNotFound`]. Fails after
    /// [`ClusterBuilder::dial_timeout`] at the latest.
    ///
    /// Cancellation: dropping the future ends the attempt.
    pub async fn connect(&self, target: &str) -> Result<ClusterStream, ConnectError> {
        let parsed = Target::parse(target, Origin::default()).map_err(|error| {
            let sentence = format!("{target:?} names no target: {error}");
            ConnectError::new(Refusal::NameNotFound, sentence)
        })?;
        self.dial(parsed).await
    }

    pub(crate) async fn dial(&self, target: Target) -> Result<ClusterStream, ConnectError> {
        let stream = self.dialer.clone().connect(target).await?;
        Ok(ClusterStream::new(stream))
    }

    /// Forwards a free port of 127.0.0.1 to `target`, written `HOST:PORT`, until the [`LocalPort`] is dropped.
    ///
    /// The target is dialled for each client that connects. If that fails, the client's connection is reset.
    ///
    /// ```no_run
    /// # async fn run(cluster: kubevpn_embed::Cluster) -> Result<(), Box<dyn std::error::Error>> {
    /// let database = cluster.forward("db.shop:5432").await?;
    /// let url = format!("postgres://app@{}/shop", database.addr());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn forward(&self, target: &str) -> Result<LocalPort, LocalPortError> {
        self.forward_on(LOOPBACK, target).await
    }

    /// Like [`forward`](Self::forward), on the address `at`; port 0 is a free port.
    ///
    /// Everybody who can connect to the address reaches the target with the rights of this `Cluster`.
    pub async fn forward_on(
        &self,
        listen: SocketAddr,
        target: &str,
    ) -> Result<LocalPort, LocalPortError> {
        let to = Target::parse(target, Origin::default());
        let to = to.map_err(|source| LocalPortError::Target {
            text: target.to_owned(),
            source,
        })?;
        let (to, dialer) = (Arc::new(to), self.dialer.clone());
        let opened = LocalPort::open(listen, Drain::new(), move |client| {
            let (to, dialer) = (Arc::clone(&to), dialer.clone());
            Box::pin(async move {
                let _recorded = kubevpn_forward::serve_connection(client, &to, dialer, None).await;
            })
        });
        Ok(opened.await?)
    }

    /// Opens an HTTP proxy into the cluster on a free port of 127.0.0.1, until the [`LocalPort`] is dropped. For clients
    /// that accept a proxy but no connector, like reqwest:
    ///
    /// ```text
    /// let proxy = cluster.http_proxy().await?;
    /// let proxy = reqwest::Proxy::all(format!("http://{}", proxy.addr()))?;
    /// let client = reqwest::Client::builder().proxy(proxy).build()?;
    /// client.get("http://web.shop/").send().await?;
    /// ```
    ///
    /// The proxy supports CONNECT and forwarding. Every program on this machine can connect to the port, and reaches the cluster
    /// with the rights of this `Cluster`.
    pub async fn http_proxy(&self) -> Result<LocalPort, LocalPortError> {
        let drain = Drain::new();
        let settings = Arc::new(HttpSettings {
            drain: drain.clone(),
            ..HttpSettings::default()
        });
        let dialer = self.dialer.clone();
        let opened = LocalPort::open(LOOPBACK, drain, move |client| {
            let (settings, dialer) = (Arc::clone(&settings), dialer.clone());
            Box::pin(async move {
                let _recorded =
                    kubevpn_http_connect::serve_connection(client, dialer, &settings).await;
            })
        });
        Ok(opened.await?)
    }

    /// A tower service: of URIs for HTTP clients such as hyper's, and of [`Target`]s for layers and frontends.
    pub fn connector(&self) -> Connector {
        Connector::new(self.clone())
    }
}

/// IPv4, because programs may try only that for `localhost`.
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// Settings of a [`Cluster`]. The defaults are kubectl's.
///
/// ```no_run
/// # async fn run() -> Result<(), kubevpn_embed::BuildError> {
/// use std::time::Duration;
///
/// let staging = kubevpn_embed::Cluster::builder()
///     .context("staging")
///     .namespace("shop")
///     .wait_ready(Duration::from_secs(60))
///     .build()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    kubeconfig: KubeconfigArgs,
    user_agent: String,
    settings: Settings,
}

impl ClusterBuilder {
    fn new() -> Self {
        Self {
            kubeconfig: KubeconfigArgs::default(),
            user_agent: concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")).into(),
            settings: Settings::default(),
        }
    }

    /// The kubeconfig file, instead of those of `KUBECONFIG` and the home directory.
    #[must_use]
    pub fn kubeconfig(mut self, file: impl Into<PathBuf>) -> Self {
        self.kubeconfig.kubeconfig = Some(file.into());
        self
    }

    /// The context of the kubeconfig, instead of the current one.
    #[must_use]
    pub fn context(mut self, name: impl Into<String>) -> Self {
        self.kubeconfig.context = Some(name.into());
        self
    }

    /// The namespace of short names, instead of the context's.
    #[must_use]
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.kubeconfig.namespace = Some(name.into());
        self
    }

    /// The `User-Agent` of calls to the API server, which its audit log contains; `kubevpn-embed/VERSION` by default.
    #[must_use]
    pub fn user_agent(mut self, name: impl Into<String>) -> Self {
        self.user_agent = name.into();
        self
    }

    /// Upper bound on opening a stream, from the name to the open stream: 30 s by default.
    #[must_use]
    pub fn dial_timeout(mut self, limit: Duration) -> Self {
        self.settings.dial_timeout = limit;
        self
    }

    /// How long a connection waits for a Service without a ready Pod, in addition to
    /// [`dial_timeout`](Self::dial_timeout): not at all by default.
    #[must_use]
    pub fn wait_ready(mut self, limit: Duration) -> Self {
        self.settings.wait_ready = limit;
        self
    }

    /// Makes the cluster from a kubeconfig, or from the service account of a Pod. Sends nothing.
    ///
    /// Panics outside a tokio runtime.
    pub async fn build(self) -> Result<Cluster, BuildError> {
        let args = self.kubeconfig.clone();
        let loading = tokio::task::spawn_blocking(move || load(&args, &Env::of_process()));
        let loaded = match loading.await {
            Ok(loaded) => loaded?,
            Err(panicked) => resume_unwind(panicked.into_panic()),
        };
        self.finish(loaded.config, loaded.namespace)
    }

    /// Makes the cluster from a configuration of the program. The kubeconfig and context of this builder are not used.
    /// Sends nothing.
    ///
    /// Its timeouts for connecting and writing are replaced by ours. Panics outside a tokio runtime.
    pub fn build_from(self, config: Config) -> Result<Cluster, BuildError> {
        let namespace = self.kubeconfig.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        self.finish(config, namespace)
    }

    fn finish(self, config: Config, namespace: String) -> Result<Cluster, BuildError> {
        let options = Options::new(self.user_agent);
        let (client, renewal) = build_renewable(config, &options)?;
        let settings = ClusterSettings {
            namespace,
            ..ClusterSettings::default()
        };
        let view = kubevpn_stack::Cluster::new(client.clone(), settings);
        let forwarder = Forwarder::new(client, ForwarderConfig::default());
        let egress = Egress::new(renewal.api_server(), Outside::Deny, FromHost::default());
        let dialer = stack(view, forwarder, egress, self.settings);
        Ok(Cluster { dialer })
    }
}
