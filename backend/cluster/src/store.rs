//! The store: every selection that was read, the rights it takes, and how long it is believed.
//!
//! One selection is an entry (`store/entry.rs`), loaded with the best available right (`store/load.rs`), kept up to date by
//! a watch (`store/watch.rs`), and dropped when it is unused (`store/shelf.rs`). An answer that rests on several selections
//! has the earliest of their expiries and all of their changes (`store/validity.rs`).

mod domain;
mod entry;
mod load;
mod second;
mod shelf;
mod validity;
#[cfg(feature = "watch")]
mod watch;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::IPAddress;
use kube::Client;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::fetch::{CallFailure, LimitedApi, get, is_forbidden};
use crate::neighbours::Neighbours;
use crate::objects::seen_pod;
use crate::select::Select;
use crate::settings::Settings;
use crate::snapshot::{AddressOwner, Hints, Need, Snapshot};
use crate::{Domain, PodRef};

use self::domain::DomainCell;
use self::entry::RIGHTS;
use self::load::{Path, StoreEnv, WatchObserver};
use self::second::Searches;
use self::shelf::Shelf;
pub(crate) use self::validity::{Validity, lock};

/// Limit on open watches. Selections beyond it are read again when they are used.
const WATCHES: usize = 512;

/// Cap on [`Settings::idle`] (24 h): larger values overflow `Instant`.
const LONGEST_IDLE: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Store {
    env: Arc<StoreEnv>,
    domain: Arc<DomainCell>,
    services: Shelf<Service>,
    slices: Shelf<EndpointSlice>,
    pods: Shelf<Pod>,
    addresses: Shelf<IPAddress>,
    namespaces: Shelf<Namespace>,
    /// Namespaces whose Pods may not be read, and until when that is believed.
    unseen: Mutex<HashMap<String, (CallFailure, Instant)>>,
    searches: Mutex<Searches>,
    pub(crate) neighbours: Neighbours,
}

/// Change of a watch.
#[derive(Clone, Copy, Debug)]
pub enum WatchNews<'a> {
    /// The watch broke, and its selection expires.
    Lost {
        /// The selection.
        what: &'a str,
        /// The reason.
        why: &'a str,
    },
    /// A lost watch is back.
    Back {
        /// The selection.
        what: &'a str,
    },
}

/// A selection in the store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WatchState {
    /// The objects, in words: `services shop/web`.
    pub what: String,
    /// How the selection is kept up to date.
    pub health: WatchHealth,
}

/// How a selection is kept up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchHealth {
    /// By a watch.
    Watched,
    /// By reading it again when it is used.
    Read,
    /// Its watch broke and is not back yet.
    Lost,
}

/// Counters of the store at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Selections in the store.
    pub kept: usize,
    /// Watches that are open. With HTTP/2 many share a connection.
    pub watches: usize,
}

impl Store {
    pub(crate) fn new(client: Client, settings: &Settings) -> Self {
        let env = Arc::new(StoreEnv {
            server: LimitedApi::new(client),
            watches: Arc::new(Semaphore::new(WATCHES)),
            idle: settings.idle.min(LONGEST_IDLE),
            path: Path::default(),
            told: OnceLock::new(),
        });
        Self {
            domain: Arc::new(DomainCell::new(settings)),
            services: Shelf::new(env.clone()),
            slices: Shelf::new(env.clone()),
            pods: Shelf::new(env.clone()),
            addresses: Shelf::new(env.clone()),
            namespaces: Shelf::new(env.clone()),
            unseen: Mutex::default(),
            searches: Mutex::default(),
            neighbours: Neighbours::default(),
            env,
        }
    }

    pub(crate) fn server(&self) -> &LimitedApi {
        &self.env.server
    }

    /// How long unused selections are kept.
    pub(crate) fn idle(&self) -> Duration {
        self.env.idle
    }

    /// The cluster's domain, as far as it is known without a call.
    pub(crate) fn domain_guess(&self) -> Arc<Domain> {
        self.domain.guess()
    }

    /// Whether the cluster's DNS may know names that no object has, as far as it is known without a call.
    pub(crate) fn additions(&self) -> Option<bool> {
        self.domain.additions()
    }

    pub(crate) fn tell(&self, told: WatchObserver) {
        let _ = self.env.told.set(told);
    }

    pub(crate) fn watches(&self) -> Vec<WatchState> {
        let mut all = self.services.states();
        all.extend(self.slices.states());
        all.extend(self.pods.states());
        all.extend(self.addresses.states());
        all.extend(self.namespaces.states());
        all
    }

    pub(crate) fn stats(&self) -> Stats {
        let lists = self.services.len() + self.slices.len() + self.pods.len();
        Stats {
            kept: lists + self.addresses.len() + self.namespaces.len(),
            watches: WATCHES - self.env.watches.available_permits(),
        }
    }

    /// Reads one fact into the snapshot; `validity` gets its expiry.
    ///
    /// Cancellation: the load continues for other and later callers.
    pub(crate) async fn read(
        &self,
        need: Need,
        snapshot: &mut Snapshot<'_>,
        validity: &mut Validity,
    ) {
        match need {
            Need::Domain => {
                let (domain, is_known) = self.domain.get(self.server(), snapshot.settings).await;
                snapshot.domain = Some(domain);
                if !is_known {
                    validity.until(Instant::now());
                }
            }
            Need::Additions => {
                snapshot.additions = Some(self.domain.adds_names(self.server()).await);
            }
            Need::Services(select) => {
                let found = self.services.get(&select, validity).await;
                snapshot.services.insert(select, found);
            }
            Need::Slices(select) => {
                let found = self.slices.get(&select, validity).await;
                snapshot.slices.insert(select, found);
            }
            Need::Pods(select) => {
                let found = self.pods.get(&select, validity).await;
                snapshot.pods.insert(select, found);
            }
            Need::Addresses(select) => {
                let found = self.addresses.get(&select, validity).await;
                snapshot.addresses.insert(select, found);
            }
            Need::Namespaces(select) => {
                let found = self.namespaces.get(&select, validity).await;
                snapshot.namespaces.insert(select, found);
            }
            Need::Second(search) => {
                let found = self.search(&search, snapshot.settings, validity).await;
                snapshot.second.insert(search, found);
            }
        }
    }

    /// Starts to read likely needs, unless the first of them is known already: the rule then names the rest.
    pub(crate) fn warm(&self, soon: &[Need]) {
        if let Some(Need::Services(first)) = soon.first()
            && self.services.peek(first).is_some()
        {
            return;
        }
        for need in soon {
            match need {
                Need::Services(select) => self.services.warm(select),
                Need::Slices(select) => self.slices.warm(select),
                Need::Namespaces(select) => self.namespaces.warm(select),
                Need::Additions if self.domain.is_due() => {
                    let (domain, server) = (self.domain.clone(), self.server().clone());
                    tokio::spawn(async move { domain.adds_names(&server).await });
                }
                _ => {}
            }
        }
    }

    /// Starts to read a Service by its name, or keeps it watched.
    pub(crate) fn warm_service(&self, namespace: &str, name: &str) {
        self.services.warm(&Select::named(namespace, name));
    }

    /// Keeps watching a selection that is empty or forbidden.
    pub(crate) fn pin(&self, need: &Need) {
        match need {
            Need::Services(select) => self.services.pin(select),
            Need::Slices(select) => self.slices.pin(select),
            Need::Pods(select) => self.pods.pin(select),
            _ => {}
        }
    }

    /// Where to look for an address first.
    pub(crate) fn hints(
        &self,
        (ip, port): (IpAddr, u16),
        owner: Option<AddressOwner>,
        settings: &Settings,
        validity: &mut Validity,
    ) -> Hints {
        let places = settings.places(None).into_iter();
        let with = |namespace| Select::WithAddress { namespace, ip };
        let known = |select: &Select| self.pods.peek(select).is_some_and(|pods| !pods.is_empty());
        Hints {
            owner,
            pods: places.map(with).filter(known).collect(),
            seen: self
                .slices
                .find(|slice| seen_pod(slice, ip, port), validity),
        }
    }

    /// Reads a Pod from the API server, past the store.
    pub(crate) async fn pod_now(&self, pod: &PodRef) -> Result<Option<Pod>, CallFailure> {
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
}
