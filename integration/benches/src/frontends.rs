//! The frontends alone, beside proxies that only proxy: no Kubernetes, all on loopback.
//!
//!     cargo build --profile dist -p kubevpn-socks5 -p kubevpn-http-connect --examples
//!     cargo build --profile dist -p kubevpn-benches
//!     target/dist/kubevpn-benches frontends
//!
//! `docs/performance.md` has it in a network namespace, where ended connections do not use up the ports.
//!
//! Ours are the two examples `direct.rs`: a frontend over a plain TCP dialer. The peers come from Debian and are
//! unpacked, not installed. Load and server are this process, the proxy is another; rounds are rotated as on the
//! cluster. `peers.rs` is who is compared, `upstream.rs` where it leads, `load.rs` what the clients do.

mod load;
mod peers;
mod process;
mod upstream;

use std::path::PathBuf;

use clap::Args;
use lab::Lab;

use self::load::{FrontendSizes, FrontendWorkload};
use self::peers::{Family, PeerKind, PeerPrograms};
use self::upstream::BenchUpstream;
use crate::BenchPart;
use crate::begins;
use crate::report::{self, ReportSection, Round};

#[derive(Debug, Args)]
pub(crate) struct FrontendArgs {
    /// How many times everything is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the two examples are [default: `examples` beside this program]
    #[arg(long)]
    examples: Option<PathBuf>,
    #[command(flatten)]
    part: BenchPart,
}

pub(crate) async fn run(args: FrontendArgs) -> anyhow::Result<()> {
    let examples = match args.examples {
        Some(dir) => dir,
        None => std::env::current_exe()?.with_file_name("examples"),
    };
    let peers = PeerPrograms::new(&Lab::from_env()?, examples).await?;
    let sizes = if args.part.quick {
        FrontendSizes::QUICK
    } else {
        FrontendSizes::FULL
    };
    let mut plan = Vec::new();
    for family in [Family::Socks5, Family::Http] {
        let kinds: Vec<PeerKind> = PeerKind::of(family)
            .filter(|kind| begins(kind.name(), &args.part.subjects))
            .collect();
        let workloads =
            FrontendWorkload::of(family).filter(|w| begins(&w.title(), &args.part.only));
        plan.extend(workloads.map(|workload| (workload, kinds.clone())));
    }
    anyhow::ensure!(
        plan.iter().any(|(_, kinds)| !kinds.is_empty()),
        "no such workload or subject; workloads are: {}",
        FrontendWorkload::titles()
    );

    let upstream = BenchUpstream::start().await?;
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        for (workload, kinds) in &plan {
            for turn in 0..kinds.len() {
                let kind = kinds[(turn + round) % kinds.len()];
                let measured = match peers.start(kind).await {
                    Ok(mut proxy) => {
                        let measured = workload.run(&proxy, &upstream, sizes).await;
                        proxy.end().await?;
                        measured
                    }
                    Err(error) => Err(error),
                };
                let entry = Round::new(round, workload.title(), kind.name().into(), measured);
                report::progress(&entry);
                rounds.push(entry);
            }
        }
        if let Some(path) = &args.part.raw {
            report::save(path, &rounds)?;
        }
    }
    let mut text = String::new();
    for (family, title) in [(Family::Socks5, "SOCKS5"), (Family::Http, "HTTP proxy")] {
        let of_family: Vec<Round> = rounds
            .iter()
            .filter(|round| PeerKind::of(family).any(|kind| kind.name() == round.subject()))
            .cloned()
            .collect();
        if !of_family.is_empty() {
            let table = report::figures(&of_family, ReportSection::Frontends)?;
            text += &format!("\n### {title}\n\n{table}");
        }
    }
    match &args.part.report {
        Some(path) => report::insert(path, ReportSection::Frontends, &text),
        None => report::print(&text),
    }
}
