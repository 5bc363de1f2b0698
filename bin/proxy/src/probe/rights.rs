//! Access rules, by SelfSubjectAccessReview.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use kubevpn_client::{Action, classify_api};
use kubevpn_target::{ConnectError, Refusal};
use tokio::time::timeout;

use super::ANSWER;

/// A right in the access rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccessRight {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The resource in the plural, with its subresource: `pods/portforward`.
    pub resource: &'static str,
    /// `get`, `list`, `watch`, `create`.
    pub verb: &'static str,
}

/// Right to forward ports over SPDY.
pub const CREATE_PORT_FORWARD: AccessRight = AccessRight {
    group: "",
    resource: "pods/portforward",
    verb: "create",
};

/// Right to forward ports over WebSocket.
pub const GET_PORT_FORWARD: AccessRight = AccessRight {
    verb: "get",
    ..CREATE_PORT_FORWARD
};

/// Whether the access rules grant the right in the namespace, by a SelfSubjectAccessReview, which every user may create.
/// Takes at most 10 s.
pub async fn may(
    client: &Client,
    namespace: &str,
    right: AccessRight,
) -> Result<bool, ConnectError> {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource)),
        None => (right.resource, None),
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(right.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: subresource.map(str::to_owned),
                verb: Some(right.verb.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let asked = Action {
        verb: "create",
        resource: "selfsubjectaccessreviews",
        api_group: "authorization.k8s.io",
        namespace: None,
        name: None,
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    match timeout(ANSWER, reviews.create(&PostParams::default(), &review)).await {
        Ok(Ok(review)) => Ok(review.status.is_some_and(|status| status.allowed)),
        Ok(Err(error)) => Err(classify_api(error, &asked)),
        Err(_) => Err(ConnectError::new(
            Refusal::ClusterAway,
            format!(
                "the API server did not say within {} s what its access rules allow: try again",
                ANSWER.as_secs()
            ),
        )),
    }
}

/// Checks that ports of the namespace's Pods may be forwarded over at least one transport. A failed review is not an error:
/// the dial that follows shows the truth.
pub(super) async fn may_forward(client: &Client, namespace: &str) -> Result<(), ConnectError> {
    let (create, get) = tokio::join!(
        may(client, namespace, CREATE_PORT_FORWARD),
        may(client, namespace, GET_PORT_FORWARD)
    );
    match (create, get) {
        (Ok(false), Ok(false)) => Err(ConnectError::new(
            Refusal::Forbidden,
            format!(
                "you may not create pods/portforward in namespace {namespace}: choose a namespace in which you may, or ask for \
                 a Role with apiGroups [\"\"], resources [\"pods/portforward\"], verbs [\"create\", \"get\"]"
            ),
        )),
        _ => Ok(()),
    }
}
