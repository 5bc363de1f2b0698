//! What the clients do, and what is counted. Each workload gives one or more figures.

mod client;
mod dial;
mod latency;
mod open;
pub(crate) mod rate;

use std::time::Duration;

use anyhow::Context as _;
use lab::Lab;
use serde::{Deserialize, Serialize};

use crate::cpu::{self, Usage};
use crate::subject::{RunningSubject, SubjectKind};

/// Exchanges before anything is counted: what is only paid once (the first session, a first resolution) is not what
/// is compared.
const WARM_UP: usize = 5;

/// One number, with what it counts and whether more is better.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) unit: String,
    pub(crate) more_is_better: bool,
    pub(crate) value: f64,
    pub(crate) goal: Option<Goal>,
}

/// What ours is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Goal {
    /// A ratio to the better kubectl.
    Ratio(f64),
    /// The figure itself: at most this, or at least where more is better.
    Value(f64),
}

impl Figure {
    pub(crate) fn more(what: impl Into<String>, unit: &str, value: f64) -> Self {
        Self {
            what: what.into(),
            unit: unit.into(),
            more_is_better: true,
            value,
            goal: None,
        }
    }

    pub(crate) fn less(what: impl Into<String>, unit: &str, value: f64) -> Self {
        let more_is_better = false;
        Self {
            more_is_better,
            ..Self::more(what, unit, value)
        }
    }

    pub(crate) fn goal(self, goal: Goal) -> Self {
        let goal = Some(goal);
        Self { goal, ..self }
    }
}

/// What one workload gave on one subject.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) figures: Vec<Figure>,
    /// How many connections, requests or MiB that was; 0 where it is no such count.
    pub(crate) done: f64,
    pub(crate) unit: &'static str,
    /// What that took; filled in around the workload.
    pub(crate) cpu: Usage,
}

impl From<Vec<Figure>> for Measured {
    fn from(figures: Vec<Figure>) -> Self {
        Self {
            figures,
            ..Self::default()
        }
    }
}

/// How much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    sequential: usize,
    window: Duration,
    bulk: u64,
    held: usize,
}

impl Sizes {
    pub(crate) const FULL: Self = Self {
        sequential: 1000,
        window: Duration::from_secs(3),
        bulk: 384 << 20,
        held: 2000,
    };
    pub(crate) const QUICK: Self = Self {
        sequential: 50,
        window: Duration::from_secs(1),
        bulk: 16 << 20,
        held: 100,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    Sequential,
    Churn(usize),
    KeepAlive(usize),
    Download(usize),
    Upload(usize),
    BesideStalled,
    Blast,
    Held,
    Dial,
}

impl Workload {
    pub(crate) const ALL: [Self; 13] = [
        Self::Sequential,
        Self::Churn(16),
        Self::Churn(64),
        Self::KeepAlive(1),
        Self::KeepAlive(64),
        Self::Download(1),
        Self::Download(8),
        Self::Upload(1),
        Self::Upload(8),
        Self::BesideStalled,
        Self::Blast,
        Self::Held,
        Self::Dial,
    ];

    pub(crate) fn title(&self) -> String {
        match self {
            Self::Sequential => "sequential".into(),
            Self::Churn(n) => format!("churn-{n}"),
            Self::KeepAlive(n) => format!("keep-alive-{n}"),
            Self::Download(n) => format!("download-{n}"),
            Self::Upload(n) => format!("upload-{n}"),
            Self::BesideStalled => "stalled".into(),
            Self::Blast => "blast".into(),
            Self::Held => "held".into(),
            Self::Dial => "dial".into(),
        }
    }

    pub(crate) fn titles() -> String {
        Self::ALL.map(|w| w.title()).join(", ")
    }

    /// Whether it can be asked of such a subject.
    fn fits(&self, kind: &SubjectKind) -> bool {
        match self {
            // A command forwards one port to one Service.
            Self::Blast => matches!(kind, SubjectKind::Ours(_) | SubjectKind::Kubectl { .. }),
            // One upgrade, and with it one session of the API server and the kubelet, for each.
            Self::Held => !matches!(kind, SubjectKind::KubeRs { .. }),
            Self::Dial => matches!(kind, SubjectKind::Ours(_)),
            _ => true,
        }
    }

    /// Starts the subject and puts the load on it; nothing where the two do not fit.
    pub(crate) async fn run(
        &self,
        kind: &SubjectKind,
        lab: &Lab,
        sizes: Sizes,
    ) -> anyhow::Result<Option<Measured>> {
        if !self.fits(kind) {
            return Ok(None);
        }
        let calm = cpu::node_descriptors(lab)?;
        let measured = self.measure(kind, lab, sizes).await;
        // The container runtime is through with a connection a second after its end.
        cpu::calm_down(lab, calm).await?;
        measured.map(Some)
    }

    async fn measure(
        &self,
        kind: &SubjectKind,
        lab: &Lab,
        sizes: Sizes,
    ) -> anyhow::Result<Measured> {
        match self {
            Self::Blast => return open::blast(kind, lab).await,
            Self::Dial => return dial::dials(lab, sizes).await,
            _ => {}
        }
        let mark = lab.audit_mark()?;
        let subject = &RunningSubject::start(kind, lab).await?;
        for _ in 0..WARM_UP {
            client::get(subject).await.context("warm-up")?;
        }
        let before = Usage::until_now(lab, subject)?;
        let mut measured = match *self {
            Self::Sequential => latency::sequential(kind, lab, subject, sizes, &mark).await,
            Self::Churn(clients) => rate::churn(subject, clients, sizes).await,
            Self::KeepAlive(clients) => latency::keep_alive(subject, clients, sizes).await,
            Self::Download(streams) => rate::bulk(subject, streams, sizes, true).await,
            Self::Upload(streams) => rate::bulk(subject, streams, sizes, false).await,
            Self::BesideStalled => latency::beside_stalled(subject, sizes).await,
            Self::Held => open::held(subject, sizes).await,
            Self::Blast | Self::Dial => unreachable!("measured above"),
        }?;
        measured.cpu = Usage::until_now(lab, subject)?.since(&before);
        Ok(measured)
    }
}
