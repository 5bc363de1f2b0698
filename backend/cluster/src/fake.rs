//! An API server for unit tests: a tower service over objects in memory, no socket, and no clock unless answers
//! are to take their time.
//!
//! It lists, gets and watches what the tests apply from YAML, with field and label selectors, access
//! rules, faults on command, and a log of what it was asked.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Between the bookmarks of a watch.
const BOOKMARKS: Duration = Duration::from_secs(60);

type FakeReply = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Resource, namespace (empty for none), name.
type FakeKey = (String, String, String);

#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<Mutex<FakeApiState>>);

/// Counted while its answer is waited for.
struct CountedCall(FakeApi);

impl CountedCall {
    fn new(api: &FakeApi) -> Self {
        let mut state = api.state();
        state.calls += 1;
        state.most_calls = state.most_calls.max(state.calls);
        drop(state);
        Self(api.clone())
    }
}

impl Drop for CountedCall {
    fn drop(&mut self) {
        self.0.state().calls -= 1;
    }
}

#[derive(Default)]
struct FakeApiState {
    objects: BTreeMap<FakeKey, Value>,
    version: u64,
    /// Every change: its version, its object's key, before and after.
    history: Vec<(u64, FakeKey, Option<Value>, Option<Value>)>,
    /// Watches from before this version are answered with 410 Gone, as an event or as the answer.
    kept_from: u64,
    gone_as_event: bool,
    /// When there are any, nothing else is allowed: verb, resource, namespace (`*` for any).
    rules: Option<Vec<(String, String, String)>>,
    away: bool,
    status: Option<u16>,
    /// So many requests fail, each with its connection.
    broken: usize,
    watches: Vec<FakeWatch>,
    /// How long every answer takes, or one to this alone.
    latency: Duration,
    slow: Option<(String, Duration)>,
    calls: usize,
    most_calls: usize,
    /// A watch ends as soon as it has said what there was to say.
    watches_end: bool,
    log: Vec<String>,
    /// What stands between it and the client does this to watches.
    fault: Option<WatchFault>,
    /// Resources this server does not have.
    missing: Vec<String>,
}

/// What becomes of watches on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatchFault {
    /// They are answered with this status.
    Status(u16),
    /// Their connection breaks.
    Broken,
    /// No head of an answer arrives.
    NoHead,
    /// A head arrives, and nothing after it.
    HeadAlone,
    /// A head arrives, and the end of it this much later.
    HeadAndEnd(Duration),
    /// A bookmark arrives, and the end after it.
    BookmarkAndEnd,
    /// They work for this long, and then their connection breaks.
    Cut(Duration),
}

struct FakeWatch {
    ask: FakeRequest,
    events: mpsc::Sender<Result<Bytes, io::Error>>,
}

#[derive(Clone, Debug, Default)]
struct FakeRequest {
    resource: String,
    namespace: String,
    name: String,
    fields: Vec<(String, String)>,
    labels: Vec<(String, String)>,
    watch: bool,
    version: u64,
    limit: usize,
    skip: usize,
}

impl FakeApi {
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = api.answer(&request);
            let asked = FakeRequest::parse(request.uri()).to_string();
            let call = CountedCall::new(&api);
            let fault = api.state().fault.filter(|_| is_watch(&request));
            async move {
                if fault == Some(WatchFault::NoHead) {
                    std::future::pending::<()>().await;
                }
                let latency = call.0.state().latency_of(&asked);
                if !latency.is_zero() {
                    tokio::time::sleep(latency).await;
                }
                answer
            }
        });
        kube::Client::new(service, "default")
    }

    fn state(&self) -> MutexGuard<'_, FakeApiState> {
        self.0.lock().unwrap()
    }

    /// Creates or replaces every object of some YAML documents.
    pub(crate) fn apply(&self, yaml: &str) -> &Self {
        use serde::Deserialize;
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let object = Value::deserialize(document).unwrap();
            let kind = object["kind"].as_str().unwrap();
            let resource = match kind {
                "Endpoints" => "endpoints".to_owned(),
                "IPAddress" => "ipaddresses".to_owned(),
                kind => format!("{}s", kind.to_lowercase()),
            };
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
            let namespace = match resource.as_str() {
                "namespaces" | "ipaddresses" | "servicecidrs" => String::new(),
                _ if text("namespace").is_empty() => "default".to_owned(),
                _ => text("namespace"),
            };
            self.change((resource, namespace, text("name")), Some(object));
        }
        self
    }

    fn change(&self, key: FakeKey, after: Option<Value>) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let after = after.map(|mut object| {
            object["metadata"]["resourceVersion"] = version.to_string().into();
            if !key.1.is_empty() {
                object["metadata"]["namespace"] = key.1.clone().into();
            }
            object
        });
        let before = match &after {
            Some(object) => state.objects.insert(key.clone(), object.clone()),
            None => state.objects.remove(&key),
        };
        state.watches.retain(|watch| {
            let event = event(&watch.ask, &key, before.as_ref(), after.as_ref());
            event.is_none_or(|event| watch.events.try_send(Ok(event)).is_ok())
        });
        state.history.push((version, key, before, after));
    }

    /// Allows nothing but these: `get services default`, `list pods *`.
    pub(crate) fn allow_only(&self, rules: &[&str]) -> &Self {
        let parse = |rule: &&str| {
            let mut words = rule.split(' ').map(str::to_owned);
            (
                words.next().unwrap(),
                words.next().unwrap(),
                words.next().unwrap(),
            )
        };
        self.state().rules = Some(rules.iter().map(parse).collect());
        self
    }

    pub(crate) fn without(&self, resource: &str) -> &Self {
        self.state().missing.push(resource.into());
        self
    }

    /// Requests fail as if nothing listened, or no longer.
    pub(crate) fn away(&self, away: bool) {
        self.state().away = away;
    }

    /// From now on every request is answered with this status.
    pub(crate) fn answer_status(&self, code: u16) {
        self.state().status = Some(code);
    }

    /// From now on every answer takes so long.
    pub(crate) fn answer_after(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// From now on the answers to this question take so long.
    pub(crate) fn answer_slowly(&self, question: &str, latency: Duration) {
        self.state().slow = Some((question.into(), latency));
    }

    /// The next requests fail, each with its connection.
    pub(crate) fn break_requests(&self, next: usize) {
        self.state().broken = next;
    }

    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.change((resource.into(), namespace.into(), name.into()), None);
    }

    /// Ends every watch there is; its client may ask for what it missed.
    pub(crate) fn cut_watches(&self) {
        self.state().watches.clear();
    }

    /// Breaks the connection of every watch there is.
    pub(crate) fn break_watches(&self) {
        for watch in self.state().watches.drain(..) {
            let reset = io::ErrorKind::ConnectionReset.into();
            // One that its client has closed is over.
            let _ = watch.events.try_send(Err(reset));
        }
    }

    /// From now on watches end at once, well and good.
    pub(crate) fn end_watches(&self) {
        let mut state = self.state();
        state.watches_end = true;
        state.watches.clear();
    }

    /// Tells every watch which version it has come to.
    pub(crate) fn bookmark(&self) {
        let mut state = self.state();
        let line = bookmark_at(state.version);
        let told = |watch: &FakeWatch| watch.events.try_send(Ok(line.clone())).is_ok();
        state.watches.retain(told);
    }

    /// From now on watches fare so; those that are open are cut.
    pub(crate) fn watches_meet(&self, fault: Option<WatchFault>) {
        let mut state = self.state();
        state.fault = fault;
        state.watches.clear();
    }

    /// Forgets every change so far: a watch that missed one has to list again.
    pub(crate) fn forget_history(&self, gone_as_event: bool) {
        let mut state = self.state();
        state.kept_from = state.version;
        state.gone_as_event = gone_as_event;
    }

    /// How many watches are open.
    pub(crate) fn watching(&self) -> usize {
        let mut state = self.state();
        state.watches.retain(|watch| !watch.events.is_closed());
        state.watches.len()
    }

    /// How many calls there were at a time, at most.
    pub(crate) fn most_calls(&self) -> usize {
        self.state().most_calls
    }

    /// What it was asked since the last call of this.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    fn answer(&self, request: &Request<Body>) -> Result<FakeReply, io::Error> {
        let ask = FakeRequest::parse(request.uri());
        let mut state = self.state();
        state.log.push(ask.to_string());
        if state.broken > 0 {
            state.broken -= 1;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if state.away {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        if let Some(code) = state.status {
            return Ok(status(code, "ServiceUnavailable", "not now"));
        }
        if let Some(rules) = &state.rules
            && !rules.iter().any(|(verb, resource, namespace)| {
                verb == ask.verb()
                    && *resource == ask.resource
                    && (namespace == "*" || *namespace == ask.namespace)
            })
        {
            let message = format!(
                "{} is forbidden: User \"jane\" cannot {} resource",
                ask.resource,
                ask.verb()
            );
            return Ok(status(403, "Forbidden", &message));
        }
        if state.missing.contains(&ask.resource) {
            return Ok(status(404, "NotFound", "no such resource"));
        }
        Ok(if ask.watch {
            match state.fault {
                Some(WatchFault::Status(code)) => {
                    return Ok(status(code, "Proxy", "no watches here"));
                }
                Some(WatchFault::Broken) => return Err(io::ErrorKind::ConnectionReset.into()),
                _ => {}
            }
            let cut = match state.fault {
                Some(WatchFault::Cut(after)) => Some((true, after)),
                Some(WatchFault::HeadAndEnd(after)) => Some((false, after)),
                Some(WatchFault::HeadAlone) => Some((false, Duration::MAX)),
                _ => None,
            };
            match cut {
                Some((passes, after)) => through(state.watch(ask, self), passes, after),
                None => state.watch(ask, self),
            }
        } else if ask.name.is_empty() {
            state.list(&ask)
        } else {
            let key = (ask.resource, ask.namespace, ask.name);
            match state.objects.get(&key) {
                Some(object) => reply(200, object),
                None => status(
                    404,
                    "NotFound",
                    &format!("{} \"{}\" not found", key.0, key.2),
                ),
            }
        })
    }
}

impl FakeApiState {
    fn latency_of(&self, asked: &str) -> Duration {
        match &self.slow {
            Some((question, latency)) if question == asked => *latency,
            _ => self.latency,
        }
    }

    fn list(&self, ask: &FakeRequest) -> FakeReply {
        let mut matching = self.objects.iter().filter(|(key, o)| ask.wants(key, o));
        let items: Vec<_> = matching
            .by_ref()
            .skip(ask.skip)
            .take(ask.limit)
            .map(|(_, object)| object)
            .collect();
        let next = match matching.next() {
            Some(_) => (ask.skip + items.len()).to_string(),
            None => String::new(),
        };
        let meta = json!({"resourceVersion": self.version.to_string(), "continue": next});
        reply(
            200,
            &json!({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": items}),
        )
    }

    fn watch(&mut self, ask: FakeRequest, api: &FakeApi) -> FakeReply {
        if (1..self.kept_from).contains(&ask.version) {
            let gone = status_body(410, "Expired", "too old resource version");
            return match self.gone_as_event {
                true => reply(200, &json!({"type": "ERROR", "object": gone})),
                false => reply(410, &gone),
            };
        }
        let (events, mut feed) = mpsc::channel(256);
        if ask.version == 0 {
            // It begins with what is there.
            let there = self.objects.iter();
            let there = there.filter_map(|(key, object)| event(&ask, key, None, Some(object)));
            for event in there.take(64) {
                events.try_send(Ok(event)).unwrap();
            }
        }
        let missed = self.history.iter().filter(|_| ask.version > 0);
        for (version, key, before, after) in missed {
            if *version > ask.version
                && let Some(event) = event(&ask, key, before.as_ref(), after.as_ref())
            {
                events.try_send(Ok(event)).unwrap();
            }
        }
        let is_cut = self.fault == Some(WatchFault::BookmarkAndEnd);
        if is_cut {
            events.try_send(Ok(bookmark_at(self.version))).unwrap();
        }
        if !self.watches_end && !is_cut {
            self.watches.push(FakeWatch { ask, events });
        }
        let api = api.clone();
        let mut bookmark = Box::pin(tokio::time::sleep(BOOKMARKS));
        let frames = stream::poll_fn(move |cx| {
            if let Poll::Ready(frame) = feed.poll_recv(cx) {
                return Poll::Ready(frame.map(|bytes| bytes.map(http_body::Frame::data)));
            }
            std::task::ready!(bookmark.as_mut().poll(cx));
            bookmark
                .as_mut()
                .reset(tokio::time::Instant::now() + BOOKMARKS);
            let _ = bookmark.as_mut().poll(cx);
            let line = bookmark_at(api.state().version);
            Poll::Ready(Some(Ok(http_body::Frame::data(line))))
        });
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

fn bookmark_at(version: u64) -> Bytes {
    let version = version.to_string();
    let object = json!({
        "kind": "Bookmark", "apiVersion": "v1", "metadata": {"resourceVersion": version},
    });
    let line = json!({"type": "BOOKMARK", "object": object}).to_string() + "\n";
    line.into()
}

fn is_watch(request: &Request<Body>) -> bool {
    request
        .uri()
        .query()
        .is_some_and(|q| q.contains("watch=true"))
}

/// A watch that comes to its end after some time, and whose events pass until then or not.
fn through(watch: FakeReply, passes: bool, after: Duration) -> FakeReply {
    let (head, body) = watch.into_parts();
    let mut body = Box::pin(body);
    let mut end = Box::pin(async move {
        match after {
            Duration::MAX => std::future::pending().await,
            after => tokio::time::sleep(after).await,
        }
    });
    let mut over = false;
    let frames = stream::poll_fn(move |cx| {
        if over || end.as_mut().poll(cx).is_ready() {
            let first = !std::mem::replace(&mut over, true);
            let reset = (first && passes).then(|| Err(io::ErrorKind::ConnectionReset.into()));
            return Poll::Ready(reset);
        }
        match passes {
            true => http_body::Body::poll_frame(body.as_mut(), cx),
            false => Poll::Pending,
        }
    });
    Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
}

/// What a watch says of a change; an object that leaves the selection is deleted for it.
fn event(
    ask: &FakeRequest,
    key: &FakeKey,
    before: Option<&Value>,
    after: Option<&Value>,
) -> Option<Bytes> {
    let wants = |object: Option<&Value>| object.is_some_and(|o| ask.wants(key, o));
    let (kind, object) = match (wants(before), wants(after)) {
        (false, true) => ("ADDED", after),
        (true, true) => ("MODIFIED", after),
        (true, false) => ("DELETED", before),
        (false, false) => return None,
    };
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    Some(line.into())
}

impl FakeRequest {
    fn parse(uri: &http::Uri) -> Self {
        let mut ask = Self {
            limit: usize::MAX,
            ..Self::default()
        };
        let segments: Vec<_> = uri.path().trim_matches('/').split('/').collect();
        let rest = match segments[0] {
            "api" => &segments[2..],
            _ => &segments[3..],
        };
        let own = |s: &str| s.to_owned();
        (ask.namespace, ask.resource, ask.name) = match *rest {
            ["namespaces", namespace, resource] => (own(namespace), own(resource), own("")),
            ["namespaces", namespace, resource, name] => (own(namespace), own(resource), own(name)),
            [resource, name] => (own(""), own(resource), own(name)),
            [resource] => (own(""), own(resource), own("")),
            _ => panic!("unexpected path {uri}"),
        };
        for pair in uri
            .query()
            .unwrap_or("")
            .split('&')
            .filter(|p| !p.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap();
            let value = value
                .replace("%3D", "=")
                .replace("%2F", "/")
                .replace("%3A", ":");
            let terms = || {
                let term = value.split_once('=').unwrap();
                vec![(term.0.to_owned(), term.1.to_owned())]
            };
            match name {
                "fieldSelector" => ask.fields = terms(),
                "labelSelector" => ask.labels = terms(),
                "watch" => ask.watch = value == "true",
                "resourceVersion" => ask.version = value.parse().unwrap_or(0),
                "limit" => ask.limit = value.parse().unwrap(),
                "continue" => ask.skip = value.parse().unwrap(),
                _ => {}
            }
        }
        ask
    }

    fn verb(&self) -> &'static str {
        match (self.watch, self.name.is_empty()) {
            (true, _) => "watch",
            (false, true) => "list",
            (false, false) => "get",
        }
    }

    fn wants(&self, key: &FakeKey, object: &Value) -> bool {
        let field = |path: &str| {
            let at = path.split('.').fold(object, |at, part| &at[part]);
            at.as_str().unwrap_or("").to_owned()
        };
        self.resource == key.0
            && (self.namespace.is_empty() || self.namespace == key.1)
            && self
                .fields
                .iter()
                .all(|(path, value)| field(path) == *value)
            && self
                .labels
                .iter()
                .all(|(label, value)| object["metadata"]["labels"][label].as_str() == Some(value))
    }
}

impl std::fmt::Display for FakeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb(), self.resource)?;
        for part in [&self.namespace, &self.name] {
            if !part.is_empty() {
                write!(f, " {part}")?;
            }
        }
        for (name, value) in self.fields.iter().chain(&self.labels) {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}

fn reply(code: u16, body: &Value) -> FakeReply {
    let body = Full::new(Bytes::from(body.to_string()));
    let body = body.map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

fn status(code: u16, reason: &str, message: &str) -> FakeReply {
    reply(code, &status_body(code, reason, message))
}

fn status_body(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}
