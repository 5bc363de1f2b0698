//! What goes wrong, on command.
//!
//! Every switch acts at once, on what is open already too where that makes sense, and stays until it is
//! turned back or [`Faults::clear`] is called.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::link::Links;

/// The switches of one simulated cluster. See [`Sim::faults`](crate::Sim::faults).
#[derive(Debug)]
pub struct Faults {
    pub(crate) links: Arc<Links>,
    state: Mutex<FaultState>,
}

#[derive(Debug, Default)]
struct FaultState {
    next: u64,
    requests: Vec<FaultRule>,
    transports: [Option<Reject>; 3],
    streams: StreamFault,
    pod_delay: Duration,
}

#[derive(Debug)]
struct FaultRule {
    id: FaultId,
    matching: Match,
    answer: FaultAnswer,
    left: Option<usize>,
}

/// A fault that [`Faults::remove`] can take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultId(u64);

/// Which requests a fault is for: a part that is not set matches everything.
///
/// ```
/// use kubevpn_sim::Match;
/// let upgrades = Match::any().resource("pods").subresource("portforward");
/// # let _ = upgrades;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    verb: Option<String>,
    resource: Option<String>,
    subresource: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    user: Option<String>,
}

/// What happens to a matching request instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultAnswer {
    /// 401, as for a token that has expired.
    Unauthorized,
    /// 403, as the access rules answer it.
    Forbidden,
    /// 410 Expired.
    Gone,
    /// 429 with `Retry-After: 1`.
    TooManyRequests,
    /// 500 InternalError.
    InternalError,
    /// 503 ServiceUnavailable.
    Unavailable,
    /// The connection is reset without an answer.
    Drop,
    /// No answer at all.
    Hang,
    /// The real answer, this much later.
    Delay(Duration),
}

/// A way to carry port-forward streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SimTransport {
    /// `Upgrade: SPDY/3.1`.
    Spdy,
    /// SPDY inside WebSocket messages (`SPDY/3.1+portforward.k8s.io`).
    Tunnel,
    /// `v4.channel.k8s.io` WebSocket.
    Channel,
}

/// What a middlebox that dislikes a [`SimTransport`] does to its upgrades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reject {
    /// Answers with this status and a body that is no Kubernetes `Status`, as a proxy does.
    Status(u16),
    /// Resets the connection.
    Drop,
    /// Never answers.
    Hang,
}

/// What happens to the streams of port-forward sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamFault {
    /// Nothing: they work.
    #[default]
    None,
    /// New streams are reset instead of accepted.
    Refuse,
    /// New streams are never answered; the session stays up.
    Silent,
}

impl Match {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests of this verb, as access rules name it: `get`, `list`, `watch`, `create`…
    pub fn verb(mut self, verb: &str) -> Self {
        self.verb = Some(verb.into());
        self
    }

    /// Requests for this resource, in the plural: `pods`.
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// Requests for this subresource: `portforward`.
    pub fn subresource(mut self, subresource: &str) -> Self {
        self.subresource = Some(subresource.into());
        self
    }

    /// Requests in this namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Requests for the object of this name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Requests of this user.
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.into());
        self
    }

    fn matches(&self, request: &crate::AuditedRequest) -> bool {
        let same = |want: &Option<String>, got: &str| want.as_deref().is_none_or(|w| w == got);
        same(&self.verb, &request.verb)
            && same(&self.resource, &request.resource)
            && same(&self.subresource, &request.subresource)
            && same(&self.namespace, &request.namespace)
            && same(&self.name, &request.name)
            && same(&self.user, &request.user)
    }
}

impl Faults {
    pub(crate) fn new(links: Arc<Links>) -> Self {
        Self {
            links,
            state: Mutex::default(),
        }
    }

    /// The API server is killed: new connections are refused, open ones are reset.
    pub fn go_away(&self) {
        self.links.go_away();
        self.links.reset_all();
    }

    /// The API server is told to end: new connections are refused, open ones live on.
    pub fn stop_listening(&self) {
        self.links.go_away();
    }

    /// The API server is back, on the port it had.
    pub fn come_back(&self) -> io::Result<()> {
        self.links.come_back()
    }

    /// Resets every open connection, port-forward sessions included, and says how many there were.
    pub fn reset_connections(&self) -> usize {
        self.links.reset_all()
    }

    /// Stops (or resumes) passing bytes on every connection, those to come included. Nothing is closed.
    pub fn black_hole(&self, on: bool) {
        self.links.set_silent(on, true);
    }

    /// As [`Faults::black_hole`] for the connections that are open now; new ones work. What a NAT does
    /// that has forgotten them.
    pub fn black_hole_open(&self, on: bool) {
        self.links.set_silent(on, false);
    }

    /// What happens to port-forward streams opened from now on.
    pub fn streams(&self, fault: StreamFault) {
        self.state().streams = fault;
    }

    /// Forwarded connections reach their pod this much later.
    pub fn slow_pods(&self, delay: Duration) {
        self.state().pod_delay = delay;
    }

    /// Every request that matches is answered so; of several faults the one set last counts.
    pub fn answer(&self, matching: Match, answer: FaultAnswer) -> FaultId {
        self.rule(matching, answer, None)
    }

    /// The next `times` requests that match are answered so.
    pub fn answer_times(&self, matching: Match, answer: FaultAnswer, times: usize) -> FaultId {
        self.rule(matching, answer, Some(times))
    }

    /// Takes back one of [`Faults::answer`]'s faults.
    pub fn remove(&self, id: FaultId) {
        self.state().requests.retain(|r| r.id != id);
    }

    /// Upgrades to this transport are turned away before they reach the API server.
    pub fn reject(&self, transport: SimTransport, how: Reject) {
        self.state().transports[transport as usize] = Some(how);
    }

    /// Upgrades to this transport pass again.
    pub fn allow(&self, transport: SimTransport) {
        self.state().transports[transport as usize] = None;
    }

    /// No faults any more: an API server that was away is back, bytes pass, requests get their answers.
    pub fn clear(&self) -> io::Result<()> {
        *self.state() = FaultState::default();
        self.links.set_silent(false, true);
        self.links.come_back()
    }

    pub(crate) fn stream_fault(&self) -> StreamFault {
        self.state().streams
    }

    pub(crate) fn pod_delay(&self) -> Duration {
        self.state().pod_delay
    }

    pub(crate) fn rejected(&self, transport: SimTransport) -> Option<Reject> {
        self.state().transports[transport as usize]
    }

    /// The answer some fault has for this request; uses up one of its times.
    pub(crate) fn answer_to(&self, request: &crate::AuditedRequest) -> Option<FaultAnswer> {
        let mut state = self.state();
        let mut rules = state.requests.iter_mut().rev();
        let rule = rules.find(|r| r.left != Some(0) && r.matching.matches(request))?;
        if let Some(left) = &mut rule.left {
            *left -= 1;
        }
        Some(rule.answer)
    }

    fn rule(&self, matching: Match, answer: FaultAnswer, left: Option<usize>) -> FaultId {
        let mut state = self.state();
        state.next += 1;
        let id = FaultId(state.next);
        state.requests.push(FaultRule {
            id,
            matching,
            answer,
            left,
        });
        id
    }

    fn state(&self) -> MutexGuard<'_, FaultState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
