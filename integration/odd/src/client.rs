//! A client that says bytes as they are written in a row.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::message::{BodyEnd, Message, answer_ends, head_length, status, take_body};

/// How long an answer may take. Nothing in a row is slow; it is for what never comes.
const PATIENCE: Duration = Duration::from_secs(4);

/// What a client does next.
#[derive(Clone, Debug)]
pub(crate) enum Do {
    /// Sends bytes, in which `{http}` stands for `http://host:port` through a proxy and for nothing without one, and
    /// `{host}` for `host:port`.
    Send(Vec<u8>),
    /// Only through a proxy.
    SendToProxy(Vec<u8>),
    /// Reads one answer and the interim ones before it.
    Hear,
    /// The same for the answer of a proxy.
    HearProxy,
    /// Reads so many bytes.
    Read(usize),
    /// Ends its own writing.
    End,
    /// Reads to the end of the connection.
    ReadAll,
}

/// What a client heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    /// Final answers.
    pub(crate) answers: Vec<Message>,
    /// Heads of interim answers.
    pub(crate) interim: Vec<Vec<u8>>,
    /// Bytes that are no answer.
    pub(crate) raw: Vec<u8>,
    pub(crate) ended: Option<ConnectionEnd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionEnd {
    Closed,
    Reset,
    /// Nothing came for [`PATIENCE`].
    Silent,
}

struct OddClient {
    stream: TcpStream,
    bytes: Vec<u8>,
    heard: Heard,
}

/// Does it all, as far as the other side goes along.
pub(crate) async fn talk(
    addr: SocketAddr,
    through_proxy: bool,
    does: &[Do],
    fill: impl Fn(&[u8]) -> Vec<u8>,
) -> Heard {
    let Ok(stream) = TcpStream::connect(addr).await else {
        return Heard::default();
    };
    let _ = stream.set_nodelay(true);
    let mut client = OddClient {
        stream,
        bytes: Vec::new(),
        heard: Heard::default(),
    };
    let mut methods = Vec::new();
    for step in does {
        match step {
            Do::Send(bytes) => {
                let bytes = fill(bytes);
                methods.push(method(&bytes));
                client.send(&bytes).await;
            }
            Do::SendToProxy(bytes) if through_proxy => {
                let bytes = fill(bytes);
                methods.push(method(&bytes));
                client.send(&bytes).await;
            }
            Do::Hear => client.hear(methods.last().map_or(b"", |m| m)).await,
            Do::HearProxy if through_proxy => client.hear(methods.last().map_or(b"", |m| m)).await,
            Do::Read(n) => client.read(*n).await,
            Do::End => drop(client.stream.shutdown().await),
            Do::ReadAll => client.read(usize::MAX).await,
            Do::SendToProxy(_) | Do::HearProxy => {}
        }
    }
    client.heard
}

fn method(bytes: &[u8]) -> Vec<u8> {
    let word = bytes.split(|b| *b == b' ').next();
    word.unwrap_or_default().to_vec()
}

impl OddClient {
    /// A server may answer and close before it has all, so an error is no reason to stop; and it may answer while
    /// this still sends.
    async fn send(&mut self, bytes: &[u8]) {
        let (mut read, mut write) = self.stream.split();
        let sending = async {
            let _ = timeout(PATIENCE, write.write_all(bytes)).await;
        };
        let mut chunk = vec![0; 16 * 1024];
        tokio::pin!(sending);
        loop {
            tokio::select! {
                biased;
                () = &mut sending => return,
                got = read.read(&mut chunk), if self.heard.ended.is_none() => match got {
                    Ok(0) => self.heard.ended = Some(ConnectionEnd::Closed),
                    Ok(n) => self.bytes.extend_from_slice(&chunk[..n]),
                    Err(_) => self.heard.ended = Some(ConnectionEnd::Reset),
                },
            }
        }
    }

    async fn fill(&mut self) -> bool {
        if self.heard.ended.is_some() {
            return false;
        }
        let mut chunk = vec![0; 64 * 1024];
        self.heard.ended = match timeout(PATIENCE, self.stream.read(&mut chunk)).await {
            Ok(Ok(0)) => Some(ConnectionEnd::Closed),
            Ok(Ok(n)) => {
                self.bytes.extend_from_slice(&chunk[..n]);
                return true;
            }
            Ok(Err(_)) => Some(ConnectionEnd::Reset),
            Err(_) => Some(ConnectionEnd::Silent),
        };
        false
    }

    async fn hear(&mut self, method: &[u8]) {
        loop {
            let length = loop {
                match head_length(&self.bytes) {
                    Some(length) => break length,
                    None if self.fill().await => {}
                    None => {
                        self.heard.raw.append(&mut self.bytes);
                        return;
                    }
                }
            };
            let head: Vec<u8> = self.bytes.drain(..length).collect();
            if matches!(status(&head), 100 | 102..=199) {
                self.heard.interim.push(head);
                continue;
            }
            let ends = answer_ends(&head, method);
            let at_end = self.heard.ended.is_some();
            let mut body = take_body(&self.bytes, ends, at_end);
            while body.is_none() {
                let more = self.fill().await;
                body = take_body(&self.bytes, ends, !more);
            }
            if let Some((mut message, used)) = body {
                self.bytes.drain(..used);
                // An end that is no orderly one is none.
                if ends == BodyEnd::AtEof && self.heard.ended != Some(ConnectionEnd::Closed) {
                    message.whole = false;
                }
                message.head = head;
                self.heard.answers.push(message);
            }
            return;
        }
    }

    async fn read(&mut self, n: usize) {
        while self.bytes.len() < n && self.fill().await {}
        let n = n.min(self.bytes.len());
        self.heard.raw.extend(self.bytes.drain(..n));
    }
}
