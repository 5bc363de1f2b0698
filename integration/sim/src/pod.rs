//! What runs in the pods, and how it is reached.
//!
//! A running pod is a set of ports with a program behind each: the sample workload's echo program, by its
//! environment, or what a test puts there. A connection is a duplex in memory; its program is a task.

mod count;
mod dns;
mod grpc;
mod http;
mod raw;
mod websocket;

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use self::dns::{Hosts, hosts_of};
use tokio::io::DuplexStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a socket's buffers hold each way.
const BUFFER: usize = 256 * 1024;
/// Connections a pod takes at once.
const CONNECTIONS: usize = 16 * 1024;

/// Every pod's network, by the pod's UID.
#[derive(Debug)]
pub(crate) struct Network {
    pods: Mutex<HashMap<String, Arc<SimPod>>>,
    tasks: TaskTracker,
}

/// What is fixed of a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodInfo {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) hostname: String,
    pub(crate) ip: String,
    /// `NAME` of the echo program.
    pub(crate) service: String,
    /// The sandbox's id and the name of its network namespace, as error texts show them.
    pub(crate) sandbox: String,
    pub(crate) netns: String,
    pub(crate) ports: Ports,
    /// What a CoreDNS in it knows; `None` where there is none.
    pub(crate) dns: Option<Hosts>,
}

/// Which ports the echo program listens on, and as what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ports {
    pub(crate) http: Vec<u16>,
    pub(crate) tcp: Vec<u16>,
    pub(crate) stream: Vec<u16>,
    pub(crate) greet: Vec<u16>,
    pub(crate) reset: Vec<u16>,
    pub(crate) close: Vec<u16>,
}

#[derive(Debug)]
pub(crate) struct SimPod {
    pub(crate) info: PodInfo,
    /// Ends the programs.
    running: CancellationToken,
    /// The sandbox is gone too.
    removed: AtomicBool,
    ready: AtomicBool,
    ports: Mutex<HashMap<u16, PodProgram>>,
    room: Arc<Semaphore>,
    next_client_port: AtomicU16,
    tasks: TaskTracker,
}

#[derive(Clone)]
enum PodProgram {
    Http,
    Tcp,
    Stream,
    Greet,
    Reset,
    Close,
    Dns(Arc<Hosts>),
    Custom(Custom),
}

type Custom = Arc<dyn Fn(DuplexStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A connection to a pod's port.
#[derive(Debug)]
pub(crate) struct PodConnection {
    pub(crate) io: DuplexStream,
    /// Says whether the program reset it, once the other end of `io` is gone.
    pub(crate) end: oneshot::Receiver<Reset>,
    /// The port it comes from.
    pub(crate) from: u16,
}

/// The program reset its connection instead of closing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reset;

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodDialError {
    /// Nothing listens.
    Refused,
    /// The sandbox is gone.
    Gone,
}

impl Network {
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self {
            pods: Mutex::default(),
            tasks,
        }
    }

    /// Starts a pod's programs.
    pub(crate) fn start(&self, info: PodInfo) {
        let mut ports = HashMap::new();
        for (numbers, program) in [
            (&info.ports.http, PodProgram::Http),
            (&info.ports.tcp, PodProgram::Tcp),
            (&info.ports.stream, PodProgram::Stream),
            (&info.ports.greet, PodProgram::Greet),
            (&info.ports.reset, PodProgram::Reset),
            (&info.ports.close, PodProgram::Close),
        ] {
            ports.extend(numbers.iter().map(|p| (*p, program.clone())));
        }
        if let Some(hosts) = &info.dns {
            ports.insert(dns::PORT, PodProgram::Dns(Arc::new(hosts.clone())));
        }
        let pod = Arc::new(SimPod {
            running: CancellationToken::new(),
            removed: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            ports: Mutex::new(ports),
            room: Arc::new(Semaphore::new(CONNECTIONS)),
            next_client_port: AtomicU16::new(32_768),
            tasks: self.tasks.clone(),
            info,
        });
        self.pods().insert(pod.info.uid.clone(), pod);
    }

    pub(crate) fn get(&self, uid: &str) -> Option<Arc<SimPod>> {
        self.pods().get(uid).cloned()
    }

    /// Whether `/ready` of the pod's program says so.
    pub(crate) fn set_ready(&self, uid: &str, ready: bool) {
        if let Some(pod) = self.get(uid) {
            pod.ready.store(ready, Ordering::Relaxed);
        }
    }

    /// Ends a pod's programs: its connections close, new ones are refused.
    pub(crate) fn stop(&self, uid: &str) {
        if let Some(pod) = self.get(uid) {
            pod.running.cancel();
        }
    }

    /// Ends the programs of every pod.
    pub(crate) fn stop_all(&self) {
        for pod in self.pods().values() {
            pod.running.cancel();
        }
    }

    /// Takes the sandbox away too.
    pub(crate) fn remove(&self, uid: &str) {
        if let Some(pod) = self.pods().remove(uid) {
            pod.running.cancel();
            pod.removed.store(true, Ordering::Relaxed);
        }
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<SimPod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimPod {
    /// Puts a program behind a port, in place of what is there.
    pub(crate) fn listen<F, Fut>(&self, port: u16, serve: F)
    where
        F: Fn(DuplexStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let custom: Custom = Arc::new(move |io| Box::pin(serve(io)));
        self.programs().insert(port, PodProgram::Custom(custom));
    }

    /// Connects to a port, as from the pod's own loopback.
    pub(crate) fn connect(self: &Arc<Self>, port: u16) -> Result<PodConnection, PodDialError> {
        if self.removed.load(Ordering::Relaxed) {
            return Err(PodDialError::Gone);
        }
        let program = self.programs().get(&port).cloned();
        let (Some(program), false) = (program, self.running.is_cancelled()) else {
            return Err(PodDialError::Refused);
        };
        let room = Arc::clone(&self.room).try_acquire_owned();
        let room = room.map_err(|_| PodDialError::Refused)?;
        let from = self.next_client_port.fetch_add(1, Ordering::Relaxed) | 0x8000;
        let (near, far) = tokio::io::duplex(BUFFER);
        let (tell, end) = oneshot::channel();
        let client = PodClient {
            pod: Arc::clone(self),
            port,
            from,
        };
        self.tasks.spawn(run(client, program, far, tell, room));
        Ok(PodConnection {
            io: near,
            end,
            from,
        })
    }

    fn programs(&self) -> MutexGuard<'_, HashMap<u16, PodProgram>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, as its program sees it.
#[derive(Clone)]
struct PodClient {
    pod: Arc<SimPod>,
    /// The port of the pod.
    port: u16,
    from: u16,
}

async fn run(
    client: PodClient,
    program: PodProgram,
    mut io: DuplexStream,
    tell: oneshot::Sender<Reset>,
    _room: OwnedSemaphorePermit,
) {
    let running = client.pod.running.clone();
    let program = async {
        match program {
            PodProgram::Http => http::serve(client, io).await,
            PodProgram::Custom(serve) => serve(io).await,
            PodProgram::Dns(hosts) => dns::serve(&hosts, &mut io).await,
            PodProgram::Tcp => raw::answer_at_the_end(&mut io).await,
            PodProgram::Stream => raw::echo(&mut io).await,
            PodProgram::Greet => raw::greet(&client.pod.info.hostname, &mut io).await,
            PodProgram::Close => raw::answer_and_close(&mut io).await,
            PodProgram::Reset => {
                raw::read_one(&mut io).await;
                // Told before `io` goes, so that who sees its end knows.
                let _ = tell.send(Reset);
            }
        }
    };
    running.run_until_cancelled(program).await;
}

impl fmt::Debug for PodProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Stream => "stream",
            Self::Greet => "greet",
            Self::Reset => "reset",
            Self::Close => "close",
            Self::Dns(_) => "dns",
            Self::Custom(_) => "custom",
        })
    }
}
