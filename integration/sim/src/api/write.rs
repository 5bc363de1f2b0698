//! Creating, replacing, patching and deleting objects.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::path::Resource;
use crate::cluster::SimCluster;
use crate::kind::ResourceKind;
use crate::status::Status;

pub(super) fn create(
    cluster: &Arc<SimCluster>,
    kind: &'static ResourceKind,
    r: &Resource,
    body: &[u8],
) -> Result<(StatusCode, Value), Status> {
    let object = read(kind, r, body)?;
    let made = cluster.change(|world| world.create(kind, object))?;
    Ok((StatusCode::CREATED, (*made).clone()))
}

pub(super) fn update(
    cluster: &Arc<SimCluster>,
    kind: &'static ResourceKind,
    r: &Resource,
    body: &[u8],
) -> Result<(StatusCode, Value), Status> {
    let object = read(kind, r, body)?;
    if object["metadata"]["name"] != *r.name {
        return Err(Status::bad_request(
            "the name of the object does not match the name on the URL",
        ));
    }
    let made = cluster.change(|world| world.update(kind, object))?;
    Ok((StatusCode::OK, (*made).clone()))
}

/// A merge patch (RFC 7386).
pub(super) fn patch(
    cluster: &Arc<SimCluster>,
    kind: &'static ResourceKind,
    r: &Resource,
    body: &[u8],
) -> Result<(StatusCode, Value), Status> {
    let patch: Value = serde_json::from_slice(body)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    let made = cluster.change(|world| {
        let old = world.store.get(kind, &r.namespace, &r.name);
        let old = old.ok_or_else(|| Status::not_found(kind, &r.name))?;
        let mut object = (**old).clone();
        merge(&mut object, patch);
        world.update(kind, object)
    })?;
    Ok((StatusCode::OK, (*made).clone()))
}

/// A merge patch of the status; what else it says is passed over, as by the real one.
pub(super) fn patch_status(
    cluster: &Arc<SimCluster>,
    kind: &'static ResourceKind,
    r: &Resource,
    body: &[u8],
) -> Result<Value, Status> {
    let mut patch: Value = serde_json::from_slice(body)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    let patched = cluster.change(|world| {
        let old = world.store.get(kind, &r.namespace, &r.name);
        let old = old.ok_or_else(|| Status::not_found(kind, &r.name))?;
        let mut object = (**old).clone();
        merge(&mut object["status"], patch["status"].take());
        Ok(world.store.put(kind, object))
    })?;
    Ok((*patched).clone())
}

pub(super) fn delete(
    cluster: &Arc<SimCluster>,
    kind: &'static ResourceKind,
    r: &Resource,
) -> Result<(StatusCode, Value), Status> {
    let gone = cluster.change(|world| world.delete(kind, &r.namespace, &r.name))?;
    if gone["metadata"]["deletionTimestamp"].is_string() {
        return Ok((StatusCode::OK, (*gone).clone()));
    }
    let mut details = json!({"name": r.name, "kind": r.plural, "uid": gone["metadata"]["uid"]});
    if !r.group.is_empty() {
        details["group"] = r.group.clone().into();
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details});
    Ok((StatusCode::OK, status))
}

fn read(kind: &ResourceKind, r: &Resource, body: &[u8]) -> Result<Value, Status> {
    let mut object: Value = serde_json::from_slice(body).map_err(|e| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {e}",
            kind.kind
        ))
    })?;
    if !object.is_object() {
        return Err(Status::bad_request("the object provided is unrecognized"));
    }
    // Both may be left out: the path says them.
    if [&object["kind"], &object["apiVersion"]]
        .into_iter()
        .any(|v| !v.is_null())
        && ResourceKind::of(&object).is_none_or(|k| k != kind)
    {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        return Err(Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}",
            text(&object["kind"]),
            text(&object["apiVersion"]),
            kind.kind
        )));
    }
    if kind.namespaced {
        let namespace = &object["metadata"]["namespace"];
        if namespace.is_string() && *namespace != *r.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        object["metadata"]["namespace"] = r.namespace.clone().into();
    }
    Ok(object)
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(fields) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if !value.is_null() {
            merge(&mut target[name], value);
        } else if let Some(target) = target.as_object_mut() {
            target.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_patches() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        merge(
            &mut target,
            json!({"a": {"b": null, "d": {"e": null}}, "l": [3]}),
        );
        assert_eq!(target, json!({"a": {"c": 2, "d": {}}, "l": [3]}));
    }
}
