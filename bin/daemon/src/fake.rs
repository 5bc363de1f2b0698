//! An engine without a network: bound addresses are a set, and the test sets the answer of the API server.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kubevpn_conn::Addr;
use kubevpn_proxy::probe::PortForwardAccess;
use kubevpn_proxy::{Journal, ListenerSpec, Protocol, ProxyView};
use kubevpn_target::{ConnectError, Refusal};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

use crate::api::{ClusterRef, ConnectRequest, KubeconfigSelection};
use crate::engine::{Engine, EngineSession, ServedListener, SessionSettings, Stats};
use crate::error::{ApiError, Code};

/// Clones are the same engine.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<FakeShared>);

#[derive(Default)]
struct FakeShared {
    world: Mutex<FakeWorld>,
    trouble: Notify,
}

#[derive(Default)]
pub(crate) struct FakeWorld {
    /// Addresses in use: by listeners, or added by a test.
    pub(crate) bound: BTreeSet<String>,
    /// Answer of the API server.
    pub(crate) api: Option<Refusal>,
    /// If set, each call to the API server waits for a permit.
    pub(crate) gate: Option<Arc<Semaphore>>,
    /// Number of calls to the API server.
    pub(crate) asked: usize,
    /// Servers of renewed kubeconfigs.
    pub(crate) renewed: Vec<String>,
    /// Open sessions.
    pub(crate) sessions: usize,
    /// The patience each listener was ended with.
    pub(crate) ended: Vec<Duration>,
    ports: u16,
}

impl Fake {
    pub(crate) fn world(&self) -> MutexGuard<'_, FakeWorld> {
        self.0.world.lock().unwrap()
    }

    /// Reports a refusal that is caused by the connection.
    pub(crate) fn trouble(&self) {
        self.0.trouble.notify_one();
    }
}

impl Engine for Fake {
    type Session = FakeSession;

    fn open(&self, settings: SessionSettings<'_>) -> Result<FakeSession, ApiError> {
        self.world().sessions += 1;
        let view = ProxyView::of_host(Journal::default(), settings.about);
        Ok(FakeSession(self.clone(), view))
    }
}

pub(crate) struct FakeSession(Fake, ProxyView);

impl EngineSession for FakeSession {
    type Bound = FakeListener;
    type Listener = FakeListener;

    async fn ask_api(&self, _: &str) -> Result<Option<String>, ConnectError> {
        let gate = {
            let mut world = self.0.world();
            world.asked += 1;
            world.gate.clone()
        };
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        match self.0.world().api {
            Some(refusal) => Err(ConnectError::new(refusal, "the API server says no")),
            None => Ok(None),
        }
    }

    async fn try_pods(&self, namespace: &str) -> Result<PortForwardAccess, ConnectError> {
        let namespace = namespace.to_owned();
        Ok(PortForwardAccess::NoneReady { namespace })
    }

    async fn bind(&self, _: &ListenerSpec, address: &Addr) -> Result<FakeListener, ApiError> {
        // A real engine yields between the check and the bind, too.
        tokio::task::yield_now().await;
        let mut world = self.0.world();
        let address = match address {
            Addr::Tcp(at) if at.port() == 0 => {
                world.ports += 1;
                Addr::Tcp((at.ip(), 40_000 + world.ports).into())
            }
            other => other.clone(),
        };
        if !world.bound.insert(address.to_string()) {
            return Err(ApiError::new(
                Code::AddressInUse,
                format!("{address} is already in use"),
            ));
        }
        drop(world);
        Ok(FakeListener {
            engine: self.0.clone(),
            address,
        })
    }

    fn serve(&self, _: &ListenerSpec, bound: FakeListener) -> Result<FakeListener, ApiError> {
        Ok(bound)
    }

    async fn endings(&self) -> Vec<String> {
        vec!["cluster.local".into()]
    }

    fn renew(&self, config: kube::Config) -> Result<(), ApiError> {
        let server = config.cluster_url.to_string();
        self.0.world().renewed.push(server);
        Ok(())
    }

    async fn trouble(&self) {
        self.0.0.trouble.notified().await;
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn view(&self) -> Option<&ProxyView> {
        Some(&self.1)
    }

    async fn shutdown(&self) {
        self.0.world().sessions -= 1;
    }
}

pub(crate) struct FakeListener {
    engine: Fake,
    address: Addr,
}

impl ServedListener for FakeListener {
    fn address(&self) -> &Addr {
        &self.address
    }

    fn open_clients(&self) -> usize {
        0
    }

    async fn handshake(&self) -> Result<(), String> {
        Ok(())
    }

    fn stop(&self) {}

    async fn end(self, patience: Duration) {
        self.engine.world().ended.push(patience);
    }
}

impl Drop for FakeListener {
    fn drop(&mut self) {
        let address = self.address.to_string();
        self.engine.world().bound.remove(&address);
    }
}

pub(crate) const ID: &str = "0123456789ab";

/// A kubeconfig of one context.
pub(crate) fn kubeconfig(server: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    })
}

/// A connection with these SOCKS listeners.
pub(crate) fn request(id: &str, addresses: &[&str]) -> ConnectRequest {
    let spec = |address: &&str| ListenerSpec::new(Protocol::Socks, address.parse().unwrap());
    ConnectRequest {
        id: id.into(),
        cluster: ClusterRef {
            server: "http://127.0.0.1:1".into(),
            name: None,
            context: Some("c".into()),
            namespace: format!("of-{id}"),
        },
        kubeconfig_selection: KubeconfigSelection {
            context: Some(id.into()),
            ..KubeconfigSelection::default()
        },
        kubeconfig: kubeconfig("http://127.0.0.1:1"),
        policy: None,
        listeners: addresses.iter().map(spec).collect(),
        log_level: None,
    }
}
