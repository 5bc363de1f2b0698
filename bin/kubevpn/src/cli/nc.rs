//! `kubevpn nc`.

use std::io;
use std::pin::pin;
use std::time::Duration;

use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_proxy as proxy;
use kubevpn_target::{Connect as _, Origin, Target};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, copy_buf, split,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::at::{Proxy, of_daemon_for_run};
use super::habits;
use super::kube::KubeArgs;
use super::policy::PolicyArgs;
use super::reach::reach;
use super::suggest::advised;
use crate::exit::Failure;
use crate::progress;

/// Bytes read at a time.
const BUFFER: usize = 64 * 1024;
/// Size limit of an answer to CONNECT, and its time limit, which is more than a dial takes.
const MOST_HEAD: usize = 16 * 1024;
const CONNECTING: Duration = Duration::from_secs(40);

/// Connect standard input and output to a port in the cluster
///
/// At the end of standard input only that direction is closed; the command ends when the other side has closed, too. The exit
/// code says why a connection was refused. The open connection to the same cluster, context and namespace carries it, where
/// that has an HTTP listener without a password (`kubevpn connect --http`).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # what a port says
  kubevpn nc db.shop 5432 < /dev/null

  # ssh into the cluster
  ssh -o ProxyCommand='kubevpn nc %h %p' git@gitea.tools")]
pub(crate) struct Nc {
    /// Host to connect to, or HOST:PORT
    #[arg(value_name = "HOST")]
    host: String,
    /// Port to connect to
    #[arg(value_name = "PORT")]
    port: Option<u16>,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl Nc {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        // Before anything is read.
        target(&self.host, self.port, "default")?;
        let policy = self.policy.policy()?;
        let args = KubeconfigArgs::from(self.kube);
        let loaded = load(&args, &Env::of_process())?;
        let target = target(&self.host, self.port, &loaded.namespace)?;
        let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
        if let Some(proxy) = of_daemon_for_run(&args, &loaded, &policy).await
            && let Some(stream) = through(&proxy, &target).await
        {
            return outcome(relay(stream, input, output).await, &target);
        }
        let config = policy.stack(&loaded.namespace, Default::default());
        let (client, api_server) = reach(loaded.config).await?;
        let connect = proxy::connect(client.clone(), api_server, config);
        let connecting = connect.connect(target.clone());
        match progress::shown(&target, connecting).await {
            Ok(stream) => outcome(relay(stream, input, output).await, &target),
            Err(error) => Err(advised(error, &client, &loaded.namespace, &target.host).await),
        }
    }
}

fn outcome(relayed: io::Result<()>, target: &Target) -> Result<(), Failure> {
    relayed.map_err(|error| match error.kind() {
        // Whoever read it has had enough.
        io::ErrorKind::BrokenPipe => Failure::Unheard,
        _ => anyhow::Error::from(error)
            .context(format!("the connection to {target} broke"))
            .into(),
    })
}

/// A stream through the HTTP listener of an open connection (RFC 9110 section 9.3.6). `None` where it gives none: the dial of
/// this command says why.
async fn through(proxy: &Proxy, target: &Target) -> Option<TcpStream> {
    let connecting = async {
        let mut stream = TcpStream::connect(proxy.http?).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = Vec::new();
        // Byte by byte: the rest is the target's.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == MOST_HEAD {
                return None;
            }
            head.push(stream.read_u8().await.ok()?);
        }
        head.starts_with(b"HTTP/1.1 200 ").then_some(stream)
    };
    timeout(CONNECTING, connecting).await.ok().flatten()
}

/// As it was typed, in one word or two.
fn target(host: &str, port: Option<u16>, namespace: &str) -> Result<Target, Failure> {
    let text = match port {
        None => host.to_owned(),
        Some(port) if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        Some(port) => format!("{host}:{port}"),
    };
    let (host, port) = habits::target(&text, namespace)?;
    let port =
        port.ok_or_else(|| Failure::value(format!("{text} has no port: write {text} PORT")))?;
    Ok(Target {
        host,
        port,
        origin: Origin::default(),
    })
}

/// Both ways, until the stream has ended; what could not be sent to it is said after that.
async fn relay(
    stream: impl AsyncRead + AsyncWrite,
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let (from, mut to) = split(stream);
    let up = async {
        copy_buf(&mut BufReader::with_capacity(BUFFER, input), &mut to).await?;
        to.shutdown().await
    };
    let down = async {
        copy_buf(&mut BufReader::with_capacity(BUFFER, from), &mut output).await?;
        output.flush().await
    };
    let (mut up, mut down) = (pin!(up), pin!(down));
    let mut sent = None;
    loop {
        tokio::select! {
            biased;
            received = &mut down => return received.and_then(|()| sent.unwrap_or(Ok(()))),
            ended = &mut up, if sent.is_none() => sent = Some(ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[test]
    fn hosts_and_ports() {
        let read = |host, port| {
            let read = target(host, port, "shop");
            read.map(|target| target.to_string()).ok()
        };
        assert_eq!(read("web.shop", Some(80)).as_deref(), Some("web.shop:80"));
        assert_eq!(read("web.shop:80", None).as_deref(), Some("web.shop:80"));
        assert_eq!(read("fd00::1", Some(80)).as_deref(), Some("[fd00::1]:80"));
        assert_eq!(read("web", None), None);
        assert_eq!(read("web", Some(0)), None);
    }

    /// The end of the input is no end of the answer, and the end of the answer is the end.
    #[tokio::test]
    async fn half_closed_input_gets_the_whole_answer() {
        let (near, mut far) = duplex(16);
        let server = tokio::spawn(async move {
            let mut request = Vec::new();
            far.read_to_end(&mut request).await.unwrap();
            far.write_all(&request).await.unwrap();
        });
        let request = vec![7; 100_000];
        let mut answer = Vec::new();
        relay(near, &*request, &mut answer).await.unwrap();
        assert!(answer == request);
        server.await.unwrap();
        // An input that does not end.
        let (near, far) = duplex(16);
        let (input, _open) = duplex(16);
        drop(far);
        relay(near, input, &mut Vec::new()).await.unwrap();
    }
}
