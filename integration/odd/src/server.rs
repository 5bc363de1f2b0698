//! A server that answers with bytes as they are written in a row.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::message::{head_length, request_ends, take_body};

/// What a server says to one request.
#[derive(Clone, Debug)]
pub(crate) struct Say {
    pub(crate) bytes: Vec<u8>,
    /// Before the body of the request is there.
    pub(crate) early: bool,
    /// Byte by byte.
    pub(crate) drip: bool,
    pub(crate) then: Then,
}

/// What a server does behind an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Stay,
    Close,
    Reset,
    /// Sends back what it gets until the client ends, then says "bye" and ends.
    Echo,
}

/// What a server saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saw {
    /// The head of each request and its body as it was sent, in the order they came.
    pub(crate) requests: Vec<OddRequest>,
    pub(crate) connections: usize,
    /// Bytes of a tunnel, or of something that never became a request.
    pub(crate) rest: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct OddRequest {
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<u8>,
}

pub(crate) struct OddServer {
    pub(crate) port: u16,
    saw: Arc<Mutex<Saw>>,
    serving: JoinHandle<()>,
}

impl OddServer {
    /// Each request gets the next of the answers, and the last of them for ever; a server without answers is a
    /// tunnel's end.
    pub(crate) async fn start(says: Vec<Say>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let saw = Arc::new(Mutex::new(Saw::default()));
        let serving = tokio::spawn({
            let saw = Arc::clone(&saw);
            async move {
                let says = Arc::new(says);
                while let Ok((stream, _)) = listener.accept().await {
                    saw.lock().unwrap().connections += 1;
                    let (says, saw) = (Arc::clone(&says), Arc::clone(&saw));
                    // It ends with the row's runtime, or its client.
                    tokio::spawn(async move { serve(stream, &says, &saw).await });
                }
            }
        });
        Ok(Self { port, saw, serving })
    }

    pub(crate) fn saw(&self) -> Saw {
        self.saw.lock().unwrap().clone()
    }
}

impl Drop for OddServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: TcpStream, says: &[Say], saw: &Mutex<Saw>) {
    let mut bytes = Vec::new();
    loop {
        let Some(head) = read_until(&mut stream, &mut bytes, saw, head_length).await else {
            return;
        };
        let head: Vec<u8> = bytes.drain(..head).collect();
        let count = {
            let mut saw = saw.lock().unwrap();
            saw.requests.push(OddRequest {
                head: head.clone(),
                ..OddRequest::default()
            });
            saw.requests.len()
        };
        let Some(say) = says.get(count - 1).or_else(|| says.last()) else {
            return;
        };
        if !say.early {
            let ends = request_ends(&head);
            let body = |bytes: &[u8]| take_body(bytes, ends, false).map(|(_, used)| used);
            let Some(used) = read_until(&mut stream, &mut bytes, saw, body).await else {
                return;
            };
            if let Some((body, _)) = take_body(&bytes, ends, false) {
                let mut saw = saw.lock().unwrap();
                saw.requests[count - 1].body = body.body;
                saw.requests[count - 1].trailers = body.trailers;
            }
            bytes.drain(..used);
        }
        let pieces = if say.drip { 1 } else { usize::MAX };
        for piece in say.bytes.chunks(pieces) {
            if stream.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        match say.then {
            Then::Stay => {}
            Then::Close => {
                // What it was sent and has not read must not turn the end into a reset.
                let _ = stream.shutdown().await;
                if !say.early {
                    let _ = timeout(Duration::from_secs(2), read_to_end(&mut stream)).await;
                }
                return;
            }
            Then::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
            Then::Echo => {
                let _ = stream.write_all(&bytes).await;
                saw.lock().unwrap().rest.extend_from_slice(&bytes);
                echo(stream, saw).await;
                return;
            }
        }
    }
}

async fn echo(mut stream: TcpStream, saw: &Mutex<Saw>) {
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut chunk).await {
        saw.lock().unwrap().rest.extend_from_slice(&chunk[..n]);
        if stream.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
    let _ = stream.write_all(b"bye").await;
    let _ = stream.shutdown().await;
}

async fn read_to_end(stream: &mut TcpStream) {
    let mut chunk = [0; 4096];
    while let Ok(1..) = stream.read(&mut chunk).await {}
}

/// Reads until `found` says how many bytes it wants; `None` when the client is gone before.
async fn read_until(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    saw: &Mutex<Saw>,
    found: impl Fn(&[u8]) -> Option<usize>,
) -> Option<usize> {
    loop {
        if let Some(length) = found(bytes) {
            return Some(length);
        }
        let mut chunk = vec![0; 64 * 1024];
        match stream.read(&mut chunk).await {
            Ok(n @ 1..) => bytes.extend_from_slice(&chunk[..n]),
            _ => {
                saw.lock().unwrap().rest.extend_from_slice(bytes);
                return None;
            }
        }
    }
}
