//! Everything over a long line, in round trips: what counts where the API server is far.
//!
//!     cargo run -p lab -- bench --line 10ms --line 50ms --line 150ms
//!
//! The line is the lab's relay ([`lab::LineRelay`]), for kubectl and ours alike. A connection and the answer over it are one
//! measurement, as everywhere here. kubectl forwards to one Pod of one Service, so that what is about another one is a
//! process more, and what is about a name is not its business.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use lab::{Lab, Length, LineRelay};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use crate::budgets::gateway::kubeconfig_at;
use crate::load::rate::in_parallel;
use crate::load::{Figure, Goal};
use crate::report::{self, Round};
use crate::subject::{Port, RunningSubject, SubjectKind};
use crate::wire::{self, quantile};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: line\r\n\r\n";

/// Nothing that is waited for here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whether a program listens.
const POLL: Duration = Duration::from_millis(1);
/// What was begun beside a connection is done by then.
const QUIET: Duration = Duration::from_secs(3);
/// How many later connections, or as many as there are in this time.
const LATER: usize = 100;
const LATER_WITHIN: Duration = Duration::from_secs(12);
const CLIENTS: usize = 64;
const WINDOW: Duration = Duration::from_secs(5);
const RATED: Duration = Duration::from_millis(50);
/// 20 Mbit/s, in bytes, for what shares a line.
const NARROW: u64 = 2_500_000;
const BESIDE_BULK: usize = 40;
/// No longer than this, after the first of them.
const BESIDE: Duration = Duration::from_secs(8);
/// How long two and many of them are looked at.
const TOGETHER: Duration = Duration::from_secs(3);
/// Transfers at once, and the MiB that ours may hold for them: what a client's socket, its stream and its session have of each.
const MANY: usize = 16;
const MANY_HOLD: f64 = 16.0;

pub(crate) async fn run(
    lab: &Lab,
    kinds: &[SubjectKind],
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
                let row = LineRow {
                    lab,
                    kind,
                    trip: *trip,
                };
                let measured = async {
                    let mut figures = row.measure().await?;
                    for way in [TransferDirection::Down, TransferDirection::Up] {
                        figures.extend(row.shared(way).await?);
                    }
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
struct LineRow<'a> {
    lab: &'a Lab,
    kind: &'a SubjectKind,
    trip: Duration,
}

impl LineRow<'_> {
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
    ) -> anyhow::Result<(LineRelay, tempfile::NamedTempFile)> {
        let mut api = None;
        kubeconfig_at(&self.lab.kubeconfig(), |server| {
            api = server.rsplit("//").next().and_then(|a| a.parse().ok());
            server.into()
        })?;
        let api: SocketAddr = api.context("the server is no address")?;
        let length = Length {
            each_way: self.trip / 2,
            bandwidth,
        };
        let line = LineRelay::start(api, length).await?;
        let own = line.address();
        let kubeconfig = kubeconfig_at(&self.lab.kubeconfig(), |_| format!("https://{own}"))?;
        Ok((line, kubeconfig))
    }

    async fn start(&self, kubeconfig: &Path) -> anyhow::Result<RunningSubject> {
        RunningSubject::start_on(self.kind, self.lab, kubeconfig, &[Port::Http]).await
    }

    /// From the start of the program to the answer of a client that connects as soon as it listens.
    async fn started(&self, kubeconfig: &Path) -> anyhow::Result<(RunningSubject, Duration)> {
        let begun = Instant::now();
        let subject = RunningSubject::begin(self.kind, self.lab, kubeconfig).await?;
        let answer = async {
            loop {
                match answered(&subject, &LineTarget::First).await {
                    Err(error) if is_not_listening(&error) => sleep(POLL).await,
                    done => return done,
                }
            }
        };
        let answer = timeout(PATIENCE, answer).await;
        answer.context("it never listened")??;
        Ok((subject, begun.elapsed()))
    }

    async fn measure(&self) -> anyhow::Result<Vec<Figure>> {
        let (_line, kubeconfig) = self.line(None).await?;
        let (subject, start) = self.started(kubeconfig.path()).await?;
        sleep(QUIET).await;
        let mut figures = vec![
            self.figure(
                "start of the program to the first answer",
                self.trips(start),
            )
            .goal(Goal::Value(7.0)),
        ];
        if let SubjectKind::Ours(_) = self.kind {
            figures.extend(self.ours_alone(&subject).await?);
        } else {
            let (_another, further) = self.started(kubeconfig.path()).await?;
            figures.push(self.figure(FURTHER, self.trips(further)));
        }
        let (mut later, until) = (Vec::new(), Instant::now() + LATER_WITHIN);
        while later.len() < LATER && (later.is_empty() || Instant::now() < until) {
            later.push(answered(&subject, &LineTarget::First).await?);
        }
        let mut of = |q| quantile(&mut later, q) / 1e3 / self.trip.as_secs_f64();
        let (p50, p99) = (of(0.5), of(0.99));
        figures.extend([
            self.figure("every later connection, p50", p50)
                .goal(Goal::Value(1.1)),
            self.figure("every later connection, p99", p99)
                .goal(Goal::Value(1.5)),
        ]);
        let one = async || answered(&subject, &LineTarget::First).await.map(drop);
        let (done, failed) = in_parallel(CLIENTS, WINDOW, one).await;
        ensure!(failed == 0, "{failed} of {done} connections failed");
        let what = format!("{}: new connections, {CLIENTS} clients", self.title());
        let rate = Figure::more(what, "/s", done as f64 / WINDOW.as_secs_f64());
        // What a client that puts all on five sessions came to, at this length.
        figures.push(match self.trip == RATED {
            true => rate.goal(Goal::Value(740.0)),
            false => rate,
        });
        Ok(figures)
    }

    /// What a proxy alone is asked for.
    async fn ours_alone(&self, subject: &RunningSubject) -> anyhow::Result<Vec<Figure>> {
        let further = answered(subject, &LineTarget::Named("productpage", 9080)).await?;
        sleep(QUIET).await;
        let beside = answered(subject, &LineTarget::Named("productpage", 9080)).await?;
        sleep(QUIET).await;
        let second = answered(subject, &LineTarget::Named("productpage", 9080)).await?;
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

    /// What many get of a line that they share, in one direction: a new connection beside a transfer, and two and many
    /// transfers beside each other.
    async fn shared(&self, way: TransferDirection) -> anyhow::Result<Vec<Figure>> {
        let (_line, kubeconfig) = self.line(Some(NARROW)).await?;
        let subject = self.start(kubeconfig.path()).await?;
        answered(&subject, &LineTarget::First).await?;
        let beside = async {
            sleep(QUIET).await;
            let until = Instant::now() + BESIDE;
            let mut times = Vec::new();
            while times.len() < BESIDE_BULK && (times.is_empty() || Instant::now() < until) {
                times.push(answered(&subject, &LineTarget::First).await?);
            }
            anyhow::Ok(times)
        };
        let (mut times, _) = beside_transfers(&subject, way, 1, beside).await?;
        let p50 = quantile(&mut times, 0.5) / 1e3 / self.trip.as_secs_f64();

        let window = async {
            sleep(TOGETHER).await;
            anyhow::Ok(())
        };
        let ((), moved) = beside_transfers(&subject, way, 2, window).await?;
        let fair = moved[0].min(moved[1]) as f64 / moved[0].max(moved[1]).max(1) as f64;

        let memory = async {
            let mut most = 0;
            for _ in 0..10 {
                sleep(TOGETHER / 10).await;
                most = most.max(subject.resident()?);
            }
            anyhow::Ok(most)
        };
        let before = subject.resident()?;
        let (most, _) = beside_transfers(&subject, way, MANY, memory).await?;
        let grown = most.saturating_sub(before) as f64 / f64::from(1 << 20);

        let title = self.title();
        let name = way.name();
        let two = format!("{title}: two {name}s, 20 Mbit/s, the slower's part of the faster's");
        let many = format!("{title}: memory for {MANY} {name}s, 20 Mbit/s");
        Ok(vec![
            self.figure(
                &format!("new connection beside {}, 20 Mbit/s, p50", way.one()),
                p50,
            )
            .goal(Goal::Value(2.0)),
            Figure::more(two, "", fair).goal(Goal::Value(0.8)),
            Figure::less(many, "MiB", grown).goal(Goal::Value(MANY_HOLD)),
        ])
    }
}

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TransferDirection {
    Down,
    Up,
}

impl TransferDirection {
    fn name(self) -> &'static str {
        match self {
            Self::Down => "download",
            Self::Up => "upload",
        }
    }

    fn one(self) -> &'static str {
        match self {
            Self::Down => "a download",
            Self::Up => "an upload",
        }
    }
}

/// Runs something beside this many transfers, which end with it; what came of it, and how many bytes each moved.
async fn beside_transfers<T>(
    subject: &RunningSubject,
    way: TransferDirection,
    transfers: usize,
    run: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, Vec<u64>)> {
    let moved: Vec<_> = (0..transfers).map(|_| AtomicU64::new(0)).collect();
    let all = try_join_all(moved.iter().map(|moved| transfer(subject, way, moved)));
    let done = tokio::select! {
        ended = all => {
            ended?;
            bail!("a transfer ended");
        }
        done = run => done?,
    };
    Ok((done, moved.into_iter().map(AtomicU64::into_inner).collect()))
}

/// A transfer of more than any line here carries; counts the bytes.
async fn transfer(
    subject: &RunningSubject,
    way: TransferDirection,
    moved: &AtomicU64,
) -> anyhow::Result<()> {
    const BYTES: u64 = 1 << 40;
    let mut stream = subject.connect(Port::Http).await?;
    let ask = match way {
        TransferDirection::Down => format!("GET /bytes?n={BYTES} HTTP/1.1\r\nHost: line\r\n\r\n"),
        TransferDirection::Up => {
            format!("POST /sink HTTP/1.1\r\nHost: line\r\nContent-Length: {BYTES}\r\n\r\n")
        }
    };
    stream.write_all(ask.as_bytes()).await?;
    if way == TransferDirection::Down {
        wire::head(&mut stream, &mut Vec::new()).await?;
    }
    let mut chunk = vec![0; 64 << 10];
    loop {
        let n = match way {
            TransferDirection::Down => stream.read(&mut chunk).await?,
            TransferDirection::Up => stream.write(&chunk).await?,
        };
        ensure!(n > 0, "a transfer ended");
        moved.fetch_add(n as u64, Ordering::Relaxed);
    }
}

const FURTHER: &str = "first connection to a further Service";

/// Where a connection goes.
enum LineTarget {
    /// What every subject forwards to.
    First,
    Named(&'static str, u16),
}

/// A connection, and the answer over it.
fn is_not_listening(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

async fn answered(subject: &RunningSubject, to: &LineTarget) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let exchange = async {
        let mut stream = match to {
            LineTarget::First => subject.connect(Port::Http).await?,
            LineTarget::Named(host, port) => subject.connect_to(host, *port).await?,
        };
        wire::exchange(&mut stream, GET, &mut Vec::new()).await
    };
    timeout(PATIENCE, exchange)
        .await
        .context("no answer in time")??;
    Ok(begun.elapsed())
}

async fn refused(subject: &RunningSubject, host: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let connected = timeout(PATIENCE, subject.connect_to(host, 80)).await;
    ensure!(
        connected.context("no answer in time")?.is_err(),
        "{host} exists"
    );
    Ok(begun.elapsed())
}
