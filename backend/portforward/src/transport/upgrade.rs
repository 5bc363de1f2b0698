//! One upgrade request, and the meaning of its answer.
//!
//! | answer | meaning |
//! |---|---|
//! | 101 | upgraded |
//! | 401 | it ends here |
//! | 403, a `Status` with reason Forbidden | the verb of this form is not granted |
//! | 408, 425, 429 | too much is asked at the moment; it ends here, another transport would ask for more |
//! | 404, a `Status` with reason NotFound about pods | the Pod does not exist |
//! | anything else; no answer; a broken connection | this transport is turned down |
//! | no connection to the API server | it ends here |
//!
//! An API server that cannot agree on a protocol answers 403 too, in plain text, hence the look at the body.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use kube::core::Status;
use kubevpn_client::{Action, classify_api, classify_status};
use kubevpn_target::{ConnectError, Refusal};

use crate::error::clip;
use crate::pod::PodId;

/// An upgraded connection.
pub(crate) type UpgradedIo = TokioIo<Upgraded>;

/// Limit on the part of a refusal's body that is read.
const BODY: usize = 64 * 1024;

/// Why an upgrade failed.
#[derive(Debug)]
pub(crate) enum UpgradeError {
    /// Something on the way does not support this transport.
    Rejected {
        status: Option<StatusCode>,
        by_api_server: bool,
        message: String,
    },
    /// There was no answer in time.
    Silent { after: Duration },
    /// The access rules do not grant the verb of the request's method.
    Forbidden { message: String },
    /// There is no such Pod.
    Gone,
    /// The Pod's node, which every transport leads to, cannot forward ports.
    Node { message: String },
    /// No other transport can succeed.
    Final(ConnectError),
}

impl UpgradeError {
    /// A rejection without a status.
    pub(crate) fn rejected(message: impl AsRef<str>) -> Self {
        Self::Rejected {
            status: None,
            by_api_server: false,
            message: clip(message.as_ref()),
        }
    }
}

/// The path of the Pod's port-forward, without a query.
///
/// The names are not escaped: [`PodId::is_valid`] is checked before.
pub(crate) fn path(pod: &PodId) -> String {
    let PodId { namespace, pod, .. } = pod;
    format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward")
}

/// The verb a request of this method is authorised as.
pub(crate) fn verb(method: &Method) -> &'static str {
    if method == Method::POST {
        "create"
    } else {
        "get"
    }
}

/// Sends the request and, at 101, takes the connection over.
pub(crate) async fn upgrade(
    client: &kube::Client,
    pod: &PodId,
    request: Request<Body>,
    within: Duration,
) -> Result<(Response<()>, UpgradedIo), UpgradeError> {
    match tokio::time::timeout(within, exchange(client, pod, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(UpgradeError::Silent { after: within }),
    }
}

async fn exchange(
    client: &kube::Client,
    pod: &PodId,
    request: Request<Body>,
) -> Result<(Response<()>, UpgradedIo), UpgradeError> {
    let action = Action {
        verb: verb(request.method()),
        resource: "pods/portforward",
        api_group: "",
        namespace: Some(&pod.namespace),
        name: Some(&pod.pod),
    };
    let response = match client.send(request).await {
        Ok(response) => response,
        Err(error) => return Err(unanswered(error, &action)),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = response.into_parts();
        // If the body cannot be read, the status has to do.
        let body = Limited::new(body, BODY).collect().await;
        let body = body.map(|b| b.to_bytes()).unwrap_or_default();
        return Err(refused(head.status, &body, &action));
    }
    let mut head = Response::new(());
    head.headers_mut().clone_from(response.headers());
    match hyper::upgrade::on(response).await {
        Ok(upgraded) => Ok((head, TokioIo::new(upgraded))),
        Err(error) => Err(UpgradeError::rejected(format!(
            "the upgraded connection broke: {error}"
        ))),
    }
}

/// The error of a request that got no answer.
fn unanswered(error: kube::Error, action: &Action<'_>) -> UpgradeError {
    let broke = broke(&error);
    let error = classify_api(error, action);
    match error.refusal() {
        // A broken connection need not be the network's fault: our certificate may have been refused.
        Refusal::ClusterAway | Refusal::Internal if broke => {
            UpgradeError::rejected("the connection was dropped")
        }
        _ => UpgradeError::Final(error),
    }
}

/// Whether an established connection was cut, which is how some proxies answer an upgrade that they do not support.
fn broke(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(e) = e.downcast_ref::<hyper_util::client::legacy::Error>() {
            return !e.is_connect();
        }
        if e.is::<hyper::Error>() {
            return true;
        }
        next = e.source();
    }
    false
}

fn refused(status: StatusCode, body: &Bytes, action: &Action<'_>) -> UpgradeError {
    let said: Option<Status> = serde_json::from_slice(body)
        .ok()
        .filter(|s: &Status| s.code != 0 || !s.reason.is_empty());
    if status == StatusCode::UNAUTHORIZED || is_overloaded(status) {
        let code = match status {
            StatusCode::UNAUTHORIZED => StatusCode::UNAUTHORIZED,
            _ => StatusCode::TOO_MANY_REQUESTS,
        };
        let said = Status {
            code: code.as_u16(),
            ..said.unwrap_or_default()
        };
        return UpgradeError::Final(classify_status(&said, action));
    }
    let Some(said) = said else {
        let text = String::from_utf8_lossy(body);
        // The kubelet's own text, which the API server passes on unchanged.
        if status == StatusCode::NOT_FOUND
            && matches!(text.trim(), "pod does not exist" | "pod not found")
        {
            return UpgradeError::Gone;
        }
        let message = clip(&text);
        // The same for a failure of its container runtime, which is a gRPC status.
        if status == StatusCode::INTERNAL_SERVER_ERROR && message.starts_with("rpc error: ") {
            return UpgradeError::Node { message };
        }
        return UpgradeError::Rejected {
            status: Some(status),
            by_api_server: false,
            message,
        };
    };
    let about_pods = said.details.as_ref().is_none_or(|d| d.kind == "pods");
    match (status, said.reason.as_str()) {
        (StatusCode::FORBIDDEN, "Forbidden") => UpgradeError::Forbidden {
            message: clip(&said.message),
        },
        (StatusCode::NOT_FOUND, "NotFound") if about_pods => UpgradeError::Gone,
        _ => UpgradeError::Rejected {
            status: Some(status),
            by_api_server: true,
            message: clip(&said.message),
        },
    }
}

/// Whether the request was put off and not judged: the answer says nothing about the transport.
fn is_overloaded(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
    )
}

/// The text for a refusal of `pods/portforward` with this status and body.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn said(status: StatusCode, body: &Bytes) -> String {
    let action = Action {
        verb: "create",
        resource: "pods/portforward",
        api_group: "",
        namespace: Some("shop"),
        name: Some("web-0"),
    };
    match refused(status, body, &action) {
        UpgradeError::Rejected { message, .. }
        | UpgradeError::Forbidden { message }
        | UpgradeError::Node { message } => message,
        UpgradeError::Gone | UpgradeError::Silent { .. } => String::new(),
        UpgradeError::Final(error) => error.to_string(),
    }
}

/// Checks that the connection was upgraded to what was asked for.
pub(crate) fn check_protocol(head: &Response<()>, wanted: &str) -> Result<(), UpgradeError> {
    let upgrade = head
        .headers()
        .get(header::UPGRADE)
        .map_or("", |v| v.to_str().unwrap_or("?"));
    if upgrade.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    Err(UpgradeError::rejected(format!(
        "upgraded to {upgrade:?} instead"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(status: u16, body: &str) -> UpgradeError {
        let action = Action {
            verb: "create",
            resource: "pods/portforward",
            api_group: "",
            namespace: Some("shop"),
            name: Some("web-0"),
        };
        let status = StatusCode::from_u16(status).unwrap();
        refused(status, &Bytes::copy_from_slice(body.as_bytes()), &action)
    }

    #[test]
    fn each_answer_has_its_upgrade_error() {
        let forbidden = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"web-0\" is forbidden: User \"viewer\" cannot create resource","reason":"Forbidden","details":{"name":"web-0","kind":"pods"},"code":403}"#;
        assert!(matches!(
            judge(403, forbidden),
            UpgradeError::Forbidden { .. }
        ));
        // The API server's text for a protocol that it does not know.
        let protocol = "unable to upgrade: unable to negotiate protocol: client supports [nope]";
        assert!(
            matches!(judge(403, protocol), UpgradeError::Rejected { message, by_api_server: false, .. } if message.starts_with("unable"))
        );
        assert!(matches!(
            judge(403, "<html>"),
            UpgradeError::Rejected { .. }
        ));

        let gone = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"pods \"nosuch\" not found","reason":"NotFound","details":{"name":"nosuch","kind":"pods"},"code":404}"#;
        assert!(matches!(judge(404, gone), UpgradeError::Gone));
        assert!(matches!(
            judge(404, "pod does not exist\n"),
            UpgradeError::Gone
        ));
        let path = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"the server could not find the requested resource","reason":"NotFound","details":{},"code":404}"#;
        assert!(matches!(judge(404, path), UpgradeError::Rejected { .. }));
        assert!(matches!(
            judge(404, "404 page not found"),
            UpgradeError::Rejected { .. }
        ));

        let login = judge(
            401,
            r#"{"kind":"Status","code":401,"reason":"Unauthorized"}"#,
        );
        assert!(
            matches!(login, UpgradeError::Final(e) if e.refusal() == Refusal::Unauthenticated),
            "with a Status"
        );
        assert!(
            matches!(judge(401, "go away"), UpgradeError::Final(e) if e.refusal() == Refusal::Unauthenticated),
            "without"
        );

        for status in [408, 425, 429] {
            let later = judge(status, "");
            assert!(
                matches!(later, UpgradeError::Final(e) if e.refusal() == Refusal::Overloaded),
                "{status}"
            );
        }

        let node = r#"{"kind":"Status","status":"Failure","message":"error dialing backend: dial tcp 10.245.0.2:10250: connect: connection refused","code":500}"#;
        assert!(matches!(
            judge(500, node),
            UpgradeError::Rejected {
                by_api_server: true,
                ..
            }
        ));
        // The kubelet's text while containerd is down.
        let runtime = "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: connection refused\"\n";
        assert!(matches!(
            judge(500, runtime),
            UpgradeError::Node { message } if message.ends_with("connection refused\"")
        ));
        for status in [400, 405, 426, 500, 502, 503] {
            assert!(
                matches!(judge(status, ""), UpgradeError::Rejected { .. }),
                "{status}"
            );
        }
    }

    #[test]
    fn texts_of_answers_are_bounded() {
        let long = "x".repeat(100_000);
        let UpgradeError::Rejected { message, .. } = judge(502, &long) else {
            panic!("a refusal of the transport");
        };
        assert!(message.len() < 1_000);
    }
}
