//! Plays a row on every way, and judges.

use std::net::SocketAddr;

use anyhow::Result;

use crate::client::talk;
use crate::peers::{PeerRoute, Peers};
use crate::row::{OddRow, RowOutcome, plain};
use crate::server::OddServer;

/// How a way did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteVerdict {
    Right,
    /// What was in the place of the right.
    Wrong(String),
    /// The row means nothing on this way.
    Without,
}

/// A row, and how each way did, in the order of [`Peers::names`].
#[derive(Clone, Debug)]
pub struct Played {
    pub row: OddRow,
    pub verdicts: Vec<RouteVerdict>,
}

impl Played {
    /// Whether ours did worse than the best.
    pub fn is_worse(&self) -> bool {
        let ours = self.verdicts.get(1) == Some(&RouteVerdict::Right);
        !ours && self.verdicts.contains(&RouteVerdict::Right)
    }
}

/// Plays one row.
pub async fn play(row: &OddRow, peers: &Peers) -> Result<Played> {
    let mut verdicts = Vec::new();
    for way in &peers.ways {
        verdicts.push(play_on(row, way).await?);
    }
    Ok(Played {
        row: row.clone(),
        verdicts,
    })
}

async fn play_on(row: &OddRow, way: &PeerRoute) -> Result<RouteVerdict> {
    if row.proxied && way.proxy.is_none() {
        return Ok(RouteVerdict::Without);
    }
    let says = match row.says.is_empty() {
        true => vec![plain()],
        false => row.says.clone(),
    };
    let server = OddServer::start(says).await?;
    let host = format!("127.0.0.1:{}", server.port);
    let http = match way.proxy {
        Some(_) => format!("http://{host}"),
        None => String::new(),
    };
    let fill = |bytes: &[u8]| {
        let bytes = replace(bytes, b"{http}", http.as_bytes());
        replace(&bytes, b"{host}", host.as_bytes())
    };
    let fill_text = |text: &str| text.replace("{host}", &host);
    let direct = || SocketAddr::from(([127, 0, 0, 1], server.port));
    let addr = way.proxy.unwrap_or_else(direct);
    let heard = talk(addr, way.proxy.is_some(), &row.does, fill).await;
    let outcome = RowOutcome {
        heard,
        saw: server.saw(),
    };
    let wrong = row
        .wants
        .iter()
        .find_map(|want| want.misses(&outcome, &fill_text));
    Ok(wrong.map_or(RouteVerdict::Right, RouteVerdict::Wrong))
}

fn replace(bytes: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(what.len()).position(|w| w == what) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(with);
        rest = &rest[at + what.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}
