//! The default stack with two layers of one's own in front: an allow-list, and a limit on open streams.
//!
//! ```text
//! cargo run -p kubevpn-stack --example own_layers -- productpage multi
//! productpage:9080          a line is dialled, and its stream held
//! close                     ends the stream that is open longest
//! ```
//!
//! The words are the hosts that may be asked for; the kubeconfig is found as kubectl finds it.

use std::collections::VecDeque;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use kubevpn_client::{ApiServer, Env, KubeconfigArgs, Options, build, load};
use kubevpn_stack::{
    Cluster, ClusterSettings, Egress, Forwarder, ForwarderConfig, FromHost, Held, Outside,
    Settings, stack,
};
use kubevpn_target::{BoxError, Connect, ConnectError, Origin, Refusal, Stream, Target, classify};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, stdin, stdout};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceBuilder;
use tower_layer::Layer;
use tower_service::Service;

const AT_ONCE: usize = 2;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let allowed: Vec<String> = std::env::args().skip(1).collect();
    let loaded = load(&KubeconfigArgs::default(), &Env::of_process())?;
    let options = Options::new("kubevpn-example");
    let api_server = ApiServer::new(loaded.config.clone(), &options)?;
    let client = build(loaded.config, &options)?;
    let pods = stack(
        Cluster::new(client.clone(), ClusterSettings::default()),
        Forwarder::new(client, ForwarderConfig::default()),
        Egress::new(api_server, Outside::Deny, FromHost::default()),
        Settings::default(),
    );

    let connect = ServiceBuilder::new()
        // tower's own middleware, with a refusal that every frontend can tell its client.
        .filter(move |target: Target| allow(target, &allowed))
        // Behind the list, so that what is not allowed takes no place.
        .layer(OpenLimit::new(AT_ONCE))
        .service(pods);

    let mut lines = BufReader::new(stdin()).lines();
    let mut open = VecDeque::new();
    while let Some(line) = lines.next_line().await? {
        let said = match &*line {
            "close" => match open.pop_front() {
                Some(_stream) => "closed".into(),
                None => "nothing is open".into(),
            },
            target => match dial(connect.clone(), target).await {
                Ok(stream) => {
                    let said = format!("open {}", stream.via());
                    open.push_back(stream);
                    said
                }
                Err(error) => format!("{}: {error}", error.refusal()),
            },
        };
        stdout().write_all(format!("{said}\n").as_bytes()).await?;
        stdout().flush().await?;
    }
    Ok(())
}

async fn dial<C: Connect>(connect: C, target: &str) -> Result<C::Stream, ConnectError> {
    let target = Target::parse(target, Origin::default())
        .map_err(|error| ConnectError::new(Refusal::NameNotFound, error.to_string()))?;
    connect.connect(target).await
}

/// Passes a target on or refuses it.
fn allow(target: Target, allowed: &[String]) -> Result<Target, ConnectError> {
    let host = target.host.to_string();
    match allowed.contains(&host) {
        true => Ok(target),
        false => Err(ConnectError::new(
            Refusal::Denied,
            format!("{host} is not on the list"),
        )),
    }
}

/// Lets so many streams be open at once. tower's concurrency limit counts calls, and a call has ended when its stream
/// begins; so the permit goes into the stream.
#[derive(Clone)]
struct OpenLimit(Arc<Semaphore>);

impl OpenLimit {
    fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_once)))
    }
}

impl<S> Layer<S> for OpenLimit {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited {
            inner,
            places: Arc::clone(&self.0),
        }
    }
}

#[derive(Clone)]
struct Limited<S> {
    inner: S,
    places: Arc<Semaphore>,
}

impl<S> Service<Target> for Limited<S>
where
    S: Service<Target>,
    S::Response: Stream,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Held<S::Response, OwnedSemaphorePermit>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.inner.poll_ready(cx).map_err(|e| classify(e.into()))
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            let sentence = format!("{target} has to wait: {AT_ONCE} streams are open");
            return Box::pin(async { Err(ConnectError::new(Refusal::Overloaded, sentence)) });
        };
        let stream = self.inner.call(target);
        Box::pin(async move {
            let stream = stream.await.map_err(|e| classify(e.into()))?;
            Ok(Held::new(stream, permit))
        })
    }
}
