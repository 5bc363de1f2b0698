//! How sessions and channels are asked of the API server, and which way was found to work.
//!
//! `spdy.rs`, `tunnel.rs` and `channel.rs` each know one transport; `upgrade.rs` and `websocket.rs` are what they
//! share. [`Open`] is the seam to the pool.

mod channel;
mod spdy;
mod tunnel;
mod upgrade;
mod websocket;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub(crate) use self::channel::Channel;
pub(crate) use self::upgrade::said;
use self::upgrade::{UpgradeError, verb};
use crate::config::{Config, Transport, TransportChoice};
use crate::error::{ForwardError, Rejection};
use crate::pod::PodId;

/// An upgraded connection, whatever is below.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the pool asks for new connections.
pub(crate) trait Open: Send + Sync + 'static {
    /// Whether there may be sessions at all; else every connection is a channel of its own.
    fn has_sessions(&self) -> bool;

    /// Asks for a session to the Pod.
    fn session(&self, pod: Arc<PodId>) -> BoxFuture<Result<Opened, ForwardError>>;

    /// Asks for a channel to the port. `tried` is what was turned down just before, in [`Opened::ChannelsOnly`].
    fn channel(
        &self,
        pod: Arc<PodId>,
        port: u16,
        tried: Vec<Rejection>,
    ) -> BoxFuture<Result<Box<dyn Io>, ForwardError>>;
}

/// What came of asking for a session.
pub(crate) enum Opened {
    /// A connection that speaks SPDY.
    Session(Box<dyn Io>, Transport),
    /// Every way to a session was turned down, channels are still to be tried.
    ChannelsOnly(Vec<Rejection>),
}

/// Asks the API server.
#[derive(Clone)]
pub(crate) struct Api {
    client: kube::Client,
    config: Arc<Config>,
    memory: Arc<Mutex<Memory>>,
}

/// What is known of each transport.
#[derive(Debug, Default)]
struct Memory([Known; Transport::ALL.len()]);

#[derive(Clone, Copy, Debug, Default)]
enum Known {
    /// Nothing against it.
    #[default]
    Fit,
    /// It failed once, in a way that may have been an accident.
    Doubtful,
    /// It is turned down, since then at least.
    Down(Instant),
}

impl Api {
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
            TransportChoice::Auto => self.memory().order(Instant::now(), &self.config),
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask_session(self, pod: Arc<PodId>) -> Result<Opened, ForwardError> {
        let mut asked = Asked::new(pod);
        for transport in self.order() {
            let within = self.config.upgrade_timeout;
            let (client, pod) = (&self.client, &*asked.pod);
            let opened = match transport {
                Transport::Spdy => match spdy::open(client, pod, Method::POST, within).await {
                    Err(UpgradeError::Forbidden { message }) => {
                        asked.forbidden(&Method::POST, message)?;
                        // Rules that do not grant `create` may grant `get`.
                        let io = spdy::open(client, &asked.pod, Method::GET, within).await;
                        io.map(|io| Box::new(io) as Box<dyn Io>)
                    }
                    io => io.map(|io| Box::new(io) as Box<dyn Io>),
                },
                Transport::SpdyWs => {
                    let io = tunnel::open(client, pod, within).await;
                    io.map(|io| Box::new(io) as Box<dyn Io>)
                }
                Transport::WsV4 => return Ok(Opened::ChannelsOnly(asked.tried)),
            };
            match opened {
                Ok(io) => {
                    tracing::debug!(pod = %asked.pod, %transport, "session opened");
                    self.memory().worked(transport, &asked.tried);
                    return Ok(Opened::Session(io, transport));
                }
                Err(no) => asked.refused(transport, no)?,
            }
        }
        // Only where channels are not to be tried.
        Err(asked.rejected())
    }

    async fn ask_channel(
        self,
        pod: Arc<PodId>,
        port: u16,
        tried: Vec<Rejection>,
    ) -> Result<Box<dyn Io>, ForwardError> {
        let mut asked = Asked::new(pod);
        asked.tried = tried;
        let within = self.config.upgrade_timeout;
        match channel::open(&self.client, &asked.pod, port, within).await {
            Ok(io) => {
                self.memory().worked(Transport::WsV4, &asked.tried);
                Ok(Box::new(io))
            }
            Err(no) => {
                asked.refused(Transport::WsV4, no)?;
                self.memory().forget();
                Err(asked.rejected())
            }
        }
    }
}

impl Open for Api {
    fn has_sessions(&self) -> bool {
        self.order().first() != Some(&Transport::WsV4)
    }

    fn session(&self, pod: Arc<PodId>) -> BoxFuture<Result<Opened, ForwardError>> {
        Box::pin(self.clone().ask_session(pod))
    }

    fn channel(
        &self,
        pod: Arc<PodId>,
        port: u16,
        tried: Vec<Rejection>,
    ) -> BoxFuture<Result<Box<dyn Io>, ForwardError>> {
        Box::pin(self.clone().ask_channel(pod, port, tried))
    }
}

impl Memory {
    fn order(&self, now: Instant, config: &Config) -> Vec<Transport> {
        let fit = |t: &Transport| match self.0[*t as usize] {
            Known::Fit | Known::Doubtful => true,
            Known::Down(at) => now.duration_since(at) >= config.transport_retry,
        };
        let fit: Vec<_> = Transport::ALL.into_iter().filter(fit).collect();
        if fit.is_empty() {
            Transport::ALL.to_vec()
        } else {
            fit
        }
    }

    /// What worked does no more: all get another chance.
    fn forget(&mut self) {
        *self = Self::default();
    }

    /// Only the success of another transport proves that a refusal was about the transport; not even that does
    /// where the API server itself failed to reach the node, which may have come back meanwhile. A connection that was
    /// cut, or a proxy's 5xx, may have been one of several servers that ended: that counts when it happens again.
    fn worked(&mut self, transport: Transport, tried: &[Rejection]) {
        for rejection in tried {
            let failed = rejection.status.is_none_or(|s| s.is_server_error());
            let known = &mut self.0[rejection.transport as usize];
            *known = match known {
                _ if failed && rejection.status.is_some() && rejection.by_api_server => continue,
                Known::Fit if failed => Known::Doubtful,
                Known::Fit | Known::Doubtful => {
                    tracing::info!(refused = %rejection.transport, instead = %transport, "transport turned down");
                    Known::Down(Instant::now())
                }
                Known::Down(_) => Known::Down(Instant::now()),
            };
        }
        self.0[transport as usize] = Known::Fit;
    }
}

/// What was asked for one Pod so far.
struct Asked {
    pod: Arc<PodId>,
    tried: Vec<Rejection>,
    /// The verbs that are not granted, and what the API server said about the last.
    verbs: Vec<&'static str>,
    said: String,
}

impl Asked {
    fn new(pod: Arc<PodId>) -> Self {
        Self {
            pod,
            tried: Vec::new(),
            verbs: Vec::new(),
            said: String::new(),
        }
    }

    /// Notes that the method's verb is not granted; an error when there is no other to ask for.
    fn forbidden(&mut self, method: &Method, message: String) -> Result<(), ForwardError> {
        self.verbs.push(verb(method));
        self.said = message;
        if verb(method) == "create" {
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

    /// Notes what the transport met; an error when no other transport can do better.
    fn refused(&mut self, transport: Transport, no: UpgradeError) -> Result<(), ForwardError> {
        match no {
            UpgradeError::Rejected {
                status,
                by_api_server,
                message,
            } => {
                let rejection = Rejection {
                    transport,
                    status,
                    by_api_server,
                    message,
                };
                tracing::debug!(pod = %self.pod, %rejection, "transport turned down");
                self.tried.push(rejection);
                Ok(())
            }
            // All forms but SPDY's first are asked by GET.
            UpgradeError::Forbidden { message } => self.forbidden(&Method::GET, message),
            UpgradeError::Gone => Err(ForwardError::PodNotFound {
                pod: self.pod.to_string(),
            }),
            UpgradeError::Final(error) => Err(ForwardError::Api(error)),
        }
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
