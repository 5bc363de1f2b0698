//! The handle on a running simulation, and how one is started.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::DuplexStream;
use tokio_rustls::TlsAcceptor;

use crate::access::{Access, AccessRule, User};
use crate::audit::AuditedRequest;
use crate::cluster::{SimCluster, SimOptions};
use crate::faults::Faults;
use crate::kind::{POD, ResourceKind};
use crate::kubeconfig::SimKubeconfig;
use crate::line::Line;
use crate::link::Links;
use crate::portforward::SimSession;
use crate::server;
use crate::status::Status;
use crate::tls::SimTls;
use crate::world::{is_ready, is_terminating, name_of};

/// The workload of [`SimBuilder::sample`], which the real cluster of the lab runs too.
const SAMPLE: &str = include_str!("../sample.yaml");
/// The default user's token.
const ADMIN: &str = "admin";

/// A running cluster in memory. Dropping it ends everything it runs; [`Sim::shutdown`] also waits for that.
pub struct Sim {
    cluster: Arc<SimCluster>,
    kubeconfig: SimKubeconfig,
    tls: Option<TlsAcceptor>,
}

/// What a [`Sim`] is to be. See [`Sim::builder`].
#[derive(Clone, Debug)]
pub struct SimBuilder {
    tls: bool,
    namespace: String,
    sample: bool,
    users: Vec<User>,
    version: String,
    seed: Option<u64>,
}

/// Why a call on the simulation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A socket or a file.
    #[error("{0} failed")]
    Io(&'static str, #[source] io::Error),
    /// The certificates.
    #[error("making the certificates failed")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The text is no YAML.
    #[error("the manifest is no YAML")]
    Yaml(#[source] serde_yaml_ng::Error),
    /// Not `1.` and a number.
    #[error("{0:?} is no version of Kubernetes: write 1.34, for instance")]
    Version(String),
    /// What the API server would have answered, were this a request.
    #[error("{message}")]
    Api {
        /// The HTTP status: 404 for what is not there.
        code: u16,
        /// The message, as in a `Status`.
        message: String,
    },
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Api {
            code: status.code,
            message: status.message,
        }
    }
}

impl Sim {
    /// A cluster with TLS, one user who may do everything, and nothing in it but what every cluster has.
    pub fn builder() -> SimBuilder {
        SimBuilder {
            tls: true,
            namespace: "default".into(),
            sample: false,
            users: Vec::new(),
            version: "1.34".into(),
            seed: None,
        }
    }

    /// `https://127.0.0.1:port`.
    pub fn server_url(&self) -> &str {
        &self.kubeconfig.server
    }

    /// What a client of the default user needs.
    pub fn config(&self) -> kube::Config {
        self.config_for(ADMIN)
    }

    /// What a client with this token needs.
    pub fn config_for(&self, token: &str) -> kube::Config {
        self.kubeconfig.config(token)
    }

    /// The default user's kubeconfig.
    pub fn kubeconfig_yaml(&self) -> String {
        self.kubeconfig_yaml_for(ADMIN)
    }

    /// A kubeconfig with this token.
    pub fn kubeconfig_yaml_for(&self, token: &str) -> String {
        self.kubeconfig.yaml(token)
    }

    /// Writes the default user's kubeconfig into a directory, readable by the owner alone.
    pub fn write_kubeconfig(&self, dir: &Path) -> Result<PathBuf, Error> {
        let path = dir.join("kubeconfig");
        SimKubeconfig::write(&path, &self.kubeconfig_yaml())
            .map_err(|e| Error::Io("writing the kubeconfig", e))?;
        Ok(path)
    }

    /// One more user, from now on.
    pub fn add_user(&self, user: User) {
        self.cluster.access.add(user);
    }

    /// Creates or replaces the objects of a YAML text of one or more documents, as `kubectl apply` would,
    /// and lets the controllers act on them before it returns. A Pod or a Service may bring the status it
    /// is to have (`podIPs`, `phase`, `loadBalancer`).
    pub fn apply(&self, yaml: &str) -> Result<(), Error> {
        let objects = documents(yaml)?;
        self.cluster.change(|world| {
            for object in objects {
                world.apply(object, &self.cluster.options.namespace)?;
            }
            Ok(())
        })
    }

    /// Deletes an object by its kind in the singular (`Service`); the namespace of a cluster-wide kind is
    /// ignored.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<(), Error> {
        let kind = ResourceKind::named(kind).ok_or_else(Status::no_such_resource)?;
        let gone = self
            .cluster
            .change(|world| world.delete(kind, namespace, name));
        gone?;
        Ok(())
    }

    /// An object as the API server would give it.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let world = self.cluster.world();
        let object = world
            .store
            .get(ResourceKind::named(kind)?, namespace, name)?;
        Some((**object).clone())
    }

    /// All objects of a kind, of one namespace or (empty) of all.
    pub fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let Some(kind) = ResourceKind::named(kind) else {
            return Vec::new();
        };
        let world = self.cluster.world();
        world
            .store
            .list(kind, namespace)
            .map(|o| (**o).clone())
            .collect()
    }

    /// Makes a pod's readiness probe succeed or fail from now on.
    pub fn set_ready(&self, namespace: &str, pod: &str, ready: bool) -> Result<(), Error> {
        let set = self
            .cluster
            .change(|world| world.set_ready(namespace, pod, ready));
        Ok(set?)
    }

    /// Sets the replicas of a Deployment or StatefulSet.
    pub fn scale(&self, namespace: &str, name: &str, replicas: u32) -> Result<(), Error> {
        let scaled = self
            .cluster
            .change(|world| world.scale(namespace, name, replicas));
        Ok(scaled?)
    }

    /// Deletes a pod: its programs end at once, a Deployment replaces it at once and a StatefulSet when it
    /// is gone, which it is after a second.
    pub fn delete_pod(&self, namespace: &str, pod: &str) -> Result<(), Error> {
        self.delete("Pod", namespace, pod)
    }

    /// Marks a pod as terminating while its programs serve on, as one that drains; [`Sim::delete_pod`] ends
    /// that.
    pub fn terminate_pod(&self, namespace: &str, pod: &str) -> Result<(), Error> {
        let marked = self
            .cluster
            .change(|world| world.terminate_pod(namespace, pod));
        marked.ok_or_else(|| Status::not_found(&POD, pod))?;
        Ok(())
    }

    /// The names of the ready pods with this `app` label, in order.
    pub fn pods(&self, namespace: &str, app: &str) -> Vec<String> {
        let world = self.cluster.world();
        let pods = world.store.list(&POD, namespace);
        let wanted = pods.filter(|p| p["metadata"]["labels"]["app"] == app);
        let ready = wanted.filter(|p| is_ready(p) && !is_terminating(p));
        ready.map(|p| name_of(p)).collect()
    }

    /// Puts a program of the test's own behind a port of a pod. Each connection is a duplex, which the
    /// program closes by dropping it.
    pub fn listen<F, Fut>(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
        serve: F,
    ) -> Result<(), Error>
    where
        F: Fn(DuplexStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let missing = || Status::not_found(&POD, pod);
        let object = self.get("Pod", namespace, pod).ok_or_else(missing)?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let pod = self.cluster.network.get(uid).ok_or_else(missing)?;
        pod.listen(port, serve);
        Ok(())
    }

    /// A connection to the API server in memory, which speaks plain HTTP: with it a test can pause the
    /// clock, which sockets do not heed. `None` while the API server is away.
    pub fn connect(&self) -> Option<DuplexStream> {
        let (socket, io) = self.cluster.faults.links.connect()?;
        let task = server::connection(Arc::clone(&self.cluster), socket, None);
        self.cluster.spawn(task);
        Some(io)
    }

    /// A line in memory on which each byte takes `each_way` to the API server, or back.
    pub fn line(&self, each_way: Duration) -> Line {
        Line::new(Arc::clone(&self.cluster), self.tls.clone(), each_way)
    }

    /// The switches for what goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.cluster.faults
    }

    /// The requests since the start or the last [`Sim::forget_requests`], in the order of their answers.
    pub fn requests(&self) -> Vec<AuditedRequest> {
        self.cluster.audit.all()
    }

    /// Empties the request log.
    pub fn forget_requests(&self) {
        self.cluster.audit.clear();
    }

    /// The open connections of clients, whatever they carry.
    pub fn connections(&self) -> usize {
        self.cluster.faults.links.count()
    }

    /// The port-forward sessions open now.
    pub fn sessions(&self) -> Vec<SimSession> {
        self.cluster.sessions.list()
    }

    /// Resets the connection of one session; whether it was there.
    pub fn kill_session(&self, id: u64) -> bool {
        self.cluster.sessions.kill(id)
    }

    /// Lets no byte of one session pass, or lets them pass again; whether it was there.
    pub fn silence_session(&self, id: u64, silent: bool) -> bool {
        self.cluster.sessions.silence(id, silent)
    }

    /// Ends every running watch, as the API server does at its timeout.
    pub fn disconnect_watches(&self) {
        self.cluster.watches.send_modify(|s| s.disconnected += 1);
    }

    /// Sends a bookmark to every running watch that wants bookmarks.
    pub fn bookmark_watches(&self) {
        self.cluster.watches.send_modify(|s| s.bookmarks += 1);
    }

    /// Forgets all history: every running watch gets a 410 event and ends, and so does every one that
    /// starts from a resource version of before.
    pub fn expire_watches(&self) {
        self.cluster.world().store.compact();
        self.cluster.watches.send_modify(|s| s.expired += 1);
    }

    /// Ends everything and waits until it has ended.
    pub async fn shutdown(self) {
        let cluster = Arc::clone(&self.cluster);
        drop(self);
        cluster.ended().await;
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.cluster.end();
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("server", &self.kubeconfig.server)
            .finish_non_exhaustive()
    }
}

impl SimBuilder {
    /// Plain HTTP instead of TLS.
    pub fn plain(mut self) -> Self {
        self.tls = false;
        self
    }

    /// TLS with a certificate authority of its own; the default.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// The namespace the kubeconfig names, created if need be; `default` unless said.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// With the sample workload: `productpage`, `reviews`, `db` and so on.
    pub fn sample(mut self) -> Self {
        self.sample = true;
        self
    }

    /// Another user beside the default one.
    pub fn user(mut self, user: User) -> Self {
        self.users.push(user);
        self
    }

    /// The Kubernetes version to behave as, `1.29` to `1.35`; 1.34 unless said.
    pub fn version(mut self, version: &str) -> Self {
        self.version = version.into();
        self
    }

    /// Makes generated names and UIDs the same in every run.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Starts it on a loopback port of the system's choice, on the tokio runtime of the caller.
    pub async fn start(self) -> Result<Sim, Error> {
        let minor = self.version.strip_prefix("1.").and_then(|m| m.parse().ok());
        let minor = minor.ok_or(Error::Version(self.version))?;
        let mut users = self.users;
        users.push(User::new("kubernetes-admin", ADMIN).may(AccessRule::everything()));
        let options = SimOptions {
            minor,
            namespace: self.namespace.clone(),
        };
        let links = Links::listen().map_err(|e| Error::Io("listening on loopback", e))?;
        let links = Arc::new(links);
        let tls = self.tls.then(SimTls::new).transpose()?;
        let scheme = if self.tls { "https" } else { "http" };
        let kubeconfig = SimKubeconfig {
            server: format!("{scheme}://{}", links.address()),
            namespace: self.namespace.clone(),
            ca: tls.as_ref().map(|t| (t.ca_pem.clone(), t.ca_der.clone())),
        };
        let faults = Faults::new(Arc::clone(&links));
        let seed = self.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        tracing::debug!(seed, "a simulation starts");
        let cluster = Arc::new(SimCluster::new(options, Access::new(users), faults, seed));
        let tls = tls.map(|t| t.acceptor);
        cluster.spawn(server::serve(Arc::clone(&cluster), links, tls.clone()));
        let sim = Sim {
            cluster,
            kubeconfig,
            tls,
        };
        if sim.get("Namespace", "", &self.namespace).is_none() {
            let name = &self.namespace;
            sim.apply(&format!(
                "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"
            ))?;
        }
        if self.sample {
            sim.apply(SAMPLE)?;
        }
        Ok(sim)
    }
}

/// The documents of a YAML text, without empty ones.
fn documents(yaml: &str) -> Result<Vec<Value>, Error> {
    let mut found = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let value = <Value as serde::Deserialize>::deserialize(document).map_err(Error::Yaml)?;
        if !value.is_null() {
            found.push(value);
        }
    }
    Ok(found)
}
