//! `cargo run -p lab -- up`: the lab's command line. All it does is in the library.
#![expect(
    clippy::print_stdout,
    reason = "a command line: results go to standard output, progress to standard error"
)]

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use lab::{
    AuditMark, Claim, Claimed, ClusterDaemon, Containerd, Extent, Lab, Recovery, ScaleMeasured,
    Signal, Vpn, contradictions,
};
use tokio::time::Instant;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Of the workspace.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const BENCHES: &str = "kubevpn-benches";

/// A real Kubernetes on this machine, for tests. Needs root, Debian 12 and, to build it, Go.
#[derive(Parser)]
#[command(
    name = "lab",
    version,
    after_help = "\
Environment:
  KUBEVPN_LAB_DIR       the cluster's state and logs  [default: ${TMPDIR:-/tmp}/kubevpn-lab]
  KUBEVPN_LAB_CACHE     built programs                [default: ${XDG_CACHE_HOME:-~/.cache}/kubevpn-lab]
  KUBEVPN_LAB_INSTANCE  0 to 7, one for each lab that runs at the same time [default: 0]
  RUST_LOG              what to report on standard error [default: info]"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the cluster up, or what is missing of it; prints the KUBECONFIG to use
    Up {
        /// etcd, API server and controller manager only: objects, but no pod runs
        #[arg(long)]
        control_plane_only: bool,
        /// Version of Kubernetes: 1.30.14, 1.34.4 or 1.37.2 [default: what is up, or 1.34.4]
        #[arg(long, value_name = "VERSION")]
        kubernetes: Option<String>,
        /// Version of containerd [default: what is up, or 1.6.20]
        #[arg(long, value_enum, value_name = "VERSION")]
        containerd: Option<Containerd>,
    },
    /// End it, and forget all but its logs
    Down,
    /// Which daemons run; exit code 1 unless the whole cluster does
    Status,
    /// 17 claims about a running cluster, one line each; exit code 1 if one fails
    Check,
    /// Build what `up` needs, and stop there
    Build,
    /// Print the path of a kubeconfig: the administrator's, or that of a user without rights
    Kubeconfig {
        /// A user without rights
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// kubectl as administrator
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run a command inside the node
    NodeSh {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// End the API server, and start it again
    RestartApiserver {
        /// Seconds between the two
        #[arg(long, default_value_t = 0, value_name = "SECONDS")]
        down_for: u64,
        /// TERM lets it serve the connections it has for up to 6 seconds
        #[arg(long, value_enum, default_value_t = Signal::Kill)]
        signal: Signal,
    },
    /// Start one daemon
    Start { daemon: ClusterDaemon },
    /// End one daemon
    Stop {
        daemon: ClusterDaemon,
        #[arg(long, value_enum, default_value_t = Signal::Term)]
        signal: Signal,
    },
    /// Send one daemon a signal: STOP makes a black hole of it, CONT ends that
    Signal {
        daemon: ClusterDaemon,
        #[arg(value_enum)]
        signal: Signal,
    },
    /// Add Services with fake pods behind them (kwok)
    Fill {
        services: u32,
        /// Pods behind each
        #[arg(long, default_value_t = 1, value_name = "PODS")]
        each: u32,
    },
    /// What a first dial costs with 10 Services and with 5,000, measured; exit code 1 if a claim does not hold
    ///
    /// Brings up a control plane, fills it (20,000 fake pods, a few minutes), and leaves it up.
    Scale {
        /// In the large cluster, with four Pods behind each; 200 at least
        #[arg(long, default_value_t = 5000)]
        services: u32,
        /// The program to measure [default: the one beside this]
        #[arg(long, value_name = "FILE")]
        kubevpn: Option<PathBuf>,
    },
    /// What clients asked the API server for
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Bring the cluster up, build the program and measure it beside its peers; without arguments a full run, which
    /// rewrites docs/performance.md
    Bench {
        /// For `kubevpn-benches`; its `--help` has them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run deploy/gateway under load: a replica killed, a rolling update, Secrets changed, one line a claim; exit code 1 if one
    /// fails
    Gateway {
        /// The program its image is made of [default: `kubevpn` beside this one]
        #[arg(long)]
        kubevpn: Option<PathBuf>,
    },
    /// Send load through `kubevpn proxy-out` while Pods and the API server go and come back, and compare what a real Prometheus has
    /// seen, one line a claim; exit code 1 if one fails
    Metrics {
        /// How long
        #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = lab::lasting)]
        lasts: Duration,
        /// The program under test [default: `kubevpn` beside this one]
        #[arg(long)]
        kubevpn: Option<PathBuf>,
        /// The page whose table is to be written
        #[arg(long)]
        page: Option<PathBuf>,
    },
    /// Bring up every pair of Kubernetes and containerd, one after the other, and run check, scenarios and upgrades on it
    ///
    /// Exit code 1 if one of them fails. The last pair is left up.
    Matrix {
        /// Only this Kubernetes
        #[arg(long, value_name = "VERSION")]
        kubernetes: Option<String>,
        /// Only this containerd
        #[arg(long, value_enum, value_name = "VERSION")]
        containerd: Option<Containerd>,
        /// Measure transports too, and write this page's tables of all pairs that were ever run for it
        #[arg(long)]
        page: Option<PathBuf>,
        /// Only scenarios whose names contain one of these
        #[arg(value_name = "FILTER")]
        filters: Vec<String>,
    },
    /// Reach the cluster through gateways and proxies; exit code 1 if one does not do as expected
    Hops {
        /// The program under test [default: `kubevpn` beside this one]
        #[arg(long)]
        kubevpn: Option<PathBuf>,
        /// Only those whose names begin so
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// The page whose table is to be written
        #[arg(long, conflicts_with = "only")]
        page: Option<PathBuf>,
    },
    /// Use the cluster on a machine whose routes and DNS a VPN has; exit code 1 if something does not work there
    Vpn {
        /// The program under test [default: `kubevpn` beside this one]
        #[arg(long)]
        kubevpn: Option<PathBuf>,
        /// Only those whose names begin so
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// The page whose table is to be written
        #[arg(long, conflicts_with = "only")]
        page: Option<PathBuf>,
    },
    /// Take the line to the API server away and bring it back; exit code 1 if a first answer takes more than 2 s from then
    Away {
        /// For so many seconds; may be given more than once
        #[arg(long = "for", value_name = "SECONDS", default_values_t = [5, 120, 1200])]
        times: Vec<u64>,
        /// Only those whose names begin so
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// The program under test [default: `kubevpn` beside this one]
        #[arg(long)]
        kubevpn: Option<PathBuf>,
        /// The page whose table is to be written
        #[arg(long, conflicts_with = "only")]
        page: Option<PathBuf>,
    },
    /// Run a command whose KUBECONFIG leads to the API server over a long line
    Line {
        /// What a round trip takes: 50ms
        #[arg(value_name = "TIME", value_parser = lab::round_trip)]
        trip: Duration,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Ask for a port-forward in every way a client might, and print the answers
    Upgrades { pod: Option<String> },
    /// Send real programs through `kubevpn proxy-out`; exit code 1 if one does not get through
    Clients {
        /// The program under test [default: `kubevpn` beside this one]
        #[arg(long)]
        kubevpn: Option<PathBuf>,
        /// Only those whose names begin so
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// The page whose table is to be written
        #[arg(long, conflicts_with = "only")]
        page: Option<PathBuf>,
    },
    /// Run real programs in `kubevpn run`, by the environment's way and isolated, as root and as an ordinary user; exit code
    /// 1 if one does not do isolated what it should
    Isolated {
        /// The program under test [default: `kubevpn` beside this one]
        #[arg(long)]
        kubevpn: Option<PathBuf>,
        /// Only those whose names begin so
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// The page whose tables are to be written
        #[arg(long, conflicts_with = "only")]
        page: Option<PathBuf>,
    },
    /// Make the packages of the program: tarball, Debian package, RPM, SBOM, formulas. Needs no cluster
    Package {
        /// A program that was built already [default: build it]
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        /// Folder to make
        #[arg(long, value_name = "DIR", default_value = "target/package")]
        out: PathBuf,
        /// Where the files of the release will be, for Homebrew, krew, AUR and nix
        #[arg(long)]
        url: Option<String>,
        /// Build a program for musl as well, which needs no C library of the system
        #[arg(long, conflicts_with = "program")]
        musl: bool,
        /// Make them twice, and compare each byte
        #[arg(long)]
        twice: bool,
        /// Install the Debian package and the RPM into a new root, use and remove them; as root, on Debian
        #[arg(long)]
        install: bool,
    },
    /// Complete words in real shells, take the first minute of the README, and capture what a terminal shows
    Terminal {
        /// The program under test [default: `kubevpn` beside this one]
        #[arg(long, conflicts_with = "fresh")]
        kubevpn: Option<PathBuf>,
        /// Test what the README's line installs from a fresh clone of the last commit
        #[arg(long)]
        fresh: bool,
        /// Look at `top` alone, of `kubevpn demo`: no cluster has to be up
        #[arg(long, conflicts_with_all = ["page", "fresh"])]
        demo: bool,
        /// The page whose sections are to be written
        #[arg(long)]
        page: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Print a mark that means now
    Mark,
    /// Requests since a mark, counted by verb, resource, answer and client
    Count {
        #[arg(long, value_name = "MARK")]
        since: AuditMark,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")))
        .with_timer(Elapsed(Instant::now()))
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    let done = match Lab::from_env() {
        Ok(lab) => run(args.command, lab).await,
        Err(error) => Err(error),
    };
    done.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}

/// Seconds since the start, in front of each line: what took how long.
struct Elapsed(Instant);

impl FormatTime for Elapsed {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{:6.1}s", self.0.elapsed().as_secs_f64())
    }
}

async fn run(command: Command, lab: Lab) -> Result<ExitCode> {
    let lab = match &command {
        Command::Up {
            kubernetes,
            containerd,
            ..
        } => &lab.with_versions(kubernetes.clone(), *containerd)?,
        _ => &lab,
    };
    match command {
        Command::Up {
            control_plane_only, ..
        } => {
            lab.up(if control_plane_only {
                Extent::ControlPlane
            } else {
                Extent::Full
            })
            .await?;
            println!("export KUBECONFIG={}", lab.kubeconfig().display());
        }
        Command::Down => lab.down().await?,
        Command::Status => {
            let mut whole = true;
            let all = lab.status()?;
            if all.iter().any(|(_, pid)| pid.is_some()) {
                println!("{}", lab.versions());
            }
            for (daemon, pid) in all {
                let extra = matches!(daemon, ClusterDaemon::Kwok | ClusterDaemon::KwokEcho);
                whole &= extra || pid.is_some();
                match pid {
                    Some(pid) => println!("{:24} {pid}", daemon.name()),
                    None if extra => {}
                    None => println!("{:24} down", daemon.name()),
                }
            }
            return Ok(ExitCode::from(u8::from(!whole)));
        }
        Command::Check => {
            return Ok(judged(&lab.check(print_claim).await?));
        }
        Command::Gateway { kubevpn } => {
            return Ok(judged(
                &lab.gateway(&beside_this(kubevpn)?, print_claim).await?,
            ));
        }
        Command::Metrics {
            lasts,
            kubevpn,
            page,
        } => {
            let kubevpn = beside_this(kubevpn)?;
            let scraped = lab.metrics(&kubevpn, lasts, print_claim).await?;
            println!("{}", scraped.table);
            if let Some(page) = page {
                lab::write_section(&page, "prometheus", &scraped.table)?;
            }
            return Ok(judged(&scraped.claims));
        }
        Command::Build => lab.build().await?,
        Command::Kubeconfig { user: None } => println!("{}", lab.kubeconfig().display()),
        Command::Kubeconfig { user: Some(name) } => {
            println!("{}", lab.user(&name).await?.display())
        }
        Command::Kubectl { args } => {
            return pass_through(lab.kubectl_command(&borrowed(&args))).await;
        }
        Command::NodeSh { command } => {
            return pass_through(lab.node_command(&borrowed(&command))?).await;
        }
        Command::RestartApiserver { down_for, signal } => {
            lab.restart_apiserver(Duration::from_secs(down_for), signal)
                .await?;
        }
        Command::Start { daemon } => lab.resume(daemon).await?,
        Command::Stop { daemon, signal } => lab.stop(daemon, signal).await?,
        Command::Signal { daemon, signal } => lab.signal(daemon, signal)?,
        Command::Fill { services, each } => lab.fill(services, each).await?,
        Command::Scale { services, kubevpn } => return scale(lab, services, kubevpn).await,
        Command::Audit(AuditCommand::Mark) => println!("{}", lab.audit_mark()?),
        Command::Audit(AuditCommand::Count { since }) => {
            for (what, n) in lab.audit_counts(&since).await? {
                println!("{n:6} {what}");
            }
        }
        Command::Bench { args } => {
            lab.up(Extent::Full).await?;
            return bench(&args).await;
        }
        Command::Line { trip, command } => {
            let (_line, mut command) = lab.over_line(trip, &borrowed(&command)).await?;
            command.kill_on_drop(true);
            return pass_through(command).await;
        }
        Command::Clients {
            kubevpn,
            only,
            page,
        } => {
            let passages = lab
                .clients(&beside_this(kubevpn)?, &only, |passage| {
                    let (client, failure) = (passage.client, passage.failure.as_deref());
                    println!(
                        "{:5} {:40} {:6} {:28} {}",
                        if failure.is_none() { "pass" } else { "FAIL" },
                        client.name,
                        client.listener.name(),
                        client.target,
                        failure.unwrap_or_default()
                    );
                })
                .await?;
            if let Some(page) = page {
                lab::write_page(&page, &passages)?;
            }
            let failed = passages.iter().filter(|p| p.failure.is_some()).count();
            return Ok(verdict(passages.len(), failed, ["got through", "did not"]));
        }
        Command::Isolated {
            kubevpn,
            only,
            page,
        } => {
            let outcomes = lab
                .isolated(&beside_this(kubevpn)?, &only, |outcome| {
                    let said = |result: &Result<String, String>| match result {
                        Ok(line) => format!("yes  {line}"),
                        Err(error) => format!("NO   {error}"),
                    };
                    println!(
                        "{:5} {}",
                        if outcome.is_as_meant() { "ok" } else { "FAIL" },
                        outcome.program.name
                    );
                    if let Some(environment) = &outcome.environment {
                        println!("      environment     {}", said(environment));
                    }
                    println!("      isolated, root  {}", said(&outcome.root));
                    println!("      isolated, user  {}", said(&outcome.user));
                })
                .await?;
            if let Some(page) = page {
                lab::write_programs(&page, &outcomes)?;
            }
            let wrong = outcomes.iter().filter(|o| !o.is_as_meant()).count();
            return Ok(verdict(outcomes.len(), wrong, ["as meant", "not"]));
        }
        Command::Matrix {
            kubernetes,
            containerd,
            page,
            filters,
        } => {
            let measured = page.as_ref().map(|_| beside_this(None)).transpose()?;
            let versions = lab::pairs(kubernetes.as_deref(), containerd)?;
            let mut failed = 0;
            for versions in &versions {
                let run =
                    lab::VersionPair::run(versions, ROOT.as_ref(), &filters, measured.as_deref());
                let pair = run.await?;
                failed += usize::from(!pair.holds());
                println!("{}", lab::matrix_table(std::slice::from_ref(&pair)));
                if let Some(page) = &page {
                    lab::write_pair(page, pair)?;
                }
            }
            return Ok(verdict(versions.len(), failed, ["pairs hold", "do not"]));
        }
        Command::Hops {
            kubevpn,
            only,
            page,
        } => {
            let crossings = lab
                .hops(&beside_this(kubevpn)?, &only, |crossing| {
                    let reached: Vec<String> = crossing
                        .reached
                        .iter()
                        .map(|r| {
                            let (Ok(how) | Err(how)) = &r.how;
                            format!("{:.1} s {how}", r.seconds)
                        })
                        .collect();
                    let result = match &crossing.contradiction {
                        None => "as expected".to_owned(),
                        Some(contradiction) => format!("FAIL {contradiction}"),
                    };
                    println!("{}: {result}; {}", crossing.hop.name, reached.join("; "));
                })
                .await?;
            if let Some(page) = page {
                lab::write_section(&page, "hops", &lab::hops_table(&crossings))?;
            }
            let failed = crossings
                .iter()
                .filter(|c| c.contradiction.is_some())
                .count();
            return Ok(verdict(crossings.len(), failed, ["as expected", "not"]));
        }
        Command::Vpn {
            kubevpn,
            only,
            page,
        } => {
            let kubevpn = beside_this(kubevpn)?;
            let mut claims = Vec::new();
            for vpn in Vpn::ALL
                .into_iter()
                .filter(|vpn| vpn.name().starts_with(&only))
            {
                let report = |claimed: &Claimed| {
                    let (Ok(seen) | Err(seen)) = &claimed.seen;
                    let result = if claimed.seen.is_ok() {
                        "ok   "
                    } else {
                        "FAIL "
                    };
                    println!("{result} {}: {}: {seen}", vpn.name(), claimed.what);
                };
                claims.extend(lab.vpn(&kubevpn, vpn, report).await?);
            }
            if let Some(page) = page {
                lab::write_section(&page, "vpn", &lab::vpn_table(&claims))?;
            }
            let failed = claims
                .iter()
                .filter(|claimed| claimed.seen.is_err())
                .count();
            return Ok(verdict(claims.len(), failed, ["claims hold", "do not"]));
        }
        Command::Away {
            times,
            only,
            kubevpn,
            page,
        } => {
            let times: Vec<Duration> = times.into_iter().map(Duration::from_secs).collect();
            let report = |r: &Recovery| {
                let (wrong, away) = (r.contradiction(), r.away.name());
                let result = if wrong.is_none() { "ok  " } else { "FAIL" };
                let back = match r.back {
                    Ok(back) => format!("{:.2} s ", back.as_secs_f64()),
                    Err(_) => String::new(),
                };
                let (lasted, wrong) = (r.lasted, wrong.unwrap_or_default());
                println!("{result} {away} for {lasted:?}, {}: {back}{wrong}", r.by());
            };
            let kubevpn = beside_this(kubevpn)?;
            let recoveries = lab.away(&kubevpn, &only, &times, report).await?;
            if let Some(page) = page {
                lab::write_section(&page, "away", &lab::away_table(&recoveries))?;
            }
            let failed = recoveries.iter().filter(|r| r.contradiction().is_some());
            let words = ["answered within 2 s", "not"];
            return Ok(verdict(recoveries.len(), failed.count(), words));
        }
        Command::Package {
            program,
            out,
            url,
            musl,
            twice,
            install,
        } => {
            std::fs::create_dir_all(&out)?;
            let options = lab::PackageOptions {
                repository: PathBuf::from(ROOT).canonicalize()?,
                program: match program {
                    Some(program) => lab::PackedProgram::Given(program),
                    None => lab::PackedProgram::Built(lab.release_tools().await?),
                },
                out: out.canonicalize()?,
                url,
                musl,
            };
            packages(&options, twice).await?;
            if install {
                let report = |what: &str, said: &str| println!("{what}: {said}");
                lab::try_packages(&options.out, report).await?;
            }
        }
        Command::Terminal {
            kubevpn,
            fresh,
            demo,
            page,
        } => {
            let kubevpn = match fresh {
                true => None,
                false => Some(beside_this(kubevpn)?),
            };
            let seen = match (&kubevpn, demo) {
                (Some(kubevpn), true) => lab.top_of_demo(kubevpn).await?,
                _ => lab.terminal(kubevpn.as_deref()).await?,
            };
            for (title, screen) in &seen.screens {
                println!("== {title}\n{screen}\n");
            }
            for row in &seen.completed {
                println!(
                    "{:5} {:28} {:>5} ms  {}",
                    row.shell,
                    row.what,
                    row.took.as_millis(),
                    row.completed
                );
            }
            if let Some(page) = page {
                lab::write_terminal_page(&page, &seen)?;
            }
        }
        Command::Upgrades { pod } => {
            for answer in lab.upgrades(pod.as_deref()).await? {
                println!(
                    "* {}: `{}` {}",
                    answer.question,
                    answer.status,
                    answer.headers.join("; ")
                );
                if !answer.rest.is_empty() {
                    println!("  then: {}", answer.rest.escape_ascii());
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_claim(claim: &Claim) {
    match &claim.contradiction {
        None => println!("ok    {}", claim.what),
        Some(contradiction) => println!("FAIL  {}: {contradiction}", claim.what),
    }
}

fn judged(claims: &[Claim]) -> ExitCode {
    let failed = claims.iter().filter(|claim| claim.contradiction.is_some());
    verdict(claims.len(), failed.count(), ["claims hold", "do not"])
}

/// Prints how many of all are right and how many are not. None at all is a failure: a name was mistyped.
fn verdict(all: usize, failed: usize, [right, wrong]: [&str; 2]) -> ExitCode {
    println!("{} {right}, {failed} {wrong}", all - failed);
    ExitCode::from(u8::from(failed > 0 || all == 0))
}

/// Makes them, and says what was made; a second time for the comparison.
async fn packages(options: &lab::PackageOptions, twice: bool) -> Result<()> {
    let made = lab::package(options).await?;
    println!(
        "the stripped program: {} bytes, of {} at most",
        made.program,
        lab::BUDGET
    );
    for (file, bytes) in &made.files {
        println!("{bytes:>10}  {file}");
    }
    for what in &made.left_out {
        println!("left out: {what}");
    }
    if twice {
        let again = options.out.with_extension("again");
        let second = lab::PackageOptions {
            out: again.clone(),
            ..options.clone()
        };
        lab::package(&second).await?;
        let differ = lab::differences(&options.out, &again)?;
        ensure!(
            differ.is_empty(),
            "made twice, these differ: {}",
            differ.join(", ")
        );
        println!("made twice: {} files, the same bytes", made.files.len());
        std::fs::remove_dir_all(again)?;
    }
    Ok(())
}

/// The program under test: the one that is named, or `kubevpn` beside this one.
fn beside_this(named: Option<PathBuf>) -> Result<PathBuf> {
    match named {
        Some(file) => Ok(file),
        None => Ok(std::env::current_exe()?.with_file_name("kubevpn")),
    }
}

async fn scale(lab: &Lab, services: u32, kubevpn: Option<PathBuf>) -> Result<ExitCode> {
    let kubevpn = beside_this(kubevpn)?;
    let (measured, connections) = lab.scale(&kubevpn, services).await?;
    let [small, large] = &measured[..] else {
        anyhow::bail!("two clusters were to be measured");
    };
    let row = |what: &str, cells: [String; 2]| println!("| {what} | {} |", cells.join(" | "));
    let both = |of: &dyn Fn(&ScaleMeasured) -> String| [of(small), of(large)];
    row(
        "",
        both(&|m| format!("{} Services, {} Pods", m.services, m.pods)),
    );
    println!("|-|-|-|");
    for (i, (what, _)) in small.dials.iter().enumerate() {
        row(
            &format!("first dial of {what}"),
            both(&|m| m.dials[i].1.to_string()),
        );
    }
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    row("resident after these", both(&|m| mib(m.resident)));
    row("at its highest", both(&|m| mib(m.peak)));
    println!(
        "\n{} Services in use: {} connections open to the API server, {} of them port-forward sessions; the rest carry \
         the calls and {} watches",
        connections.services, connections.open, connections.sessions, connections.watches
    );
    let contradictions = contradictions(small, large);
    for contradiction in &contradictions {
        println!("FAIL  {contradiction}");
    }
    Ok(ExitCode::from(u8::from(!contradictions.is_empty())))
}

/// Builds the program under test and the bench, and runs the bench.
async fn bench(args: &[String]) -> Result<ExitCode> {
    const FULL: [&str; 4] = [
        "--report",
        "docs/performance.md",
        "--raw",
        "docs/performance/rounds.json",
    ];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let at_root = |words: &[&str]| {
        let mut command = tokio::process::Command::new(&cargo);
        command.args(words).current_dir(ROOT);
        command
    };
    let built = pass_through(at_root(&[
        "build",
        "--release",
        "-p",
        "kubevpn",
        "-p",
        BENCHES,
    ]))
    .await?;
    if built != ExitCode::SUCCESS {
        return Ok(built);
    }
    let mut command = at_root(&["run", "--release", "-p", BENCHES, "--"]);
    if args.is_empty() {
        command.args(FULL);
    } else {
        command.args(args);
    }
    pass_through(command).await
}

/// With our own terminal, and its exit code for ours.
async fn pass_through(mut command: tokio::process::Command) -> Result<ExitCode> {
    let status = command.stdin(Stdio::inherit()).status().await?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}
