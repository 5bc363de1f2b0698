//! Ours beside the peers, on the real cluster, in one run.
//!
//!     cargo run -p lab -- bench
//!
//! brings the cluster up, builds this and the program under test, and writes `docs/performance.md`. With the cluster
//! up, parts of it: `kubevpn-benches --only churn-16 --subject ours --subject kubectl`. A run can be taken in pieces:
//! `--raw FILE --add` keeps the rounds that the file has, and `--rounds 0` makes the report of them.
//!
//! Every round runs every workload on every subject, in an order that is rotated from round to round, so that what
//! the machine does meanwhile hits all of them alike; between two subjects it waits until the node has let go of the
//! first one's connections. The report gives medians and the ratio to the better of kubectl's two transports. A peer
//! of your own: `--peer 'NAME=COMMAND {port}'`, a command that forwards 127.0.0.1:{port} to port 80 of the Service
//! `reviews`.
//!
//! `load.rs` is what the clients do, `wire.rs` what they say, `subject.rs` what they go through, `cpu.rs` who used the
//! processors, `report.rs` what is said about it. `frontends.rs` is a bench of its own: the frontends without a cluster;
//! `line.rs` another: everything over a long line, in round trips; `isolated.rs` is `run --isolated` beside SOCKS5.

mod budgets;
mod cpu;
mod forwarder;
mod frontends;
mod isolated;
mod line;
mod load;
mod report;
mod subject;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use lab::Lab;

use crate::load::{Sizes, Workload};
use crate::report::{ReportSection, Round};
use crate::subject::SubjectKind;

// No doc comment: clap would show it as what the program is.
// Which part of a bench, and where what it finds goes.
#[derive(Debug, clap::Args)]
struct BenchPart {
    /// Only these workloads
    #[arg(long = "only", value_name = "WORKLOAD")]
    only: Vec<String>,
    /// Only subjects whose name begins so
    #[arg(long = "subject", value_name = "NAME")]
    subjects: Vec<String>,
    /// Small loads: seconds instead of minutes, for trying the bench itself
    #[arg(long)]
    quick: bool,
    /// Where the report goes [default: stdout]
    #[arg(long)]
    report: Option<PathBuf>,
    /// Where every single measurement goes, as JSON
    #[arg(long)]
    raw: Option<PathBuf>,
}

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Other>,
    /// How many times everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The program under test [default: `kubevpn` beside this one]
    #[arg(long)]
    kubevpn: Option<PathBuf>,
    /// Another subject: NAME=COMMAND, with {port} where the local port goes
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    peers: Vec<String>,
    /// Measure ours a second time with `--metrics` that are read once a second, and say what that costs; of other subjects
    /// only those that are named
    #[arg(long, conflicts_with_all = ["lines", "report"])]
    metrics: bool,
    /// Measure over lines that take this long for a round trip instead: 10ms, 50ms, 150ms
    #[arg(long = "line", value_name = "TIME", value_parser = lab::round_trip)]
    lines: Vec<Duration>,
    #[command(flatten)]
    part: BenchPart,
    /// Keep the measurements that the raw file has
    #[arg(long, requires = "raw")]
    add: bool,
    /// Be the kube-rs forwarder on this port instead: 0 is no TCP_NODELAY, 1 is with it
    #[arg(long, value_name = "PORT", requires = "nodelay", hide = true)]
    kube_rs_forward: Option<u16>,
    #[arg(long, hide = true)]
    nodelay: Option<u8>,
}

/// What else is measured.
#[derive(Debug, Subcommand)]
enum Other {
    /// The frontends alone, beside proxies that only proxy
    Frontends(frontends::FrontendArgs),
    /// What the budgets come to: many Pods, outages, gateways that swallow or refuse upgrades
    Budgets(budgets::BudgetArgs),
    /// A command in a network of its own beside SOCKS5
    Isolated(isolated::IsolatedArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(port) = args.kube_rs_forward {
        return forwarder::run(port, args.nodelay == Some(1)).await;
    }
    match args.command {
        Some(Other::Frontends(args)) => return frontends::run(args).await,
        Some(Other::Budgets(args)) => return lab::interruptible(budgets::run(args)).await,
        Some(Other::Isolated(args)) => return isolated::run(args).await,
        None => {}
    }
    let lab = Lab::attach().await?;
    let me = std::env::current_exe()?;
    let kubevpn = match args.kubevpn {
        Some(path) => path,
        None => me.with_file_name("kubevpn"),
    };
    anyhow::ensure!(
        kubevpn.exists(),
        "{} is missing: cargo build --profile dist -p kubevpn",
        kubevpn.display()
    );

    let mut kinds = vec![
        SubjectKind::Ours(kubevpn.clone()),
        SubjectKind::Kubectl { websocket: false },
        SubjectKind::Kubectl { websocket: true },
        SubjectKind::KubeRs { nodelay: false },
        SubjectKind::KubeRs { nodelay: true },
    ];
    for peer in &args.peers {
        let (name, command) = peer.split_once('=').context("--peer takes NAME=COMMAND")?;
        kinds.push(SubjectKind::Command {
            name: name.into(),
            command: command.into(),
        });
    }
    let scraped = args.metrics.then_some(SubjectKind::Scraped(kubevpn));
    kinds = chosen(kinds, &args.part.subjects, scraped);
    let sizes = if args.part.quick {
        Sizes::QUICK
    } else {
        Sizes::FULL
    };
    if !args.lines.is_empty() {
        kinds.retain(|kind| matches!(kind, SubjectKind::Ours(_) | SubjectKind::Kubectl { .. }));
        let earlier = match &args.part.raw {
            Some(path) if args.add => report::load(path)?,
            _ => Vec::new(),
        };
        let rounds = line::run(&lab, &kinds, &args.lines, args.rounds, earlier).await?;
        if let Some(path) = &args.part.raw {
            report::save(path, &rounds)?;
        }
        let text = report::figures(&rounds, ReportSection::Line)?;
        return match &args.part.report {
            Some(path) => report::insert(path, ReportSection::Line, &text),
            None => report::print(&text),
        };
    }
    let workloads: Vec<Workload> = Workload::ALL
        .into_iter()
        .filter(|workload| begins(&workload.title(), &args.part.only))
        .collect();
    anyhow::ensure!(
        !workloads.is_empty() && !kinds.is_empty(),
        "no such workload or subject; workloads: {}",
        Workload::titles()
    );

    let mut rounds = match &args.part.raw {
        Some(path) if args.add => report::load(path)?,
        _ => Vec::new(),
    };
    let first = rounds.iter().map(|r| r.round + 1).max().unwrap_or(0);
    for round in first..first + args.rounds {
        for workload in &workloads {
            for turn in 0..kinds.len() {
                let kind = &kinds[(turn + round) % kinds.len()];
                let Some(measured) = workload.run(kind, &lab, sizes).await.transpose() else {
                    continue;
                };
                let entry = Round::new(round, workload.title(), kind.name(), measured);
                report::progress(&entry);
                rounds.push(entry);
            }
        }
        if let Some(path) = &args.part.raw {
            report::save(path, &rounds)?;
        }
    }
    let mut text = report::render(&rounds)?;
    text += &report::metrics(&rounds)?;
    match &args.part.report {
        Some(path) => report::insert(path, ReportSection::Cluster, &text),
        None => report::print(&text),
    }
}

/// Whether it was asked for; everything is where nothing was.
fn begins(name: &str, asked: &[String]) -> bool {
    asked.is_empty() || asked.iter().any(|start| name.starts_with(start.as_str()))
}

/// The subjects that were asked for. Where ours is measured with metrics too, ours without them is what it is compared with,
/// whether it is named or not.
fn chosen(
    mut kinds: Vec<SubjectKind>,
    asked: &[String],
    scraped: Option<SubjectKind>,
) -> Vec<SubjectKind> {
    if scraped.is_some() && asked.is_empty() {
        kinds.truncate(1);
    }
    kinds.retain(|kind| {
        let is_compared = scraped.is_some() && matches!(kind, SubjectKind::Ours(_));
        is_compared || begins(&kind.name(), asked)
    });
    kinds.extend(scraped);
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_measured_beside_ours_with_metrics() {
        let names = |asked: &[&str], with_metrics: bool| {
            let kinds = vec![
                SubjectKind::Ours("kubevpn".into()),
                SubjectKind::Kubectl { websocket: false },
                SubjectKind::KubeRs { nodelay: false },
            ];
            let scraped = with_metrics.then(|| SubjectKind::Scraped("kubevpn".into()));
            let asked: Vec<_> = asked.iter().map(|name| (*name).to_owned()).collect();
            let kinds = chosen(kinds, &asked, scraped);
            kinds.iter().map(SubjectKind::name).collect::<Vec<_>>()
        };
        let all = names(&[], false);
        assert_eq!(all.len(), 3);
        assert_eq!(names(&["kubectl"], false), all[1..2]);
        assert_eq!(names(&[], true).len(), 2);
        let with = names(&["kubectl"], true);
        assert_eq!(with.len(), 3);
        assert_eq!(with[..2], all[..2]);
    }
}
