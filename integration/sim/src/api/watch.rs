//! Watches: a response whose body is a line of JSON per change.
//!
//! A watch holds a place in the store's history and no queue of its own: one that reads too slowly falls
//! off the history's end and gets a 410, as with a real API server.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until};

use super::ApiBody;
use super::path::{Info, Resource};
use super::read::{namespace, revision, selector};
use crate::cluster::SimCluster;
use crate::kind::ResourceKind;
use crate::selector::Selector;
use crate::status::Status;
use crate::store::Change;

/// How long a watch lasts if the client does not say.
const LASTS: Duration = Duration::from_secs(30 * 60);
/// How often an idle watch says how far it has come, if the client wants to know.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Changes taken from the store at a time.
const BATCH: usize = 100;

/// What can end all watches at once; see [`Sim::disconnect_watches`](crate::Sim::disconnect_watches).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WatchSignal {
    pub(crate) disconnected: u64,
    pub(crate) expired: u64,
    pub(crate) bookmarks: u64,
}

pub(super) fn watch(
    cluster: &Arc<SimCluster>,
    kind: &'static ResourceKind,
    r: &Resource,
    info: &Info,
) -> Result<ApiBody, Status> {
    let mut selector = selector(kind, info)?;
    if !r.name.is_empty() && selector.name().is_none() {
        // `/watch/…/name`, the old form.
        selector = Selector::parse(kind, "", &format!("metadata.name={}", r.name))
            .map_err(Status::bad_request)?;
    }
    let flag = |name: &str| matches!(info.text(name), "1" | "true");
    let initial = Initial::read(info, cluster.options.minor)?;
    let asked = revision(info.text("resourceVersion"))?;
    let lasts = match info.text("timeoutSeconds").parse() {
        Ok(0) | Err(_) => LASTS,
        Ok(seconds) => Duration::from_secs(seconds).min(LASTS),
    };
    let world = cluster.world();
    let mut watch = OpenWatch {
        kind,
        namespace: namespace(kind, r).to_owned(),
        selector,
        place: asked.unwrap_or_default(),
        bookmarks: flag("allowWatchBookmarks"),
        lines: VecDeque::new(),
        changes: world.store.changes(),
        seen: *cluster.watches.borrow(),
        signals: cluster.watches.subscribe(),
        next_bookmark: Instant::now() + BOOKMARKS,
        end: Instant::now() + lasts,
        over: false,
        cluster: Arc::clone(cluster),
    };
    // Without a version, or with 0, a watch starts with what is there.
    if initial == Initial::Wanted || initial == Initial::Unsaid && watch.place == 0 {
        watch.place = world.store.revision();
        for object in world.store.list(kind, &watch.namespace) {
            if watch.selector.matches(object) {
                watch.lines.push_back(line("ADDED", object));
            }
        }
        if initial == Initial::Wanted && watch.bookmarks {
            watch.bookmark(json!({"k8s.io/initial-events-end": "true"}));
        }
    } else if asked.is_none_or(|v| v == 0) {
        watch.place = world.store.revision();
    }
    drop(world);
    let lines = stream::unfold(watch, |mut watch| async {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), watch))
    });
    Ok(StreamBody::new(lines).boxed_unsync())
}

/// What the client says of `sendInitialEvents`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Initial {
    Unsaid,
    Wanted,
    Unwanted,
}

impl Initial {
    fn read(info: &Info, minor: u32) -> Result<Self, Status> {
        let matching = info.text("resourceVersionMatch");
        let field = "resourceVersionMatch";
        let wanted = match info.text("sendInitialEvents") {
            "" if matching.is_empty() => return Ok(Self::Unsaid),
            "" => {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                return Err(Status::forbidden_option(field, why));
            }
            text => text == "true" || text == "1",
        };
        // Beta and on since 1.34, which is when this simulation begins to have it.
        if minor < 34 {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(Status::forbidden_option("sendInitialEvents", why));
        }
        if matching != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(Status::forbidden_option(field, why));
        }
        Ok(if wanted { Self::Wanted } else { Self::Unwanted })
    }
}

struct OpenWatch {
    cluster: Arc<SimCluster>,
    kind: &'static ResourceKind,
    namespace: String,
    selector: Selector,
    /// The last revision seen.
    place: u64,
    bookmarks: bool,
    lines: VecDeque<Bytes>,
    changes: watch::Receiver<u64>,
    signals: watch::Receiver<WatchSignal>,
    /// The last signal heeded.
    seen: WatchSignal,
    next_bookmark: Instant,
    end: Instant,
    over: bool,
}

impl OpenWatch {
    /// The next line, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            self.changes.mark_unchanged();
            if self.gather() || self.heed() {
                continue;
            }
            tokio::select! {
                biased;
                signal = self.signals.changed() => self.over = signal.is_err(),
                changed = self.changes.changed() => self.over = changed.is_err(),
                () = sleep_until(self.next_bookmark), if self.bookmarks => self.bookmark(Value::Null),
                () = sleep_until(self.end) => {
                    self.over = true;
                    if self.bookmarks {
                        self.bookmark(Value::Null);
                    }
                }
            }
        }
    }

    /// Takes what has happened from the store; whether there was something.
    fn gather(&mut self) -> bool {
        let world = self.cluster.world();
        let found = world
            .store
            .since(self.kind, &self.namespace, self.place, BATCH);
        drop(world);
        match found {
            Ok((changes, place)) => {
                let moved = place != self.place;
                self.place = place;
                let lines = changes.iter().filter_map(|c| event(c, &self.selector));
                self.lines.extend(lines);
                moved
            }
            Err(compacted) => {
                self.expire(Status::too_old(self.place, compacted.oldest));
                true
            }
        }
    }

    /// Does what the test wants of all watches; whether there was something.
    fn heed(&mut self) -> bool {
        let now = *self.signals.borrow_and_update();
        let before = std::mem::replace(&mut self.seen, now);
        if now.disconnected != before.disconnected {
            self.over = true;
        } else if now.expired != before.expired {
            let current = self.cluster.world().store.revision();
            self.expire(Status::too_old(self.place, current));
        } else if now.bookmarks != before.bookmarks && self.bookmarks {
            self.bookmark(Value::Null);
        }
        now != before
    }

    fn expire(&mut self, status: Status) {
        self.lines.push_back(line("ERROR", &status.object()));
        self.over = true;
    }

    fn bookmark(&mut self, annotations: Value) {
        let mut meta = json!({"resourceVersion": self.place.to_string()});
        if annotations.is_object() {
            meta["annotations"] = annotations;
        }
        let mut object = json!({
            "kind": self.kind.kind,
            "apiVersion": self.kind.api_version(),
            "metadata": meta,
        });
        // A bookmark is an empty object of its kind: lists without which it cannot be read are null.
        match self.kind.kind {
            "EndpointSlice" => {
                object["addressType"] = "".into();
                object["endpoints"] = Value::Null;
                object["ports"] = Value::Null;
            }
            "Pod" => {
                object["spec"] = json!({"containers": null});
                object["status"] = json!({});
            }
            "Service" => {
                object["spec"] = json!({});
                object["status"] = json!({"loadBalancer": {}});
            }
            "Endpoints" => {}
            _ => object["spec"] = json!({}),
        }
        self.lines.push_back(line("BOOKMARK", &object));
        self.next_bookmark = Instant::now() + BOOKMARKS;
    }
}

/// The event a watch with this selector sees; none if the change is none to it.
fn event(change: &Change, selector: &Selector) -> Option<Bytes> {
    let seen = |o: &Option<Arc<Value>>| o.clone().filter(|o| selector.matches(o));
    Some(match (seen(&change.old), seen(&change.new)) {
        (None, None) => return None,
        (None, Some(new)) => line("ADDED", &new),
        (Some(_), Some(new)) => line("MODIFIED", &new),
        (Some(old), None) => {
            // The last state, at the revision of its end.
            let mut last = (*old).clone();
            last["metadata"]["resourceVersion"] = change.revision.to_string().into();
            line("DELETED", &last)
        }
    })
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    line.into()
}
