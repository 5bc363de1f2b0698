//! The probes of the cluster. Each is bounded: in time by [`ANSWER`] and [`DIAL`], in bytes by [`MOST_BYTES`].

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::header::DATE;
use http::{Request, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use kubevpn_client::{
    Action, ApiServer, Loaded, Renewal, build_renewable, classify_api, classify_status,
};
use kubevpn_proxy::probe::{self, AccessRight, CREATE_PORT_FORWARD, GET_PORT_FORWARD};
use kubevpn_proxy::{self as proxy, Policy};
use kubevpn_stack::{Cluster, SurveyedList, TransportChoice};
use kubevpn_target::{ConnectError, Refusal};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::facts::{
    CheckFacts, CheckFailure, CredentialFacts, KubeconfigFacts, NameFacts, RangeFacts, Ranges,
    ServerFacts, Tried, Trust,
};
use super::machine;
use crate::progress;

/// Time limit of one answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Time limit of one transport.
const DIAL: Duration = Duration::from_secs(15);
/// Time limit of a login, in which a person may be asked questions.
const LOGIN: Duration = Duration::from_secs(120);
/// Size limit of an answer.
const MOST_BYTES: usize = 4 << 20;
/// Number of measured round trips, of which the shortest counts.
const ROUNDS: usize = 3;
/// Upper bounds on the nodes read for their Pods' range, and on the ranges.
const NODES: usize = 20;
const RANGES: usize = 16;

/// Rights for port-forwards and names.
#[rustfmt::skip]
const RIGHTS: [AccessRight; 12] = [
    CREATE_PORT_FORWARD,
    GET_PORT_FORWARD,
    right("", "services", "get"),
    right("", "services", "list"),
    right("", "services", "watch"),
    right("discovery.k8s.io", "endpointslices", "get"),
    right("discovery.k8s.io", "endpointslices", "list"),
    right("discovery.k8s.io", "endpointslices", "watch"),
    right("", "endpoints", "get"),
    right("", "pods", "get"),
    right("", "pods", "list"),
    right("", "pods", "watch"),
];

const fn right(group: &'static str, resource: &'static str, verb: &'static str) -> AccessRight {
    AccessRight {
        group,
        resource,
        verb,
    }
}

pub(super) fn kubeconfig(loaded: &Loaded) -> KubeconfigFacts {
    let config = &loaded.config;
    let trust = match config.cluster_url.scheme_str() {
        Some("http") => Trust::Plain,
        _ if config.accept_invalid_certs => Trust::Nobody,
        _ if config.root_cert.is_some() || config.root_cert_file.is_some() => Trust::Kubeconfig,
        _ => Trust::System,
    };
    KubeconfigFacts {
        files: loaded
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect(),
        context: loaded.context.clone(),
        user: loaded.user.clone(),
        namespace: loaded.namespace.clone(),
        server: loaded.server.clone(),
        notes: loaded.notes.clone(),
        trust,
        proxy: config.proxy_url.as_ref().map(machine::without_login),
        proxy_of_env: loaded.proxy_of_env,
    }
}

/// A cluster that has answered, for further probes.
pub(super) struct ReachedCluster {
    pub(super) client: Client,
    pub(super) api_server: ApiServer,
    pub(super) namespace: String,
}

/// Logs in, and reads version, user and rights from the API server. `None` if further probes would fail.
pub(super) async fn api_server(facts: &mut CheckFacts, loaded: Loaded) -> Option<ReachedCluster> {
    let namespace = loaded.namespace;
    let (client, renewal) = match build_renewable(loaded.config, &crate::cli::options()) {
        Ok(built) => built,
        Err(error) => {
            facts.server = Some(Err(CheckFailure::of(error)));
            return None;
        }
    };
    let credentials = |trouble, renewal: &Renewal| CredentialFacts {
        shown: renewal.shown(),
        trouble,
    };
    let logging_in = progress::said("the login", timeout(LOGIN, renewal.log_in()));
    let logged_in = logging_in.await.unwrap_or_else(|_| {
        Err(ConnectError::new(
            Refusal::Unauthenticated,
            format!(
                "the login did not end within {} s: log in by hand, and try again",
                LOGIN.as_secs()
            ),
        ))
    });
    if let Err(error) = logged_in {
        facts.credentials = Some(credentials(Some(CheckFailure::of(error)), &renewal));
        return None;
    }
    match server(&client).await {
        Ok((server, None)) => facts.server = Some(Ok(server)),
        Ok((server, Some(refused))) => {
            facts.server = Some(Ok(server));
            facts.credentials = Some(credentials(Some(CheckFailure::of(refused)), &renewal));
            return None;
        }
        // A certificate is refused in the handshake.
        Err(error) if error.refusal() == Refusal::Unauthenticated => {
            facts.credentials = Some(credentials(Some(CheckFailure::of(error)), &renewal));
            return None;
        }
        Err(error) => {
            facts.server = Some(Err(CheckFailure::of(error)));
            return None;
        }
    }
    let rights = rights(&client, &namespace).await;
    let refused = match &rights {
        Err(error) if error.refusal() == Refusal::Unauthenticated => {
            Some(CheckFailure::of(error.clone()))
        }
        _ => None,
    };
    let may_go_on = refused.is_none();
    facts.credentials = Some(credentials(refused, &renewal));
    if may_go_on {
        facts.rights = Some(rights.map_err(CheckFailure::of));
    }
    may_go_on.then(|| ReachedCluster {
        client,
        api_server: renewal.api_server(),
        namespace,
    })
}

/// Measures the API server. Also returns the refusal of the credentials, if it rejects them.
async fn server(client: &Client) -> Result<(ServerFacts, Option<ConnectError>), ConnectError> {
    let begun = Instant::now();
    let first = get(client, "/version").await?;
    let mut server = ServerFacts {
        first: begun.elapsed(),
        round_trip: Duration::MAX,
        ahead: first.date.map(|date| ahead(date, SystemTime::now())),
        ..ServerFacts::default()
    };
    match first.said {
        Ok(version) => {
            server.version = version["gitVersion"].as_str().map(str::to_owned);
            server.minor = version["minor"].as_str().and_then(leading_number);
        }
        Err(error) if error.refusal() == Refusal::Unauthenticated => {
            server.round_trip = server.first;
            return Ok((server, Some(error)));
        }
        // A user who may not read the version may still be allowed to forward ports.
        Err(error) if error.refusal() == Refusal::Forbidden => {}
        Err(error) => return Err(error),
    }
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        get(client, "/version").await?;
        server.round_trip = server.round_trip.min(begun.elapsed());
    }
    Ok((server, None))
}

/// Seconds by which `now` is ahead of a date with whole seconds.
fn ahead(date: i64, now: SystemTime) -> i64 {
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    now.saturating_sub(date)
}

/// The 34 of `34+`, as some providers write it.
fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    text[..end.unwrap_or(text.len())].parse().ok()
}

struct ApiAnswer {
    /// Seconds since 1970.
    date: Option<i64>,
    /// The body, or the refusal.
    said: Result<Value, ConnectError>,
}

/// Sends a GET to the API server.
async fn get(client: &Client, path: &str) -> Result<ApiAnswer, ConnectError> {
    let asked = Action {
        verb: "get",
        resource: path,
        api_group: "",
        namespace: None,
        name: None,
    };
    let too_long = || {
        ConnectError::new(
            Refusal::ClusterAway,
            format!(
                "the API server did not answer within {} s: check network and VPN",
                ANSWER.as_secs()
            ),
        )
    };
    let request = Request::get(path)
        .body(Body::empty())
        .map_err(|error| ConnectError::new(Refusal::Internal, error.to_string()))?;
    let answered = async {
        let response = client.send(request).await;
        let response: Response<Body> = response.map_err(|error| classify_api(error, &asked))?;
        let (head, body) = response.into_parts();
        let date = head.headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(http_date);
        let body = Limited::new(body, MOST_BYTES).collect().await;
        let body = body.map_err(|error| unread(&asked, &*error))?.to_bytes();
        let said = match head.status.is_success() {
            true => serde_json::from_slice(&body).map_err(|_| {
                ConnectError::new(
                    Refusal::ClusterAway,
                    format!("cannot {asked}: what answered is no API server: check the server in the kubeconfig"),
                )
            }),
            false => {
                let status = serde_json::from_slice::<Status>(&body);
                let status = status.unwrap_or_else(|_| Status::failure("", "Failed to parse error data"));
                let status = status.with_code(head.status.as_u16());
                Err(classify_status(&status, &asked))
            }
        };
        Ok::<_, ConnectError>(ApiAnswer { date, said })
    };
    timeout(ANSWER, answered)
        .await
        .unwrap_or_else(|_| Err(too_long()))
}

/// An answer that was cut, or is too large.
fn unread(asked: &Action<'_>, error: &(dyn std::error::Error + 'static)) -> ConnectError {
    let why = match error.is::<LengthLimitError>() {
        true => format!("its answer has more than {MOST_BYTES} bytes"),
        false => format!("its answer was cut: {error}: check proxies and VPN on the way"),
    };
    ConnectError::new(Refusal::ClusterAway, format!("cannot {asked}: {why}"))
}

/// The seconds since 1970 of a date as RFC 9110 section 5.6.7 has it.
fn http_date(text: &str) -> Option<i64> {
    let parser = jiff::fmt::rfc2822::DateTimeParser::new();
    let time = parser.parse_timestamp(text).ok()?;
    Some(time.as_second())
}

/// All rights concurrently.
async fn rights(
    client: &Client,
    namespace: &str,
) -> Result<Vec<(AccessRight, bool)>, ConnectError> {
    let mut asked = JoinSet::new();
    for right in RIGHTS {
        let (client, namespace) = (client.clone(), namespace.to_owned());
        asked.spawn(async move {
            let allowed = probe::may(&client, &namespace, right).await?;
            Ok::<_, ConnectError>((right, allowed))
        });
    }
    asked.join_all().await.into_iter().collect()
}

/// Tries the transports, and reads names and ranges, concurrently.
pub(super) async fn rest(facts: &mut CheckFacts, reached: &ReachedCluster, policy: &Policy) {
    let chain = chain(reached, policy);
    let cluster = chain.get_ref().cluster();
    let (tried, names, ranges, real) = tokio::join!(
        transports(reached, policy),
        names(cluster),
        ranges(&reached.client, cluster),
        address_of_the_api(&reached.client),
    );
    facts.transports = tried;
    if let Some(lookup) = &mut facts.lookup {
        lookup.real = real;
    }
    facts.names = Some(names);
    facts.ranges = Some(ranges);
}

/// The layers that serve the proxy's clients.
pub(super) fn chain(reached: &ReachedCluster, policy: &Policy) -> proxy::ClusterStack {
    let config = policy.stack(&reached.namespace, Default::default());
    proxy::connect(reached.client.clone(), reached.api_server.clone(), config)
}

async fn transports(reached: &ReachedCluster, policy: &Policy) -> Vec<Tried> {
    let all: Vec<TransportChoice> = match policy.transport {
        TransportChoice::Auto => ["spdy", "spdy-ws", "ws"]
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect(),
        only => vec![only],
    };
    let mut tries = JoinSet::new();
    for (n, transport) in all.into_iter().enumerate() {
        let policy = Policy {
            transport,
            ..policy.clone()
        };
        let connect = chain(reached, &policy);
        let (client, namespace) = (reached.client.clone(), reached.namespace.clone());
        tries.spawn(async move {
            let tried = timeout(DIAL, probe::data_path(&client, &namespace, connect)).await;
            let came = tried.unwrap_or_else(|_| {
                Err(ConnectError::new(
                    Refusal::TimedOut,
                    format!("nothing happened within {} s", DIAL.as_secs()),
                ))
            });
            let tried = Tried {
                transport: transport.to_string(),
                came: came.map_err(CheckFailure::of),
            };
            (n, tried)
        });
    }
    let mut tried = tries.join_all().await;
    tried.sort_by_key(|(n, _)| *n);
    tried.into_iter().map(|(_, tried)| tried).collect()
}

async fn names(cluster: &Cluster) -> NameFacts {
    let domain = timeout(ANSWER, cluster.domain()).await;
    let dns = match timeout(ANSWER, cluster.dns()).await {
        Ok(Ok(pods)) => Some(Ok(pods.usable().map_or(0, |usable| usable.len()))),
        Ok(Err(error)) => Some(Err(error.to_string())),
        Err(_) => None,
    };
    NameFacts {
        domain: domain.map_or_else(
            |_| "cluster.local".to_owned(),
            |domain| domain.cluster().to_string(),
        ),
        dns,
    }
}

async fn ranges(client: &Client, cluster: &Cluster) -> Ranges {
    let (survey, pods) = tokio::join!(timeout(ANSWER, cluster.survey()), pod_ranges(client));
    let survey = survey.unwrap_or_else(|_| cluster.last_survey());
    let SurveyedList { found, failed } = survey.service_ranges;
    let services = found.ok_or_else(|| match failed {
        Some(why) => why.to_string(),
        None => "the API server did not say in time".to_owned(),
    });
    let looked_at = |ranges: Vec<String>| ranges.into_iter().take(RANGES).map(machine::route_into);
    Ranges {
        services: services.map(|ranges| looked_at(ranges).collect()),
        pods: pods.map(|ranges| looked_at(ranges).collect::<Vec<RangeFacts>>()),
    }
}

/// Ranges of Pods of the first nodes, if Kubernetes assigns them.
async fn pod_ranges(client: &Client) -> Result<Vec<String>, String> {
    let answer = get(client, &format!("/api/v1/nodes?limit={NODES}")).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let nodes = match answer.said {
        Ok(nodes) => nodes,
        Err(error) if error.refusal() == Refusal::Forbidden => {
            return Err("nodes, which have them, may not be listed".to_owned());
        }
        Err(error) => return Err(error.to_string()),
    };
    let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
    let of_node = |node: &Value| node["spec"]["podCIDR"].as_str().map(str::to_owned);
    Ok(nodes.iter().filter_map(of_node).collect())
}

/// The ClusterIP of the API server's Service, if it may be read.
async fn address_of_the_api(client: &Client) -> Option<IpAddr> {
    let path = "/api/v1/namespaces/default/services/kubernetes";
    let service = get(client, path).await.ok()?.said.ok()?;
    service["spec"]["clusterIP"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use kube::Config;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// The result for a server that sends this answer and closes.
    async fn asked(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(client.read(&mut request).await.unwrap() > 0);
            // The client may have closed after it has read enough.
            let _ = client.write_all(&answer).await;
        });
        let config = Config::new(url.parse().unwrap());
        let client = kubevpn_client::build(config, &crate::cli::options()).unwrap();
        let got = get(&client, "/version").await;
        server.await.unwrap();
        got.map_or_else(
            |error| error.to_string(),
            |answer| format!("{:?}", answer.said),
        )
    }

    /// The finding is about the answer: the server may still be an API server.
    #[tokio::test]
    async fn answers_that_are_cut_or_too_large() {
        let head = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let cut = asked((head(100) + "{\"gitVersion\":").into_bytes()).await;
        assert!(cut.contains("its answer was cut"), "{cut}");
        let mut large = head(MOST_BYTES + 1).into_bytes();
        large.resize(large.len() + MOST_BYTES + 1, b' ');
        let large = asked(large).await;
        assert!(large.contains("has more than 4194304 bytes"), "{large}");
        let page = asked((head(6) + "<html>").into_bytes()).await;
        assert!(page.contains("is no API server"), "{page}");
    }

    #[test]
    fn dates_and_versions() {
        let date = http_date("Thu, 01 Jan 1970 00:01:40 GMT");
        assert_eq!(date, Some(100));
        assert_eq!(http_date("yesterday"), None);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(90);
        assert_eq!(ahead(100, now), -10);
        for (text, minor) in [("34", Some(34)), ("29+", Some(29)), ("", None), ("x", None)] {
            assert_eq!(leading_number(text), minor, "{text}");
        }
    }
}
