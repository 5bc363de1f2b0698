//! What a client's connection is doing, as everybody who works on it sees it.
//!
//! hyper owns the connection while it speaks HTTP, so its service, the bodies that stream through it, the
//! client's stream and the loop that drives it meet here. One request is answered at a time.
//!
//! ```text
//!   Head ──begin──▶ Answering ──finish──▶ Flushing ──flushed──▶ Head
//!                       └──hand over──▶ the connection is taken out of hyper's hands
//! ```

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use http::{HeaderMap, StatusCode, Version};
use hyper::upgrade::Upgraded;
use kubevpn_conn::{End, Live, Record, Relayed, Side, Traffic};
use kubevpn_target::{Target, Via};
use tokio::time::Instant;

use crate::content::MissingContent;
use crate::headers;
use crate::problem::Problem;
use crate::upstream::Upstream;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExchangePhase {
    /// Waits for a request, or for the rest of its head.
    Head {
        /// When it began to wait.
        since: Instant,
        /// When the first byte of the head came.
        begun: Option<Instant>,
    },
    /// From the head of a request to the last of its answer that we give to hyper.
    Answering {
        /// The head of the answer is on its way.
        started: bool,
    },
    /// hyper holds the end of an answer, which the client has yet to take.
    Flushing,
}

pub(crate) struct SharedExchange(Mutex<ExchangeState>);

struct ExchangeState {
    phase: ExchangePhase,
    /// hyper has written something since it last had nothing left to write.
    dirty: bool,
    /// When a byte was last read from the client or written to it.
    moved_at: Instant,
    /// How the body ends of a request whose head hyper has just read.
    content: Option<MissingContent>,
    handover: Option<Handover>,
    /// Interim answers (1xx) the client is to see before the next bytes of hyper's.
    interim: BytesMut,
    /// A connection to a target that is this client's alone.
    own: Option<(Target, Upstream)>,
    record: Option<Record>,
    traffic: Arc<Traffic>,
    /// The client's body broke.
    body_broke: bool,
    /// The client has shown what the listener asks for.
    authenticated: bool,
}

/// What a connection becomes once it is no HTTP any more.
pub(crate) enum Handover {
    /// To be tunnelled to a target that is yet to be dialled.
    Tunnel(Target),
    /// Switched to another protocol, which the fields name.
    Upgrade(Box<HeaderMap>, Upgraded),
    /// Over: what follows a refused CONNECT may be meant for the target, and is no request to us.
    Refused(Problem),
}

impl SharedExchange {
    /// For a connection whose first head has been read.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(ExchangeState {
            phase: ExchangePhase::Head {
                since: now,
                begun: Some(now),
            },
            dirty: false,
            moved_at: now,
            content: None,
            handover: None,
            interim: BytesMut::new(),
            own: None,
            record: None,
            traffic: Arc::default(),
            body_broke: false,
            authenticated: false,
        }))
    }

    fn state(&self) -> MutexGuard<'_, ExchangeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn phase(&self) -> ExchangePhase {
        self.state().phase
    }

    /// The client has a part of an answer: an orderly end could let it pass for the whole.
    pub(crate) fn is_half_said(&self) -> bool {
        matches!(
            self.phase(),
            ExchangePhase::Answering { started: true } | ExchangePhase::Flushing
        )
    }

    // === what hyper does ===

    /// The client sent something.
    pub(crate) fn received(&self) {
        self.state().moved_at = Instant::now();
        self.head_begun();
    }

    /// Something of the next head is there.
    pub(crate) fn head_begun(&self) {
        if let ExchangePhase::Head { begun, .. } = &mut self.state().phase {
            begun.get_or_insert_with(Instant::now);
        }
    }

    /// hyper has a complete head, and how the body behind it ends.
    pub(crate) fn begin(&self, content: MissingContent) {
        let mut state = self.state();
        // The end of the answer before may still be in hyper's buffer: from here on it is part of this one.
        state.answered();
        state.phase = ExchangePhase::Answering { started: false };
        state.content = Some(content);
        state.interim.clear();
        state.body_broke = false;
    }

    pub(crate) fn take_content(&self) -> Option<MissingContent> {
        self.state().content.take()
    }

    /// hyper wants to write, and bytes were taken from it if `taken`.
    pub(crate) fn writing(&self, taken: bool) {
        let mut state = self.state();
        state.dirty = true;
        if taken {
            state.moved_at = Instant::now();
        }
    }

    /// hyper has nothing left to write, and the client's stream neither.
    pub(crate) fn flushed(&self) {
        let mut state = self.state();
        state.dirty = false;
        if state.answered() {
            state.phase = ExchangePhase::Head {
                since: Instant::now(),
                begun: None,
            };
            state.interim.clear();
        }
    }

    pub(crate) fn is_flushed(&self) -> bool {
        !self.state().dirty
    }

    pub(crate) fn moved_at(&self) -> Instant {
        self.state().moved_at
    }

    // === what we make of the request ===

    pub(crate) fn authenticated(&self) {
        self.state().authenticated = true;
    }

    pub(crate) fn is_authenticated(&self) -> bool {
        self.state().authenticated
    }

    /// The answer's head can go out.
    pub(crate) fn start(&self) {
        self.state().phase = ExchangePhase::Answering { started: true };
    }

    /// hyper has all of the answer, or will not ask for more of it.
    pub(crate) fn finish(&self) {
        self.state().phase = ExchangePhase::Flushing;
    }

    pub(crate) fn hand_over(&self, handover: Handover) {
        self.state().handover = Some(handover);
    }

    pub(crate) fn take_handover(&self) -> Option<Handover> {
        self.state().handover.take()
    }

    /// The client is to see this before the answer.
    pub(crate) fn add_interim(&self, answer: &[u8]) {
        let mut state = self.state();
        if state.interim.len() + answer.len() <= crate::MAX_HEAD {
            state.interim.extend_from_slice(answer);
        }
    }

    /// Interim answers that can be written now: not into the middle of what hyper writes.
    pub(crate) fn take_interim(&self) -> BytesMut {
        let mut state = self.state();
        match state.dirty {
            true => BytesMut::new(),
            false => state.interim.split(),
        }
    }

    /// Keeps a connection that knows who this client is.
    pub(crate) fn keep(&self, target: &Target, upstream: Upstream) {
        self.state().own = Some((target.clone(), upstream));
    }

    pub(crate) fn take_own(&self, target: &Target) -> Option<Upstream> {
        let own = self.state().own.take_if(|(own, _)| own == target);
        own.map(|(_, upstream)| upstream)
    }

    // === the access record ===

    pub(crate) fn record(&self, record: Record) {
        let mut state = self.state();
        state.traffic = record.traffic();
        state.record = Some(record);
    }

    pub(crate) fn via(&self, via: Via) {
        if let Some(record) = &mut self.state().record {
            record.via(via);
        }
    }

    pub(crate) fn tried(&self, via: &Via) {
        if let Some(record) = &mut self.state().record {
            record.tried(via);
        }
    }

    pub(crate) fn lost(&self) {
        if let Some(record) = &mut self.state().record {
            record.lost();
        }
    }

    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        self.state().record.as_ref()?.live()
    }

    /// The head of the target's answer is there.
    pub(crate) fn answered(&self, status: StatusCode, fields: &HeaderMap) {
        if let Some(record) = &mut self.state().record {
            record.answered(status.as_u16(), || headers::told(Version::HTTP_11, fields));
        }
    }

    pub(crate) fn take_record(&self) -> Option<Record> {
        self.state().record.take()
    }

    pub(crate) fn count_up(&self, bytes: usize) {
        self.state().traffic.add_up(bytes as u64);
    }

    pub(crate) fn count_down(&self, bytes: usize) {
        self.state().traffic.add_down(bytes as u64);
    }

    /// The request was sent on, and this is how that ended.
    pub(crate) fn ended(&self, end: End) {
        self.state().ended(end);
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
        if self.phase() != (ExchangePhase::Answering { started: false }) {
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

impl ExchangeState {
    fn ended(&mut self, end: End) {
        if let Some(record) = self.record.take() {
            record.relayed(&Relayed {
                up: self.traffic.up(),
                down: self.traffic.down(),
                last: self.moved_at,
                end,
            });
        }
    }

    /// Nothing is left to do for the answer, if one was being made; writes its record.
    fn answered(&mut self) -> bool {
        let flushing = self.phase == ExchangePhase::Flushing;
        if flushing {
            self.ended(End::Eof);
        }
        flushing
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let cause = error.source().map(|cause| format!(": {}", chain(cause)));
    format!("{error}{}", cause.unwrap_or_default())
}
