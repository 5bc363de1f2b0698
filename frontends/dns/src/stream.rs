//! Questions over a stream, each with its length in front (RFC 7766).

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
use crate::ask::{Answer, ask};
use crate::reply::encode;
use crate::request::{Read, read};

/// How many questions of one stream are being answered; further ones wait in the stream.
const AT_ONCE: usize = 16;

/// A question is a name and little more: a client that announces a longer message is not asking one.
const LONGEST: usize = 4096;

/// Serves one client's stream: any number of questions, answered as soon as each can be, in whichever order. Ends with
/// the client, when it finishes no question within the idle timeout, or when the drain begins and nothing is open.
///
/// Cancellation: dropping the future drops the stream and gives up what was asked.
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
    S: Answer + Clone,
{
    let mut input = BytesMut::new();
    let mut answering = FuturesUnordered::new();
    let mut ended = false;
    let drain = client.drain();
    let mut stopping = pin!(drain.stopping());
    // Of the next whole question: single bytes of one move nothing.
    let mut due = Instant::now() + settings.idle_timeout;
    let slow = || io::Error::from(io::ErrorKind::TimedOut);
    loop {
        while answering.len() < AT_ONCE
            && let Some(message) = take(&mut input)?
        {
            due = Instant::now() + settings.idle_timeout;
            match read(&message) {
                Read::Question(request) => {
                    let service = service.clone();
                    answering.push(async move { ask(&request, service, settings).await });
                }
                Read::Wrong(answer) => send(&mut client, &answer, settings).await?,
                // Whoever writes this will not write anything better.
                Read::Noise => return Ok(()),
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

/// A whole message off the front, if it is there. So what is read ahead is bounded: nothing is read while a whole
/// message waits.
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
