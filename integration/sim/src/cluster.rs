//! What the parts of one simulation share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::api::WatchSignal;
use crate::audit::Audit;
use crate::faults::Faults;
use crate::pod::Network;
use crate::portforward::Sessions;
use crate::world::{Later, World};

#[derive(Debug)]
pub(crate) struct SimCluster {
    pub(crate) options: SimOptions,
    pub(crate) access: Access,
    pub(crate) audit: Audit,
    pub(crate) faults: Faults,
    pub(crate) network: Arc<Network>,
    pub(crate) sessions: Sessions,
    pub(crate) watches: watch::Sender<WatchSignal>,
    world: Mutex<World>,
    runtime: Handle,
    tasks: TaskTracker,
    /// Ends every task.
    pub(crate) over: CancellationToken,
}

/// What was chosen when it was built.
#[derive(Clone, Debug)]
pub(crate) struct SimOptions {
    /// The minor version of Kubernetes.
    pub(crate) minor: u32,
    /// Where objects go that name no namespace.
    pub(crate) namespace: String,
}

impl SimCluster {
    /// Must be called in a tokio runtime, which runs all of it.
    pub(crate) fn new(options: SimOptions, access: Access, faults: Faults, seed: u64) -> Self {
        let tasks = TaskTracker::new();
        let network = Arc::new(Network::new(tasks.clone()));
        Self {
            world: Mutex::new(World::new(seed, Arc::clone(&network))),
            options,
            access,
            audit: Audit::default(),
            faults,
            network,
            sessions: Sessions::default(),
            watches: watch::Sender::default(),
            runtime: Handle::current(),
            tasks,
            over: CancellationToken::new(),
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the world, and lets the controllers finish what follows from it.
    pub(crate) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world();
        let answer = change(&mut world);
        world.reconcile();
        let later = world.take_later();
        drop(world);
        self.schedule(later);
        answer
    }

    /// Runs a task until it ends or the simulation does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        let task = async move {
            over.run_until_cancelled(task).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// Ends every task; [`SimCluster::ended`] waits for that.
    pub(crate) fn end(&self) {
        self.over.cancel();
        self.network.stop_all();
        self.faults.links.close();
    }

    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What is to happen at the same time happens as one change.
    fn schedule(self: &Arc<Self>, later: Vec<Later>) {
        let mut times: BTreeMap<Duration, Vec<Later>> = BTreeMap::new();
        for later in later {
            times.entry(later.after).or_default().push(later);
        }
        for (after, later) in times {
            let cluster = Arc::clone(self);
            self.spawn(async move {
                tokio::time::sleep(after).await;
                cluster.change(|world| later.iter().for_each(|l| world.happen(l)));
            });
        }
    }
}
