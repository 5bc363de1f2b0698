//! The client of the daemon: it finds the daemon, starts it and makes calls.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Method;
use kubevpn_client::own_proxies;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use self::http::{CallError, ok, read, send};
use crate::api::{
    API, AboutDaemon, ConnectEvent, ConnectRequest, ConnectionInfo, ConnectionQuery,
    EndedConnections, OpenedConnection, StatusReport,
};
use crate::console::Console;
use crate::error::{ApiError, Code, ErrorContext as _};
use crate::lock::holder;
use crate::log::LogLevel;
use crate::readiness;
use crate::registry::DRAIN;
use crate::run::IDLE_VARIABLE;
use crate::state_dir::{self, StateDir};
use crate::sys::{self, Process};

pub(crate) mod http;

/// Time limit of calls that the daemon answers without waiting.
const PROMPT: Duration = Duration::from_secs(5);
/// Time limit for ending all connections and the process.
const ENDING: Duration = DRAIN.saturating_add(Duration::from_secs(5));
/// Time limit for its start.
const START: Duration = Duration::from_secs(20);
/// Interval of polls.
const LOOK: Duration = Duration::from_millis(50);
/// Upper bound on an answer.
const MOST_BYTES: usize = 16 << 20;

/// Client of the daemon of a directory, which may not run. Calls have time limits. After a call is dropped, the daemon
/// still completes it.
pub struct DaemonClient {
    dir: StateDir,
}

/// Result of starting the daemon.
enum DaemonStart {
    Ready,
    /// Another process is the daemon.
    Other,
}

impl DaemonClient {
    /// A client of the daemon of this directory.
    pub fn new(dir: StateDir) -> Self {
        Self { dir }
    }

    // === finding it ===

    /// Identity of the daemon, if one runs.
    async fn about(&self) -> Result<Option<AboutDaemon>, ApiError> {
        match self.get("/v1/daemon").await {
            Ok(about) => Ok(Some(about)),
            Err(CallError::Gone(_)) => Ok(None),
            Err(trouble) => Err(trouble.into()),
        }
    }

    /// Whether a daemon with this version of the API runs.
    pub async fn find(&self) -> Result<bool, ApiError> {
        match self.about().await? {
            None => Ok(false),
            Some(about) if about.api == API => Ok(true),
            Some(about) => Err(ApiError::new(
                Code::OtherVersion,
                format!(
                    "the daemon is kubevpn {} and this is {}, which do not understand each other: end it with kubevpn \
                     quit, and start again",
                    about.version,
                    crate::VERSION
                ),
            )),
        }
    }

    /// Starts the daemon unless it runs. Of concurrent calls, one starts it.
    pub async fn ensure(&self) -> Result<(), ApiError> {
        let until = Instant::now() + START;
        loop {
            if self.find().await? {
                return Ok(());
            }
            let started = self.start().await?;
            if Instant::now() < until {
                sleep(LOOK).await;
                continue;
            }
            return Err(match started {
                DaemonStart::Other => self.wedged("does not start to answer"),
                DaemonStart::Ready => ApiError::new(
                    Code::NotRunning,
                    format!(
                        "the daemon ends as soon as it has started: give it more time than {IDLE_VARIABLE} says"
                    ),
                ),
            });
        }
    }

    /// Starts the daemon if there are connections to restore. Returns whether one runs.
    pub async fn ensure_if_needed(&self) -> Result<bool, ApiError> {
        if self.find().await? {
            return Ok(true);
        }
        if !self.dir.has_connections() {
            self.tidy()?;
            return Ok(false);
        }
        self.ensure().await.map(|()| true)
    }

    /// Deletes unfinished files of a daemon that was killed, if there are no connections.
    fn tidy(&self) -> Result<(), ApiError> {
        if !self.dir.socket().exists() {
            return Ok(());
        }
        let tidied = match self.dir.try_lock()? {
            // Another process is starting.
            None => return Ok(()),
            // Another process was faster.
            Some(_) if self.dir.has_connections() => Ok(()),
            Some(lock) => self.dir.clear().and_then(|()| lock.release()),
        };
        tidied.context("cannot delete what a killed daemon has left")
    }

    async fn start(&self) -> Result<DaemonStart, ApiError> {
        self.dir.prepare()?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command
            .arg("daemon")
            .env(state_dir::VARIABLE, self.dir.path())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // The token belongs to one command, and is in its transient kubeconfig.
        command.env_remove("KUBEVPN_TOKEN");
        // The service manager waits for the command, which tells it, and not for the daemon.
        command.env_remove("NOTIFY_SOCKET");
        // The daemon outlives these proxies, and does not use them.
        for own in own_proxies(std::env::vars_os()) {
            command.env_remove(own);
        }
        sys::keep_descriptors();
        let mut child = command.spawn().context("cannot start the daemon")?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| ApiError::new(Code::Internal, "stdout is piped"))?;
        // Reads one line or the end. The read may block, so it has a thread of its own.
        let said = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = match timeout(START, said).await {
            Ok(Ok(Ok(line))) => line,
            Ok(_) => String::new(),
            Err(_) => return Err(self.wedged("does not start")),
        };
        match line.trim_end() {
            readiness::READY => Ok(DaemonStart::Ready),
            readiness::OTHER => {
                let _ = child.wait();
                Ok(DaemonStart::Other)
            }
            "" => {
                let _ = child.wait();
                Err(ApiError::new(
                    Code::NotRunning,
                    format!(
                        "the daemon ended while it started; its log is {}",
                        self.dir.log(None).display()
                    ),
                ))
            }
            why => {
                let _ = child.wait();
                Err(ApiError::new(Code::NotRunning, why))
            }
        }
    }

    fn wedged(&self, what: &str) -> ApiError {
        let Some(process) = holder(&self.dir.lock()).filter(Process::lives) else {
            return self.elsewhere();
        };
        ApiError::new(
            Code::NotRunning,
            format!(
                "the daemon (process {}) {what}: end it with kubevpn quit; its log is {}",
                process.pid,
                self.dir.log(None).display()
            ),
        )
    }

    /// Another process holds the lock, and cannot be identified.
    fn elsewhere(&self) -> ApiError {
        ApiError::new(
            Code::NotRunning,
            format!(
                "{} is locked by a process that is not on this machine, or is no daemon of kubevpn's: end it there, or set {} \
                 to a directory of this machine's own",
                self.dir.lock().display(),
                state_dir::VARIABLE
            ),
        )
    }

    // === asking it ===

    pub async fn status(&self) -> Result<StatusReport, ApiError> {
        Ok(self.get("/v1/status").await?)
    }

    /// The connection of a query, if it is open.
    pub async fn find_connection(
        &self,
        query: &ConnectionQuery,
    ) -> Result<Option<ConnectionInfo>, ApiError> {
        self.ask_with(Method::POST, "/v1/connections/find", query)
            .await
    }

    /// Opens a connection; `step` is called for each step.
    pub async fn connect(
        &self,
        request: &ConnectRequest,
        mut step: impl FnMut(&str),
    ) -> Result<OpenedConnection, ApiError> {
        let gone = |code| {
            ApiError::new(
                code,
                "the daemon ended while it was asked: try again, it brings back what was open",
            )
        };
        let failed = |trouble: CallError| match trouble {
            CallError::Gone(_) => gone(Code::Ending),
            CallError::Failed(error) => error,
        };
        let body = serde_json::to_vec(request)
            .map_err(|e| ApiError::new(Code::Internal, e.to_string()))?;
        let sent = self.send(Method::POST, "/v1/connections", body).await;
        let mut body = ok(sent.map_err(failed)?).await.map_err(failed)?.into_body();
        let mut unread = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(Ok(data)) = frame.map(hyper::body::Frame::into_data) else {
                break;
            };
            unread.extend_from_slice(&data);
            if unread.len() > MOST_BYTES {
                break;
            }
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = unread.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(ConnectEvent::Step(text)) => step(&text),
                    Ok(ConnectEvent::Done(opened)) => return Ok(opened),
                    Ok(ConnectEvent::Failed(error)) => return Err(error),
                    Err(error) => return Err(ApiError::new(Code::Internal, error.to_string())),
                }
            }
        }
        Err(gone(Code::NotRunning))
    }

    /// Closes one connection, or all. Without a daemon, the files of a connection are deleted here.
    pub async fn disconnect(&self, id: Option<&str>, now: bool) -> Result<Vec<String>, ApiError> {
        let path = match id {
            Some(id) => format!("/v1/connections/{id}"),
            None => "/v1/connections".to_owned(),
        };
        let until = Instant::now() + START;
        let mut asked = false;
        loop {
            if self.find().await? {
                let ended = self
                    .ask::<EndedConnections>(Method::DELETE, &path, now, ENDING)
                    .await;
                match ended {
                    Ok(ended) => return Ok(ended.ids),
                    Err(CallError::Gone(_)) if Instant::now() < until => {
                        asked = true;
                        sleep(LOOK).await;
                        continue;
                    }
                    // The daemon ended during the call, after it had deleted the connection.
                    Err(CallError::Failed(error))
                        if asked && error.code == Code::NoSuchConnection =>
                    {
                        return Ok(id.map(str::to_owned).into_iter().collect());
                    }
                    Err(trouble) => return Err(trouble.into()),
                }
            }
            let forgotten = match self.forget(id) {
                Err(error) if asked && error.code == Code::NoSuchConnection => {
                    Ok(Some(id.map(str::to_owned).into_iter().collect()))
                }
                other => other,
            };
            if let Some(ids) = forgotten? {
                return Ok(ids);
            }
            if Instant::now() > until {
                return Err(self.wedged("does not answer"));
            }
            sleep(LOOK).await;
        }
    }

    /// Deletes the files of a connection, or of all; `None` if a daemon runs.
    fn forget(&self, id: Option<&str>) -> Result<Option<Vec<String>>, ApiError> {
        let saved = self.dir.saved().context("cannot look for connections")?;
        let ids: Vec<_> = match id {
            Some(id) => saved.into_iter().filter(|saved| saved == id).collect(),
            None => saved,
        };
        if ids.is_empty() {
            return match id {
                Some(id) => Err(ApiError::no_such_connection(id)),
                None => Ok(Some(ids)),
            };
        }
        let Some(lock) = self.dir.try_lock()? else {
            return Ok(None);
        };
        let forgotten = ids.iter().try_for_each(|id| {
            state_dir::remove(&self.dir.state(id))?;
            state_dir::remove(&self.dir.kubeconfig(id))
        });
        let forgotten = forgotten.and_then(|()| match self.dir.has_connections() {
            true => Ok(()),
            false => self.dir.clear(),
        });
        let forgotten = forgotten.and_then(|()| lock.release());
        forgotten.context("cannot delete what is left of the connection")?;
        Ok(Some(ids))
    }

    /// Consoles of all proxies of this user: the daemon's connections, sorted by ID, and those in the foreground. No daemon
    /// is started.
    pub async fn consoles(&self) -> Result<Vec<Console>, ApiError> {
        let mut all = Vec::new();
        match self.status().await {
            Ok(status) => all.extend(
                status
                    .list
                    .iter()
                    .map(|connection| self.console(&connection.id)),
            ),
            Err(error) if error.code == Code::NotRunning => {}
            Err(error) => return Err(error),
        }
        let sockets = self.dir.foreground_sockets();
        let sockets = sockets.context("cannot look for proxies in the foreground")?;
        for socket in sockets {
            let path = "/v1/proxy".to_owned();
            match UnixStream::connect(&socket).await {
                Ok(_) => all.push(Console { socket, path }),
                // The socket of a proxy that was killed.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    let _ = state_dir::remove(&socket);
                }
                Err(_) => {}
            }
        }
        Ok(all)
    }

    /// Console of a connection of the daemon.
    pub fn console(&self, id: &str) -> Console {
        Console {
            socket: self.dir.socket(),
            path: format!("/v1/connections/{id}"),
        }
    }

    /// Waits until a connection has ended, which may be before the call.
    pub async fn ended(&self, id: &str) -> Result<(), ApiError> {
        let path = format!("/v1/connections/{id}/ended");
        let asked = async {
            let sent = self.send(Method::GET, &path, Vec::new()).await?;
            read::<()>(ok(sent).await?).await
        };
        match asked.await {
            Ok(()) => Ok(()),
            Err(CallError::Failed(error)) if error.code == Code::NoSuchConnection => Ok(()),
            Err(CallError::Gone(_)) if !self.dir.state(id).exists() => Ok(()),
            // The daemon answers before it ends, unless it is killed.
            Err(CallError::Gone(_)) => Err(ApiError::new(
                Code::NotRunning,
                "the daemon was killed: kubevpn status starts it again, and brings the connection back",
            )),
            Err(trouble) => Err(trouble.into()),
        }
    }

    pub async fn use_current(&self, id: &str) -> Result<(), ApiError> {
        let path = format!("/v1/current/{id}");
        Ok(self.ask(Method::PUT, &path, false, PROMPT).await?)
    }

    /// Sets the level of the daemon's own log.
    pub async fn set_log_level(&self, level: LogLevel) -> Result<(), ApiError> {
        self.ask_with(Method::PUT, "/v1/log-level", &level).await
    }

    // === ending it ===

    /// Ends the daemon that runs when this is called, even if it hangs, and deletes all files but the logs. A daemon that
    /// was started since keeps running, with its files.
    pub async fn quit(&self, now: bool) -> Result<(), ApiError> {
        if !self.dir.path().exists() {
            return Ok(());
        }
        let mut ended = None;
        let mut until = Instant::now() + PROMPT;
        loop {
            if let Some(lock) = self.dir.try_lock()? {
                let cleared = self.dir.clear().and_then(|()| lock.release());
                cleared.context("cannot delete what the daemon has left")?;
                return Ok(());
            }
            match (holder(&self.dir.lock()).filter(Process::lives), &ended) {
                (Some(daemon), None) => {
                    self.end(&daemon, now).await?;
                    ended = Some(daemon);
                    until = Instant::now() + PROMPT;
                }
                (Some(daemon), Some(ended)) if daemon != *ended => return Ok(()),
                // A daemon that starts signs the lock soon, and one that ends releases it soon.
                _ if Instant::now() < until => {}
                _ => return Err(self.elsewhere()),
            }
            sleep(LOOK).await;
        }
    }

    /// Asks this process to end, and kills it if it does not. Returns once it has ended or another daemon has the lock.
    async fn end(&self, daemon: &Process, now: bool) -> Result<(), ApiError> {
        let is_there = || holder(&self.dir.lock()).as_ref() == Some(daemon) && daemon.lives();
        let mut until = Instant::now() + ENDING;
        let mut asked = false;
        while is_there() && Instant::now() < until {
            if !asked {
                match self.ask_to_quit(daemon, now).await {
                    Ok(()) => {
                        asked = true;
                        until = Instant::now() + ENDING;
                    }
                    // The daemon is starting or ending.
                    Err(CallError::Gone(_)) => {}
                    Err(trouble) => {
                        let error = ApiError::from(trouble);
                        tracing::warn!(
                            error = error.whole(),
                            "the daemon does not end: killing it"
                        );
                        break;
                    }
                }
            }
            sleep(LOOK).await;
        }
        for by_force in [false, true] {
            if !is_there() || !daemon.end(by_force).context("cannot end the daemon")? {
                return Ok(());
            }
            let until = Instant::now() + ENDING;
            // A stopped process does not handle SIGTERM.
            while daemon.lives() && Instant::now() < until {
                sleep(LOOK).await;
            }
        }
        if daemon.lives() {
            let pid = daemon.pid;
            return Err(ApiError::new(
                Code::Other,
                format!(
                    "the daemon, process {pid}, was killed and has not ended: see what it waits for, e.g. with ps -o stat,wchan -p {pid}"
                ),
            ));
        }
        Ok(())
    }

    /// Sends `POST /v1/quit`, which daemons of all versions support, on a connection to exactly this process.
    async fn ask_to_quit(&self, daemon: &Process, now: bool) -> Result<(), CallError> {
        let stream = self.dial().await?;
        let peer = stream.peer_cred().map_err(CallError::gone)?;
        if peer.pid().and_then(|pid| u32::try_from(pid).ok()) != Some(daemon.pid) {
            return Err(CallError::Gone("another process listens".into()));
        }
        let path = if now { "/v1/quit?now" } else { "/v1/quit" };
        let asking = async {
            let sent = send(stream, Method::POST, path, Vec::new()).await?;
            read::<EndedConnections>(ok(sent).await?).await
        };
        let answered = timeout(ENDING, asking).await;
        answered.map_err(|_| CallError::Failed(self.wedged("does not answer")))??;
        Ok(())
    }
}
