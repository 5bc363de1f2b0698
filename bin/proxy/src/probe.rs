//! Checks of a proxy before it is reported as working.

mod rights;

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use kubevpn_client::{Action, classify_api};
use kubevpn_conn::Addr;
use kubevpn_target::{Connect, ConnectError, Origin, Refusal, Target};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

pub use self::rights::{AccessRight, CREATE_PORT_FORWARD, GET_PORT_FORWARD, may};
use crate::{Protocol, reachable};

/// Time limit of the API server.
const ANSWER: Duration = Duration::from_secs(10);
/// Time limit of our own listener.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Number of Pods that are listed, and of those that are dialled before port-forward is reported as broken.
const PODS: u32 = 50;
const DIALS: usize = 3;

/// Checks that the API server answers, with a request that every user may make. A wrong address and expired credentials are
/// reported now, not to the first client.
pub async fn check(client: &Client) -> Result<(), ConnectError> {
    let asked = Action {
        verb: "get",
        resource: "/version",
        api_group: "",
        namespace: None,
        name: None,
    };
    let error = match timeout(ANSWER, client.apiserver_version()).await {
        Ok(Ok(version)) => {
            tracing::debug!(version = %version.git_version, "the API server answers");
            return Ok(());
        }
        Ok(Err(error)) => classify_api(error, &asked),
        Err(_) => ConnectError::new(
            Refusal::ClusterAway,
            format!(
                "the API server did not answer within {} s",
                ANSWER.as_secs()
            ),
        ),
    };
    match error.refusal() {
        // A user who may not read the version may still be allowed to forward ports.
        Refusal::Forbidden => Ok(()),
        _ => Err(error),
    }
}

/// Makes a call that requires valid credentials; 403 proves them too. Returns the namespace's UID, if it may be read.
pub async fn api(client: &Client, namespace: &str) -> Result<Option<String>, ConnectError> {
    let asked = Action {
        verb: "get",
        resource: "namespaces",
        api_group: "",
        namespace: None,
        name: Some(namespace),
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let Ok(answer) = timeout(ANSWER, namespaces.get(namespace)).await else {
        return Err(ConnectError::new(
            Refusal::ClusterAway,
            format!(
                "the API server did not answer within {} s: check the way to it",
                ANSWER.as_secs()
            ),
        ));
    };
    match answer {
        Ok(namespace) => Ok(namespace.metadata.uid),
        Err(error) => {
            let error = classify_api(error, &asked);
            match error.refusal() {
                Refusal::Forbidden => Ok(None),
                _ => Err(error),
            }
        }
    }
}

/// Checks that our listener speaks its protocol. A forward is skipped: it has no handshake, and the connection would be a
/// client. Other connections are closed with a reset, so that no permit is held and no drain waits for them.
pub async fn handshake(addr: &Addr, protocol: &Protocol) -> Result<(), String> {
    if let Protocol::Forward(_) = protocol {
        return Ok(());
    }
    let spoken = async {
        match addr {
            Addr::Tcp(addr) => {
                let stream = TcpStream::connect(reachable(*addr)).await?;
                stream.set_zero_linger()?;
                speak(stream, protocol).await
            }
            Addr::Unix(path) => speak(UnixStream::connect(path).await?, protocol).await,
        }
    };
    let why = match timeout(HANDSHAKE, spoken).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", HANDSHAKE.as_secs()),
    };
    Err(format!(
        "the listener on {addr} does not answer as it should: {why}"
    ))
}

async fn speak(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    protocol: &Protocol,
) -> std::io::Result<()> {
    let odd = |answer: &[u8]| {
        std::io::Error::other(format!("it said {:?}", String::from_utf8_lossy(answer)))
    };
    if matches!(protocol, Protocol::Socks | Protocol::Mixed) {
        // Offers no authentication, and user and password (RFC 1928).
        stream.write_all(&[5, 2, 0, 2]).await?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await?;
        return match answer {
            [5, 0 | 2] => Ok(()),
            _ => Err(odd(&answer)),
        };
    }
    if matches!(protocol, Protocol::Dns) {
        // STATUS (RFC 1035) is not implemented, so it is answered without a query to the cluster.
        let request = [0, 12, 1, 2, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        stream.write_all(&request).await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await?;
        return match answer {
            [_, _, 1, 2, flags] if flags & 0x80 != 0 => Ok(()),
            _ => Err(odd(&answer)),
        };
    }
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await?;
    match &answer {
        b"HTTP/1." => Ok(()),
        _ => Err(odd(&answer)),
    }
}

/// Whether streams to the Pods of a namespace can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortForwardAccess {
    /// A stream was opened.
    Open {
        /// The Pod and its port.
        to: String,
    },
    /// The Pods could not be listed.
    NotListed {
        /// The namespace.
        namespace: String,
        /// Whether the access rules forbid it.
        forbidden: bool,
    },
    /// There is no ready Pod.
    NoneReady {
        /// The namespace.
        namespace: String,
    },
    /// No ready Pod declares a port.
    NoPort {
        /// The namespace.
        namespace: String,
    },
}

/// The result as a sentence.
impl fmt::Display for PortForwardAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { to } => write!(f, "port-forward works (tried with pod {to})"),
            Self::NotListed {
                namespace,
                forbidden: true,
            } => write!(
                f,
                "port-forward was not tried: you may not list the Pods of {namespace}"
            ),
            Self::NotListed { namespace, .. } => write!(
                f,
                "port-forward was not tried: the Pods of {namespace} could not be listed"
            ),
            Self::NoneReady { namespace } => write!(
                f,
                "port-forward was not tried: no Pod of {namespace} is ready"
            ),
            Self::NoPort { namespace } => write!(
                f,
                "port-forward was not tried: no ready Pod of {namespace} declares a port"
            ),
        }
    }
}

/// Opens a stream to a ready Pod of the namespace that declares a port. A namespace without one is not an error, and
/// neither are Pods that may not be listed. Missing rights to forward are an error.
pub async fn data_path<C>(
    client: &Client,
    namespace: &str,
    connect: C,
) -> Result<PortForwardAccess, ConnectError>
where
    C: Connect + Clone,
{
    rights::may_forward(client, namespace).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let running = ListParams::default()
        .fields("status.phase=Running")
        .limit(PODS);
    let not_listed = |forbidden| PortForwardAccess::NotListed {
        namespace: namespace.to_owned(),
        forbidden,
    };
    let pods = match timeout(ANSWER, pods.list(&running)).await {
        Ok(Ok(pods)) => pods.items,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no Pods to try the way with");
            let forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
            return Ok(not_listed(forbidden));
        }
        Err(_) => return Ok(not_listed(false)),
    };
    let ready: Vec<_> = pods.iter().filter(|pod| is_ready(pod)).collect();
    if ready.is_empty() {
        let namespace = namespace.to_owned();
        return Ok(PortForwardAccess::NoneReady { namespace });
    }
    let mut failed = None;
    for (pod, port) in ready.into_iter().filter_map(tcp_port).take(DIALS) {
        let Ok(target) = Target::parse(&format!("{pod}.{namespace}.pod:{port}"), Origin::default())
        else {
            continue;
        };
        let to = format!("{pod}:{port}");
        let Err(error) = connect.clone().connect(target).await else {
            return Ok(PortForwardAccess::Open { to });
        };
        match error.refusal() {
            // The Pod refused, or ended meanwhile: port-forward works.
            Refusal::Refused => return Ok(PortForwardAccess::Open { to }),
            Refusal::NameNotFound | Refusal::NotReady | Refusal::NoSuchPort => {}
            _ => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(PortForwardAccess::NoPort {
            namespace: namespace.to_owned(),
        }),
    }
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status
        .into_iter()
        .flat_map(|s| s.conditions.iter().flatten());
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Name of a Pod, and a TCP port that it declares.
fn tcp_port(pod: &Pod) -> Option<(&str, u16)> {
    let containers = pod.spec.as_ref()?.containers.iter();
    let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
    let tcp = ports.find(|p| p.protocol.as_deref().is_none_or(|p| p == "TCP"))?;
    Some((
        pod.metadata.name.as_deref()?,
        u16::try_from(tcp.container_port).ok()?,
    ))
}
