//! `kubevpn nc`.

use std::io;
use std::pin::pin;
use std::time::Duration;

use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_daemon::{ApiError, Code};
use kubevpn_proxy as proxy;
use kubevpn_target::{Connect as _, Origin, Refusal, Stream, Target};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, copy_buf, split,
};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::at::{ProxyAddresses, of_daemon_for_run};
use super::habits;
use super::kube::KubeArgs;
use super::policy::PolicyArgs;
use super::reach::reach;
use super::suggest::advised;
use crate::exit::Failure;
use crate::progress;

/// Buffer size of one read, in bytes.
const BUFFER: usize = 64 * 1024;
/// Size limit of an answer to CONNECT, and its time limit, which is longer than a dial may take.
const MOST_HEAD: usize = 16 * 1024;
const CONNECTING: Duration = Duration::from_secs(40);
/// Silence after which a port-forward passes on the end of the input, and the Pod's runtime closes both directions (decision
/// 4).
const LINGER: Duration = Duration::from_secs(30);

/// Connect standard input and output to a port in the cluster
///
/// The command ends when the server closes the connection. The end of standard input alone does not end it: the answer is still
/// read. A port-forward cannot pass that end on to the Pod without closing both directions, so a server that waits for it is
/// cut off after 30 s of silence. The exit code is 42 then, because the answer may be incomplete. With --wait DURATION, the
/// command itself ends after that much silence, with exit code 0.
///
/// If the connection is refused, the exit code says why. If a connection to the same cluster, context and namespace is open and
/// has an HTTP listener without a password (`kubevpn connect --http`), the command uses it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # what a port says
  kubevpn nc db.shop 5432 < /dev/null

  # one command to a server that keeps its connections open
  printf 'PING\\r\\n' | kubevpn nc --wait 1s redis.shop 6379

  # ssh into the cluster
  ssh -o ProxyCommand='kubevpn nc %h %p' git@gitea.tools")]
pub(crate) struct Nc {
    /// Host to connect to, or HOST:PORT
    #[arg(value_name = "HOST")]
    host: String,
    /// Port to connect to
    #[arg(value_name = "PORT", value_parser = number)]
    port: Option<u16>,
    /// Exit with code 0 once nothing has been received for DURATION after the end of standard input, e.g. 1s
    #[arg(short, long, value_name = "DURATION", value_parser = super::duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl Nc {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        // The target is checked before the kubeconfig and standard input are read.
        target(&self.host, self.port, "default")?;
        let policy = self.policy.policy()?;
        let args = KubeconfigArgs::from(self.kube);
        let loaded = load(&args, &Env::of_process())?;
        let target = target(&self.host, self.port, &loaded.namespace)?;
        let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
        if let Some(proxy) = of_daemon_for_run(&args, &loaded, &policy).await
            && let Some(stream) = through(&proxy, &target).await
        {
            return outcome(relay(stream, input, output, self.wait).await, &target);
        }
        let config = policy.stack(&loaded.namespace, Default::default());
        let (client, api_server) = reach(loaded.config).await?;
        let connect = proxy::connect(client.clone(), api_server, config);
        let connecting = connect.connect(target.clone());
        match progress::shown(&target, connecting).await {
            Ok(stream) => outcome(relay(stream, input, output, self.wait).await, &target),
            Err(error) => Err(advised(error, &client, &loaded.namespace, &target.host).await),
        }
    }
}

fn outcome(relayed: Result<(), BrokenConnection>, target: &Target) -> Result<(), Failure> {
    relayed.map_err(|broken| match broken {
        BrokenConnection::Silent => Failure::Advised {
            error: ApiError::new(
                Code::Refused(Refusal::TimedOut),
                format!(
                    "{target} kept the connection open and said nothing for {} s after the end of standard input: it was \
                     closed, and more might have come",
                    LINGER.as_secs()
                ),
            ),
            advice: "--wait DURATION, which takes that much silence for the end of the answer".into(),
        },
        BrokenConnection::Unheard => Failure::Unheard,
        BrokenConnection::Error(error) => anyhow::Error::from(error)
            .context(format!("the connection to {target} broke"))
            .into(),
    })
}

/// A stream through the HTTP listener of an open connection (RFC 9110 section 9.3.6). `None` if the listener refuses: the dial
/// of this command then gives the reason.
async fn through(proxy: &ProxyAddresses, target: &Target) -> Option<TcpStream> {
    let connecting = async {
        let mut stream = TcpStream::connect(proxy.http?).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = Vec::new();
        // Reads byte by byte, because what follows the head belongs to the target.
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

fn number(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| "write a number from 1 to 65535".into())
}

/// The target as the user typed it, in one argument or two.
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

/// Reason why a connection ended before the server closed it.
#[derive(Debug)]
enum BrokenConnection {
    /// The server was silent for as long as the end of the input is held back.
    Silent,
    /// The reader of standard output has closed it.
    Unheard,
    Error(io::Error),
}

impl From<io::Error> for BrokenConnection {
    fn from(error: io::Error) -> Self {
        Self::Error(error)
    }
}

/// Reason why standard output cannot be written.
fn unheard(error: io::Error) -> BrokenConnection {
    match error.kind() {
        io::ErrorKind::BrokenPipe => BrokenConnection::Unheard,
        _ => BrokenConnection::Error(error),
    }
}

/// State of the end of a connection.
#[derive(Clone, Copy)]
struct Progress {
    /// Whether the input has ended.
    asked: bool,
    /// Time since which nothing was received; `None` while standard output is being written.
    quiet: Option<Instant>,
}

/// Relays both directions until the server closes, or, with `wait`, is silent for that long after the end of the input. An
/// error of sending is reported after that.
async fn relay(
    stream: impl Stream,
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    wait: Option<Duration>,
) -> Result<(), BrokenConnection> {
    let (mut from, mut to) = split(stream);
    let progress = watch::Sender::new(Progress {
        asked: false,
        quiet: Some(Instant::now()),
    });
    let relayed = {
        let up = async {
            copy_buf(&mut BufReader::with_capacity(BUFFER, input), &mut to).await?;
            progress.send_modify(|progress| {
                progress.asked = true;
                progress.quiet = progress.quiet.map(|_| Instant::now());
            });
            to.shutdown().await
        };
        let down = async {
            let mut buffer = vec![0; BUFFER];
            loop {
                let n = from.read(&mut buffer).await?;
                if n == 0 {
                    return Ok::<_, BrokenConnection>(());
                }
                progress.send_modify(|progress| progress.quiet = None);
                output.write_all(&buffer[..n]).await.map_err(unheard)?;
                // Flushes, because standard output holds back a line without its newline.
                output.flush().await.map_err(unheard)?;
                progress.send_modify(|progress| progress.quiet = Some(Instant::now()));
            }
        };
        let silence = async {
            match wait {
                Some(wait) => silent(progress.subscribe(), wait).await,
                None => std::future::pending().await,
            }
        };
        let (mut up, mut down, mut silence) = (pin!(up), pin!(down), pin!(silence));
        let mut sent = None;
        loop {
            tokio::select! {
                biased;
                received = &mut down => break Some((received, sent.unwrap_or(Ok(())))),
                ended = &mut up, if sent.is_none() => sent = Some(ended),
                () = &mut silence => break None,
            }
        }
    };
    let Some((received, sent)) = relayed else {
        // The stream is shut down and not dropped, so that input already sent is still delivered.
        let mut stream = from.unsplit(to);
        stream.no_reader();
        return Ok(stream.shutdown().await?);
    };
    let Progress { asked, quiet } = *progress.borrow();
    let silence = quiet.map_or(Duration::ZERO, |since| since.elapsed());
    match received {
        Ok(()) => Ok(sent?),
        Err(BrokenConnection::Error(error)) if asked && is_cut(&error, silence) => {
            Err(BrokenConnection::Silent)
        }
        Err(broken) => Err(broken),
    }
}

/// Waits until the input has ended and nothing was received for that long.
async fn silent(mut progress: watch::Receiver<Progress>, wait: Duration) {
    loop {
        let until = match *progress.borrow_and_update() {
            Progress {
                asked: true,
                quiet: Some(since),
            } => since.checked_add(wait),
            _ => None,
        };
        let over = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = progress.changed() => {}
            () = over => return,
        }
    }
}

/// Whether the connection was closed because the server was silent: a port-forward reports it, a proxy resets its client.
fn is_cut(error: &io::Error, silence: Duration) -> bool {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => true,
        io::ErrorKind::ConnectionReset => silence >= LINGER,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use kubevpn_target::Plain;
    use tokio::io::duplex;
    use tokio::time::sleep;

    use super::*;
    use crate::exit::exit_code;

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

    /// The end of the input does not end the answer; the end of the answer ends the command.
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
        relay(Plain(near), &*request, &mut answer, None)
            .await
            .unwrap();
        assert!(answer == request);
        server.await.unwrap();
        // Input that never ends.
        let (near, far) = duplex(16);
        let (input, _open) = duplex(16);
        drop(far);
        relay(Plain(near), input, &mut Vec::new(), None)
            .await
            .unwrap();
    }

    /// A server that keeps the connection open, and a reader that is slower than the wait.
    #[tokio::test(start_paused = true)]
    async fn silence_after_the_input_is_the_end_where_it_is_asked_for() {
        let (near, mut far) = duplex(1 << 20);
        let (output, mut reader) = duplex(16);
        let server = async move {
            far.read_exact(&mut [0; 4]).await.unwrap();
            sleep(Duration::from_millis(900)).await;
            far.write_all(&[7; 100]).await.unwrap();
            far
        };
        let read = async move {
            sleep(Duration::from_secs(10)).await;
            let mut answer = Vec::new();
            reader.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let wait = Some(Duration::from_secs(1));
        let relayed = relay(Plain(near), &b"ping"[..], output, wait);
        let (relayed, answer, _open) = tokio::join!(relayed, read, server);
        relayed.unwrap();
        assert_eq!(answer, [7; 100]);
    }

    /// A server that closes before it has read everything is a failure; a reader of the output that closes early is not.
    #[tokio::test]
    async fn what_could_not_be_sent_or_printed_is_told_apart() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let stream = tokio_test::io::Builder::new()
            .read(b"no")
            .write_error(broken())
            .build();
        let relayed = relay(Plain(stream), &b"ping"[..], &mut Vec::new(), None).await;
        assert!(
            matches!(relayed, Err(BrokenConnection::Error(_))),
            "{relayed:?}"
        );
        let stream = tokio_test::io::Builder::new().read(b"yes").build();
        let output = tokio_test::io::Builder::new().write_error(broken()).build();
        let (input, _open) = duplex(16);
        let relayed = relay(Plain(stream), input, output, None).await;
        assert!(
            matches!(relayed, Err(BrokenConnection::Unheard)),
            "{relayed:?}"
        );
    }

    /// A port-forward that passed on the end of the input, and was closed because of it.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_cut_for_its_silence_is_told_as_such() {
        for (kind, after, silent) in [
            (io::ErrorKind::UnexpectedEof, 31, true),
            (io::ErrorKind::ConnectionReset, 31, true),
            (io::ErrorKind::ConnectionReset, 3, false),
            (io::ErrorKind::ConnectionAborted, 31, false),
        ] {
            let stream = tokio_test::io::Builder::new()
                .write(b"ping")
                .wait(Duration::from_secs(after))
                .read_error(kind.into())
                .build();
            let relayed = relay(Plain(stream), &b"ping"[..], &mut Vec::new(), None).await;
            let broken = relayed.unwrap_err();
            assert_eq!(matches!(broken, BrokenConnection::Silent), silent, "{kind}");
            let target = target("redis", Some(6379), "shop").unwrap();
            let failure = outcome(Err(broken), &target).unwrap_err();
            assert_eq!(exit_code(&failure), if silent { 42 } else { 1 });
        }
    }
}
