//! Plain calls: which HTTP version, over how many connections, with which headers.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use http::Version;
use kube::client::Body;
use kubevpn_client::ClientError;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::{Relay, Server, Setup, Speaks, get};

#[tokio::test]
async fn calls_share_one_http2_connection() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    // All at once, before it is known that they can share a connection.
    let versions = join_all((0..30).map(|_| client.apiserver_version())).await;
    for version in versions {
        assert_eq!(version.unwrap().git_version, "v1.34.4");
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 30);
    assert!(seen.iter().all(|s| s.version == Version::HTTP_2));
    assert!(seen.iter().all(|s| s.connection == seen[0].connection));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_first_call_that_takes_its_time_holds_up_none() {
    for speaks in [Speaks::Tls(&["h2"]), Speaks::Plain] {
        let server = Server::speaking(speaks).await;
        let client = Setup::of(&server).client();
        let mut slow = Box::pin(client.request_text(get("/never")));
        assert!(futures_util::poll!(&mut slow).is_pending());
        tokio::select! {
            answered = &mut slow => panic!("{answered:?}"),
            version = client.apiserver_version() => drop(version.unwrap()),
        }
    }
}

#[tokio::test]
async fn a_server_without_http2_is_spoken_to_in_http1() {
    for speaks in [Speaks::Tls(&["http/1.1"]), Speaks::Tls(&[]), Speaks::Plain] {
        let server = Server::speaking(speaks).await;
        let client = Setup::of(&server).client();
        for _ in 0..3 {
            client.apiserver_version().await.unwrap();
        }
        let versions: Vec<_> = server.seen().iter().map(|s| s.version).collect();
        assert_eq!(versions, [Version::HTTP_11; 3]);
        assert_eq!(server.connections(), 1, "kept alive");
    }
}

#[tokio::test]
async fn the_next_connection_is_opened_before_the_streams_of_one_run_out() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    client.apiserver_version().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..150 {
        held.push(client.send(get("/hold").map(Body::from)).await.unwrap());
    }
    // The server allows 100 streams on a connection; a call beside 150 watches is still answered.
    client.apiserver_version().await.unwrap();
    assert_eq!(server.connections(), 3);
    // Closed watches have made room.
    held.clear();
    for _ in 0..50 {
        held.push(client.send(get("/hold").map(Body::from)).await.unwrap());
    }
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn fifty_watches_of_a_dead_connection_make_one_new_connection() {
    let server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let mut setup = Setup::new(format!("https://{}", relay.address)).trusting(&server.ca);
    setup.options.ping_interval = Duration::from_millis(50);
    setup.options.ping_timeout = Duration::from_secs(1);
    let client = setup.client();
    let hold = || client.send(get("/hold").map(Body::from));
    let held = join_all((0..50).map(|_| hold())).await;
    let held: Vec<_> = held.into_iter().map(Result::unwrap).collect();
    assert_eq!(server.connections(), 1);
    relay.cut();
    // Each reconnects at once, as watches do.
    let again = held.into_iter().map(|watch| async {
        let ended = http_body_util::BodyExt::collect(watch.into_body()).await;
        assert!(ended.is_err());
        hold().await.unwrap()
    });
    let _held = join_all(again).await;
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_server_that_leaves_and_holds_a_watch_gets_one_new_connection() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    let _held = client.send(get("/hold").map(Body::from)).await.unwrap();
    server.leave();
    // GOAWAY has arrived once a call finds another connection.
    while server.connections() == 1 {
        client.apiserver_version().await.unwrap();
    }
    assert_eq!(server.connections(), 2);
    // The new one is told too; fifty calls notice it together.
    server.leave();
    while server.connections() == 2 {
        let at_once = join_all((0..50).map(|_| client.apiserver_version())).await;
        at_once
            .into_iter()
            .for_each(|version| drop(version.unwrap()));
    }
    assert_eq!(server.connections(), 3);
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.version == Version::HTTP_2)
    );
}

#[tokio::test]
async fn a_server_that_cannot_be_connected_to_is_left_alone_for_a_moment() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Setup::new(format!("https://{}", listener.local_addr().unwrap())).client();
    let attempts = AtomicUsize::new(0);
    let down = async {
        loop {
            drop(listener.accept().await.unwrap());
            attempts.fetch_add(1, Relaxed);
        }
    };
    let begun = Instant::now();
    let calls = async {
        for _ in 0..10 {
            let at_once = (0..20).map(|_| client.request_text(get("/version")));
            for answer in join_all(at_once).await {
                answer.unwrap_err();
            }
        }
    };
    tokio::select! {
        never = down => never,
        () = calls => {}
    }
    // The second failure begins the first rest.
    let allowed = 3 + begun.elapsed().as_millis() / 250;
    let attempts = attempts.load(Relaxed);
    assert!(
        attempts as u128 <= allowed,
        "{attempts} attempts, {allowed} allowed"
    );
}

#[tokio::test]
async fn calls_to_a_server_that_is_down_are_not_multiplied() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    let calls = 100;
    for _ in 0..calls {
        client.request_text(get("/504")).await.unwrap_err();
    }
    let seen = server.seen().len();
    assert!(seen <= calls + 20, "{seen} requests for {calls} calls");
}

#[tokio::test]
async fn every_request_has_the_user_agent() {
    let server = Server::start().await;
    let mut setup = Setup::of(&server).user("token: sesame");
    setup.args.impersonate = Some("jane".into());
    setup.args.impersonate_groups = vec!["dev".into(), "ops".into()];
    setup.client().apiserver_version().await.unwrap();
    let headers = server.last().headers;
    let all = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values.map(|v| v.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(all("user-agent"), ["kubevpn/0.0.0-test"]);
    assert_eq!(all("authorization"), ["Bearer sesame"]);
    assert_eq!(all("impersonate-user"), ["jane"]);
    assert_eq!(all("impersonate-group"), ["dev", "ops"]);
}

#[tokio::test]
async fn a_line_break_ends_a_token_file_and_is_in_no_token() {
    let server = Server::start().await;
    let setup = Setup::of(&server).user("tokenFile: token");
    setup.file("token", "sesame\n");
    setup.client().apiserver_version().await.unwrap();
    assert_eq!(server.last().headers["authorization"], "Bearer sesame");
    let inline = Setup::of(&server).user(r#"token: "sesame\n""#);
    // As with kubectl, the token is sent unchanged otherwise.
    assert!(matches!(inline.build(), Err(ClientError::Token)));
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let server = Server::speaking(Speaks::MutualTls).await;
    let setup = Setup::of(&server)
        .user("client-certificate: jane.crt")
        .user("client-key: jane.key");
    let jane = server.ca.issue(&["jane"], 4000);
    setup.file("jane.crt", &jane.pem);
    setup.file("jane.key", &jane.key_pem());
    setup.client().apiserver_version().await.unwrap();
    assert!(server.last().certificate);
}

#[tokio::test]
async fn a_server_behind_a_path_and_another_name() {
    let server = Server::with(Speaks::Tls(&["h2"]), &["inner.kubevpn.test"], 4000).await;
    let client = Setup::new(format!("{}/prefix", server.url()))
        .trusting(&server.ca)
        .cluster("tls-server-name: inner.kubevpn.test")
        .client();
    client.apiserver_version().await.unwrap();
    assert_eq!(server.last().path, "/prefix/version");
}

#[tokio::test]
async fn a_call_is_tried_again_when_the_server_was_unavailable() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    assert_eq!(client.request_text(get("/flaky")).await.unwrap(), "{}");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_dead_connection_is_found_and_replaced() {
    let server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let mut setup = Setup::new(format!("https://{}", relay.address)).trusting(&server.ca);
    setup.options.ping_interval = Duration::from_millis(50);
    setup.options.ping_timeout = Duration::from_secs(1);
    let client = setup.client();
    let watch = client.send(get("/hold").map(Body::from)).await.unwrap();
    relay.cut();
    let ended = http_body_util::BodyExt::collect(watch.into_body()).await;
    assert!(ended.is_err());
    client.apiserver_version().await.unwrap();
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_silent_watch_lives_on() {
    let server = Server::start().await;
    let client = Setup::of(&server).client();
    let watch = client.send(get("/hold").map(Body::from)).await.unwrap();
    let mut frames = Box::pin(http_body_util::BodyExt::collect(watch.into_body()));
    // Longer than any time-out of kube or of ours. The clock jumps, so the pings' answers come in real time.
    for _ in 0..12 {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::time::resume();
        client.apiserver_version().await.unwrap();
    }
    assert!(futures_util::poll!(&mut frames).is_pending());
    let seen = server.seen();
    assert!(seen.iter().all(|s| s.connection == seen[0].connection));
}
