//! A command's end of the socket: finds the daemon, starts it, speaks to it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::api::{API, About, Ask, Ended, Event, Fault, Opened, Status};
use super::home::{self, Home};
use super::lock::{Lock, holder};
use super::registry::DRAIN;
use super::run::IDLE_VARIABLE;
use super::sys::{self, Process};
use super::tell_ready;
use crate::exit::Failure;

/// How long the daemon may take for what it need not wait for.
const PROMPT: Duration = Duration::from_secs(5);
/// How long it may take to end everything, and to be gone after that.
const ENDING: Duration = DRAIN.saturating_add(Duration::from_secs(5));
/// How long it may take to start.
const START: Duration = Duration::from_secs(20);
/// How often is looked for what nothing tells us of.
const LOOK: Duration = Duration::from_millis(50);
/// How large an answer may be.
const MOST_BYTES: usize = 16 << 20;

/// The daemon, as far as it is there.
pub(crate) struct Daemon {
    home: Home,
}

/// What starting it came to.
enum Started {
    Ready,
    /// Somebody else is the daemon.
    Other,
}

impl Daemon {
    pub(crate) fn new(home: Home) -> Self {
        Self { home }
    }

    // === finding it ===

    /// Who the daemon is, if there is one.
    async fn about(&self) -> Result<Option<About>, Failure> {
        match self.get("/v1/daemon").await {
            Ok(about) => Ok(Some(about)),
            Err(Trouble::Gone(_)) => Ok(None),
            Err(trouble) => Err(trouble.into()),
        }
    }

    /// Whether there is one, of this version of the API.
    pub(crate) async fn find(&self) -> Result<bool, Failure> {
        match self.about().await? {
            None => Ok(false),
            Some(about) if about.api == API => Ok(true),
            Some(about) => Err(Failure::Told(Fault::new(
                81,
                format!(
                    "the daemon is kubevpn {} and this is {}, which do not understand each other: end it with kubevpn \
                     quit, and start again",
                    about.version,
                    super::VERSION
                ),
            ))),
        }
    }

    /// Makes sure that there is one. However many do this at once, one is started.
    pub(crate) async fn ensure(&self, verbose: u8) -> Result<(), Failure> {
        let until = Instant::now() + START;
        loop {
            if self.find().await? {
                return Ok(());
            }
            let started = self.start(verbose).await?;
            if Instant::now() < until {
                sleep(LOOK).await;
                continue;
            }
            return Err(match started {
                Started::Other => self.wedged("does not start to answer"),
                Started::Ready => Failure::Told(Fault::new(
                    80,
                    format!(
                        "the daemon ends as soon as it has started: give it more time than {IDLE_VARIABLE} says"
                    ),
                )),
            });
        }
    }

    /// The same if there is something to bring back. False if there is no daemon and nothing for it to do.
    pub(crate) async fn ensure_if_needed(&self, verbose: u8) -> Result<bool, Failure> {
        if self.find().await? {
            return Ok(true);
        }
        if !self.home.has_connections() {
            self.tidy()?;
            return Ok(false);
        }
        self.ensure(verbose).await.map(|()| true)
    }

    /// Deletes what a daemon that was killed has left half-done, if that is all there is.
    fn tidy(&self) -> Result<(), Failure> {
        if !self.home.socket().exists() {
            return Ok(());
        }
        let tidied = match Lock::try_take(&self.home.lock()) {
            // Somebody is starting.
            Ok(None) => return Ok(()),
            // Somebody was faster.
            Ok(Some(_)) if self.home.has_connections() => Ok(()),
            Ok(Some(lock)) => self.home.clear().and_then(|()| lock.release()),
            Err(error) => Err(error),
        };
        tidied.context("cannot delete what a killed daemon has left")?;
        Ok(())
    }

    async fn start(&self, verbose: u8) -> Result<Started, Failure> {
        self.home.prepare()?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command
            .arg("daemon")
            .args((0..verbose).map(|_| "-v"))
            .env(home::VARIABLE, self.home.path())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        sys::keep_descriptors();
        let mut child = command.spawn().context("cannot start the daemon")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        // One line, or the end: both come soon, but nothing else shall wait for it.
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
            tell_ready::READY => Ok(Started::Ready),
            tell_ready::OTHER => {
                let _ = child.wait();
                Ok(Started::Other)
            }
            "" => {
                let _ = child.wait();
                Err(Failure::Told(Fault::new(
                    80,
                    format!(
                        "the daemon ended while it started; its log is {}",
                        self.home.log(None).display()
                    ),
                )))
            }
            why => {
                let _ = child.wait();
                Err(Failure::Told(Fault::new(80, why)))
            }
        }
    }

    fn wedged(&self, what: &str) -> Failure {
        let Some(process) = holder(&self.home.lock()).filter(Process::lives) else {
            return self.elsewhere();
        };
        Failure::Told(Fault::new(
            80,
            format!(
                "the daemon (process {}) {what}: end it with kubevpn quit; its log is {}",
                process.pid,
                self.home.log(None).display()
            ),
        ))
    }

    /// The lock is held, and not by a process that we could ask or end.
    fn elsewhere(&self) -> Failure {
        Failure::Told(Fault::new(
            80,
            format!(
                "{} is locked by a process that is not on this machine, or is no daemon of kubevpn's: end it there, or set {} \
                 to a directory of this machine's own",
                self.home.lock().display(),
                home::VARIABLE
            ),
        ))
    }

    // === asking it ===

    pub(crate) async fn status(&self) -> Result<Status, Failure> {
        Ok(self.get("/v1/status").await?)
    }

    /// Opens a connection; `step` is called with what happens.
    pub(crate) async fn connect(
        &self,
        ask: &Ask,
        mut step: impl FnMut(&str),
    ) -> Result<Opened, Fault> {
        let gone = || {
            Fault::new(
                80,
                "the daemon ended while it was asked: try again, it brings back what was open",
            )
        };
        let fault = |trouble: Trouble| match trouble {
            Trouble::Gone(_) => Fault {
                ending: true,
                ..gone()
            },
            Trouble::Told(fault) => fault,
            other => Fault::from(&Failure::from(other)),
        };
        let body = serde_json::to_vec(ask).map_err(|e| Fault::new(90, e.to_string()))?;
        let sent = self.send(Method::POST, "/v1/connections", body).await;
        let mut body = ok(sent.map_err(fault)?).await.map_err(fault)?.into_body();
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
                    Ok(Event::Step(text)) => step(&text),
                    Ok(Event::Done(opened)) => return Ok(opened),
                    Ok(Event::Failed(fault)) => return Err(fault),
                    Err(error) => return Err(Fault::new(90, error.to_string())),
                }
            }
        }
        Err(gone())
    }

    /// Ends one connection, or all. Without a daemon what is left of one is deleted here.
    pub(crate) async fn disconnect(
        &self,
        id: Option<&str>,
        now: bool,
    ) -> Result<Vec<String>, Failure> {
        let path = match id {
            Some(id) => format!("/v1/connections/{id}"),
            None => "/v1/connections".to_owned(),
        };
        let until = Instant::now() + START;
        let mut asked = false;
        loop {
            if self.find().await? {
                let ended = self.ask::<Ended>(Method::DELETE, &path, now, ENDING).await;
                match ended {
                    Ok(ended) => return Ok(ended.ids),
                    Err(Trouble::Gone(_)) if Instant::now() < until => {
                        asked = true;
                        sleep(LOOK).await;
                        continue;
                    }
                    // It went away in the middle of it, and had forgotten the connection by then.
                    Err(Trouble::Told(fault)) if asked && fault.exit == 51 => {
                        return Ok(id.map(str::to_owned).into_iter().collect());
                    }
                    Err(trouble) => return Err(trouble.into()),
                }
            }
            let forgotten = match self.forget(id) {
                Err(Failure::Told(fault)) if asked && fault.exit == 51 => {
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

    /// Deletes what there is of a connection, or of all. `None` if there is a daemon after all.
    fn forget(&self, id: Option<&str>) -> Result<Option<Vec<String>>, Failure> {
        let saved = self.home.saved().map_err(anyhow::Error::from)?;
        let ids: Vec<_> = match id {
            Some(id) => saved.into_iter().filter(|saved| saved == id).collect(),
            None => saved,
        };
        if ids.is_empty() {
            return match id {
                Some(id) => Err(Failure::Told(Fault::new(
                    51,
                    format!("there is no connection {id}: kubevpn status lists those there are"),
                ))),
                None => Ok(Some(ids)),
            };
        }
        let Some(lock) = Lock::try_take(&self.home.lock()).map_err(anyhow::Error::from)? else {
            return Ok(None);
        };
        let forgotten = ids.iter().try_for_each(|id| {
            home::remove(&self.home.state(id))?;
            home::remove(&self.home.kubeconfig(id))
        });
        let forgotten = forgotten.and_then(|()| match self.home.has_connections() {
            true => Ok(()),
            false => self.home.clear(),
        });
        let forgotten = forgotten.and_then(|()| lock.release());
        forgotten.context("cannot delete what is left of the connection")?;
        Ok(Some(ids))
    }

    /// Waits for a connection's end.
    pub(crate) async fn ended(&self, id: &str) -> Result<(), Failure> {
        let path = format!("/v1/connections/{id}/ended");
        let sent = self.send(Method::GET, &path, Vec::new()).await;
        match async { read::<()>(ok(sent?).await?).await }.await {
            // So has its connection.
            Ok(()) | Err(Trouble::Gone(_)) => Ok(()),
            Err(trouble) => Err(trouble.into()),
        }
    }

    pub(crate) async fn use_current(&self, id: &str) -> Result<(), Failure> {
        let path = format!("/v1/current/{id}");
        Ok(self.ask(Method::PUT, &path, false, PROMPT).await?)
    }

    // === ending it ===

    /// Ends the daemon that there is when this is called, however it is, and deletes everything but the logs. One that has
    /// been started since is left alone, with its files.
    pub(crate) async fn quit(&self, now: bool) -> Result<(), Failure> {
        if !self.home.path().exists() {
            return Ok(());
        }
        let mut ended = None;
        let mut until = Instant::now() + PROMPT;
        loop {
            if let Some(lock) = Lock::try_take(&self.home.lock()).context("cannot take the lock")? {
                let cleared = self.home.clear().and_then(|()| lock.release());
                cleared.context("cannot delete what the daemon has left")?;
                return Ok(());
            }
            match (holder(&self.home.lock()).filter(Process::lives), &ended) {
                (Some(daemon), None) => {
                    self.end(&daemon, now).await?;
                    ended = Some(daemon);
                    until = Instant::now() + PROMPT;
                }
                (Some(daemon), Some(ended)) if daemon != *ended => return Ok(()),
                // One that starts signs soon, and one that ends lets go soon.
                _ if Instant::now() < until => {}
                _ => return Err(self.elsewhere()),
            }
            sleep(LOOK).await;
        }
    }

    /// Asks this process to end, and makes it if it does not. Returns once it is gone, or another one has its place.
    async fn end(&self, daemon: &Process, now: bool) -> Result<(), Failure> {
        let is_there = || holder(&self.home.lock()).as_ref() == Some(daemon) && daemon.lives();
        let mut until = Instant::now() + ENDING;
        let mut asked = false;
        while is_there() && Instant::now() < until {
            if !asked {
                match self.ask_to_quit(daemon, now).await {
                    Ok(()) => {
                        asked = true;
                        until = Instant::now() + ENDING;
                    }
                    // It starts, or it ends.
                    Err(Trouble::Gone(_)) => {}
                    Err(trouble) => {
                        let failure = Failure::from(trouble);
                        tracing::warn!(%failure, "the daemon does not end when asked: it is made to");
                        break;
                    }
                }
            }
            sleep(LOOK).await;
        }
        for by_force in [false, true] {
            if !is_there() || !daemon.end(by_force).map_err(anyhow::Error::from)? {
                return Ok(());
            }
            let until = Instant::now() + ENDING;
            // A stopped process does not notice TERM.
            while daemon.lives() && Instant::now() < until {
                sleep(LOOK).await;
            }
        }
        if daemon.lives() {
            let pid = daemon.pid;
            return Err(anyhow::anyhow!(
                "the daemon, process {pid}, was killed and has not ended: see what it waits for, e.g. with ps -o stat,wchan -p {pid}"
            )
            .into());
        }
        Ok(())
    }

    /// `POST /v1/quit`, which daemons of every version understand, on a connection to this very process.
    async fn ask_to_quit(&self, daemon: &Process, now: bool) -> Result<(), Trouble> {
        let stream = self.dial().await?;
        let peer = stream.peer_cred().map_err(|e| Trouble::Gone(e.into()))?;
        if peer.pid().and_then(|pid| u32::try_from(pid).ok()) != Some(daemon.pid) {
            return Err(Trouble::Gone(anyhow::anyhow!("another process listens")));
        }
        let path = if now { "/v1/quit?now" } else { "/v1/quit" };
        let asking = async {
            let sent = send(stream, Method::POST, path, Vec::new()).await?;
            read::<Ended>(ok(sent).await?).await
        };
        let answered = timeout(ENDING, asking).await;
        answered.map_err(|_| Trouble::Silent(self.wedged("does not answer")))??;
        Ok(())
    }

    // === HTTP ===

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        self.ask(Method::GET, path, false, PROMPT).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        now: bool,
        within: Duration,
    ) -> Result<T, Trouble> {
        let path = format!("{path}{}", if now { "?now" } else { "" });
        let asking = async {
            let sent = self.send(method, &path, Vec::new()).await?;
            read(ok(sent).await?).await
        };
        timeout(within, asking)
            .await
            .map_err(|_| Trouble::Silent(self.wedged("does not answer")))?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, Trouble> {
        send(self.dial().await?, method, path, body).await
    }

    /// Connects to the daemon, and makes sure that it is this user's: what it is sent holds credentials.
    async fn dial(&self) -> Result<UnixStream, Trouble> {
        use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
        let path = self.home.socket();
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            // A reset: it closed its socket before it took us in.
            Err(e) if matches!(e.kind(), NotFound | ConnectionRefused | ConnectionReset) => {
                return Err(Trouble::Gone(e.into()));
            }
            Err(e) => {
                let error = anyhow::Error::new(e);
                let context = format!("cannot connect to the daemon's socket {}", path.display());
                return Err(Trouble::Silent(Failure::Other(error.context(context))));
            }
        };
        check_peer(&stream, &path, sys::own_uid()).map_err(Trouble::Silent)?;
        Ok(stream)
    }
}

/// That the process which listens acts as this user.
fn check_peer(stream: &UnixStream, path: &Path, uid: u32) -> Result<(), Failure> {
    let peer = stream.peer_cred().context("cannot tell who listens")?.uid();
    if peer == uid {
        return Ok(());
    }
    Err(Failure::Value(format!(
        "a process of uid {peer} listens on {}, and you are uid {uid}: nothing was sent to it. Set {} to a directory of your own",
        path.display(),
        home::VARIABLE
    )))
}

async fn send(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Response<Incoming>, Trouble> {
    let gone = |error: hyper::Error| Trouble::Gone(error.into());
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(gone)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the daemon's connection");
        }
    });
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "kubevpn")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| Trouble::Told(Fault::new(23, e.to_string())))?;
    sender.send_request(request).await.map_err(gone)
}

/// What can go wrong between us and the daemon.
#[derive(Debug)]
enum Trouble {
    /// There is none, or none any more.
    Gone(anyhow::Error),
    /// It does not answer.
    Silent(Failure),
    /// It said no.
    Told(Fault),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Gone(error) => {
                tracing::debug!(error = %format!("{error:#}"), "no daemon");
                Self::Told(Fault::new(80, "the daemon is not running"))
            }
            Trouble::Silent(failure) => failure,
            Trouble::Told(fault) => Self::Told(fault),
        }
    }
}

/// The answer, unless it is a failure.
async fn ok(response: Response<Incoming>) -> Result<Response<Incoming>, Trouble> {
    if response.status().is_success() {
        return Ok(response);
    }
    let fault: Fault = read(response).await?;
    match fault.ending {
        true => Err(Trouble::Gone(fault.into())),
        false => Err(Trouble::Told(fault)),
    }
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Trouble> {
    let body = http_body_util::Limited::new(response.into_body(), MOST_BYTES);
    let body = body.collect().await;
    let body = body.map_err(|e| Trouble::Gone(anyhow::Error::msg(e.to_string())))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|_| {
        Trouble::Told(Fault::new(
            81,
            "the daemon answers in a way this kubevpn does not know: end it with kubevpn quit",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn socket_of_another_user_is_not_spoken_to() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let path = Path::new("/x/daemon.sock");
        check_peer(&ours, path, sys::own_uid()).unwrap();
        let said = check_peer(&ours, path, sys::own_uid() + 1).unwrap_err();
        assert_eq!(said.code(), 23);
        assert!(said.to_string().contains("/x/daemon.sock"), "{said}");
    }
}
