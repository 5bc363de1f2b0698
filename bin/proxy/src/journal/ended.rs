//! The end of a connection, whichever of the two events reports it.

use super::{ExchangeEvent, JournalEvent, Stamped, Trace};

/// A connection that has ended (for HTTP: a request), with a stream to its target or without one.
#[derive(Clone, Copy, Debug)]
pub struct EndedConnection<'a> {
    /// When it ended: RFC 3339.
    pub at: &'a str,
    pub id: u64,
    pub frontend: &'a str,
    pub client: Option<&'a str>,
    pub target: Option<&'a str>,
    /// `namespace/pod:port`; empty if there was no stream.
    pub via: &'a str,
    /// Empty if there was no stream.
    pub transport: &'a str,
    pub up: u64,
    pub down: u64,
    pub seconds: f64,
    /// One of [`ENDS`](kubevpn_conn::ENDS), or `refused`.
    pub end: &'a str,
    pub refusal: Option<&'a str>,
    /// Reason why the connection got no stream, or broke.
    pub error: Option<&'a str>,
    pub exchange: Option<&'a ExchangeEvent>,
    pub trace: Option<&'a Trace>,
}

impl<'a> EndedConnection<'a> {
    /// `None` for other events.
    pub fn of(stamped: &'a Stamped) -> Option<Self> {
        match &stamped.event {
            JournalEvent::ConnectionClosed {
                id,
                frontend,
                client,
                target,
                via,
                transport,
                up,
                down,
                seconds,
                end,
                error,
                exchange,
                trace,
            } => Some(Self {
                at: &stamped.at,
                id: *id,
                frontend,
                client: client.as_deref(),
                target: target.as_deref(),
                via,
                transport,
                up: *up,
                down: *down,
                seconds: *seconds,
                end,
                refusal: None,
                error: error.as_deref(),
                exchange: exchange.as_ref(),
                trace: trace.as_ref(),
            }),
            JournalEvent::ConnectionRefused {
                id,
                frontend,
                client,
                target,
                refusal,
                sentence,
                seconds,
                exchange,
                trace,
            } => Some(Self {
                at: &stamped.at,
                id: *id,
                frontend,
                client: client.as_deref(),
                target: target.as_deref(),
                via: "",
                transport: "",
                up: 0,
                down: 0,
                seconds: *seconds,
                end: "refused",
                refusal: Some(refusal),
                error: Some(sentence),
                exchange: exchange.as_ref(),
                trace: trace.as_ref(),
            }),
            _ => None,
        }
    }
}
