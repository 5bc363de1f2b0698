//! What goes wrong, on command.
//!
//! Every switch acts at once, on what is open already too where that makes sense, and stays until it is
//! turned back or [`Faults::clear`] is called.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// The switches of one simulated cluster. See [`Sim::faults`](crate::Sim::faults).
#[derive(Debug)]
pub struct Faults {
    state: watch::Sender<State>,
    rules: Mutex<Rules>,
}

/// What of the faults is a level, not an event.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) refusing: bool,
    pub(crate) black_hole: bool,
    pub(crate) streams: StreamFault,
    pub(crate) pod_delay: Duration,
}

#[derive(Debug, Default)]
struct Rules {
    next: u64,
    requests: Vec<Rule>,
    transports: [Option<Reject>; 3],
}

#[derive(Debug)]
struct Rule {
    id: FaultId,
    matching: Match,
    answer: Answer,
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
pub enum Answer {
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
pub enum Transport {
    /// `Upgrade: SPDY/3.1`.
    Spdy,
    /// SPDY inside WebSocket messages (`SPDY/3.1+portforward.k8s.io`).
    Tunnel,
    /// `v4.channel.k8s.io` WebSocket.
    Channel,
}

/// What a middlebox that dislikes a [`Transport`] does to its upgrades.
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

    fn matches(&self, request: &crate::Request) -> bool {
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
    pub(crate) fn new() -> Self {
        Self {
            state: watch::Sender::new(State::default()),
            rules: Mutex::default(),
        }
    }

    /// The API server is away: new connections are refused, open ones are reset.
    pub fn go_away(&self) {
        self.set(|s| s.refusing = true);
    }

    /// The API server is back, on the port it had.
    pub fn come_back(&self) {
        self.set(|s| s.refusing = false);
    }

    /// Stops (or resumes) passing bytes on every connection, those to come included. Nothing is closed.
    pub fn black_hole(&self, on: bool) {
        self.set(|s| s.black_hole = on);
    }

    /// What happens to streams opened from now on.
    pub fn streams(&self, fault: StreamFault) {
        self.set(|s| s.streams = fault);
    }

    /// Connections to pods are taken this much later.
    pub fn slow_pods(&self, delay: Duration) {
        self.set(|s| s.pod_delay = delay);
    }

    /// Every request that matches is answered so; of several faults the one set last counts.
    pub fn answer(&self, matching: Match, answer: Answer) -> FaultId {
        self.rule(matching, answer, None)
    }

    /// The next `times` requests that match are answered so.
    pub fn answer_times(&self, matching: Match, answer: Answer, times: usize) -> FaultId {
        self.rule(matching, answer, Some(times))
    }

    /// Takes back one of [`Faults::answer`]'s faults.
    pub fn remove(&self, id: FaultId) {
        self.rules().requests.retain(|r| r.id != id);
    }

    /// Upgrades to this transport are turned away before they reach the API server.
    pub fn reject(&self, transport: Transport, how: Reject) {
        self.rules().transports[transport as usize] = Some(how);
    }

    /// Upgrades to this transport pass again.
    pub fn allow(&self, transport: Transport) {
        self.rules().transports[transport as usize] = None;
    }

    /// No faults any more. An API server that was away is back.
    pub fn clear(&self) {
        *self.rules() = Rules::default();
        self.set(|s| *s = State::default());
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(crate) fn rejected(&self, transport: Transport) -> Option<Reject> {
        self.rules().transports[transport as usize]
    }

    /// The answer some fault has for this request; uses up one of its times.
    pub(crate) fn answer_to(&self, request: &crate::Request) -> Option<Answer> {
        let mut rules = self.rules();
        let rule = rules
            .requests
            .iter_mut()
            .rev()
            .find(|r| r.left != Some(0) && r.matching.matches(request))?;
        if let Some(left) = &mut rule.left {
            *left -= 1;
        }
        Some(rule.answer)
    }

    fn rule(&self, matching: Match, answer: Answer, left: Option<usize>) -> FaultId {
        let mut rules = self.rules();
        rules.next += 1;
        let id = FaultId(rules.next);
        rules.requests.push(Rule {
            id,
            matching,
            answer,
            left,
        });
        id
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
