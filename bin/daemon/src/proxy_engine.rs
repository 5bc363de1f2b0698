//! The engine of the daemon, made of `kubevpn-proxy`.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use kubevpn_client::{Options, Renewal, build_renewable};
use kubevpn_conn::Addr;
use kubevpn_proxy::{
    self as proxy, Backend, Bound, ClusterStack, Journal, ListenerSpec, Protocol, ProxyView,
    Server, Suggest, probe,
};
use kubevpn_stack::{Deadline, DeadlineLayer, Forwarder, FromHost, OwnListeners};
use kubevpn_target::{Connect, ConnectError};
use tower::Layer as _;
use tracing::Dispatch;

use crate::api::RefusalInfo;
use crate::engine::{Engine, EngineSession, ServedListener, SessionSettings, Stats};
use crate::error::{ApiError, Code, ErrorContext as _};

/// Opens connections with `kubevpn-proxy`.
pub struct ProxyEngine {
    options: Options,
    own: OwnListeners,
    opened: Option<SessionHook>,
}

/// Called with each way into a cluster.
type SessionHook = Box<dyn Fn(&ProxyView) + Send + Sync>;

impl ProxyEngine {
    /// An engine whose calls to API servers are made with these options.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            own: OwnListeners::default(),
            opened: None,
        }
    }

    /// Calls this with each way into a cluster that is opened from now on, before anything goes through it.
    #[must_use]
    pub fn opened(mut self, opened: impl Fn(&ProxyView) + Send + Sync + 'static) -> Self {
        self.opened = Some(Box::new(opened));
        self
    }
}

impl Engine for ProxyEngine {
    type Session = ProxySession;

    fn open(&self, settings: SessionSettings<'_>) -> Result<ProxySession, ApiError> {
        let SessionSettings {
            policy,
            namespace,
            config,
            log,
            about,
        } = settings;
        let own = self.own.clone();
        let (client, renewal) = build_renewable(config, &self.options)?;
        let stack = policy.stack(namespace, own.clone());
        let host = FromHost::sharing(own.clone());
        let host = DeadlineLayer::new(stack.settings.dial_timeout).layer(host);
        let (cluster, forwarder) = proxy::chain(client.clone(), renewal.api_server(), stack);
        let view = ProxyView::of_cluster(
            Journal::default(),
            about,
            &cluster,
            forwarder.clone(),
            renewal.clone(),
        );
        if let Some(opened) = &self.opened {
            opened(&view);
        }
        Ok(ProxySession {
            view,
            client,
            renewal,
            cluster: Backend::of_cluster(cluster),
            host: Backend::of_host(host),
            forwarder,
            own,
            log,
        })
    }
}

/// A proxy into one cluster.
pub struct ProxySession {
    client: kube::Client,
    renewal: Renewal,
    view: ProxyView,
    cluster: Backend<Suggest<ClusterStack>>,
    host: Backend<Deadline<FromHost>>,
    forwarder: Forwarder,
    own: OwnListeners,
    log: Dispatch,
}

impl ProxySession {
    fn serve_over<C>(
        &self,
        spec: &ListenerSpec,
        bound: Vec<Bound>,
        backend: Backend<C>,
    ) -> Result<ProxyListener, ApiError>
    where
        C: Connect + Clone + Sync + 'static,
    {
        let addresses: Vec<_> = bound.iter().filter_map(Bound::address).collect();
        let clients = spec.clients(&addresses)?;
        proxy::allow_for(clients.limits.total);
        // The second socket is the same port of the other address family, and belongs to the first.
        let Some(first) = bound.first() else {
            return Err(ApiError::new(Code::Internal, "nothing was bound"));
        };
        let address = first.listener.addr().clone();
        let mut server = Server::new(backend, clients);
        server.log_to(self.log.clone());
        server.observed_by(self.view.clone());
        bound.into_iter().for_each(|bound| server.add(bound));
        let own = addresses.into_iter().map(|at| Own::new(&self.own, at));
        Ok(ProxyListener {
            address,
            protocol: spec.protocol.clone(),
            server: Box::new(server),
            _own: own.collect(),
        })
    }
}

impl EngineSession for ProxySession {
    type Bound = Vec<Bound>;
    type Listener = ProxyListener;

    async fn ask_api(&self, namespace: &str) -> Result<Option<String>, ConnectError> {
        probe::api(&self.client, namespace).await
    }

    async fn try_pods(&self, namespace: &str) -> Result<probe::PortForwardAccess, ConnectError> {
        // This stream is not counted.
        probe::data_path(&self.client, namespace, self.cluster.connect.clone()).await
    }

    async fn bind(&self, spec: &ListenerSpec, address: &Addr) -> Result<Vec<Bound>, ApiError> {
        Ok(spec.bind(address, spec.auth_file.is_some()).await?)
    }

    fn serve(&self, spec: &ListenerSpec, bound: Vec<Bound>) -> Result<ProxyListener, ApiError> {
        match spec.egress {
            true => self.serve_over(spec, bound, self.host.clone()),
            false => self.serve_over(spec, bound, self.cluster.clone()),
        }
    }

    async fn endings(&self) -> Vec<String> {
        match &self.cluster.cluster {
            Some(cluster) => proxy::endings(cluster).await,
            None => Vec::new(),
        }
    }

    fn renew(&self, config: kube::Config) -> Result<(), ApiError> {
        self.renewal
            .replace(config)
            .context("the kubeconfig cannot be used")
    }

    async fn trouble(&self) {
        self.view.journal().trouble().await;
    }

    fn stats(&self) -> Stats {
        let stats = self.forwarder.stats();
        let journal = self.view.journal();
        Stats {
            traffic: journal.totals().into(),
            sessions: stats.sessions.iter().sum(),
            streams: stats.streams,
            last_refusals: journal
                .refusals()
                .into_iter()
                .map(RefusalInfo::from)
                .collect(),
        }
    }

    fn view(&self) -> Option<&ProxyView> {
        Some(&self.view)
    }

    async fn shutdown(&self) {
        self.forwarder.shutdown().await;
        self.view.journal().close();
    }
}

/// A served listener.
pub struct ProxyListener {
    address: Addr,
    protocol: Protocol,
    server: Box<dyn Served>,
    _own: Vec<Own>,
}

/// Keeps an address on the list of those that are never dialled, until it is dropped.
struct Own(OwnListeners, SocketAddr);

impl Own {
    fn new(list: &OwnListeners, address: SocketAddr) -> Self {
        list.add(Some(address));
        Self(list.clone(), address)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.0.remove(Some(self.1));
    }
}

impl ServedListener for ProxyListener {
    fn address(&self) -> &Addr {
        &self.address
    }

    fn open_clients(&self) -> usize {
        self.server.open()
    }

    async fn handshake(&self) -> Result<(), String> {
        probe::handshake(&self.address, &self.protocol).await
    }

    fn stop(&self) {
        self.server.stop();
    }

    async fn end(self, patience: Duration) {
        self.server.end(patience).await;
        tracing::info!(listener = %self.address, "no longer listening");
    }
}

/// A [`Server`] with any dialer.
trait Served: Send + Sync {
    fn open(&self) -> usize;
    fn stop(&self);
    fn end(self: Box<Self>, patience: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl<C: Connect + Clone + Sync + 'static> Served for Server<C> {
    fn open(&self) -> usize {
        self.open()
    }

    fn stop(&self) {
        self.stop();
    }

    fn end(self: Box<Self>, patience: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin((*self).end(patience, std::future::pending()))
    }
}
