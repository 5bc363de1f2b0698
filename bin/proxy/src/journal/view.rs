//! A view of one proxy: its journal, and its sessions, watches and credentials.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kubevpn_client::{LoginNews, Renewal};
use kubevpn_conn::Live;
use kubevpn_stack::{
    Cluster, Forwarder, SessionHealth, SessionName, SessionNews, SessionState, WatchHealth,
    WatchNews,
};

use super::tally::{Tally, count};
use super::{
    AboutProxy, CredentialSnapshot, Events, Journal, JournalEvent, JournalSnapshot,
    SessionSnapshot, WatchSnapshot,
};
use crate::ClusterStack;

/// A view of one proxy. Clones share it.
#[derive(Clone)]
pub struct ProxyView {
    journal: Journal,
    about: AboutProxy,
    cluster: Option<ClusterView>,
}

/// The parts of a proxy that lead into its cluster.
#[derive(Clone)]
struct ClusterView {
    cluster: Cluster,
    forwarder: Forwarder,
    renewal: Renewal,
}

impl ProxyView {
    /// A proxy without a cluster.
    pub fn of_host(journal: Journal, about: AboutProxy) -> Self {
        Self {
            journal,
            about,
            cluster: None,
        }
    }

    /// A proxy into a cluster, whose sessions, watches and logins are reported to the journal from now on.
    pub fn of_cluster(
        journal: Journal,
        about: AboutProxy,
        stack: &ClusterStack,
        forwarder: Forwarder,
        renewal: Renewal,
    ) -> Self {
        let cluster = stack.get_ref().cluster().clone();
        forwarder.tell({
            let journal = journal.clone();
            move |news| journal.session(news)
        });
        cluster.tell({
            let journal = journal.clone();
            move |news| journal.watch(news)
        });
        renewal.tell({
            let journal = journal.clone();
            move |news| journal.login(news)
        });
        stack.get_ref().tell({
            let journal = journal.clone();
            move |took| {
                journal.step("resolve", took.resolve, took.total - took.resolve);
                journal.0.dials.took("total", took.total);
            }
        });
        Self {
            journal,
            about,
            cluster: Some(ClusterView {
                cluster,
                forwarder,
                renewal,
            }),
        }
    }

    /// Which proxy it is.
    pub fn about(&self) -> &AboutProxy {
        &self.about
    }

    /// The journal of the proxy.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Events from now on, optionally with the forwarded HTTP requests.
    pub fn events(&self, exchanges: bool) -> Events {
        self.journal.events(exchanges)
    }

    /// Events with the heads of requests and answers, including secrets.
    pub fn events_with_heads(&self) -> Events {
        self.journal.events_with_heads()
    }

    /// Cuts the connection with this number; `false` if there is none.
    pub fn cut(&self, id: u64) -> bool {
        self.journal.cut(id)
    }

    /// Counts by kind.
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = self.journal.tally();
        let Some(way) = &self.cluster else {
            return tally;
        };
        for session in way.forwarder.sessions() {
            let health = session_health(session.health);
            count(&mut tally.sessions, (session.transport.as_str(), health));
        }
        for watch in way.cluster.watches() {
            count(&mut tally.watches, watch_health(watch.health));
        }
        let stats = way.forwarder.stats();
        tally.streams = stats.streams as u64;
        tally.unread = stats.unread as u64;
        tally.upgrades = stats.upgrades;
        let expires = way.renewal.shown().and_then(|shown| shown.expires);
        let since = expires.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        tally.expires = since.map(|since| since.as_secs_f64());
        tally
    }

    /// The current snapshot.
    pub async fn snapshot(&self) -> JournalSnapshot {
        let (connections, totals) = self.journal.connections().await;
        let way = self.cluster.as_ref();
        let sessions = way.map(|way| way.forwarder.sessions()).unwrap_or_default();
        let mut sessions: Vec<_> = sessions.into_iter().map(shown).collect();
        sessions.sort_by(|a, b| (&a.pod, a.id).cmp(&(&b.pod, b.id)));
        let watches = way.map(|way| way.cluster.watches()).unwrap_or_default();
        let watches = watches.into_iter().map(|watch| WatchSnapshot {
            what: watch.what,
            health: watch_health(watch.health).to_owned(),
        });
        let mut watches: Vec<_> = watches.collect();
        watches.sort_by(|a, b| a.what.cmp(&b.what));
        JournalSnapshot {
            at: Timestamp::now().to_string(),
            about: self.about.clone(),
            totals,
            listeners: self.journal.listeners(),
            connections,
            sessions,
            watches,
            refusals: self.journal.refusals(),
            credentials: way.map(|way| credentials(&way.renewal)),
            dropped_events: self.journal.0.channel.dropped(),
        }
    }
}

impl Journal {
    /// A step of a dial that took so long and ended so long ago. It is told by the task that dials, which knows for whom.
    fn step(&self, name: &'static str, took: Duration, ago: Duration) {
        self.0.dials.took(name, took);
        if let Some(live) = Live::dialled() {
            live.step(name, took, ago);
        }
    }

    fn session(&self, news: SessionNews<'_>) {
        let name = match news {
            SessionNews::Dialled { session, stream } => {
                self.step("session", session, stream);
                self.step("stream", stream, Duration::ZERO);
                return;
            }
            SessionNews::Opened(..) => "opened",
            SessionNews::Suspected(_) => "suspected",
            SessionNews::Recovered(_) => "recovered",
            SessionNews::Ended(..) => "ended",
        };
        count(&mut self.0.state().counts.session_events, name);
        if let Some(event) = session(news) {
            self.tell(|| event);
        }
    }

    fn watch(&self, news: WatchNews<'_>) {
        let name = match news {
            WatchNews::Lost { .. } => "lost",
            WatchNews::Back { .. } => "back",
        };
        count(&mut self.0.state().counts.watch_events, name);
        self.tell(|| watch(news));
    }

    fn login(&self, news: LoginNews<'_>) {
        let name = match news {
            LoginNews::LoggedIn { .. } => "logged_in",
            LoginNews::Failed { .. } => "failed",
            LoginNews::Refused => "refused",
        };
        count(&mut self.0.state().counts.login_events, name);
        self.tell(|| login(news));
    }

    fn tally(&self) -> Tally {
        let state = self.0.state();
        let totals = state.totals_now();
        Tally {
            counts: state.counts.clone(),
            up: totals.up,
            down: totals.down,
            dials: self.0.dials.clone(),
            dropped: self.0.channel.dropped(),
            ..Tally::default()
        }
    }
}

fn session(news: SessionNews<'_>) -> Option<JournalEvent> {
    let pod = |name: SessionName<'_>| format!("{}/{}", name.namespace, name.pod);
    Some(match news {
        SessionNews::Opened(name, transport) => JournalEvent::SessionOpened {
            session: name.id,
            pod: pod(name),
            transport: transport.to_string(),
        },
        SessionNews::Suspected(name) => JournalEvent::SessionSuspected {
            session: name.id,
            pod: pod(name),
        },
        SessionNews::Recovered(name) => JournalEvent::SessionRecovered {
            session: name.id,
            pod: pod(name),
        },
        SessionNews::Ended(name, reason) => JournalEvent::SessionEnded {
            session: name.id,
            pod: pod(name),
            reason: reason.to_owned(),
        },
        SessionNews::Dialled { .. } => return None,
    })
}

fn watch(news: WatchNews<'_>) -> JournalEvent {
    match news {
        WatchNews::Lost { what, why } => JournalEvent::WatchLost {
            watch: what.to_owned(),
            reason: why.to_owned(),
        },
        WatchNews::Back { what } => JournalEvent::WatchBack {
            watch: what.to_owned(),
        },
    }
}

fn login(news: LoginNews<'_>) -> JournalEvent {
    match news {
        LoginNews::LoggedIn { expires } => JournalEvent::LoggedIn {
            expires: expires.and_then(time),
        },
        LoginNews::Failed { why } => JournalEvent::LoginFailed {
            reason: why.to_owned(),
        },
        LoginNews::Refused => JournalEvent::CredentialsRefused,
    }
}

fn shown(session: SessionState) -> SessionSnapshot {
    SessionSnapshot {
        id: session.id,
        pod: format!("{}/{}", session.namespace, session.pod),
        transport: session.transport.to_string(),
        streams: session.connections,
        health: session_health(session.health).to_owned(),
        age: session.age.as_secs_f64(),
        silent: session.silent.as_secs_f64(),
    }
}

/// All values of the health of sessions.
pub(crate) const SESSION_HEALTHS: [&str; 5] = ["well", "suspect", "stalled", "wedged", "closing"];
pub(crate) const WATCH_HEALTHS: [&str; 3] = ["watched", "read", "lost"];

fn session_health(health: SessionHealth) -> &'static str {
    match health {
        SessionHealth::Well => "well",
        SessionHealth::Suspect => "suspect",
        SessionHealth::Stalled => "stalled",
        SessionHealth::Wedged => "wedged",
        SessionHealth::Closing => "closing",
    }
}

fn watch_health(health: WatchHealth) -> &'static str {
    match health {
        WatchHealth::Watched => "watched",
        WatchHealth::Read => "read",
        WatchHealth::Lost => "lost",
    }
}

fn credentials(renewal: &Renewal) -> CredentialSnapshot {
    let trouble = renewal.trouble().map(|error| error.to_string());
    let Some(shown) = renewal.shown() else {
        return CredentialSnapshot {
            trouble,
            ..CredentialSnapshot::default()
        };
    };
    let kinds = [
        (shown.token, "token"),
        (shown.password, "password"),
        (shown.certificate, "certificate"),
    ];
    let kinds = kinds.into_iter().filter(|(is_there, _)| *is_there);
    CredentialSnapshot {
        kinds: kinds.map(|(_, kind)| kind.to_owned()).collect(),
        plugin: shown.plugin,
        expires: shown.expires.and_then(time),
        renewable: shown.renewable,
        trouble,
    }
}

fn time(at: SystemTime) -> Option<String> {
    Some(Timestamp::try_from(at).ok()?.to_string())
}
