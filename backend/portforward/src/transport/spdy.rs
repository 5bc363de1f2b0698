//! SPDY/3.1 on the upgraded connection itself.

use std::time::Duration;

use http::{Method, Request, header};
use kube::client::Body;

use crate::pod::PodId;
use crate::transport::upgrade::{UpgradeError, UpgradedIo, check_protocol, path, upgrade};

const PROTOCOL: &str = "SPDY/3.1";
const STREAM_PROTOCOL: &str = "portforward.k8s.io";
const STREAM_PROTOCOL_HEADER: &str = "x-stream-protocol-version";

/// Sends a request with this method; the API server accepts POST and GET.
pub(crate) async fn open(
    client: &kube::Client,
    pod: &PodId,
    method: Method,
    within: Duration,
) -> Result<UpgradedIo, UpgradeError> {
    let request = Request::builder()
        .method(method)
        .uri(path(pod))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .header(STREAM_PROTOCOL_HEADER, STREAM_PROTOCOL)
        .body(Body::empty())
        .map_err(|e| UpgradeError::rejected(e.to_string()))?;
    let (head, io) = upgrade(client, pod, request, within).await?;
    check_protocol(&head, PROTOCOL)?;
    match head.headers().get(STREAM_PROTOCOL_HEADER) {
        Some(agreed) if agreed != STREAM_PROTOCOL => Err(UpgradeError::rejected(format!(
            "agreed on the stream protocol {agreed:?}"
        ))),
        // The header is absent if the API server does not negotiate: there is only one protocol then.
        _ => Ok(io),
    }
}
