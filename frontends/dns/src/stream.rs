//! Queries over a stream, each with a length prefix (RFC 7766).

use std::io;
use std::pin::pin;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::Message;
use kubevpn_conn::ClientIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until, timeout};

use crate::Settings;
use crate::ask::{AnswerQueries, ask};
use crate::reply::encode;
use crate::request::{ParsedMessage, read};

/// Limit on simultaneous queries of one stream; further ones wait in the stream.
const AT_ONCE: usize = 16;

/// Limit on the length of a query, which is a name and little more.
const LONGEST: usize = 4096;

/// Serves one client's stream: any number of queries, answered in any order. Ends with the client, if the client completes
/// no query within the idle time-out, or when the drain begins and no query is open.
///
/// Cancellation: dropping the future drops the stream and gives its queries up.
///
/// ```no_run
/// use hickory_proto::op::{Message, Query};
/// use kubevpn_dns::{Settings, serve_stream};
/// use tokio::net::TcpListener;
///
/// # async fn run<F: Future<Output = std::io::Result<Message>> + Send>(
/// #     answer: impl Fn(Query) -> F + Clone + Send + 'static
/// # ) -> std::io::Result<()> where F: 'static {
/// let listener = TcpListener::bind("127.0.0.1:5353").await?;
/// loop {
///     let (client, _) = listener.accept().await?;
///     let service = tower::service_fn(answer.clone());
///     tokio::spawn(async move { serve_stream(client, service, &Settings::default()).await });
/// }
/// # }
/// ```
pub async fn serve_stream<C, S>(mut client: C, service: S, settings: &Settings) -> io::Result<()>
where
    C: ClientIo,
    S: AnswerQueries + Clone,
{
    let mut input = BytesMut::new();
    let mut answering = FuturesUnordered::new();
    let mut ended = false;
    let drain = client.drain();
    let mut stopping = pin!(drain.stopping());
    // The idle time-out restarts with each complete query, not with single bytes.
    let mut due = Instant::now() + settings.idle_timeout;
    let slow = || io::Error::from(io::ErrorKind::TimedOut);
    loop {
        while answering.len() < AT_ONCE
            && let Some(message) = take(&mut input)?
        {
            due = Instant::now() + settings.idle_timeout;
            match read(&message) {
                ParsedMessage::Question(request) => {
                    let service = service.clone();
                    answering.push(async move { ask(&request, service, settings).await });
                }
                ParsedMessage::Wrong(answer) => send(&mut client, &answer, settings).await?,
                // A client that writes this does not speak DNS.
                ParsedMessage::Noise => return Ok(()),
            }
        }
        if ended && answering.is_empty() {
            return Ok(());
        }
        let reads = !ended && answering.len() < AT_ONCE;
        tokio::select! {
            Some(answer) = answering.next() => {
                send(&mut client, &answer, settings).await?;
                due = Instant::now() + settings.idle_timeout;
            }
            got = client.read_buf(&mut input), if reads => ended = got? == 0,
            () = sleep_until(due), if answering.is_empty() => return Err(slow()),
            () = &mut stopping, if answering.is_empty() => return Ok(()),
        }
    }
}

/// Removes a complete message from the front, if there is one. Reading ahead is bounded, because nothing is read while a
/// complete message waits.
fn take(input: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let Some(length) = input
        .first_chunk()
        .map(|two| u16::from_be_bytes(*two).into())
    else {
        return Ok(None);
    };
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if input.len() < 2 + length {
        return Ok(None);
    }
    input.advance(2);
    Ok(Some(input.split_to(length).freeze()))
}

async fn send<C: ClientIo>(
    client: &mut C,
    answer: &Message,
    settings: &Settings,
) -> io::Result<()> {
    let bytes = encode(answer, u16::MAX.into());
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], &bytes].concat();
    let sending = async {
        client.write_all(&framed).await?;
        client.flush().await
    };
    timeout(settings.idle_timeout, sending)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
