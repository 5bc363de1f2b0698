//! From a port to a stream: a session, a pair of streams on it, and the port's fate; else another session.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubevpn_spdy::{Session, StreamError};
use kubevpn_target::BoxError;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config::{Config, Transport, TransportChoice};
use crate::error::{ForwardError, Rejection};
use crate::fate::Fate;
use crate::news::SessionNews;
use crate::pair::{Early, Pair};
use crate::pod::{PodId, PodPort};
use crate::pool::{Lease, Pool, TakenSession};
use crate::stream::{Carrier, PodStream};
use crate::transport::WebSocketChannel;

/// Sessions tried by one dial: one that is broken is replaced by another.
pub(crate) const ATTEMPTS: usize = 3;
/// A session from which something was received this recently counts as alive.
const FRESH: Duration = Duration::from_secs(5);

/// How an attempt failed.
enum AttemptFailure {
    /// Another session may succeed.
    Session(ForwardError),
    Final(ForwardError),
}

/// Opens a connection within [`Config::dial_timeout`].
///
/// Cancellation: dropping the future gives the dial up. An upgrade that it started is finished and kept for the next dial.
pub(crate) async fn dial(pool: Arc<Pool>, to: PodPort) -> Result<PodStream, ForwardError> {
    let pod = Arc::new(PodId::from(&to));
    if !pod.is_valid() {
        let pod = pod.to_string();
        return Err(ForwardError::PodNotFound { pod });
    }
    pool.start_keeping();
    let after = pool.config().dial_timeout;
    let dial = Dial {
        pool: &pool,
        pod: &pod,
        to: &to,
        began: Instant::now(),
        cause: Mutex::default(),
    };
    let dialed = timeout(after, dial.attempts()).await;
    let dialed = dialed.unwrap_or_else(|_| {
        Err(ForwardError::TimedOut {
            pod: pod.to_string(),
            step: "opening the connection",
            after,
        })
    });
    let dialed = dialed.map_err(|error| dial.explained(error));
    pool.count_dial(dialed.as_ref().err());
    dialed
}

/// One dial.
struct Dial<'a> {
    pool: &'a Arc<Pool>,
    pod: &'a Arc<PodId>,
    to: &'a PodPort,
    began: Instant,
    /// Failure that the attempts until now have in common.
    cause: Mutex<Option<ForwardError>>,
}

impl Dial<'_> {
    async fn attempts(&self) -> Result<PodStream, ForwardError> {
        let Self {
            pool, to, began, ..
        } = *self;
        // After a failure only sessions from which something was received since are used: the cause may have broken
        // all of them.
        let mut heard_since = None;
        let mut attempt = 1;
        loop {
            let sessions = pool.opener().has_sessions();
            let attempted = if sessions {
                self.on_session(heard_since).await
            } else {
                self.channel(Vec::new()).await
            };
            match attempted.map_err(|failure| self.given_up().unwrap_or(failure)) {
                Ok(stream) => return Ok(stream),
                Err(AttemptFailure::Session(error)) if attempt < ATTEMPTS => {
                    tracing::debug!(%to, %error, attempt, "trying another session");
                }
                // Only channels were tried, because they worked before.
                Err(AttemptFailure::Final(error @ ForwardError::Rejected { .. }))
                    if !sessions && pool.opener().has_sessions() && attempt < ATTEMPTS =>
                {
                    tracing::debug!(%to, %error, attempt, "trying the other transports");
                }
                Err(AttemptFailure::Session(error) | AttemptFailure::Final(error)) => {
                    return Err(error);
                }
            }
            heard_since = Some(began);
            attempt += 1;
        }
    }

    /// Opens a stream on a session, and tries a channel in parallel if no session is available for long.
    async fn on_session(&self, heard_since: Option<Instant>) -> Result<PodStream, AttemptFailure> {
        let Self { pool, pod, to, .. } = *self;
        let asked = Instant::now();
        let mut session = pin!(pool.session(pod, to.port, heard_since));
        let late = async {
            sleep(self.config().channel_after).await;
            match pool.opener().has_channels() {
                true => self.channel(Vec::new()).await,
                false => std::future::pending().await,
            }
        };
        let session = tokio::select! {
            session = &mut session => session,
            stream = late => match stream {
                Ok(stream) => return Ok(stream),
                Err(_) => session.await,
            },
        };
        match session {
            Ok(Ok(taken)) => {
                let session = asked.elapsed();
                let stream = self.connect(*taken).await?;
                pool.tell(|| SessionNews::Dialled {
                    session,
                    stream: asked.elapsed().saturating_sub(session),
                });
                Ok(stream)
            }
            Ok(Err(tried)) => {
                if !tried.is_empty() && tried.iter().all(|r| r.silent) {
                    let (pod, tried) = (pod.to_string(), tried.clone());
                    *self.cause() = Some(ForwardError::Rejected { pod, tried });
                }
                self.channel(tried).await
            }
            Err(error) => Err(AttemptFailure::Final(error)),
        }
    }

    async fn connect(&self, taken: TakenSession) -> Result<PodStream, AttemptFailure> {
        let to = self.to;
        let TakenSession {
            lease,
            handle,
            transport,
            opened,
            request,
            good,
        } = taken;
        let lost = |source: BoxError| {
            AttemptFailure::Session(ForwardError::session_lost(to.pod_name(), source))
        };
        let fresh = handle.stats().last_received.elapsed() < FRESH;
        let mut pair = match Pair::open(&handle, to.port, request) {
            Ok(pair) => pair,
            Err(error) => {
                lease.distrust();
                return Err(lost(error.into()));
            }
        };
        lease.named(pair.id());
        let unheard = |failure| {
            // The line of an older session may have died; the next attempt opens one.
            if handle.stats().received == 0
                && opened >= self.began
                && self.pool.opener().unheard(transport)
                && opened.elapsed() >= self.config().probe_timeout
            {
                self.note_silent(transport);
            }
            failure
        };
        if good && !fresh {
            let replied = self.replied(&mut pair, &lease, &handle).await;
            replied.map_err(unheard)?;
            self.pool.opener().heard();
        }
        if !good {
            let mut early = Early::new(&handle, self.config());
            let replied = self.replied(&mut pair, &lease, &handle);
            early.beside(replied).await.map_err(unheard)?;
            self.pool.opener().heard();
            match pair.fate(&mut early, self.config()).await {
                Fate::Good => lease.remember(),
                Fate::Refused => {
                    let error = pair.text().refusal(to.to_string());
                    tracing::debug!(%to, text = ?pair.text(), "refused");
                    return Err(AttemptFailure::Final(error));
                }
                Fate::Broken(error) => {
                    lease.distrust();
                    return Err(lost(error.into()));
                }
            }
        }
        let carrier = Carrier::Pair(pair);
        Ok(PodStream::new(
            carrier,
            lease,
            to,
            transport,
            self.pool.config().clone(),
        ))
    }

    fn config(&self) -> &Arc<Config> {
        self.pool.config()
    }

    fn cause(&self) -> MutexGuard<'_, Option<ForwardError>> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing was received on a session that was opened for this dial.
    fn note_silent(&self, transport: Transport) {
        let mut cause = self.cause();
        match &mut *cause {
            Some(ForwardError::Silent { transports, .. }) => {
                if !transports.contains(&transport) {
                    transports.push(transport);
                }
            }
            _ => {
                *cause = Some(ForwardError::Silent {
                    pod: self.pod.to_string(),
                    transports: vec![transport],
                });
            }
        }
    }

    /// The failure of the dial, if both transports with sessions were silent.
    fn given_up(&self) -> Option<AttemptFailure> {
        let cause = self.cause().clone()?;
        let is_silent = matches!(cause, ForwardError::Silent { .. });
        (is_silent && !cause.retryable()).then_some(AttemptFailure::Final(cause))
    }

    /// The failure that the attempts have in common, in place of a limit or of the last attempt's failure.
    fn explained(&self, error: ForwardError) -> ForwardError {
        let is_only = matches!(self.config().transport, TransportChoice::Only(_));
        match (&error, self.cause().take()) {
            (ForwardError::TimedOut { .. }, Some(cause @ ForwardError::Rejected { .. })) => cause,
            (
                ForwardError::TimedOut { .. } | ForwardError::SessionLost { .. },
                Some(cause @ ForwardError::Silent { .. }),
            ) if is_only => cause,
            _ => error,
        }
    }

    /// Waits for the reply. A session that gives none gets no new connections.
    async fn replied(
        &self,
        pair: &mut Pair,
        lease: &Lease,
        handle: &Session,
    ) -> Result<(), AttemptFailure> {
        let timed_out = |after| {
            AttemptFailure::Session(ForwardError::TimedOut {
                pod: self.to.pod_name(),
                step: "the answer to a new stream",
                after,
            })
        };
        let after = self.config().reply_timeout;
        let (until, soon) = (Instant::now() + after, after / 5);
        let replied = match timeout(soon, pair.replied()).await {
            Ok(replied) => replied,
            Err(_) => {
                lease.suspect();
                if handle.stats().last_received < self.began {
                    // The session has been silent since before this dial. Its probe will decide; another is tried meanwhile.
                    return Err(timed_out(soon));
                }
                match timeout_at(until, pair.replied()).await {
                    Ok(replied) => replied,
                    Err(_) => {
                        lease.distrust();
                        return Err(timed_out(after));
                    }
                }
            }
        };
        match replied {
            Ok(()) => Ok(()),
            Err(error) => {
                if !matches!(error, StreamError::Session(_)) {
                    lease.distrust();
                }
                Err(AttemptFailure::Session(ForwardError::session_lost(
                    self.to.pod_name(),
                    error,
                )))
            }
        }
    }

    async fn channel(&self, tried: Vec<Rejection>) -> Result<PodStream, AttemptFailure> {
        let (pod, to) = (self.pod, self.to);
        let (lease, good) = self
            .pool
            .lease_channel(pod, to.port)
            .map_err(AttemptFailure::Final)?;
        let io = self
            .pool
            .opener()
            .channel(pod.clone(), to.port, tried)
            .await;
        let io = io.map_err(AttemptFailure::Final)?;
        let mut channel = WebSocketChannel::new(io, self.config()).await;
        if !good {
            match channel.fate(self.config()).await {
                Fate::Good => lease.remember(),
                Fate::Refused => {
                    let error = channel.text().refusal(to.to_string());
                    return Err(AttemptFailure::Final(error));
                }
                Fate::Broken(error) => {
                    return Err(AttemptFailure::Final(ForwardError::session_lost(
                        self.to.pod_name(),
                        error,
                    )));
                }
            }
        }
        let carrier = Carrier::Channel(Box::new(channel));
        let transport = Transport::WsV4;
        Ok(PodStream::new(
            carrier,
            lease,
            to,
            transport,
            self.pool.config().clone(),
        ))
    }
}
