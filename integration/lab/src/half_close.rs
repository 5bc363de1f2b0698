//! Answers to a client that ends its side at once, by runtime: through kubectl, which passes the end on. kubectl is of the
//! cluster's version: 1.30 forwards over SPDY, later versions over SPDY in WebSocket.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::Lab;

/// More than any of the answers takes.
const LIMIT: Duration = Duration::from_secs(30);

/// The port of a Pod, what is sent before the end, and what a whole answer is.
const EXCHANGES: [(&str, u16, &str, Whole); 6] = [
    (
        "300 MB",
        9080,
        "GET /bytes?n=300000000 HTTP/1.0\r\n\r\n",
        Whole::Bytes(300_000_000),
    ),
    (
        "an answer that begins after 0.5 s",
        9080,
        "GET /slow?ms=500 HTTP/1.0\r\n\r\n",
        Whole::Ends("slept 500\n"),
    ),
    (
        "an answer that begins after 1.5 s",
        9080,
        "GET /slow?ms=1500 HTTP/1.0\r\n\r\n",
        Whole::Ends("slept 1500\n"),
    ),
    (
        "an answer that begins after 5 s",
        9080,
        "GET /slow?ms=5000 HTTP/1.0\r\n\r\n",
        Whole::Ends("slept 5000\n"),
    ),
    (
        "a server that answers the client's end",
        7000,
        "until the end",
        Whole::Ends("until the end"),
    ),
    (
        "a server that listens on the Pod's own address alone",
        7100,
        "to the Pod's address",
        Whole::Echo("to the Pod's address"),
    ),
];

#[derive(Clone, Copy, Debug)]
enum Whole {
    /// At least, with the head before them.
    Bytes(u64),
    Ends(&'static str),
    /// Ends with this text; some runtimes refuse the port.
    Echo(&'static str),
}

/// One exchange with a client that ends its side as soon as it has sent.
#[derive(Debug)]
pub(crate) struct HalfClosed {
    /// In a few words.
    pub(crate) what: &'static str,
    /// Expected of the answer.
    expected: Whole,
    /// Whether the answer was whole.
    whole: bool,
    /// Of the answer.
    bytes: u64,
    /// Until the connection ended, if it did.
    ended: Option<Duration>,
}

impl Lab {
    /// Tries all of them.
    pub(crate) async fn half_close(&self) -> Result<Vec<HalfClosed>> {
        let mut all = Vec::new();
        for (what, port, sent, expected) in EXCHANGES {
            let forward = self.forward(&["deployment/productpage"], port).await?;
            let begun = Instant::now();
            let mut client = TcpStream::connect(("127.0.0.1", forward.port)).await?;
            client.write_all(sent.as_bytes()).await?;
            client.shutdown().await?;
            let (mut bytes, mut end) = (0, Vec::new());
            let mut piece = vec![0; 64 << 10];
            let reading = async {
                // A reset is an end, too.
                while let Ok(n @ 1..) = client.read(&mut piece).await {
                    bytes += n as u64;
                    end.extend_from_slice(piece.get(..n).unwrap_or_default());
                    end.drain(..end.len().saturating_sub(64));
                }
            };
            let ended = timeout(LIMIT, reading).await.is_ok();
            let whole = match expected {
                Whole::Bytes(n) => bytes >= n,
                Whole::Ends(text) | Whole::Echo(text) => end.ends_with(text.as_bytes()),
            };
            all.push(HalfClosed {
                what,
                expected,
                whole,
                bytes,
                ended: ended.then(|| begun.elapsed()),
            });
        }
        Ok(all)
    }
}

impl HalfClosed {
    /// A cell of a table.
    pub(crate) fn short(&self) -> String {
        let ended = self.ended.map_or_else(
            || format!("no end in {LIMIT:?}"),
            |ended| format!("{:.1} s", ended.as_secs_f64()),
        );
        match (self.expected, self.whole, self.bytes) {
            (Whole::Echo(_), true, _) => "answered".to_owned(),
            // kubectl gives its client an end without a byte.
            (Whole::Echo(_), false, 0) if self.ended.is_some() => "refused".to_owned(),
            (_, true, _) => format!("whole, {ended}"),
            (_, false, 0) => format!("nothing, {ended}"),
            (_, false, bytes) => format!("cut after {bytes} bytes, {ended}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_may_be_refused_has_words_of_its_own() {
        let cell = |expected, whole, bytes, ended: Option<u64>| {
            let exchange = HalfClosed {
                what: "",
                expected,
                whole,
                bytes,
                ended: ended.map(Duration::from_secs),
            };
            exchange.short()
        };
        assert_eq!(cell(Whole::Echo("x"), true, 1, Some(1)), "answered");
        assert_eq!(cell(Whole::Echo("x"), false, 0, Some(0)), "refused");
        assert_eq!(
            cell(Whole::Echo("x"), false, 0, None),
            "nothing, no end in 30s"
        );
        assert_eq!(cell(Whole::Ends("x"), true, 1, Some(1)), "whole, 1.0 s");
        assert_eq!(cell(Whole::Ends("x"), false, 0, Some(1)), "nothing, 1.0 s");
    }
}
