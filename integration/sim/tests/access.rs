//! Who may do what, and what they are told.

mod common;

use common::{SPDY, ask, h1, portforward, refusal, websocket};
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, PostParams, WatchParams};
use kube::{Api, Client};
use kubevpn_sim::{AccessRule, Sim, User};
use serde_json::json;

async fn start(version: &str) -> Sim {
    let read = AccessRule::new(&["get", "list"], &[""], &["services", "pods"]);
    let forward = |verb| AccessRule::new(&[verb], &[""], &["pods/portforward"]);
    Sim::builder()
        .version(version)
        .sample()
        .user(User::new("viewer", "v").may(read.clone().namespaces(&["default"])))
        .user(
            User::new("getter", "g")
                .may(read.clone())
                .may(forward("get")),
        )
        .user(User::new("creator", "c").may(read).may(forward("create")))
        .start()
        .await
        .unwrap()
}

fn client(sim: &Sim, token: &str) -> Client {
    Client::try_from(sim.config_for(token)).unwrap()
}

#[tokio::test]
async fn denials_name_the_right() {
    let sim = start("1.34").await;
    let client = client(&sim, "v");
    let services: Api<Service> = Api::default_namespaced(client.clone());
    services.get("reviews").await.unwrap();
    let elsewhere: Api<Service> = Api::namespaced(client.clone(), "y");
    let everywhere: Api<Service> = Api::all(client.clone());
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "y");
    let namespaces: Api<Namespace> = Api::all(client);
    let all = ListParams::default();
    for (answer, wanted) in [
        (
            refusal(elsewhere.list(&all).await),
            "services is forbidden: User \"viewer\" cannot list resource \"services\" in API group \"\" in the namespace \"y\"",
        ),
        (
            refusal(elsewhere.get("n").await),
            "services \"n\" is forbidden: User \"viewer\" cannot get resource \"services\" in API group \"\" in the namespace \"y\"",
        ),
        (
            refusal(everywhere.list(&all).await),
            "services is forbidden: User \"viewer\" cannot list resource \"services\" in API group \"\" at the cluster scope",
        ),
        (
            refusal(
                services
                    .watch(&WatchParams::default(), "0")
                    .await
                    .map(|_| ()),
            ),
            "services is forbidden: User \"viewer\" cannot watch resource \"services\" in API group \"\" in the namespace \"default\"",
        ),
        (
            refusal(slices.list(&all).await),
            "endpointslices.discovery.k8s.io is forbidden: User \"viewer\" cannot list resource \"endpointslices\" in API group \"discovery.k8s.io\" in the namespace \"y\"",
        ),
        (
            refusal(namespaces.get("foo").await),
            "namespaces \"foo\" is forbidden: User \"viewer\" cannot get resource \"namespaces\" in API group \"\" in the namespace \"foo\"",
        ),
    ] {
        assert_eq!(answer, (403, wanted.to_owned()));
    }
    let denied: Vec<_> = sim
        .requests()
        .into_iter()
        .filter(|r| r.code == 403)
        .collect();
    assert_eq!(denied.len(), 6);
    assert!(denied.iter().all(|r| r.user == "viewer"));
}

#[tokio::test]
async fn an_unknown_token_is_unauthenticated() {
    let sim = start("1.34").await;
    let pods: Api<Pod> = Api::default_namespaced(client(&sim, "wrong"));
    assert_eq!(
        refusal(pods.get("db-0").await),
        (401, "Unauthorized".into())
    );
    // Without credentials one is somebody, who may do little.
    let none = [("Authorization", "")];
    let (answer, _) = ask(sim.connect().unwrap(), "GET", "/version", &none).await;
    assert_eq!(answer.status, "200 OK");
    let (answer, _) = ask(sim.connect().unwrap(), "GET", "/api/v1/pods", &none).await;
    assert_eq!(answer.status, "403 Forbidden");
    assert_eq!(
        answer.message(),
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
    );
    let (answer, _) = ask(sim.connect().unwrap(), "GET", "/apis", &none).await;
    assert_eq!(
        answer.message(),
        "forbidden: User \"system:anonymous\" cannot get path \"/apis\""
    );
}

#[tokio::test]
async fn impersonation() {
    let sim = start("1.34").await;
    let admin = [("Impersonate-User", "viewer")];
    let path = "/api/v1/namespaces/y/pods/p";
    let (answer, _) = ask(sim.connect().unwrap(), "GET", path, &admin).await;
    assert!(
        answer
            .message()
            .starts_with("pods \"p\" is forbidden: User \"viewer\" cannot get")
    );
    let viewer = [
        ("Impersonate-User", "kubernetes-admin"),
        ("Authorization", "Bearer v"),
    ];
    let (answer, _) = ask(sim.connect().unwrap(), "GET", path, &viewer).await;
    assert_eq!(
        answer.message(),
        "users \"kubernetes-admin\" is forbidden: User \"viewer\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
}

#[tokio::test]
async fn reviews_of_ones_own_access() {
    let sim = start("1.34").await;
    for (token, attributes, allowed) in [
        (
            "v",
            json!({"verb": "list", "resource": "pods", "namespace": "default"}),
            true,
        ),
        (
            "v",
            json!({"verb": "list", "resource": "pods", "namespace": "y"}),
            false,
        ),
        (
            "v",
            json!({"verb": "create", "resource": "pods", "subresource": "portforward", "namespace": "default"}),
            false,
        ),
        (
            "c",
            json!({"verb": "create", "resource": "pods", "subresource": "portforward", "namespace": "default"}),
            true,
        ),
        (
            "admin",
            json!({"verb": "get", "resource": "ipaddresses", "group": "networking.k8s.io"}),
            true,
        ),
    ] {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(client(&sim, token));
        let review = json!({"metadata": {}, "spec": {"resourceAttributes": attributes}});
        let review = serde_json::from_value(review).unwrap();
        let answer = reviews
            .create(&PostParams::default(), &review)
            .await
            .unwrap();
        assert_eq!(
            answer.status.unwrap().allowed,
            allowed,
            "{token}: {attributes}"
        );
    }
}

/// POST asks for `create`, GET for `get`; from 1.35 on a WebSocket's GET asks for both.
#[tokio::test]
async fn port_forward_asks_for_the_verb_of_its_method() {
    const YES: &str = "101 Switching Protocols";
    const NO: &str = "403 Forbidden";
    for (version, token, method, socket, status, verb) in [
        ("1.34", "c", "POST", false, YES, ""),
        ("1.34", "c", "GET", false, NO, "get"),
        ("1.34", "c", "GET", true, NO, "get"),
        ("1.34", "g", "POST", false, NO, "create"),
        ("1.34", "g", "GET", false, YES, ""),
        ("1.34", "g", "GET", true, YES, ""),
        ("1.35", "g", "GET", true, NO, "create"),
        ("1.35", "g", "GET", false, YES, ""),
        ("1.34", "v", "POST", false, NO, "create"),
    ] {
        let sim = start(version).await;
        let bearer = format!("Bearer {token}");
        let mut headers = match socket {
            true => websocket("SPDY/3.1+portforward.k8s.io"),
            false => SPDY.to_vec(),
        };
        headers.push(("Authorization", &bearer));
        let io = sim.connect().unwrap();
        let (answer, _io) = ask(io, method, &portforward("db-0"), &headers).await;
        let label = format!("{version} {token} {method} {socket}");
        assert_eq!(answer.status, status, "{label}");
        if status == NO {
            let wanted = format!(
                "cannot {verb} resource \"pods/portforward\" in API group \"\" in the namespace \"default\""
            );
            assert!(answer.message().ends_with(&wanted), "{label}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_kubeconfig_says_all_of_it() {
    let sim = Sim::builder().namespace("shop").start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = sim.write_kubeconfig(dir.path()).unwrap();
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let kubeconfig = kube::config::Kubeconfig::read_from(&path).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    let client = Client::try_from(config).unwrap();
    assert_eq!(client.default_namespace(), "shop");
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.get("shop").await.unwrap();
    drop(h1(&sim));
}
