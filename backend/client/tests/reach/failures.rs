//! Every failure of a request, and its text.

use std::error::Error;
use std::time::Duration;

use kubevpn_client::{Action, ReachError, classify_api, is_unconnected};
use kubevpn_target::{ConnectError, Refusal};

use crate::support::{Ca, Server, Setup, Speaks, get, nobody, upgrade};

pub(crate) const LIST: Action<'static> = Action {
    verb: "list",
    resource: "services",
    api_group: "",
    namespace: Some("shop"),
    name: None,
};

/// The error of a call by `setup`'s client.
pub(crate) async fn failure(setup: &Setup) -> ConnectError {
    let error = setup.client().apiserver_version().await.unwrap_err();
    classify_api(error, &LIST)
}

async fn answered(server: &Server, path: &str) -> ConnectError {
    let mut setup = Setup::of(server);
    setup.options.retries = 0;
    let request = setup.client().request::<serde_json::Value>(get(path)).await;
    classify_api(request.unwrap_err(), &LIST)
}

#[tokio::test]
async fn each_status_of_the_api_server_has_its_refusal() {
    let server = Server::start().await;
    for (path, refusal, sentence) in [
        (
            "/401",
            Refusal::Unauthenticated,
            "cannot list services in namespace shop: the API server does not accept our credentials (401): log in again, or check the user of the kubeconfig's context",
        ),
        (
            "/403",
            Refusal::Forbidden,
            r#"jane cannot list services in namespace shop: ask for a Role with apiGroups [""], resources ["services"], verbs ["list"]"#,
        ),
        (
            "/404",
            Refusal::NameNotFound,
            r#"cannot list services in namespace shop: not found (services "web" not found)"#,
        ),
        (
            "/422",
            Refusal::Internal,
            "cannot list services in namespace shop: the API server answered 422 Unprocessable Entity (no)",
        ),
        (
            "/429",
            Refusal::Overloaded,
            "cannot list services in namespace shop: the API server has too much to do (429): try again later",
        ),
        (
            "/500",
            Refusal::ClusterAway,
            "cannot list services in namespace shop: the API server answered 500 Internal Server Error (etcdserver: leader changed): check the server in the kubeconfig, and try again",
        ),
        (
            "/504",
            Refusal::TimedOut,
            "cannot list services in namespace shop: the API server ran out of time (slow): try again",
        ),
        (
            "/certificate",
            Refusal::Unauthenticated,
            "cannot list services in namespace shop: a gateway before the API server wants a client certificate that it accepts (400: 400 No required SSL certificate was sent): check client-certificate in the kubeconfig",
        ),
        (
            "/gateway",
            Refusal::ClusterAway,
            "cannot list services in namespace shop: something that is no API server answered 502 Bad Gateway (<html>bad gateway</html>): check the server in the kubeconfig, and try again",
        ),
        (
            "/waf",
            Refusal::Forbidden,
            "cannot list services in namespace shop: something before the API server forbids it (403: blocked  by policy): check proxy and VPN",
        ),
        (
            "/html",
            Refusal::ClusterAway,
            "cannot list services in namespace shop: what answered is no API server, or one too new: check the server in the kubeconfig",
        ),
    ] {
        let error = answered(&server, path).await;
        assert_eq!(error.to_string(), sentence);
        assert_eq!(error.refusal(), refusal, "{path}");
    }
}

#[tokio::test]
async fn advice_for_cluster_wide_objects_is_a_cluster_role() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    let error = client.request_text(get("/403")).await.unwrap_err();
    let action = Action {
        verb: "get",
        resource: "ipaddresses",
        api_group: "networking.k8s.io",
        namespace: None,
        name: Some("10.96.0.1"),
    };
    assert_eq!(
        classify_api(error, &action).to_string(),
        r#"jane cannot get ipaddresses.networking.k8s.io 10.96.0.1: ask for a ClusterRole with apiGroups ["networking.k8s.io"], resources ["ipaddresses"], verbs ["get"]"#
    );
}

#[tokio::test]
async fn connection_refused() {
    let url = format!("https://{}", nobody().await);
    let error = failure(&Setup::new(&url)).await;
    assert_eq!(error.refusal(), Refusal::ClusterAway);
    assert_eq!(
        error.to_string(),
        format!(
            "cannot list services in namespace shop: the API server {url} cannot be reached: the connection was refused; check network, VPN and the server in the kubeconfig"
        )
    );
}

/// For repetitions, which are for calls whose connection broke.
#[tokio::test]
async fn no_connection_and_a_broken_one_are_told_apart() {
    let called = async |url: String| {
        let setup = Setup::new(url).cluster("insecure-skip-tls-verify: true");
        setup.client().apiserver_version().await.unwrap_err()
    };
    let refused = called(format!("https://{}", nobody().await)).await;
    assert!(is_unconnected(&refused), "{refused:?}");
    let plain = Server::speaking(Speaks::Plain).await;
    let no_tls = called(plain.url().replace("http://", "https://")).await;
    assert!(is_unconnected(&no_tls), "{no_tls:?}");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let closing = async {
        loop {
            drop(listener.accept().await.unwrap());
        }
    };
    let cut = tokio::select! {
        never = closing => never,
        cut = called(url) => cut,
    };
    assert!(!is_unconnected(&cut), "{cut:?}");
    assert_eq!(classify_api(cut, &LIST).refusal(), Refusal::ClusterAway);
}

#[tokio::test]
async fn its_name_is_unknown() {
    let error = failure(&Setup::new("https://api.kubevpn.test")).await;
    assert_eq!(error.refusal(), Refusal::ClusterAway);
    let said = error.to_string();
    let named = "the API server https://api.kubevpn.test:443 cannot be reached: its name cannot be resolved";
    assert!(said.contains(named), "{said}");
}

#[tokio::test]
async fn connection_accepted_without_an_answer() {
    // Never accepted: the kernel completes the TCP handshake, and TLS gets no answer.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let mut setup = Setup::new(url);
    setup.options.connect_timeout = Duration::from_millis(100);
    let error = failure(&setup).await;
    // Unavailable, not slow: there never was a connection.
    assert_eq!(error.refusal(), Refusal::ClusterAway);
    assert!(error.to_string().contains("within 100ms"), "{error}");
    let mut cause = error.source();
    while let Some(e) = cause
        && !matches!(e.downcast_ref(), Some(ReachError::TimedOut(_)))
    {
        cause = e.source();
    }
    assert!(cause.is_some(), "{error:?}");
}

#[tokio::test]
async fn request_accepted_without_an_answer() {
    let server = Server::start().await;
    let mut setup = Setup::of(&server);
    setup.args.request_timeout = Some(Duration::from_millis(100));
    let request = setup.client().request_text(get("/never")).await;
    let error = classify_api(request.unwrap_err(), &LIST);
    assert_eq!(error.refusal(), Refusal::TimedOut);
    assert_eq!(
        error.to_string(),
        format!(
            "cannot list services in namespace shop: the API server at {} did not answer within 100ms: try again, or raise --request-timeout",
            server.url()
        )
    );
}

#[tokio::test]
async fn certificates_that_will_not_do() {
    let tls = Speaks::Tls(&["h2"]);
    let (another, anew) = (Ca::named("another"), Ca::new());
    for (server, ca, reason) in [
        (
            Server::start().await,
            Some(another),
            "is signed by nobody we trust",
        ),
        (
            Server::start().await,
            Some(anew),
            "is signed by nobody we trust",
        ),
        (
            Server::with(tls, &["other.kubevpn.test"], 4000).await,
            None,
            "is for other names (other.kubevpn.test",
        ),
        (
            Server::with(tls, &["127.0.0.1"], 2001).await,
            None,
            "has expired",
        ),
    ] {
        let ca = ca.as_ref().unwrap_or(&server.ca);
        let error = failure(&Setup::new(server.url()).trusting(ca)).await;
        assert_eq!(error.refusal(), Refusal::ClusterAway);
        let said = error.to_string();
        let whole = format!(
            "the certificate of the API server {} {reason}",
            server.url()
        );
        // The names are quoted by the library.
        assert!(
            said.replace(['"', '\\'], "")
                .replace("DnsName(", "")
                .contains(&whole),
            "{said}"
        );
        // With `--insecure-skip-tls-verify` it is accepted.
        let setup = Setup::new(server.url()).cluster("insecure-skip-tls-verify: true");
        setup.client().apiserver_version().await.unwrap();
    }
}

#[tokio::test]
async fn it_does_not_speak_tls() {
    let server = Server::speaking(Speaks::Plain).await;
    let url = server.url().replace("http://", "https://");
    let error = failure(&Setup::new(&url)).await;
    assert_eq!(error.refusal(), Refusal::ClusterAway);
    let said = error.to_string();
    assert!(
        said.contains(&format!("{url} does not speak TLS")),
        "{said}"
    );
}

#[tokio::test]
async fn it_wants_a_certificate_of_ours() {
    let server = Server::speaking(Speaks::MutualTls).await;
    let client = Setup::of(&server).client();
    // The HTTP/2 library keeps only the text of the alert.
    let upgraded = client.send(upgrade("/echo")).await.map(drop);
    let called = client.apiserver_version().await.map(drop);
    for error in [upgraded, called] {
        let error = classify_api(error.unwrap_err(), &LIST);
        assert_eq!(error.refusal(), Refusal::Unauthenticated, "{error}");
        let said = error.to_string();
        let refused = "does not accept our certificate (CertificateRequired)";
        assert!(said.contains(refused), "{said}");
    }
}

#[tokio::test]
async fn a_watch_that_is_cut() {
    let server = Server::start().await;
    let relay = crate::support::Relay::start(server.address).await;
    let mut setup = Setup::new(format!("https://{}", relay.address)).trusting(&server.ca);
    setup.options.ping_interval = Duration::from_millis(50);
    setup.options.ping_timeout = Duration::from_secs(1);
    let client = setup.client();
    let reading = client.request_text(get("/hold"));
    let cutting = async {
        server.requests(1).await;
        relay.cut();
    };
    let (read, ()) = tokio::join!(reading, cutting);
    let error = classify_api(read.unwrap_err(), &LIST);
    assert_eq!(error.refusal(), Refusal::ClusterAway, "{error}");
    let said = error.to_string();
    let dead = format!(
        "https://{} cannot be reached: the connection is dead",
        relay.address
    );
    assert!(said.contains(&dead), "{said}");
}
