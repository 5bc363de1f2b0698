//! The PAC file of a running proxy, written when it is requested.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kubevpn_http_connect::Pac;
use kubevpn_stack::{Cluster, Survey, SurveyedList};
use kubevpn_target::{Name, Refusal};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::pac::{KnownList, PacFacts, text};
use crate::{Expect, PacSettings};

/// Lifetime of a written file: each new one costs calls to the API server, and every client can request it.
const KEPT: Duration = Duration::from_secs(30);

/// Lifetime of a file with incomplete or old lists.
const INCOMPLETE: Duration = Duration::from_secs(2);

/// Time limit of the cluster. Lists that are missing by then are named in a comment.
const PATIENCE: Duration = Duration::from_secs(10);

/// Facts about the cluster and its listeners.
pub async fn facts(
    cluster: &Cluster,
    settings: PacSettings,
    http: Option<String>,
    socks: Option<String>,
) -> PacFacts {
    let (survey, endings) = learn(cluster).await;
    written(&survey.0, endings, settings, http, socks)
}

/// The lists, and their lifetime, which is short after a temporary failure.
async fn learn(cluster: &Cluster) -> ((Survey, Duration), Vec<String>) {
    let survey = async {
        let Ok(survey) = timeout(PATIENCE, cluster.survey()).await else {
            return (cluster.last_survey(), INCOMPLETE);
        };
        let for_now = |listed: &SurveyedList| {
            let refusal = listed.failed.as_ref().map(|why| why.refusal());
            let passing = [
                Refusal::ClusterAway,
                Refusal::TimedOut,
                Refusal::Overloaded,
                Refusal::Unauthenticated,
            ];
            refusal.is_some_and(|refusal| passing.contains(&refusal))
        };
        let lists = [&survey.services, &survey.elsewhere, &survey.service_ranges];
        let kept = match lists.into_iter().any(for_now) {
            true => INCOMPLETE,
            false => KEPT,
        };
        (survey, kept)
    };
    let endings = async {
        match timeout(PATIENCE, cluster.domain()).await {
            Ok(domain) => domain.endings().map(Name::to_string).collect(),
            Err(_) => vec!["cluster.local".into()],
        }
    };
    tokio::join!(survey, endings)
}

/// The list, or the reason why it is not known.
fn known(listed: &SurveyedList) -> KnownList {
    let why = listed.failed.as_ref().map(ToString::to_string);
    match &listed.found {
        Some(found) => KnownList::Listed(found.clone(), why),
        None => KnownList::Not(why.unwrap_or_else(|| {
            let limit = PATIENCE.as_secs();
            format!("the API server did not answer within {limit} s")
        })),
    }
}

fn written(
    survey: &Survey,
    endings: Vec<String>,
    settings: PacSettings,
    http: Option<String>,
    socks: Option<String>,
) -> PacFacts {
    PacFacts {
        http,
        socks,
        endings,
        namespace: survey.namespace.clone(),
        services: known(&survey.services),
        elsewhere: known(&survey.elsewhere),
        service_ranges: known(&survey.service_ranges),
        ranges: settings.ranges,
        upstream: settings.upstream,
    }
}

/// The file of one proxy.
pub(super) struct PacFile {
    cluster: Cluster,
    settings: PacSettings,
    socks: Arc<OnceLock<SocketAddr>>,
    /// Called when the file is fetched: a connection will follow, to a host that is not known yet.
    expect: Option<Expect>,
    written: Mutex<Option<Written>>,
}

struct Written {
    survey: Survey,
    endings: Vec<String>,
    until: Instant,
}

impl PacFile {
    pub(super) fn new(
        cluster: Cluster,
        settings: PacSettings,
        socks: Arc<OnceLock<SocketAddr>>,
        expect: Option<Expect>,
    ) -> Self {
        Self {
            cluster,
            settings,
            socks,
            expect,
            written: Mutex::default(),
        }
    }

    pub(super) fn served(self) -> Pac {
        let file = Arc::new(self);
        Pac::new(move |host| {
            let file = file.clone();
            async move { file.text(host).await }
        })
    }

    /// The file for a client that reached the proxy as `host`, an address or `localhost`, with its port.
    async fn text(&self, host: Option<String>) -> String {
        if let Some(expect) = &self.expect {
            expect(None);
        }
        let mut written_before = self.written.lock().await;
        let fresh = written_before.take();
        let fresh = fresh.filter(|written| Instant::now() < written.until);
        let fresh = match fresh {
            Some(fresh) => fresh,
            None => {
                let ((survey, kept), endings) = learn(&self.cluster).await;
                Written {
                    survey,
                    endings,
                    until: Instant::now() + kept,
                }
            }
        };
        let socks = self
            .socks
            .get()
            .map(|addr| reached_as(*addr, host.as_deref()));
        let facts = written(
            &fresh.survey,
            fresh.endings.clone(),
            self.settings.clone(),
            host,
            socks,
        );
        *written_before = Some(fresh);
        text(&facts)
    }
}

/// Address for the file: a listener on every address is named as the client reached it.
fn reached_as(addr: SocketAddr, host: Option<&str>) -> String {
    match host.and_then(|host| host.rsplit_once(':')) {
        Some((host, _)) if addr.ip().is_unspecified() => format!("{host}:{}", addr.port()),
        _ => addr.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kubevpn_client::{Options, build};
    use kubevpn_stack::ClusterSettings;

    use super::*;

    #[tokio::test]
    async fn a_connection_is_expected_when_the_file_is_fetched() {
        // Nothing listens there: the file says so.
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = build(config, &Options::new("test")).unwrap();
        let cluster = Cluster::new(client, ClusterSettings::default());
        let expected = Arc::new(AtomicUsize::new(0));
        let counted = expected.clone();
        let expect: Expect = Arc::new(move |host| {
            assert_eq!(host, None);
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let file = PacFile::new(
            cluster,
            PacSettings::default(),
            Arc::default(),
            Some(expect),
        );
        assert!(file.text(None).await.contains("FindProxyForURL"));
        assert_eq!(expected.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn where_socks_is_reached() {
        let socks = |addr: &str, host| reached_as(addr.parse().unwrap(), host);
        assert_eq!(
            socks("127.0.0.1:1080", Some("localhost:3128")),
            "127.0.0.1:1080"
        );
        assert_eq!(
            socks("0.0.0.0:1080", Some("192.0.2.1:3128")),
            "192.0.2.1:1080"
        );
        assert_eq!(socks("[::]:1080", Some("[fd00::1]:3128")), "[fd00::1]:1080");
        assert_eq!(socks("[::]:1080", None), "[::]:1080");
    }
}
