//! gRPC, which is HTTP/2 with prior knowledge, through the two ways that carry any protocol.

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{Request, Version};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::http as proxies;
use super::scenario;
use crate::proxy::PATIENCE;
use crate::{Context, Curl, Scenario, Socks, TunnelClient};

pub(super) fn list() -> Vec<Scenario> {
    vec![
        scenario!("grpc", messages_go_back_and_forth),
        scenario!("grpc", curl_speaks_http2_with_prior_knowledge),
    ]
}

/// One call with a stream of messages each way: each is answered before the next is sent, so that nothing on the way
/// may hold one back; a large one is more than a window; the end is in trailers.
async fn messages_go_back_and_forth(cx: Context) -> anyhow::Result<()> {
    let (proxy, http) = proxies::start(&cx).await?;
    for stream in [
        TunnelClient::connect(http, "productpage", 9080).await?,
        Socks::connect(proxy.socks, "productpage", 9080).await?,
    ] {
        tokio::time::timeout(PATIENCE, call(stream)).await??;
    }
    Ok(())
}

async fn call(stream: TcpStream) -> anyhow::Result<()> {
    let (mut requests, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driven = tokio::spawn(connection);
    let (messages, sent) = mpsc::channel::<Bytes>(1);
    let frames = stream::unfold(sent, |mut sent| async move {
        let message = sent.recv().await?;
        Some((anyhow::Ok(Frame::data(message)), sent))
    });
    let request = Request::post("http://productpage:9080/lab.Echo/Say")
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(Box::pin(frames)))?;
    let answer = requests.send_request(request).await?;
    anyhow::ensure!(answer.status() == 200, "{answer:?}");
    anyhow::ensure!(answer.headers()["content-type"] == "application/grpc");

    let mut body = answer.into_body();
    for text in [&b"first"[..], b"second", &[b'x'; 300_000], b""] {
        let message = message(text);
        messages.send(message.clone()).await?;
        let echo = read(&mut body, message.len()).await?;
        anyhow::ensure!(
            echo == message,
            "{} bytes came back as {}",
            text.len(),
            echo.len()
        );
    }
    drop(messages);
    let frame = body
        .frame()
        .await
        .ok_or_else(|| anyhow::anyhow!("no trailers"))??;
    let trailers = frame.into_trailers();
    let trailers = trailers.map_err(|frame| anyhow::anyhow!("more: {frame:?}"))?;
    anyhow::ensure!(trailers["grpc-status"] == "0", "{trailers:?}");
    anyhow::ensure!(trailers["grpc-message"] == "said", "{trailers:?}");
    drop(requests);
    driven.await??;
    Ok(())
}

/// Not compressed, its length, itself.
fn message(text: &[u8]) -> Bytes {
    let length = (text.len() as u32).to_be_bytes();
    [&[0], &length[..], text].concat().into()
}

async fn read(body: &mut Incoming, length: usize) -> anyhow::Result<BytesMut> {
    let mut read = BytesMut::new();
    while read.len() < length {
        let Some(frame) = body.frame().await else {
            anyhow::bail!("the stream ended after {} bytes", read.len());
        };
        match frame?.into_data() {
            Ok(data) => read.extend_from_slice(&data),
            Err(frame) => anyhow::bail!("{frame:?} after {} bytes", read.len()),
        }
    }
    Ok(read)
}

async fn curl_speaks_http2_with_prior_knowledge(cx: Context) -> anyhow::Result<()> {
    let (proxy, http) = proxies::start(&cx).await?;
    let url = "http://productpage:9080/";
    let (socks, http) = (
        format!("socks5h://{}", proxy.socks),
        format!("http://{http}"),
    );
    for way in [
        &["--proxy", &socks][..],
        &["--proxytunnel", "--proxy", &http],
    ] {
        let args = [way, &["--http2-prior-knowledge", url]].concat();
        let answer = Curl::run(&args).await?.json()?;
        anyhow::ensure!(answer["proto"] == "HTTP/2.0", "{answer}");
    }
    Ok(())
}
