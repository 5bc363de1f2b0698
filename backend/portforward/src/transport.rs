//! Upgrades to sessions and channels, and which transports were found to work.
//!
//! `spdy.rs`, `tunnel.rs` and `channel.rs` implement one transport each; `upgrade.rs` and `websocket.rs` are shared.
//! [`Opener`] is the interface to the pool.

mod channel;
mod spdy;
mod tunnel;
mod upgrade;
mod websocket;

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

pub(crate) use self::channel::WebSocketChannel;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::upgrade::said;
use self::upgrade::{UpgradeError, verb};
use crate::config::{Config, Transport, TransportChoice};
use crate::error::{ForwardError, Rejection};
use crate::pod::PodId;

/// An upgraded connection.
pub(crate) trait SessionIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> SessionIo for T {}

fn boxed(io: impl SessionIo + 'static) -> Box<dyn SessionIo> {
    Box::new(io)
}

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Opens connections for the pool.
pub(crate) trait Opener: Send + Sync + 'static {
    /// Whether a transport with sessions is allowed; without one every connection is a channel of its own.
    fn has_sessions(&self) -> bool;

    /// Whether a channel may be tried while a session is awaited.
    fn has_channels(&self) -> bool;

    /// Opens a session to the Pod.
    fn session(&self, pod: Arc<PodId>) -> BoxFuture<Result<OpenedSession, ForwardError>>;

    /// Opens a channel to the port. `tried` lists the rejections of [`OpenedSession::ChannelsOnly`].
    fn channel(
        &self,
        pod: Arc<PodId>,
        port: u16,
        tried: Vec<Rejection>,
    ) -> BoxFuture<Result<Box<dyn SessionIo>, ForwardError>>;

    /// Reports that a session received something.
    fn heard(&self) {}

    /// Reports that a new session of this transport ended, or was given up, before a byte was received on it. Returns whether
    /// that is so of every session until now.
    fn unheard(&self, _transport: Transport) -> bool {
        false
    }
}

/// Outcome of a request for a session.
pub(crate) enum OpenedSession {
    /// A connection that speaks SPDY.
    Session(Box<dyn SessionIo>, Transport),
    /// Every transport with sessions was turned down; channels have not been tried.
    ChannelsOnly(Vec<Rejection>),
}

/// Asks the API server.
#[derive(Clone)]
pub(crate) struct PortForwardApi {
    client: kube::Client,
    config: Arc<Config>,
    memory: Arc<Mutex<TransportMemory>>,
}

/// What is known of each transport.
#[derive(Debug, Default)]
struct TransportMemory {
    known: [TransportHealth; Transport::ALL.len()],
    /// When a channel was last opened.
    channel: Option<Instant>,
    /// When a session was last opened.
    session: Option<Instant>,
    /// Something was received on a session.
    heard: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum TransportHealth {
    /// Nothing against it.
    #[default]
    Fit,
    /// It failed once, in a way that may have been an accident.
    Doubtful,
    /// Tried last: another was much faster, or a new session received nothing. That an upgrade succeeds is no proof of the
    /// opposite.
    Silent,
    /// It is turned down; when it was last found to be.
    Down(Instant),
}

impl PortForwardApi {
    pub(crate) fn new(client: kube::Client, config: Arc<Config>) -> Self {
        Self {
            client,
            config,
            memory: Arc::default(),
        }
    }

    /// The transports to try now, in order.
    fn order(&self) -> Vec<Transport> {
        match self.config.transport {
            TransportChoice::Only(transport) => vec![transport],
            TransportChoice::Auto => self.memory().order(),
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, TransportMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries the transports in order, the next as soon as the last is turned down, or beside it once it has been
    /// silent for [`Config::transport_stagger`] (as RFC 8305 does with addresses). The first upgrade is taken. After a
    /// final error no further transport is tried, but those under way are waited for.
    async fn ask_session(self, pod: Arc<PodId>) -> Result<OpenedSession, ForwardError> {
        self.look_again(&pod);
        let began = Instant::now();
        let mut asked = TriedTransports::new(pod);
        let mut order = self.order().into_iter();
        let (mut more, mut start, mut channels) = (true, true, false);
        let mut last = None;
        let mut tried = FuturesUnordered::new();
        let mut running: Vec<(Transport, Instant)> = Vec::new();
        let mut stagger = pin!(sleep(self.config.transport_stagger));
        loop {
            while std::mem::take(&mut start) {
                match order.next() {
                    None => more = false,
                    Some(Transport::WsV4) => (channels, start) = (true, true),
                    Some(transport) => {
                        let now = Instant::now();
                        running.push((transport, now));
                        tried.push(self.clone().attempt(asked.pod.clone(), transport));
                        stagger.as_mut().reset(now + self.config.transport_stagger);
                    }
                }
            }
            let (transport, attempted) = tokio::select! {
                biased;
                Some(attempted) = tried.next() => attempted,
                () = &mut stagger, if more && last.is_none() && !tried.is_empty() => {
                    start = true;
                    continue;
                }
                else => break,
            };
            running.retain(|(t, _)| *t != transport);
            match attempted {
                Ok(io) => {
                    tracing::debug!(pod = %asked.pod, %transport, "session opened");
                    let mut memory = self.memory();
                    memory.worked(transport, &asked.tried);
                    memory.session = Some(Instant::now());
                    drop(memory);
                    running.retain(|(_, at)| at.elapsed() >= self.config.transport_stagger);
                    if !running.is_empty() {
                        self.leave(&asked.pod, transport, &running, tried);
                    }
                    return Ok(OpenedSession::Session(io, transport));
                }
                Err(failed) => match asked.failed(transport, failed) {
                    Ok(()) => start = last.is_none(),
                    // Of the Pod and its node every transport says the same.
                    Err(
                        error @ (ForwardError::PodNotFound { .. }
                        | ForwardError::NotForwarded { .. }),
                    ) => return Err(error),
                    Err(error) => last = Some(error),
                },
            }
        }
        if let Some(error) = last {
            return Err(error);
        }
        if !channels {
            return Err(asked.rejected());
        }
        let mut memory = self.memory();
        let since = |at: Option<Instant>| at.is_some_and(|at| at >= began);
        if since(memory.channel) && !since(memory.session) {
            memory.worked(Transport::WsV4, &asked.tried);
        }
        Ok(OpenedSession::ChannelsOnly(asked.tried))
    }

    /// One transport, by each verb that may be granted.
    async fn attempt(self, pod: Arc<PodId>, transport: Transport) -> (Transport, Attempted) {
        let within = self.config.upgrade_timeout;
        let client = &self.client;
        let attempted = match transport {
            Transport::Spdy => match spdy::open(client, &pod, Method::POST, within).await {
                Err(UpgradeError::Forbidden { message }) => {
                    // Rules that do not grant `create` may grant `get`.
                    let io = spdy::open(client, &pod, Method::GET, within).await;
                    io.map(boxed).map_err(|error| TransportFailure {
                        create: Some(message),
                        error,
                    })
                }
                io => io.map(boxed).map_err(TransportFailure::from),
            },
            Transport::SpdyWs => {
                let io = tunnel::open(client, &pod, within).await;
                io.map(boxed).map_err(TransportFailure::from)
            }
            Transport::WsV4 => {
                let error = UpgradeError::rejected("not a session");
                Err(TransportFailure::from(error))
            }
        };
        (transport, attempted)
    }

    /// Waits aside for the end of attempts that another transport was faster than.
    fn leave(
        &self,
        pod: &Arc<PodId>,
        instead: Transport,
        running: &[(Transport, Instant)],
        mut tried: FuturesUnordered<impl Future<Output = (Transport, Attempted)> + Send + 'static>,
    ) {
        let mut before = [TransportHealth::Fit; Transport::ALL.len()];
        for (transport, _) in running {
            let index = *transport as usize;
            let silent = TransportHealth::Silent;
            before[index] = match std::mem::replace(&mut self.memory().known[index], silent) {
                TransportHealth::Silent => TransportHealth::Fit,
                known => known,
            };
        }
        let (api, mut asked) = (self.clone(), TriedTransports::new(pod.clone()));
        tokio::spawn(async move {
            while let Some((transport, attempted)) = tried.next().await {
                match attempted {
                    Ok(_) => api.memory().worked(transport, &[]),
                    Err(failed) => {
                        let mut memory = api.memory();
                        let known = &mut memory.known[transport as usize];
                        if matches!(known, TransportHealth::Silent) {
                            *known = before[transport as usize];
                        }
                        drop(memory);
                        // What says nothing of the transport leaves it as it was.
                        if asked.failed(transport, failed).is_ok() {
                            api.memory().worked(instead, &asked.tried);
                        }
                    }
                }
            }
        });
    }

    /// Tries transports again that were turned down long enough ago, in parallel with the dial.
    fn look_again(&self, pod: &Arc<PodId>) {
        if self.config.transport != TransportChoice::Auto {
            return;
        }
        let due = self.memory().due(Instant::now(), &self.config);
        for transport in due {
            let (api, pod) = (self.clone(), pod.clone());
            tokio::spawn(async move {
                if let (_, Ok(_)) = api.clone().attempt(pod, transport).await {
                    tracing::info!(%transport, "transport works again");
                    api.memory().worked(transport, &[]);
                }
            });
        }
    }

    async fn ask_channel(
        self,
        pod: Arc<PodId>,
        port: u16,
        tried: Vec<Rejection>,
    ) -> Result<Box<dyn SessionIo>, ForwardError> {
        self.look_again(&pod);
        // Each transport was tried just now; otherwise what is known of them is older than this dial.
        let all_failed = !tried.is_empty();
        let mut asked = TriedTransports::new(pod);
        asked.tried = tried;
        let within = self.config.upgrade_timeout;
        match channel::open(&self.client, &asked.pod, port, within).await {
            Ok(io) => {
                let mut memory = self.memory();
                memory.worked(Transport::WsV4, &asked.tried);
                memory.channel = Some(Instant::now());
                Ok(Box::new(io))
            }
            Err(no) => {
                asked.refused(Transport::WsV4, no)?;
                let mut memory = self.memory();
                if memory.channel.is_some() || all_failed {
                    memory.forget();
                }
                Err(asked.rejected())
            }
        }
    }
}

impl Opener for PortForwardApi {
    fn has_sessions(&self) -> bool {
        self.order().first() != Some(&Transport::WsV4)
    }

    fn has_channels(&self) -> bool {
        self.order().contains(&Transport::WsV4)
    }

    fn session(&self, pod: Arc<PodId>) -> BoxFuture<Result<OpenedSession, ForwardError>> {
        Box::pin(self.clone().ask_session(pod))
    }

    fn channel(
        &self,
        pod: Arc<PodId>,
        port: u16,
        tried: Vec<Rejection>,
    ) -> BoxFuture<Result<Box<dyn SessionIo>, ForwardError>> {
        Box::pin(self.clone().ask_channel(pod, port, tried))
    }

    fn heard(&self) {
        self.memory().heard = true;
    }

    fn unheard(&self, transport: Transport) -> bool {
        let mut memory = self.memory();
        memory.unheard(transport);
        !memory.heard
    }
}

impl TransportMemory {
    /// Transports that were not turned down, silent ones last; all transports if none is left.
    fn order(&self) -> Vec<Transport> {
        let known = |t: &Transport| self.known[*t as usize];
        let fit = |t: &Transport| !matches!(known(t), TransportHealth::Down(_));
        let mut fit: Vec<_> = Transport::ALL.into_iter().filter(fit).collect();
        if fit.is_empty() {
            return Transport::ALL.to_vec();
        }
        fit.sort_by_key(|t| matches!(known(t), TransportHealth::Silent));
        fit
    }

    /// Transports with sessions whose rejection is older than [`Config::transport_retry`]. Their time starts again.
    fn due(&mut self, now: Instant, config: &Config) -> Vec<Transport> {
        let sessions = [Transport::Spdy, Transport::SpdyWs];
        let due = sessions
            .into_iter()
            .filter(|t| match &mut self.known[*t as usize] {
                TransportHealth::Down(at) if now.duration_since(*at) >= config.transport_retry => {
                    *at = now;
                    true
                }
                _ => false,
            });
        due.collect()
    }

    /// Some gateways answer 101 and pass nothing but WebSocket data. The other transport with sessions is tried first from now
    /// on, unless it was turned down.
    fn unheard(&mut self, transport: Transport) {
        let other = match transport {
            Transport::Spdy => Transport::SpdyWs,
            Transport::SpdyWs => Transport::Spdy,
            Transport::WsV4 => return,
        };
        let known = &mut self.known[other as usize];
        match known {
            TransportHealth::Down(_) => return,
            // One of the two works, and this silence has another cause.
            TransportHealth::Silent if self.heard => return,
            TransportHealth::Silent => *known = TransportHealth::Fit,
            TransportHealth::Fit | TransportHealth::Doubtful => {}
        }
        tracing::info!(%transport, "no answer over this transport, it is tried last");
        self.known[transport as usize] = TransportHealth::Silent;
    }

    /// A transport that worked has stopped working: forget all rejections.
    fn forget(&mut self) {
        *self = Self {
            heard: self.heard,
            ..Self::default()
        };
    }

    /// Only the success of another transport proves that a rejection was about the transport. It does not prove it if the
    /// API server failed to reach the node, which may have come back since. A cut connection, or a proxy's 5xx, may
    /// come from one of several servers that was ending: it counts the second time. A transport whose request was
    /// swallowed while another was answered counts at once.
    fn worked(&mut self, transport: Transport, tried: &[Rejection]) {
        for rejection in tried {
            let failed = rejection.status.is_none_or(|s| s.is_server_error());
            let known = &mut self.known[rejection.transport as usize];
            *known = match known {
                _ if failed && rejection.status.is_some() && rejection.by_api_server => continue,
                TransportHealth::Fit if failed && !rejection.silent => TransportHealth::Doubtful,
                TransportHealth::Fit | TransportHealth::Doubtful | TransportHealth::Silent => {
                    tracing::info!(refused = %rejection.transport, instead = %transport, "transport turned down");
                    TransportHealth::Down(Instant::now())
                }
                TransportHealth::Down(_) => TransportHealth::Down(Instant::now()),
            };
        }
        self.known[transport as usize] = TransportHealth::Fit;
    }
}

/// Outcome of one transport's attempt at a session.
type Attempted = Result<Box<dyn SessionIo>, TransportFailure>;

/// Why an attempt failed.
struct TransportFailure {
    /// The API server's text if the verb `create` is not granted and `get` was tried too.
    create: Option<String>,
    error: UpgradeError,
}

impl From<UpgradeError> for TransportFailure {
    fn from(error: UpgradeError) -> Self {
        Self {
            create: None,
            error,
        }
    }
}

/// Transports and verbs tried for one dial so far.
struct TriedTransports {
    pod: Arc<PodId>,
    tried: Vec<Rejection>,
    /// The verbs that are not granted, and the API server's text about the last.
    verbs: Vec<&'static str>,
    said: String,
}

impl TriedTransports {
    fn new(pod: Arc<PodId>) -> Self {
        Self {
            pod,
            tried: Vec::new(),
            verbs: Vec::new(),
            said: String::new(),
        }
    }

    /// Notes that the method's verb is not granted. Error: no other verb is left.
    fn forbidden(&mut self, method: &Method, message: String) -> Result<(), ForwardError> {
        let verb = verb(method);
        if !self.verbs.contains(&verb) {
            self.verbs.push(verb);
            self.verbs.sort_unstable();
        }
        self.said = message;
        if verb == "create" {
            return Ok(());
        }
        Err(self.not_granted())
    }

    fn not_granted(&self) -> ForwardError {
        ForwardError::Forbidden {
            pod: self.pod.to_string(),
            namespace: self.pod.namespace.clone(),
            verbs: self.verbs.clone(),
            message: self.said.clone(),
        }
    }

    /// As [`TriedTransports::refused`], for an attempt with both verbs.
    fn failed(
        &mut self,
        transport: Transport,
        failed: TransportFailure,
    ) -> Result<(), ForwardError> {
        if let Some(message) = failed.create {
            self.forbidden(&Method::POST, message)?;
        }
        self.refused(transport, failed.error)
    }

    /// Notes the transport's rejection. Error: no other transport can succeed.
    fn refused(&mut self, transport: Transport, no: UpgradeError) -> Result<(), ForwardError> {
        let rejection = |status, silent, by_api_server, message| Rejection {
            transport,
            status,
            silent,
            by_api_server,
            message,
        };
        let rejection = match no {
            UpgradeError::Rejected {
                status,
                by_api_server,
                message,
            } => rejection(status, false, by_api_server, message),
            UpgradeError::Silent { after } => {
                let message = format!("no answer within {} s", after.as_secs());
                rejection(None, true, false, message)
            }
            // All requests but SPDY's first use GET.
            UpgradeError::Forbidden { message } => return self.forbidden(&Method::GET, message),
            UpgradeError::Gone => {
                return Err(ForwardError::PodNotFound {
                    pod: self.pod.to_string(),
                });
            }
            UpgradeError::Node { message } => {
                return Err(ForwardError::NotForwarded {
                    to: format!("pod {}", self.pod),
                    said: message,
                });
            }
            UpgradeError::Final(error) => return Err(ForwardError::Api(error)),
        };
        tracing::debug!(pod = %self.pod, %rejection, "transport turned down");
        self.tried.push(rejection);
        Ok(())
    }

    fn rejected(self) -> ForwardError {
        if !self.verbs.is_empty() {
            return self.not_granted();
        }
        ForwardError::Rejected {
            pod: self.pod.to_string(),
            tried: self.tried,
        }
    }
}

#[cfg(test)]
mod tests;
