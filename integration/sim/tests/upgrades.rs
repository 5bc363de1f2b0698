//! Which upgrades are accepted: the table a real API server printed, and what stands in front of one.

mod common;

use common::{Answer, SPDY, ask, portforward, websocket, within};
use kubevpn_sim::{Reject, Sim, SimTransport};
use tokio::io::AsyncReadExt;

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNEL: &str = "v4.channel.k8s.io";

struct Case {
    method: &'static str,
    query: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    status: &'static str,
    /// The body, or the message in it, or the subprotocol that was chosen.
    says: &'static str,
}

fn case(
    method: &'static str,
    query: &'static str,
    headers: impl Into<Vec<(&'static str, &'static str)>>,
    status: &'static str,
    says: &'static str,
) -> Case {
    Case {
        method,
        query,
        headers: headers.into(),
        status,
        says,
    }
}

fn spdy(protocol: Option<&'static str>) -> Vec<(&'static str, &'static str)> {
    let mut headers = SPDY[..2].to_vec();
    headers.extend(protocol.map(|p| ("X-Stream-Protocol-Version", p)));
    headers
}

const YES: &str = "101 Switching Protocols";

fn table() -> Vec<Case> {
    vec![
        case("POST", "", SPDY, YES, "portforward.k8s.io"),
        case("GET", "", SPDY, YES, "portforward.k8s.io"),
        case(
            "POST",
            "",
            spdy(None),
            "500 Internal Server Error",
            "invalid upgrade response: status code 200\n",
        ),
        case(
            "POST",
            "",
            spdy(Some("nope")),
            "403 Forbidden",
            "unable to upgrade: unable to negotiate protocol: client supports [nope], server accepts [portforward.k8s.io]\n",
        ),
        case("GET", "", websocket(TUNNEL), YES, TUNNEL),
        case("GET", "?ports=9080", websocket(TUNNEL), YES, TUNNEL),
        case(
            "POST",
            "",
            websocket(TUNNEL),
            "405 Method Not Allowed",
            "Method Not Allowed\n",
        ),
        case("GET", "?ports=9080", websocket(CHANNEL), YES, CHANNEL),
        case(
            "GET",
            "",
            websocket(CHANNEL),
            "400 Bad Request",
            "query parameter \"port\" is required",
        ),
        case(
            "GET",
            "?ports=0",
            websocket(CHANNEL),
            "400 Bad Request",
            "port \"0\" must be > 0",
        ),
        case(
            "GET",
            "?ports=99999",
            websocket(CHANNEL),
            "400 Bad Request",
            "cannot convert to []int32: strconv.ParseUint: parsing \"99999\": value out of range",
        ),
        case(
            "GET",
            "?ports=9080",
            websocket("portforward.k8s.io"),
            "403 Forbidden",
            "",
        ),
        case(
            "GET",
            "?ports=9080",
            websocket("v5.channel.k8s.io"),
            "403 Forbidden",
            "",
        ),
        case(
            "GET",
            "?ports=9080",
            websocket("SPDY/3.1+portforward.k8s.io, v4.channel.k8s.io"),
            YES,
            TUNNEL,
        ),
        case(
            "GET",
            "?ports=9080",
            websocket("v4.channel.k8s.io, SPDY/3.1+portforward.k8s.io"),
            YES,
            TUNNEL,
        ),
        case("GET", "?ports=9080", websocket(""), YES, ""),
        case(
            "POST",
            "",
            [],
            "400 Bad Request",
            "Upgrade request required",
        ),
    ]
}

fn check(case: &Case, answer: &Answer) {
    let label = format!("{} {} {:?}", case.method, case.query, case.headers);
    assert_eq!(answer.status, case.status, "{label}: {answer:?}");
    let said = if answer.status == YES {
        let chosen = answer.header("sec-websocket-protocol");
        let spdy = answer.header("x-stream-protocol-version");
        chosen.or(spdy).unwrap().to_owned()
    } else if answer.header("content-type") == Some("application/json") {
        answer.message()
    } else {
        answer.body.clone()
    };
    assert_eq!(said, case.says, "{label}");
}

#[tokio::test]
async fn the_table() {
    let sim = Sim::builder().plain().sample().start().await.unwrap();
    let pod = sim.pods("default", "productpage").remove(0);
    for case in table() {
        let path = portforward(&pod) + case.query;
        let io = sim.connect().unwrap();
        let (answer, _io) = within(ask(io, case.method, &path, &case.headers)).await;
        check(&case, &answer);
    }
    let path = portforward("nosuch");
    for headers in [SPDY.to_vec(), websocket(TUNNEL)] {
        let io = sim.connect().unwrap();
        let (answer, _io) = within(ask(io, "GET", &path, &headers)).await;
        assert_eq!(answer.status, "404 Not Found");
        assert_eq!(answer.message(), "pods \"nosuch\" not found");
    }
    sim.shutdown().await;
}

#[tokio::test]
async fn an_older_server_has_no_tunnel() {
    let sim = Sim::builder()
        .version("1.29")
        .sample()
        .start()
        .await
        .unwrap();
    let pod = sim.pods("default", "reviews").remove(0);
    let path = portforward(&pod) + "?ports=9080";
    for (protocols, status, chosen) in [
        (TUNNEL, "403 Forbidden", None),
        (
            "SPDY/3.1+portforward.k8s.io, v4.channel.k8s.io",
            YES,
            Some(CHANNEL),
        ),
    ] {
        let io = sim.connect().unwrap();
        let (answer, _io) = within(ask(io, "GET", &path, &websocket(protocols))).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("sec-websocket-protocol"), chosen);
    }
}

#[tokio::test]
async fn a_middlebox_turns_one_transport_away() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let pod = sim.pods("default", "reviews").remove(0);
    let path = portforward(&pod);
    sim.faults().reject(SimTransport::Spdy, Reject::Status(426));
    let (answer, _) = within(ask(sim.connect().unwrap(), "POST", &path, &SPDY)).await;
    assert_eq!(answer.status, "426 Upgrade Required");
    assert!(!answer.body.contains("Status"), "{}", answer.body);

    sim.faults().reject(SimTransport::Spdy, Reject::Drop);
    let mut io = sim.connect().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut io, raw(&path).as_bytes())
        .await
        .unwrap();
    assert_eq!(within(io.read(&mut [0; 64])).await.unwrap(), 0);

    let headers = websocket(TUNNEL);
    let (answer, _) = within(ask(sim.connect().unwrap(), "GET", &path, &headers)).await;
    assert_eq!(answer.status, YES);
    sim.faults().allow(SimTransport::Spdy);
    let (answer, _) = within(ask(sim.connect().unwrap(), "POST", &path, &SPDY)).await;
    assert_eq!(answer.status, YES);
    let codes: Vec<u16> = sim.requests().iter().map(|r| r.code).collect();
    assert_eq!(codes, [426, 0, 101, 101]);
}

fn raw(path: &str) -> String {
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer admin\r\n");
    for (name, value) in SPDY {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}
