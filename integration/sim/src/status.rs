//! What an API server says when it says no: `Status` objects.
//!
//! Texts and shapes were taken from a real API server of version 1.34.

use serde_json::{Value, json};

use crate::kind::ResourceKind;

/// A failure, as the client gets it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) details: Option<Value>,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    pub(crate) fn not_found(kind: &ResourceKind, name: &str) -> Self {
        let resource = qualified(kind.group, kind.plural);
        Self::new(404, "NotFound", format!("{resource} {name:?} not found")).details(about(
            kind.group,
            kind.plural,
            name,
        ))
    }

    /// A resource that is not served.
    pub(crate) fn no_such_resource() -> Self {
        let text = "the server could not find the requested resource";
        Self::new(404, "NotFound", text).details(json!({}))
    }

    pub(crate) fn already_exists(kind: &ResourceKind, name: &str) -> Self {
        let resource = qualified(kind.group, kind.plural);
        let text = format!("{resource} {name:?} already exists");
        Self::new(409, "AlreadyExists", text).details(about(kind.group, kind.plural, name))
    }

    pub(crate) fn conflict(kind: &ResourceKind, name: &str, why: &str) -> Self {
        let resource = qualified(kind.group, kind.plural);
        let text = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::new(409, "Conflict", text).details(about(kind.group, kind.plural, name))
    }

    pub(crate) fn invalid(kind: &ResourceKind, name: &str, field: &str, why: &str) -> Self {
        let reason = match why {
            "Required value" => "FieldValueRequired",
            _ => "FieldValueInvalid",
        };
        let mut details = about(kind.group, kind.kind, name);
        details["causes"] = json!([{"reason": reason, "message": why, "field": field}]);
        let object = qualified(kind.group, kind.kind);
        let text = format!("{object} {name:?} is invalid: {field}: {why}");
        Self::new(422, "Invalid", text).details(details)
    }

    /// A list's or watch's options that do not go together.
    pub(crate) fn forbidden_option(field: &str, why: &str) -> Self {
        Self::option(field, "FieldValueForbidden", format!("Forbidden: {why}"))
    }

    pub(crate) fn unsupported_option(field: &str, value: &str, supported: &str) -> Self {
        let cause = format!("Unsupported value: {value:?}: supported values: {supported}");
        Self::option(field, "FieldValueNotSupported", cause)
    }

    fn option(field: &str, reason: &str, cause: String) -> Self {
        let text = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: {cause}");
        Self::new(422, "Invalid", text).details(json!({
            "group": "meta.k8s.io",
            "kind": "ListOptions",
            "causes": [{"reason": reason, "message": cause, "field": field}],
        }))
    }

    pub(crate) fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let object = qualified(group, resource);
        let text = match name {
            "" => format!("{object} is forbidden: {why}"),
            name => format!("{object} {name:?} is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", text).details(about(group, resource, name))
    }

    /// For a path that is no resource.
    pub(crate) fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        let text = format!("forbidden: User {user:?} cannot {verb} path {path:?}");
        Self::new(403, "Forbidden", text).details(json!({}))
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let text = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", text).details(json!({}))
    }

    pub(crate) fn not_acceptable() -> Self {
        let text = "406: Not Acceptable\n\nAvailable representations: application/json";
        Self::new(406, "NotAcceptable", text).details(json!({}))
    }

    pub(crate) fn unsupported_media_type(accepted: &str) -> Self {
        let text = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", text)
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let text = format!("Request entity too large: limit is {limit}");
        Self::new(413, "RequestEntityTooLarge", text)
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// For a watch that starts too far back.
    pub(crate) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// For a list at a resource version that is not there yet.
    pub(crate) fn too_new(asked: u64, current: u64) -> Self {
        let text = format!("Timeout: Too large resource version: {asked}, current: {current}");
        Self::new(504, "Timeout", text).details(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }))
    }

    pub(crate) fn too_many_requests() -> Self {
        let text = "Too many requests, please try again later.";
        Self::new(429, "TooManyRequests", text).details(json!({"retryAfterSeconds": 1}))
    }

    pub(crate) fn internal(message: &str) -> Self {
        let text = format!("Internal error occurred: {message}");
        Self::new(500, "InternalError", text).details(json!({"causes": [{"message": message}]}))
    }

    pub(crate) fn unavailable() -> Self {
        let text = "the server is currently unable to handle the request";
        Self::new(503, "ServiceUnavailable", text)
    }

    /// As it goes over the wire.
    pub(crate) fn object(&self) -> Value {
        let mut object = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            object["details"] = details.clone();
        }
        object
    }

    /// What a `Retry-After` header has to say.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.details.as_ref()?["retryAfterSeconds"].as_u64()
    }
}

/// `deployments.apps`, `services`.
fn qualified(group: &str, resource: &str) -> String {
    match group {
        "" => resource.into(),
        group => format!("{resource}.{group}"),
    }
}

fn about(group: &str, kind: &str, name: &str) -> Value {
    let mut details = json!({"kind": kind});
    if !name.is_empty() {
        details["name"] = name.into();
    }
    if !group.is_empty() {
        details["group"] = group.into();
    }
    details
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{DEPLOYMENT, ENDPOINT_SLICE, SERVICE};

    #[test]
    fn messages() {
        assert_eq!(
            Status::not_found(&SERVICE, "nope").message,
            "services \"nope\" not found"
        );
        assert_eq!(
            Status::already_exists(&DEPLOYMENT, "web").message,
            "deployments.apps \"web\" already exists"
        );
        let status = Status::not_found(&ENDPOINT_SLICE, "x").object();
        assert_eq!(
            status["details"],
            json!({"name": "x", "group": "discovery.k8s.io", "kind": "endpointslices"})
        );
        assert_eq!(Status::too_new(9, 3).retry_after(), Some(1));
    }
}
