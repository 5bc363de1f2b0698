//! Everything over a long line, in round trips: what counts where the API server is far.
//!
//!     cargo run -p lab -- bench --line 10ms --line 50ms --line 150ms
//!
//! The line is the lab's relay ([`lab::Line`]), for kubectl and ours alike. A connection and the answer over it are one
//! measurement, as everywhere here. kubectl forwards to one Pod of one Service, so that what is about another one is a
//! process more, and what is about a name is not its business.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Lab, Length, Line};
use tokio::time::{Instant, sleep, timeout};

use crate::budgets::gateway::kubeconfig_at;
use crate::load::rate::in_parallel;
use crate::load::{Figure, Goal};
use crate::report::{self, Round};
use crate::subject::{Kind, Port, Subject};
use crate::wire::{self, quantile};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: line\r\n\r\n";

/// Nothing that is waited for here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What was begun beside a connection is done by then.
const QUIET: Duration = Duration::from_secs(3);
const LATER: usize = 100;
const CLIENTS: usize = 64;
const WINDOW: Duration = Duration::from_secs(5);
/// 20 Mbit/s, in bytes, for what shares a line.
const NARROW: u64 = 2_500_000;
const BESIDE_BULK: usize = 40;

/// Reads `50ms`.
pub(crate) fn length(text: &str) -> Result<Duration, String> {
    let ms = text.strip_suffix("ms").and_then(|ms| ms.parse().ok());
    ms.filter(|ms| (2..=2000).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| "write it as 50ms, from 2ms to 2000ms".into())
}

pub(crate) async fn run(
    lab: &Lab,
    kinds: &[Kind],
    lines: &[Duration],
    rounds: usize,
    earlier: Vec<Round>,
) -> anyhow::Result<Vec<Round>> {
    let mut all = earlier;
    let first = all.iter().map(|r| r.round + 1).max().unwrap_or(0);
    for round in first..first + rounds {
        for trip in lines {
            for turn in 0..kinds.len() {
                let kind = &kinds[(turn + round) % kinds.len()];
                let row = Row {
                    lab,
                    kind,
                    trip: *trip,
                };
                let measured = async {
                    let mut figures = row.measure().await?;
                    figures.extend(row.shared().await?);
                    anyhow::Ok(figures)
                };
                let entry = Round::new(round, row.title(), kind.name(), measured.await);
                report::progress(&entry);
                all.push(entry);
            }
        }
    }
    Ok(all)
}

/// One subject over one line.
struct Row<'a> {
    lab: &'a Lab,
    kind: &'a Kind,
    trip: Duration,
}

impl Row<'_> {
    fn title(&self) -> String {
        format!("{} ms", self.trip.as_millis())
    }

    fn trips(&self, took: Duration) -> f64 {
        took.as_secs_f64() / self.trip.as_secs_f64()
    }

    fn figure(&self, what: &str, value: f64) -> Figure {
        let what = format!("{}: {what}", self.title());
        Figure::less(what, "round trips", value)
    }

    async fn line(
        &self,
        bandwidth: Option<u64>,
    ) -> anyhow::Result<(Line, tempfile::NamedTempFile)> {
        let mut api = None;
        kubeconfig_at(&self.lab.kubeconfig(), |server| {
            api = server.rsplit("//").next().and_then(|a| a.parse().ok());
            server.into()
        })?;
        let api: SocketAddr = api.context("the server is no address")?;
        let each_way = self.trip / 2;
        let length = Length {
            each_way,
            bandwidth,
        };
        let line = Line::start(api, length).await?;
        let own = line.address();
        let kubeconfig = kubeconfig_at(&self.lab.kubeconfig(), |_| format!("https://{own}"))?;
        Ok((line, kubeconfig))
    }

    async fn start(&self, kubeconfig: &Path) -> anyhow::Result<Subject> {
        Subject::start_on(self.kind, self.lab, kubeconfig, &[Port::Http]).await
    }

    async fn measure(&self) -> anyhow::Result<Vec<Figure>> {
        let (_line, kubeconfig) = self.line(None).await?;
        let begun = Instant::now();
        let subject = self.start(kubeconfig.path()).await?;
        answered(&subject, &Target::First).await?;
        let start = begun.elapsed();
        sleep(QUIET).await;
        let mut figures = vec![
            self.figure(
                "start of the program to the first answer",
                self.trips(start),
            )
            .goal(Goal::Value(7.0)),
        ];
        if let Kind::Ours(_) = self.kind {
            figures.extend(self.ours_alone(&subject).await?);
        } else {
            let begun = Instant::now();
            let another = self.start(kubeconfig.path()).await?;
            answered(&another, &Target::First).await?;
            let further = self.trips(begun.elapsed());
            figures.push(self.figure(FURTHER, further));
        }
        let mut later = Vec::new();
        for _ in 0..LATER {
            later.push(answered(&subject, &Target::First).await?);
        }
        let mut of = |q| quantile(&mut later, q) / 1e3 / self.trip.as_secs_f64();
        let (p50, p99) = (of(0.5), of(0.99));
        figures.extend([
            self.figure("every later connection, p50", p50)
                .goal(Goal::Value(1.1)),
            self.figure("every later connection, p99", p99)
                .goal(Goal::Value(1.5)),
        ]);
        let one = async || answered(&subject, &Target::First).await.map(drop);
        let (done, failed) = in_parallel(CLIENTS, WINDOW, one).await;
        ensure!(failed == 0, "{failed} of {done} connections failed");
        let what = format!("{}: new connections, {CLIENTS} clients", self.title());
        let rate = done as f64 / WINDOW.as_secs_f64();
        figures.push(Figure::more(what, "/s", rate));
        Ok(figures)
    }

    /// What a proxy alone is asked for.
    async fn ours_alone(&self, subject: &Subject) -> anyhow::Result<Vec<Figure>> {
        let further = answered(subject, &Target::Named("productpage", 9080)).await?;
        sleep(QUIET).await;
        let beside = answered(subject, &Target::Named("productpage", 9080)).await?;
        sleep(QUIET).await;
        let second = answered(subject, &Target::Named("productpage", 9080)).await?;
        sleep(QUIET).await;
        let name = refused(subject, "nosuch").await?;
        sleep(QUIET).await;
        let namespace = refused(subject, "web.nosuch.svc").await?;
        let figure = |what, took| self.figure(what, self.trips(took));
        Ok(vec![
            figure(FURTHER, further).goal(Goal::Value(3.5)),
            figure("connection after which a second replica is used", beside)
                .goal(Goal::Value(1.1)),
            figure("first connection to the second replica", second),
            figure("a name that does not exist", name).goal(Goal::Value(2.5)),
            figure("a namespace that does not exist", namespace).goal(Goal::Value(2.5)),
        ])
    }

    /// New connections beside a bulk transfer, on a line that both share.
    async fn shared(&self) -> anyhow::Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for down in [true, false] {
            let (_line, kubeconfig) = self.line(Some(NARROW)).await?;
            let subject = self.start(kubeconfig.path()).await?;
            answered(&subject, &Target::First).await?;
            let bulk = async {
                let mut stream = subject.connect(Port::Http).await?;
                // More than the line carries meanwhile.
                match down {
                    true => wire::download(&mut stream, 1 << 30).await,
                    false => wire::upload(&mut stream, 1 << 30).await,
                }
            };
            let beside = async {
                sleep(QUIET).await;
                let mut times = Vec::new();
                for _ in 0..BESIDE_BULK {
                    times.push(answered(&subject, &Target::First).await?);
                }
                anyhow::Ok(times)
            };
            let mut times = tokio::select! {
                ended = bulk => {
                    ended?;
                    anyhow::bail!("the bulk transfer ended");
                }
                times = beside => times?,
            };
            let what = match down {
                true => "new connection beside a download, 20 Mbit/s, p50",
                false => "new connection beside an upload, 20 Mbit/s, p50",
            };
            let p50 = quantile(&mut times, 0.5) / 1e3 / self.trip.as_secs_f64();
            figures.push(self.figure(what, p50).goal(Goal::Value(2.0)));
        }
        Ok(figures)
    }
}

const FURTHER: &str = "first connection to a further Service";

/// Where a connection goes.
enum Target {
    /// What every subject forwards to.
    First,
    Named(&'static str, u16),
}

/// A connection, and the answer over it.
async fn answered(subject: &Subject, to: &Target) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let exchange = async {
        let mut stream = match to {
            Target::First => subject.connect(Port::Http).await?,
            Target::Named(host, port) => subject.connect_to(host, *port).await?,
        };
        wire::exchange(&mut stream, GET, &mut Vec::new()).await
    };
    timeout(PATIENCE, exchange)
        .await
        .context("no answer in time")??;
    Ok(begun.elapsed())
}

async fn refused(subject: &Subject, host: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let connected = timeout(PATIENCE, subject.connect_to(host, 80)).await;
    ensure!(
        connected.context("no answer in time")?.is_err(),
        "{host} exists"
    );
    Ok(begun.elapsed())
}
