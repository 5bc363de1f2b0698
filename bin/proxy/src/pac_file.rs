//! The PAC file of a running proxy: written when it is asked for, from what is there then.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kubevpn_http_connect::Pac;
use kubevpn_stack::{Cluster, Survey};
use kubevpn_target::Name;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::PacSettings;
use crate::pac::{Facts, text};

/// How long a file is served as it was written: whoever can open a page of the proxy makes us ask the API server.
const KEPT: Duration = Duration::from_secs(30);

/// How long the cluster may take; what it did not say by then is a comment.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the file says of a cluster and the ways to it.
pub async fn facts(
    cluster: &Cluster,
    settings: PacSettings,
    http: Option<String>,
    socks: Option<String>,
) -> Facts {
    let (survey, endings) = learn(cluster).await;
    written(&survey, endings, settings, http, socks)
}

async fn learn(cluster: &Cluster) -> (Option<Survey>, Vec<String>) {
    let asking = async { tokio::join!(cluster.survey(), cluster.domain()) };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok((survey, domain)) => {
            let endings = domain.endings().map(Name::to_string).collect();
            (Some(survey), endings)
        }
        Err(_) => (None, vec!["cluster.local".into()]),
    }
}

fn written(
    survey: &Option<Survey>,
    endings: Vec<String>,
    settings: PacSettings,
    http: Option<String>,
    socks: Option<String>,
) -> Facts {
    let silent = || {
        format!(
            "the API server did not answer within {} s",
            PATIENCE.as_secs()
        )
    };
    let (namespace, services, service_ranges) = match survey {
        Some(survey) => (
            survey.namespace.clone(),
            survey.services.clone().map_err(|why| why.to_string()),
            survey.service_ranges.clone().map_err(|why| why.to_string()),
        ),
        None => (String::new(), Err(silent()), Err(silent())),
    };
    Facts {
        http,
        socks,
        endings,
        namespace,
        services,
        service_ranges,
        ranges: settings.ranges,
        upstream: settings.upstream,
    }
}

/// The file of one proxy.
pub(super) struct PacFile {
    cluster: Cluster,
    settings: PacSettings,
    socks: Arc<OnceLock<SocketAddr>>,
    known: Mutex<Option<Known>>,
}

struct Known {
    survey: Option<Survey>,
    endings: Vec<String>,
    until: Instant,
}

impl PacFile {
    pub(super) fn new(
        cluster: Cluster,
        settings: PacSettings,
        socks: Arc<OnceLock<SocketAddr>>,
    ) -> Self {
        Self {
            cluster,
            settings,
            socks,
            known: Mutex::default(),
        }
    }

    pub(super) fn served(self) -> Pac {
        let file = Arc::new(self);
        Pac::new(move |host| {
            let file = file.clone();
            async move { file.text(host).await }
        })
    }

    /// For a client that knows the proxy as `host`, an address or `localhost`, with its port.
    async fn text(&self, host: Option<String>) -> String {
        let mut known = self.known.lock().await;
        let fresh = known.take().filter(|known| Instant::now() < known.until);
        let fresh = match fresh {
            Some(fresh) => fresh,
            None => {
                let (survey, endings) = learn(&self.cluster).await;
                Known {
                    survey,
                    endings,
                    until: Instant::now() + KEPT,
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
        *known = Some(fresh);
        text(&facts)
    }
}

/// A listener on every address is reached where the client reached us.
fn reached_as(addr: SocketAddr, host: Option<&str>) -> String {
    match host.and_then(|host| host.rsplit_once(':')) {
        Some((host, _)) if addr.ip().is_unspecified() => format!("{host}:{}", addr.port()),
        _ => addr.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
