//! The handle on a running simulation, and how one is started.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::access::{Access, Rule, User};
use crate::audit::{Audit, Request};
use crate::faults::{Faults, Transport};

/// A running cluster in memory. Dropping it ends everything it runs; [`Sim::shutdown`] also waits for that.
#[derive(Debug)]
pub struct Sim {
    cluster: Arc<Cluster>,
    url: String,
}

/// Everything the parts of the simulation share.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) faults: Faults,
    pub(crate) audit: Audit,
    pub(crate) access: Access,
}

/// What a [`Sim`] is to be. See [`Sim::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    tls: bool,
    namespace: String,
    sample: bool,
    users: Vec<User>,
    version: String,
    seed: Option<u64>,
}

/// Why a call on the simulation failed. All of them are the caller's mistake but [`Error::Io`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A socket or a file.
    #[error("{0} failed")]
    Io(&'static str, #[source] io::Error),
    /// The text is no YAML.
    #[error("the manifest is no YAML")]
    Yaml(#[source] serde_yaml_ng::Error),
    /// An object the API server would not take, with its reason.
    #[error("{0}")]
    Invalid(String),
    /// No object of that name.
    #[error("{0} {1:?} not found")]
    NotFound(&'static str, String),
}

/// A live port-forward session. See [`Sim::sessions`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// For [`Sim::kill_session`].
    pub id: u64,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// What carries it.
    pub transport: Transport,
    /// Who opened it.
    pub user: String,
    /// Connections open in it now.
    pub open: usize,
    /// Connections opened in it so far.
    pub total: usize,
}

impl Sim {
    /// A cluster with TLS, one user who may do everything, and nothing in it but what every cluster has.
    pub fn builder() -> Builder {
        Builder {
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
        &self.url
    }

    /// What a client of the default user needs.
    pub fn config(&self) -> kube::Config {
        kube::Config::new(self.url.parse().expect("a URL of our own making"))
    }

    /// What a client with this token needs.
    pub fn config_for(&self, _token: &str) -> kube::Config {
        self.config()
    }

    /// The default user's kubeconfig.
    pub fn kubeconfig_yaml(&self) -> String {
        String::new()
    }

    /// A kubeconfig with this token.
    pub fn kubeconfig_yaml_for(&self, _token: &str) -> String {
        String::new()
    }

    /// Writes the default user's kubeconfig into a directory, readable by the owner alone.
    pub fn write_kubeconfig(&self, dir: &Path) -> Result<PathBuf, Error> {
        let path = dir.join("kubeconfig");
        std::fs::write(&path, self.kubeconfig_yaml())
            .map_err(|e| Error::Io("writing the kubeconfig", e))?;
        Ok(path)
    }

    /// Creates or replaces the objects of a YAML text of one or more documents, as `kubectl apply` would,
    /// and lets the controllers act on them before it returns.
    pub fn apply(&self, _yaml: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Deletes an object by its kind in the singular (`Service`); the namespace of a cluster-wide kind is ignored.
    pub fn delete(&self, _kind: &str, namespace: &str, name: &str) -> Result<(), Error> {
        Err(Error::NotFound("object", format!("{namespace}/{name}")))
    }

    /// An object as the API server would give it.
    pub fn get(&self, _kind: &str, _namespace: &str, _name: &str) -> Option<serde_json::Value> {
        None
    }

    /// Makes a pod's readiness probe succeed or fail from now on.
    pub fn set_ready(&self, namespace: &str, pod: &str, _ready: bool) -> Result<(), Error> {
        Err(Error::NotFound("pod", format!("{namespace}/{pod}")))
    }

    /// Sets the replicas of a Deployment or StatefulSet.
    pub fn scale(&self, namespace: &str, name: &str, _replicas: u32) -> Result<(), Error> {
        Err(Error::NotFound("workload", format!("{namespace}/{name}")))
    }

    /// Deletes a pod: its programs end at once, its owner replaces it, and after its grace period it is gone.
    pub fn delete_pod(&self, namespace: &str, pod: &str) -> Result<(), Error> {
        self.delete("Pod", namespace, pod)
    }

    /// The names of the running pods with this `app` label, in order.
    pub fn pods(&self, _namespace: &str, _app: &str) -> Vec<String> {
        Vec::new()
    }

    /// The switches for what goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.cluster.faults
    }

    /// The requests since the start or the last [`Sim::forget_requests`], in the order of their answers.
    pub fn requests(&self) -> Vec<Request> {
        self.cluster.audit.all()
    }

    /// Empties the request log.
    pub fn forget_requests(&self) {
        self.cluster.audit.clear();
    }

    /// The port-forward sessions open now.
    pub fn sessions(&self) -> Vec<Session> {
        Vec::new()
    }

    /// Resets the connection of one session; whether it was there.
    pub fn kill_session(&self, _id: u64) -> bool {
        false
    }

    /// Resets every open connection, port-forward sessions included, and says how many there were.
    pub fn reset_connections(&self) -> usize {
        0
    }

    /// Ends every running watch, as the API server does at its timeout.
    pub fn disconnect_watches(&self) {}

    /// Forgets all history: every running watch gets a 410 event, and so does every one that starts from
    /// a resource version of before.
    pub fn expire_watches(&self) {}

    /// Ends everything and waits until it has ended.
    pub async fn shutdown(self) {}
}

impl Builder {
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

    /// Starts it on a loopback port of the system's choice.
    pub async fn start(self) -> Result<Sim, Error> {
        let mut users = self.users;
        users.push(User::new("kubernetes-admin", "admin").may(Rule::everything()));
        let cluster = Arc::new(Cluster {
            faults: Faults::new(),
            audit: Audit::default(),
            access: Access::new(users),
        });
        let scheme = if self.tls { "https" } else { "http" };
        Ok(Sim {
            cluster,
            url: format!("{scheme}://127.0.0.1:1"),
        })
    }
}
