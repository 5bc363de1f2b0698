//! From a port to a stream: a session, a pair of streams on it, and the port's fate; else another session.

use std::sync::Arc;
use std::time::Duration;

use kubevpn_spdy::{Session, StreamError};
use kubevpn_target::BoxError;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::Transport;
use crate::error::{ForwardError, Rejection};
use crate::forward::{PodId, PodPort};
use crate::life::Life;
use crate::pair::{Fate, Pair};
use crate::pool::{Pool, Slot, Taken};
use crate::stream::{Duct, PodStream};
use crate::transport::Channel;

/// A dial that met a broken session tries another; so often.
pub(crate) const ATTEMPTS: usize = 3;
/// A session heard of this recently is taken to be alive.
const FRESH: Duration = Duration::from_secs(5);

/// How an attempt failed.
enum Failure {
    /// Another session may do better.
    Session(ForwardError),
    Final(ForwardError),
}

impl Pool {
    pub(crate) async fn dial(self: Arc<Self>, to: PodPort) -> Result<PodStream, ForwardError> {
        let pod = Arc::new(PodId::from(&to));
        if !pod.is_valid() {
            let pod = pod.to_string();
            return Err(ForwardError::PodNotFound { pod });
        }
        self.start_keeping();
        let after = self.config.dial_timeout;
        let dialed = timeout(after, self.attempts(&pod, &to)).await;
        let dialed = dialed.unwrap_or_else(|_| {
            Err(ForwardError::TimedOut {
                pod: pod.to_string(),
                step: "opening the connection",
                after,
            })
        });
        let mut state = self.state();
        match &dialed {
            Ok(_) => state.counts.opened += 1,
            Err(ForwardError::Refused { .. }) => state.counts.refused += 1,
            Err(_) => {}
        }
        dialed
    }

    async fn attempts(
        self: &Arc<Self>,
        pod: &Arc<PodId>,
        to: &PodPort,
    ) -> Result<PodStream, ForwardError> {
        let began = Instant::now();
        // After a failure only a session that was heard of meanwhile is trusted: what broke one may have
        // broken all of them.
        let mut heard_since = None;
        let mut attempt = 1;
        loop {
            let sessions = self.opener.has_sessions();
            let attempted = if sessions {
                match self.session(pod, to.port, heard_since).await {
                    Ok(Ok(taken)) => self.connect(*taken, to, began).await,
                    Ok(Err(tried)) => self.channel(pod, to, tried).await,
                    Err(error) => Err(Failure::Final(error)),
                }
            } else {
                self.channel(pod, to, Vec::new()).await
            };
            match attempted {
                Ok(stream) => return Ok(stream),
                Err(Failure::Session(error)) if attempt < ATTEMPTS => {
                    tracing::debug!(%to, %error, attempt, "trying another session");
                }
                // Channels alone were tried, because they worked before.
                Err(Failure::Final(error @ ForwardError::Rejected { .. }))
                    if !sessions && self.opener.has_sessions() && attempt < ATTEMPTS =>
                {
                    tracing::debug!(%to, %error, attempt, "trying the other transports");
                }
                Err(Failure::Session(error) | Failure::Final(error)) => return Err(error),
            }
            heard_since = Some(began);
            attempt += 1;
        }
    }

    async fn connect(
        &self,
        taken: Taken,
        to: &PodPort,
        began: Instant,
    ) -> Result<PodStream, Failure> {
        let Taken {
            slot,
            handle,
            transport,
            request,
            good,
        } = taken;
        let lost = |source: BoxError| {
            let pod = to.pod_name();
            Failure::Session(ForwardError::SessionLost { pod, source })
        };
        let fresh = handle.stats().last_received.elapsed() < FRESH;
        let mut pair = match Pair::open(&handle, to.port, request) {
            Ok(pair) => pair,
            Err(error) => {
                slot.distrust();
                return Err(lost(error.into()));
            }
        };
        slot.named(pair.id());
        if !(good && fresh) {
            self.replied(&mut pair, &slot, &handle, to, began).await?;
        }
        if !good {
            match pair.fate(&handle, &self.config).await {
                Fate::Good => slot.remember(),
                Fate::Refused => {
                    let error = pair.text().refusal(to.to_string());
                    tracing::debug!(%to, text = ?pair.text(), "refused");
                    return Err(Failure::Final(error));
                }
                Fate::Broken(error) => {
                    slot.distrust();
                    return Err(lost(error.into()));
                }
            }
        }
        let duct = Duct::Pair(pair);
        Ok(PodStream::new(
            duct,
            slot,
            to,
            transport,
            self.config.clone(),
        ))
    }

    /// Waits for the reply; a session that does not give one is used no more.
    async fn replied(
        &self,
        pair: &mut Pair,
        slot: &Slot,
        handle: &Session,
        to: &PodPort,
        began: Instant,
    ) -> Result<(), Failure> {
        let timed_out = |after| {
            Failure::Session(ForwardError::TimedOut {
                pod: to.pod_name(),
                step: "the answer to a new stream",
                after,
            })
        };
        let after = self.config.reply_timeout;
        let (until, soon) = (Instant::now() + after, after / 5);
        let replied = match timeout(soon, pair.replied()).await {
            Ok(replied) => replied,
            Err(_) => {
                slot.suspect();
                if handle.stats().last_received < began {
                    // It has been silent since before this dial: its probe will tell, another is tried meanwhile.
                    return Err(timed_out(soon));
                }
                match timeout_at(until, pair.replied()).await {
                    Ok(replied) => replied,
                    Err(_) => {
                        slot.distrust();
                        return Err(timed_out(after));
                    }
                }
            }
        };
        match replied {
            Ok(()) => Ok(()),
            Err(error) => {
                if !matches!(error, StreamError::Session(_)) {
                    slot.distrust();
                }
                Err(Failure::Session(ForwardError::SessionLost {
                    pod: to.pod_name(),
                    source: error.into(),
                }))
            }
        }
    }

    async fn channel(
        self: &Arc<Self>,
        id: &Arc<PodId>,
        to: &PodPort,
        tried: Vec<Rejection>,
    ) -> Result<PodStream, Failure> {
        let (slot, good) = {
            let mut state = self.state();
            if state.shut {
                return Err(Failure::Final(ForwardError::ShutDown));
            }
            let now = self.epoch.now();
            let pod = state.pod(id);
            self.check_streams(id, pod).map_err(Failure::Final)?;
            let good = pod.is_good(to.port, now);
            let life = Arc::new(Life::new(self.epoch));
            pod.channels.push(life.clone());
            state.counts.upgrades += 1;
            (Slot::new(self, id, to.port, life, None), good)
        };
        let io = self.opener.channel(id.clone(), to.port, tried).await;
        let io = io.map_err(Failure::Final)?;
        let mut channel = Channel::new(io, &self.config).await;
        if !good {
            match channel.fate(&self.config).await {
                Fate::Good => slot.remember(),
                Fate::Refused => {
                    let error = channel.text().refusal(to.to_string());
                    return Err(Failure::Final(error));
                }
                Fate::Broken(error) => {
                    return Err(Failure::Final(ForwardError::SessionLost {
                        pod: to.pod_name(),
                        source: error.into(),
                    }));
                }
            }
        }
        let duct = Duct::Channel(Box::new(channel));
        let transport = Transport::WsV4;
        Ok(PodStream::new(
            duct,
            slot,
            to,
            transport,
            self.config.clone(),
        ))
    }
}
