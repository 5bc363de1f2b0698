//! Whether a proxy works, before anybody is told that it does.

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

use crate::{Protocol, reachable};

/// How long the API server may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long our own listener may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How many Pods are looked at, and how many of them dialled before the way to Pods is called broken.
const PODS: u32 = 50;
const DIALS: usize = 3;

/// That the API server answers: asks for something everybody may read, so that a wrong address or stale credentials are
/// said now and not to the first client.
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
        // Whoever may not even read the version may still be allowed to forward ports.
        Refusal::Forbidden => Ok(()),
        _ => Err(error),
    }
}

/// A call that the API server answers to nobody but those it knows: 403 is an answer too. The namespace's UID, where
/// we may see it.
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

/// That a listener of ours speaks what it should. A forward has no handshake, and a connection to it would be a client: it
/// is left alone. The others are left with a reset, so that this holds no place and no drain waits for it.
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
        // No authentication, or a user and a password (RFC 1928): one of them will do.
        stream.write_all(&[5, 2, 0, 2]).await?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await?;
        return match answer {
            [5, 0 | 2] => Ok(()),
            _ => Err(odd(&answer)),
        };
    }
    if matches!(protocol, Protocol::Dns) {
        // STATUS (RFC 1035), which nobody implements: an answer that asks nobody else.
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

/// Opens a stream to a ready Pod of the namespace; says to which. `None` where no such Pod is known, which is no
/// failure: an empty namespace has none, and not everybody may list them.
pub async fn data_path<C>(
    client: &Client,
    namespace: &str,
    connect: C,
) -> Result<Option<String>, ConnectError>
where
    C: Connect + Clone,
{
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let running = ListParams::default()
        .fields("status.phase=Running")
        .limit(PODS);
    let pods = match timeout(ANSWER, pods.list(&running)).await {
        Ok(Ok(pods)) => pods.items,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no Pods to try the way with");
            return Ok(None);
        }
        Err(_) => return Ok(None),
    };
    let mut failed = None;
    for (pod, port) in pods.iter().filter_map(ready_port).take(DIALS) {
        let Ok(target) = Target::parse(&format!("{pod}.{namespace}.pod:{port}"), Origin::default())
        else {
            continue;
        };
        let Err(error) = connect.clone().connect(target).await else {
            return Ok(Some(format!("{pod}:{port}")));
        };
        match error.refusal() {
            // The Pod itself was asked, or it is gone by now: the way is there.
            Refusal::Refused => return Ok(Some(format!("{pod}:{port}"))),
            Refusal::NameNotFound | Refusal::NotReady | Refusal::NoSuchPort => {}
            _ => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// A ready Pod, and a TCP port it says it has.
fn ready_port(pod: &Pod) -> Option<(&str, u16)> {
    let status = pod.status.as_ref()?;
    let ready = status.conditions.as_deref()?.iter();
    if !ready
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True")
    {
        return None;
    }
    let containers = pod.spec.as_ref()?.containers.iter();
    let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
    let tcp = ports.find(|p| p.protocol.as_deref().is_none_or(|p| p == "TCP"))?;
    Some((
        pod.metadata.name.as_deref()?,
        u16::try_from(tcp.container_port).ok()?,
    ))
}
