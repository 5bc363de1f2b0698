//! What can be seen of the cluster: one method per question.

mod entry;
mod load;
mod second;
mod shelf;
mod validity;
#[cfg(feature = "watch")]
mod watch;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::IPAddress;
use kube::Client;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::PodRef;
use crate::fetch::{Failure, Server, get, is_forbidden};
use crate::objects::{
    Asked, answers_at, has_cluster_ip, pod_addresses, seen_pod, service_addresses,
};
use crate::select::{Objects, Select};

use self::entry::RIGHTS;
use self::load::{Env, Path};
use self::second::Searches;
use self::shelf::Shelf;
pub(crate) use self::validity::{Validity, lock};

/// How many watches are open at a time; what is beyond is read again when it is asked for.
const WATCHES: usize = 512;

/// More is not told from for ever, and could not be added to a clock.
const LONGEST_IDLE: Duration = Duration::from_secs(24 * 60 * 60);

/// How many addresses are remembered with what they belong to.
const ADDRESSES: usize = 4096;

/// Something that was looked for in more places than may be seen.
pub(crate) struct Seen<T> {
    pub(crate) found: T,
    /// Why one of the places could not be searched.
    pub(crate) hidden: Option<Failure>,
}

pub(crate) struct View {
    env: Arc<Env>,
    /// The active namespace: where to look when all namespaces may not be searched.
    namespace: String,
    services: Shelf<Service>,
    slices: Shelf<EndpointSlice>,
    pods: Shelf<Pod>,
    addresses: Shelf<IPAddress>,
    namespaces: Shelf<Namespace>,
    /// The Service that had an address and a port when they were last looked for; checked at each use.
    owners: Mutex<HashMap<(IpAddr, Asked), Name>>,
    /// The Pod that had an address which is not its first; checked likewise.
    second_owners: Mutex<HashMap<IpAddr, Name>>,
    /// Namespaces whose Pods may not be got, and until when that is believed.
    unseen: Mutex<HashMap<String, (Failure, Instant)>>,
    searches: Mutex<Searches>,
}

/// Namespace and name.
type Name = (String, String);

/// What is kept of a cluster at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Selections of objects that are known.
    pub kept: usize,
    /// Watches that are open. With HTTP/2 many share a connection.
    pub watches: usize,
}

impl View {
    pub(crate) fn new(client: Client, namespace: String, idle: Duration) -> Self {
        let env = Arc::new(Env {
            server: Server::new(client),
            watches: Arc::new(Semaphore::new(WATCHES)),
            idle: idle.min(LONGEST_IDLE),
            path: Path::default(),
        });
        Self {
            services: Shelf::new(env.clone()),
            slices: Shelf::new(env.clone()),
            pods: Shelf::new(env.clone()),
            addresses: Shelf::new(env.clone()),
            namespaces: Shelf::new(env.clone()),
            owners: Mutex::default(),
            second_owners: Mutex::default(),
            unseen: Mutex::default(),
            searches: Mutex::default(),
            env,
            namespace,
        }
    }

    pub(crate) fn server(&self) -> &Server {
        &self.env.server
    }

    pub(crate) fn stats(&self) -> Stats {
        let lists = self.services.len() + self.slices.len() + self.pods.len();
        Stats {
            kept: lists + self.addresses.len() + self.namespaces.len(),
            watches: WATCHES - self.env.watches.available_permits(),
        }
    }

    /// Asks for a Service, and with `endpoints` for its endpoints, without waiting.
    pub(crate) fn warm(&self, namespace: &str, service: &str, endpoints: bool) {
        self.services.warm(&Select::named(namespace, service));
        if endpoints {
            self.slices.warm(&Select::of_service(namespace, service));
        }
    }

    /// Whether it is known if a Service exists, without asking.
    pub(crate) fn is_known(&self, namespace: &str, service: &str) -> bool {
        let select = Select::named(namespace, service);
        self.services.peek(&select).is_some()
    }

    /// Goes on watching for a Service, or for its endpoints, that do not exist.
    pub(crate) fn pin(&self, namespace: &str, service: &str) {
        self.services.pin(&Select::named(namespace, service));
        self.slices.pin(&Select::of_service(namespace, service));
    }

    /// Goes on watching for a Pod with an address that is no Pod's.
    pub(crate) fn pin_address(&self, ip: IpAddr, within: Option<&str>) {
        for namespace in self.places(within) {
            self.pods.pin(&Select::WithAddress { namespace, ip });
        }
    }

    /// Where to look, the best place first: in one namespace, else anywhere, as far as that may be seen.
    fn places(&self, within: Option<&str>) -> Vec<Option<String>> {
        match within {
            Some(namespace) => vec![Some(namespace.to_owned())],
            None => vec![None, Some(self.namespace.clone())],
        }
    }

    /// A Service by its name.
    pub(crate) async fn service(
        &self,
        namespace: &str,
        name: &str,
        trust: &mut Validity,
    ) -> Result<Option<Arc<Service>>, Failure> {
        let select = Select::named(namespace, name);
        let found = self.services.get(&select, trust).await?;
        Ok(found.first().cloned())
    }

    /// The endpoints of a Service.
    pub(crate) async fn slices(
        &self,
        namespace: &str,
        service: &str,
        trust: &mut Validity,
    ) -> Result<Objects<EndpointSlice>, Failure> {
        let select = Select::of_service(namespace, service);
        let slices = self.slices.get(&select, trust).await?;
        if slices.is_empty() {
            // The Service was just made, or has no selector: the first endpoint is to be seen at once.
            self.slices.pin(&select);
        }
        Ok(slices)
    }

    /// A Pod by its name.
    pub(crate) async fn pod(
        &self,
        namespace: &str,
        name: &str,
        trust: &mut Validity,
    ) -> Result<Option<Arc<Pod>>, Failure> {
        let select = Select::named(namespace, name);
        let found = self.pods.get(&select, trust).await?;
        Ok(found.first().cloned())
    }

    /// A Pod as it is now, whatever was told of it before.
    pub(crate) async fn pod_now(&self, pod: &PodRef) -> Result<Option<Pod>, Failure> {
        let PodRef {
            namespace, name, ..
        } = pod;
        if let Some((failure, until)) = lock(&self.unseen).get(namespace)
            && Instant::now() < *until
        {
            return Err(failure.clone());
        }
        let found = get::<Pod>(self.server(), Some(namespace), name).await;
        if let Err(failure) = &found
            && is_forbidden(failure)
        {
            let now = Instant::now();
            let mut unseen = lock(&self.unseen);
            unseen.retain(|_, (_, until)| now < *until);
            unseen.insert(namespace.clone(), (failure.clone(), now + RIGHTS));
        }
        found
    }

    /// The Pods with a label.
    pub(crate) async fn labelled(
        &self,
        namespace: &str,
        label: &'static str,
        trust: &mut Validity,
    ) -> Result<Objects<Pod>, Failure> {
        let namespace = namespace.to_owned();
        let select = Select::WithLabel { namespace, label };
        self.pods.get(&select, trust).await
    }

    /// CoreDNS's configuration, read now; `None` where there is none.
    pub(crate) async fn corefile(&self) -> Result<Option<String>, Failure> {
        let config = get::<ConfigMap>(self.server(), Some("kube-system"), "coredns").await?;
        let data = config.and_then(|config| config.data);
        Ok(data.and_then(|mut data| data.remove("Corefile")))
    }

    pub(crate) async fn has_namespace(
        &self,
        name: &str,
        trust: &mut Validity,
    ) -> Result<bool, Failure> {
        let select = Select::named("", name);
        let found = self.namespaces.get(&select, trust).await?;
        Ok(!found.is_empty())
    }

    /// A Pod that serves on that address and port behind a Service in use, and whether it declares the port.
    pub(crate) fn seen_pod(&self, ip: IpAddr, port: u16) -> Option<(PodRef, bool)> {
        self.slices.find(|slice| seen_pod(slice, ip, port))
    }

    /// The Pods with an address as far as they are known already.
    pub(crate) async fn known_pods_at(
        &self,
        ip: IpAddr,
        trust: &mut Validity,
    ) -> Option<Objects<Pod>> {
        for namespace in self.places(None) {
            let select = Select::WithAddress { namespace, ip };
            if self.pods.peek(&select).is_some_and(|pods| !pods.is_empty())
                && let Ok(pods) = self.pods.get(&select, trust).await
                && !pods.is_empty()
            {
                return Some(pods);
            }
        }
        let (namespace, name) = lock(&self.second_owners).get(&ip).cloned()?;
        let select = Select::named(&namespace, &name);
        let pods = self.pods.get(&select, trust).await.ok()?;
        let has = pods.iter().any(|p| pod_addresses(p).any(|a| a == ip));
        if !has {
            lock(&self.second_owners).remove(&ip);
        }
        has.then_some(pods)
    }

    /// The Pods with an address, in one namespace or anywhere.
    pub(crate) async fn pods_at(
        &self,
        ip: IpAddr,
        within: Option<&str>,
        trust: &mut Validity,
    ) -> Result<Seen<Vec<Arc<Pod>>>, Failure> {
        let first = self.pods_with_first_address(ip, within, trust).await?;
        if !first.found.is_empty() {
            return Ok(first);
        }
        let second = self.pod_with_second_address(ip, within).await?;
        let found = match second.found {
            Some((namespace, name)) => {
                let pod = self.pod(&namespace, &name, trust).await?;
                remember(&self.second_owners, ip, (namespace, name));
                pod
            }
            None => None,
        };
        Ok(Seen {
            found: found.into_iter().collect(),
            hidden: first.hidden.or(second.hidden),
        })
    }

    /// The Pods whose first address it is, which costs one question however many Pods there are.
    pub(crate) async fn pods_with_first_address(
        &self,
        ip: IpAddr,
        within: Option<&str>,
        trust: &mut Validity,
    ) -> Result<Seen<Vec<Arc<Pod>>>, Failure> {
        let mut hidden = None;
        let mut found = Vec::new();
        for namespace in self.places(within) {
            let select = Select::WithAddress { namespace, ip };
            match self.pods.get(&select, trust).await {
                Ok(pods) => {
                    found = pods.to_vec();
                    break;
                }
                Err(failure) if is_forbidden(&failure) => {
                    tracing::debug!("{failure}");
                    hidden = Some(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(Seen { found, hidden })
    }

    /// The Service that answers on an address and a port, if it did when last looked for.
    pub(crate) async fn known_service_at(
        &self,
        ip: IpAddr,
        port: Asked,
        trust: &mut Validity,
    ) -> Result<Option<Arc<Service>>, Failure> {
        let known = lock(&self.owners).get(&(ip, port)).cloned();
        let Some((namespace, name)) = known else {
            return Ok(None);
        };
        let found = self.service(&namespace, &name, trust).await?;
        let found = found.filter(|s| answers_at(s, ip, port));
        if found.is_none() {
            lock(&self.owners).remove(&(ip, port));
        }
        Ok(found)
    }

    /// The Service that the IPAddress object of a ClusterIP names.
    pub(crate) async fn service_of_cluster_ip(
        &self,
        ip: IpAddr,
        port: Asked,
        trust: &mut Validity,
    ) -> Result<Option<Arc<Service>>, Failure> {
        let Some((namespace, name)) = self.parent_of(ip, trust).await? else {
            return Ok(None);
        };
        tracing::debug!("{ip} is of service {namespace}/{name}");
        remember(&self.owners, (ip, port), (namespace, name));
        self.known_service_at(ip, port, trust).await
    }

    /// The Service that answers on an address and a port, else one with the address alone, among all that may be
    /// seen: they are listed, and watched from then on.
    pub(crate) async fn service_at(
        &self,
        ip: IpAddr,
        port: Asked,
        trust: &mut Validity,
    ) -> Result<Seen<Option<Arc<Service>>>, Failure> {
        let mut hidden = None;
        for namespace in self.places(None) {
            let services = match self.services.get(&Select::All { namespace }, trust).await {
                Ok(services) => services,
                Err(failure) if is_forbidden(&failure) => {
                    tracing::debug!("{failure}");
                    hidden = Some(failure);
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let having = services
                .iter()
                .filter(|s| service_addresses(s).any(|a| a == ip));
            let found = having.min_by_key(|s| (!has_cluster_ip(s, ip), !answers_at(s, ip, port)));
            if let Some(found) = found.filter(|s| answers_at(s, ip, port)) {
                let part = |part: &Option<String>| part.clone().unwrap_or_default();
                let meta = &found.metadata;
                let (namespace, name) = (part(&meta.namespace), part(&meta.name));
                // It is asked for by its name from now on, and kept so.
                self.services.warm(&Select::named(&namespace, &name));
                remember(&self.owners, (ip, port), (namespace, name));
            }
            let found = found.cloned();
            return Ok(Seen { found, hidden });
        }
        let found = None;
        Ok(Seen { found, hidden })
    }

    /// Goes on watching for a Service with an address that is a node's.
    pub(crate) fn pin_all_services(&self) {
        for namespace in self.places(None) {
            self.services.pin(&Select::All { namespace });
        }
    }

    /// What the IPAddress object says; nothing where there is none or it may not be read.
    async fn parent_of(&self, ip: IpAddr, trust: &mut Validity) -> Result<Option<Name>, Failure> {
        let select = Select::named("", &ip.to_string());
        let found = match self.addresses.get(&select, trust).await {
            Ok(found) => found,
            Err(failure) if is_forbidden(&failure) => {
                tracing::debug!("{failure}");
                return Ok(None);
            }
            Err(failure) => return Err(failure),
        };
        let spec = found.first().and_then(|object| object.spec.as_ref());
        let parent = spec.map(|spec| &spec.parent_ref);
        let parent = parent.filter(|parent| parent.resource == "services");
        Ok(parent.and_then(|p| Some((p.namespace.clone()?, p.name.clone()))))
    }
}

fn remember<K: Eq + Hash>(owners: &Mutex<HashMap<K, Name>>, at: K, owner: Name) {
    let mut owners = lock(owners);
    if owners.len() >= ADDRESSES {
        owners.clear();
    }
    owners.insert(at, owner);
}
