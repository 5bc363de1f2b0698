//! GET of one object, and lists.

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use serde_json::{Value, json};
use tokio::time::{Duration, timeout};

use super::path::{Info, Resource};
use crate::cluster::SimCluster;
use crate::kind::ResourceKind;
use crate::selector::Selector;
use crate::status::Status;
use crate::store::Object;
use crate::world::{name_of, namespace_of};

/// How long a list waits for a resource version that is not there yet.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn get(
    cluster: &SimCluster,
    kind: &ResourceKind,
    r: &Resource,
) -> Result<Value, Status> {
    let world = cluster.world();
    let object = world.store.get(kind, &r.namespace, &r.name);
    let object = object.ok_or_else(|| Status::not_found(kind, &r.name))?;
    Ok((**object).clone())
}

pub(super) async fn list(
    cluster: &SimCluster,
    kind: &'static ResourceKind,
    r: &Resource,
    info: &Info,
) -> Result<Value, Status> {
    let selector = selector(kind, info)?;
    let page = PageRequest::read(info)?;
    if let Some(revision) = page.revision {
        arrive(cluster, revision).await?;
    }
    let world = cluster.world();
    let namespace = namespace(kind, r);
    let at = match (page.exact, page.revision) {
        (true, Some(revision)) => revision,
        _ => world.store.revision(),
    };
    let all = world.store.list_at(kind, namespace, at);
    let all = all.map_err(|_| Status::expired(page.too_old()))?;
    let found: Vec<&Object> = all
        .iter()
        .filter(|o| selector.matches(o))
        .filter(|o| page.after.as_deref().is_none_or(|after| *place(o) > *after))
        .collect();
    let count = match page.limit {
        0 => found.len(),
        limit => limit.min(found.len()),
    };
    let (shown, rest) = found.split_at(count);
    let mut meta = json!({"resourceVersion": at.to_string()});
    if let (Some(last), false) = (shown.last(), rest.is_empty()) {
        meta["continue"] = token(at, &place(last)).into();
        if selector.is_empty() {
            meta["remainingItemCount"] = rest.len().into();
        }
    }
    let items: Vec<Value> = shown.iter().map(|o| bare(o)).collect();
    Ok(json!({
        "kind": format!("{}List", kind.kind),
        "apiVersion": kind.api_version(),
        "metadata": meta,
        "items": items,
    }))
}

/// Both selectors of a request.
pub(super) fn selector(kind: &ResourceKind, info: &Info) -> Result<Selector, Status> {
    Selector::parse(kind, info.text("labelSelector"), info.text("fieldSelector"))
        .map_err(Status::bad_request)
}

/// The namespace to look in; empty for all.
pub(super) fn namespace<'a>(kind: &ResourceKind, r: &'a Resource) -> &'a str {
    if kind.namespaced { &r.namespace } else { "" }
}

/// Reads a resource version; `None` where none is given.
pub(super) fn revision(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// Waits a while until the store has come to a revision.
async fn arrive(cluster: &SimCluster, revision: u64) -> Result<(), Status> {
    let mut changes = cluster.world().store.changes();
    let arrived = timeout(PATIENCE, changes.wait_for(|now| *now >= revision)).await;
    match arrived {
        Ok(_) => Ok(()),
        Err(_) => Err(Status::too_new(revision, cluster.world().store.revision())),
    }
}

/// Which part of a list is asked for, and of what time.
#[derive(Debug, Default)]
struct PageRequest {
    limit: usize,
    /// Only what stands behind this place.
    after: Option<String>,
    revision: Option<u64>,
    exact: bool,
}

impl PageRequest {
    fn read(info: &Info) -> Result<Self, Status> {
        let matching = info.text("resourceVersionMatch");
        let field = "resourceVersionMatch";
        let token = info.text("continue");
        if !info.text("sendInitialEvents").is_empty() {
            let why = "sendInitialEvents is forbidden for list";
            return Err(Status::forbidden_option("sendInitialEvents", why));
        }
        let limit = match info.text("limit") {
            "" => 0,
            text => text.parse().map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            })?,
        };
        if !token.is_empty() {
            if !matching.is_empty() {
                let why = "resourceVersionMatch is forbidden when continue is provided";
                return Err(Status::forbidden_option(field, why));
            }
            let (revision, after) = read_token(token)?;
            return Ok(Self {
                limit,
                after: Some(after),
                revision: Some(revision),
                exact: true,
            });
        }
        let revision = revision(info.text("resourceVersion"))?;
        let exact = match matching {
            "" => false,
            _ if info.text("resourceVersion").is_empty() => {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                return Err(Status::forbidden_option(field, why));
            }
            "Exact" if revision == Some(0) => {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                return Err(Status::forbidden_option(field, why));
            }
            "Exact" => true,
            "NotOlderThan" => false,
            other => {
                let supported = "\"Exact\", \"NotOlderThan\", \"\"";
                return Err(Status::unsupported_option(field, other, supported));
            }
        };
        Ok(Self {
            limit,
            after: None,
            revision,
            exact,
        })
    }

    fn too_old(&self) -> &'static str {
        if self.after.is_some() {
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter."
        } else {
            "The resourceVersion for the provided list is too old."
        }
    }
}

/// Where an object stands in its list: lists are in this order.
fn place(object: &Value) -> String {
    format!("{}\0{}", namespace_of(object), name_of(object))
}

fn token(revision: u64, after: &str) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": after});
    BASE64_STANDARD_NO_PAD.encode(token.to_string())
}

fn read_token(token: &str) -> Result<(u64, String), Status> {
    let wrong = || Status::bad_request("invalid continue token: continue key is not valid");
    let json = BASE64_STANDARD_NO_PAD.decode(token).map_err(|_| wrong())?;
    let json: Value = serde_json::from_slice(&json).map_err(|_| wrong())?;
    let (rv, start) = (json["rv"].as_u64(), json["start"].as_str());
    Ok((rv.ok_or_else(wrong)?, start.ok_or_else(wrong)?.into()))
}

/// An object as it stands in a list: without its kind.
fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    object
}
