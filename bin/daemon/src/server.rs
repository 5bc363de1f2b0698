//! The server of the daemon's API.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kubevpn_proxy::journal;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::api::{API, AboutDaemon, ConnectEvent, ConnectRequest, DaemonStatus, EndedConnections};
use crate::engine::{Engine, EngineSession as _};
use crate::error::{ApiError, Code};
use crate::log::Log;
use crate::registry::{DRAIN, Registry};
use crate::state_dir::StateDir;
use crate::sys;

/// Upper bound on a request. A context with embedded certificates is much smaller.
const MOST_BYTES: usize = 4 << 20;
/// Time limit of a request's head.
const HEAD: Duration = Duration::from_secs(5);
/// Concurrent commands.
const COMMANDS: usize = 64;

type DaemonResponse = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The server of commands.
pub(crate) struct DaemonServer<E: Engine> {
    pub(crate) registry: Arc<Registry<E>>,
    /// The daemon's own log.
    pub(crate) log: Log,
    pub(crate) about: AboutDaemon,
    /// Set once all connections have ended and the daemon has to exit.
    pub(crate) quit: watch::Sender<bool>,
    /// Tasks that answer commands.
    pub(crate) commands: TaskTracker,
}

/// Listens on the daemon's socket. The caller holds the lock, so an existing socket belongs to a daemon that has ended.
pub(crate) fn listen(dir: &StateDir) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    dir.remove_socket()?;
    let path = dir.socket();
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl<E: Engine> DaemonServer<E> {
    /// Accepts commands until it is dropped. Running ones are completed, as tasks of `commands`.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) {
        let room = Arc::new(Semaphore::new(COMMANDS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a command");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !is_ours(&stream) {
                continue;
            }
            let this = self.clone();
            self.commands.spawn(async move {
                let answering = service_fn(|request| {
                    let this = this.clone();
                    async move { Ok::<_, Infallible>(this.answer(request).await) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), answering)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "a command went away");
                }
                drop(permit);
            });
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> DaemonResponse {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let patience = match head.uri.query() {
            Some("now") => Duration::ZERO,
            _ => DRAIN,
        };
        let registry = &self.registry;
        if let ["v1", "connections", id, inside @ ..] =
            &*path.split('/').skip(1).collect::<Vec<_>>()
            && let Some(connection) = registry.get(id)
            && let Some(view) = connection.session.view().cloned()
        {
            // The connection must not be kept alive by a reader of events.
            drop(connection);
            if let Some(answer) =
                journal::api::answer(&view, &head.method, inside, head.uri.query()).await
            {
                return answer;
            }
        }
        let mut words = path.trim_start_matches('/').split('/');
        let words = [words.next(), words.next(), words.next(), words.next()];
        match (&head.method, words) {
            (&Method::GET, [Some("v1"), Some("daemon"), None, _]) => json(&self.about),
            (&Method::GET, [Some("v1"), Some("status"), None, _]) => {
                let mut status = registry.status();
                status.daemon = Some(DaemonStatus {
                    version: self.about.version.clone(),
                    pid: self.about.pid,
                    started_at: self.about.started_at.clone(),
                });
                json(&status)
            }
            (&Method::POST, [Some("v1"), Some("connections"), None, _]) => match read(body).await {
                Ok(request) => self.connect(request),
                Err(error) => failed(&error),
            },
            (&Method::POST, [Some("v1"), Some("connections"), Some("find"), None]) => {
                let query = read(body).await;
                said(query.map(|query| registry.find(&query)))
            }
            (&Method::DELETE, [Some("v1"), Some("connections"), id, None]) => {
                let (registry, id) = (registry.clone(), id.map(str::to_owned));
                self.to_its_end(async move {
                    let ids = match id {
                        Some(id) => registry.disconnect(&id, patience).await.map(|()| vec![id]),
                        None => registry.disconnect_all(patience).await,
                    };
                    ids.map(|ids| EndedConnections { ids })
                })
                .await
            }
            (&Method::GET, [Some("v1"), Some("connections"), Some(id), Some("ended")]) => {
                said(registry.ended(id).await)
            }
            (&Method::PUT, [Some("v1"), Some("current"), Some(id), None]) => {
                said(registry.use_current(id).await)
            }
            (&Method::PUT, [Some("v1"), Some("log-level"), None, _]) => {
                let level = read(body).await;
                said(level.map(|level| {
                    self.log.set_level(level);
                    tracing::info!(level = level.as_str(), "logging");
                }))
            }
            (&Method::POST, [Some("v1"), Some("quit"), None, _]) => {
                let this = self.clone();
                self.to_its_end(async move {
                    this.registry.refuse();
                    this.registry.settle().await;
                    let ids = this.registry.disconnect_all(patience).await;
                    this.quit.send_replace(true);
                    ids.map(|ids| EndedConnections { ids })
                })
                .await
            }
            _ => failed(&ApiError::new(
                Code::OtherVersion,
                format!(
                    "the daemon is kubevpn {} and knows nothing of {} {path}: end it with kubevpn quit",
                    self.about.version, head.method
                ),
            )),
        }
    }

    /// Completes the task even if the command ends, e.g. by Ctrl-C, so that the next command finds it complete.
    async fn to_its_end<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> DaemonResponse
    where
        T: serde::Serialize + Send + 'static,
    {
        match self.commands.spawn(work).await {
            Ok(done) => said(done),
            Err(error) => failed(&ApiError::new(
                Code::Internal,
                format!("the daemon failed: {error}"),
            )),
        }
    }

    /// Completes even if the command ends, so that the next command finds all or nothing.
    fn connect(self: Arc<Self>, request: ConnectRequest) -> DaemonResponse {
        let (events, told) = mpsc::channel(64);
        let commands = self.commands.clone();
        commands.spawn(async move {
            let steps = events.clone();
            let tell = move |text| {
                // A command that has ended, or is slow, misses a step.
                let _ = steps.try_send(ConnectEvent::Step(text));
            };
            let last = match self.registry.connect(request, &tell).await {
                Ok(opened) => ConnectEvent::Done(opened),
                Err(error) => {
                    tracing::warn!(
                        error = error.whole(),
                        code = error.code.as_str(),
                        "not connected"
                    );
                    ConnectEvent::Failed(error)
                }
            };
            let _ = events.send(last).await;
        });
        let lines = futures_util::stream::unfold(told, |mut told| async {
            Some((told.recv().await?, told))
        });
        let frames = lines.map(|event| {
            let mut line = serde_json::to_vec(&event).unwrap_or_default();
            line.push(b'\n');
            Ok(Frame::data(Bytes::from(line)))
        });
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

/// Only processes of this user are answered, whatever the socket's mode is.
fn is_ours(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == sys::own_uid() => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "another user's process is not answered");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "cannot identify the connecting process");
            false
        }
    }
}

fn json(body: &impl serde::Serialize) -> DaemonResponse {
    let body = serde_json::to_vec(body).unwrap_or_default();
    Response::new(Full::new(Bytes::from(body)).boxed_unsync())
}

fn said(result: Result<impl serde::Serialize, ApiError>) -> DaemonResponse {
    match result {
        Ok(body) => json(&body),
        Err(error) => failed(&error),
    }
}

fn failed(error: &ApiError) -> DaemonResponse {
    let mut answer = json(error);
    *answer.status_mut() = match error.code {
        Code::NoSuchConnection => StatusCode::NOT_FOUND,
        Code::Conflict | Code::AddressInUse => StatusCode::CONFLICT,
        Code::InvalidValue | Code::Exposed | Code::Kubeconfig => StatusCode::BAD_REQUEST,
        Code::NotRunning | Code::Ending => StatusCode::SERVICE_UNAVAILABLE,
        Code::OtherVersion => StatusCode::NOT_IMPLEMENTED,
        Code::Refused(_) => StatusCode::BAD_GATEWAY,
        Code::Internal | Code::Other => StatusCode::INTERNAL_SERVER_ERROR,
    };
    answer
}

/// Reads a request's body. Errors do not repeat it, because it may contain secrets.
async fn read<T: serde::de::DeserializeOwned>(body: Incoming) -> Result<T, ApiError> {
    let body = Limited::new(body, MOST_BYTES).collect().await;
    let body = body.map_err(|_| ApiError::new(Code::Other, "the request was cut short"))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|_| ApiError::new(Code::Internal, "the request is not what this daemon reads"))
}

/// Identity of this daemon.
pub(crate) fn about() -> AboutDaemon {
    AboutDaemon {
        api: API,
        version: crate::VERSION.into(),
        pid: std::process::id(),
        started_at: jiff::Timestamp::now().to_string(),
    }
}
