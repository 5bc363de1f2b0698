//! ServiceAccounts with exactly the rights a scenario is about.

use std::path::Path;

use anyhow::Context as _;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{Api, PostParams};
use kube::config::Kubeconfig;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempPath;

use crate::cluster::client;
use crate::space::until;

/// What a ServiceAccount may do.
#[derive(Clone, Copy, Debug)]
pub struct AccountRight {
    /// As in a Role.
    pub verbs: &'static [&'static str],
    /// Empty for the core one.
    pub group: &'static str,
    /// As in a Role: `pods/portforward`.
    pub resources: &'static [&'static str],
    /// In all namespaces, by a ClusterRole; else in the account's own.
    pub everywhere: bool,
}

/// The name of every account: there is one in a namespace.
pub(crate) const NAME: &str = "tester";

/// Makes the account in a namespace, with a Role and a ClusterRole of these rights and a token, and waits until the
/// API server's authorizer knows them. All of it goes with the namespace.
pub async fn service_account(
    admin: &Path,
    namespace: &str,
    rights: &[AccountRight],
) -> anyhow::Result<TempPath> {
    let api = client(admin).await?;
    let accounts = Api::<ServiceAccount>::namespaced(api.clone(), namespace);
    let account = json!({"metadata": {"name": NAME}});
    create(&accounts, account).await?;
    let owner = Api::<Namespace>::all(api.clone()).get(namespace).await?;
    let owner = json!([{"apiVersion": "v1", "kind": "Namespace", "name": namespace, "uid": owner.metadata.uid}]);
    let rules = |everywhere| -> Vec<Value> {
        let rights = rights.iter().filter(|r| r.everywhere == everywhere);
        rights
            .map(|r| json!({"verbs": r.verbs, "apiGroups": [r.group], "resources": r.resources}))
            .collect()
    };
    let subjects = json!([{"kind": "ServiceAccount", "namespace": namespace, "name": NAME}]);
    let role_ref = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let meta = json!({"name": NAME});
    let role = json!({"metadata": meta, "rules": rules(false)});
    create(&Api::<Role>::namespaced(api.clone(), namespace), role).await?;
    let bound = json!({"metadata": meta, "subjects": subjects, "roleRef": role_ref("Role", NAME)});
    create(
        &Api::<RoleBinding>::namespaced(api.clone(), namespace),
        bound,
    )
    .await?;
    let meta = json!({"name": namespace, "ownerReferences": owner});
    let role = json!({"metadata": meta, "rules": rules(true)});
    create(&Api::<ClusterRole>::all(api.clone()), role).await?;
    let bound = json!({"metadata": meta, "subjects": subjects, "roleRef": role_ref("ClusterRole", namespace)});
    create(&Api::<ClusterRoleBinding>::all(api.clone()), bound).await?;

    for right in rights {
        for resource in right.resources {
            until("the authorizer to know the rights", async || {
                let allowed = is_allowed(&api, namespace, right, resource).await?;
                Ok(allowed.then_some(()))
            })
            .await?;
        }
    }
    let request = TokenRequest {
        spec: TokenRequestSpec::default(),
        ..TokenRequest::default()
    };
    let token = accounts
        .create_token_request(NAME, &PostParams::default(), &request)
        .await?;
    let token = token.status.context("the answer has no token")?.token;
    kubeconfig(admin, namespace, &token)
}

/// A kubeconfig like another, for this token and this namespace.
pub fn kubeconfig(like: &Path, namespace: &str, token: &str) -> anyhow::Result<TempPath> {
    let mut config = Kubeconfig::read_from(like)?;
    for user in &mut config.auth_infos {
        user.auth_info = Some(serde_json::from_value(json!({"token": token}))?);
    }
    for context in &mut config.contexts {
        if let Some(context) = &mut context.context {
            context.namespace = Some(namespace.into());
        }
    }
    let mut file = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(&mut file, &config)?;
    Ok(file.into_temp_path())
}

async fn create<K>(api: &Api<K>, object: Value) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

async fn is_allowed(
    api: &kube::Client,
    namespace: &str,
    right: &AccountRight,
    resource: &str,
) -> anyhow::Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {
        "user": format!("system:serviceaccount:{namespace}:{NAME}"),
        "resourceAttributes": {
            "verb": right.verbs.first(),
            "group": right.group,
            "resource": resource,
            "subresource": subresource,
            "namespace": if right.everywhere { "" } else { namespace },
        },
    }}))?;
    let review = Api::<SubjectAccessReview>::all(api.clone())
        .create(&PostParams::default(), &review)
        .await?;
    Ok(review.status.is_some_and(|status| status.allowed))
}
