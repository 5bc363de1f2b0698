//! The request in hand, as everybody who works on it sees it.
//!
//! hyper owns the connection while it speaks HTTP, so its service, the bodies that stream through it and
//! the loop that drives it meet here. A connection answers one request at a time, so there is one turn.
//!
//! ```text
//!   waiting ──begin──▶ answering ──close──▶ waiting
//!                          └──hand over──▶ the connection is taken out of hyper's hands
//! ```

use std::error::Error;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use hyper::upgrade::Upgraded;
use kubevpn_conn::{End, Record, Relayed, Side};
use kubevpn_target::{Target, Via};

use crate::problem::Problem;

#[derive(Debug, Default)]
pub(crate) struct Turn(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// From the head of a request to the end of its answer.
    answering: bool,
    /// The head of the answer is on its way.
    answered: bool,
    /// Requests begun on this connection.
    requests: u64,
    record: Option<Record>,
    up: u64,
    down: u64,
    /// The client's body broke.
    body_broke: bool,
    handover: Option<Handover>,
}

/// What a connection becomes once it is no HTTP any more.
#[derive(Debug)]
pub(crate) enum Handover {
    /// To be tunnelled to a target that is yet to be dialled.
    Tunnel(Target),
    /// Switched to another protocol, which the fields name.
    Upgrade(Box<HeaderMap>, Upgraded),
    /// Over: what follows a refused CONNECT may be meant for the target, and is no request to us.
    Refused(Problem),
}

impl Turn {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has arrived.
    pub(crate) fn begin(&self) {
        let mut state = self.state();
        *state = State {
            answering: true,
            requests: state.requests + 1,
            ..State::default()
        };
    }

    pub(crate) fn answering(&self) -> bool {
        self.state().answering
    }

    pub(crate) fn requests(&self) -> u64 {
        self.state().requests
    }

    /// How many requests were answered, if none is being answered now.
    pub(crate) fn answered_all(&self) -> Option<u64> {
        let state = self.state();
        (!state.answering).then_some(state.requests)
    }

    /// The answer's head can go out.
    pub(crate) fn answer(&self) {
        self.state().answered = true;
    }

    pub(crate) fn answered(&self) -> bool {
        self.state().answered
    }

    /// The answer is over, or nobody will work on it any more.
    pub(crate) fn close(&self) {
        self.state().answering = false;
    }

    pub(crate) fn hand_over(&self, handover: Handover) {
        self.state().handover = Some(handover);
    }

    pub(crate) fn take_handover(&self) -> Option<Handover> {
        self.state().handover.take()
    }

    // === the access record ===

    pub(crate) fn record(&self, record: Record) {
        self.state().record = Some(record);
    }

    pub(crate) fn via(&self, via: Via) {
        if let Some(record) = &mut self.state().record {
            record.via(via);
        }
    }

    pub(crate) fn take_record(&self) -> Option<Record> {
        self.state().record.take()
    }

    pub(crate) fn count_up(&self, bytes: usize) {
        self.state().up += bytes as u64;
    }

    pub(crate) fn count_down(&self, bytes: usize) {
        self.state().down += bytes as u64;
    }

    /// The request was sent on, and this is how that ended.
    pub(crate) fn ended(&self, end: End) {
        let mut state = self.state();
        let (up, down) = (state.up, state.down);
        if let Some(record) = state.record.take() {
            drop(state);
            record.traffic().add_up(up);
            record.traffic().add_down(down);
            record.relayed(&Relayed {
                up,
                down,
                last: tokio::time::Instant::now(),
                end,
            });
        }
    }

    /// The target broke the exchange.
    pub(crate) fn upstream_failed(&self, error: &(dyn Error + 'static)) {
        let error = io::Error::other(chain(error));
        self.ended(End::Failed {
            side: Side::Upstream,
            error,
        });
    }

    /// The client's connection broke.
    pub(crate) fn client_failed(&self, error: io::Error) {
        if self.answered() {
            self.ended(End::Failed {
                side: Side::Client,
                error,
            });
        } else if let Some(record) = self.take_record() {
            record.gone(&error);
        }
    }

    /// We have to answer in the target's place, or refuse to ask it.
    pub(crate) fn failed(&self, problem: &Problem) {
        match problem {
            Problem::Died { .. }
            | Problem::Garbage { .. }
            | Problem::LargeAnswer(_)
            | Problem::AnswerCoding(_)
            | Problem::Switched(_) => self.upstream_failed(problem),
            Problem::Refused(error) => {
                if let Some(record) = self.take_record() {
                    record.refused(error);
                }
            }
            _ => {
                if let Some(record) = self.take_record() {
                    record.rejected(problem);
                }
            }
        }
    }

    pub(crate) fn body_broke(&self) {
        self.state().body_broke = true;
    }

    pub(crate) fn has_broken_body(&self) -> bool {
        self.state().body_broke
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let cause = error.source().map(|cause| format!(": {}", chain(cause)));
    format!("{error}{}", cause.unwrap_or_default())
}
