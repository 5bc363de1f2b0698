//! `cargo run -p lab -- up`: the lab's command line. All it does is in the library.
#![expect(
    clippy::print_stdout,
    reason = "a command line: results go to standard output, progress to standard error"
)]

mod cli;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser as _;
use lab::{
    Claim, Claimed, ClusterDaemon, Extent, Lab, Recovery, ScaleMeasured, Vpn, contradictions,
};
use tokio::time::Instant;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use self::cli::{Args, AuditCommand, Command};

/// Of the workspace.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const BENCHES: &str = "kubevpn-benches";

fn main() -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(begin());
    // A command that was interrupted may have a thread that waits for the lock of the cluster.
    runtime.shutdown_background();
    Ok(code)
}

async fn begin() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")))
        .with_timer(Elapsed(Instant::now()))
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    let done = lab::interruptible(async { run(args.command, Lab::from_env()?).await });
    done.await.unwrap_or_else(|error| {
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
            // A page shows what holds: figures of a failed run would be read as results.
            let holds = scraped.claims.iter().all(|c| c.contradiction.is_none());
            if let Some(page) = page.filter(|_| holds) {
                lab::write_section(&page, "prometheus", &scraped.table)?;
            }
            return Ok(judged(&scraped.claims));
        }
        Command::Page {
            kubevpn,
            demo,
            shots,
            page,
        } => {
            let kubevpn = beside_this(kubevpn)?.canonicalize()?;
            let seen = lab.status_page(&kubevpn, demo, &shots, print_claim).await?;
            println!("{}", seen.table);
            let holds = seen.claims.iter().all(|c| c.contradiction.is_none());
            if let Some(page) = page.filter(|_| holds) {
                lab::write_section(&page, "status page", &seen.table)?;
            }
            return Ok(judged(&seen.claims));
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
                let pair = run.await;
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
                lab::write_hops(&page, &crossings)?;
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
            profile,
            install,
        } => {
            std::fs::create_dir_all(&out)?;
            let options = lab::PackageOptions {
                repository: PathBuf::from(ROOT).canonicalize()?,
                program: match program {
                    Some(program) => lab::PackedProgram::Given(program),
                    None => lab::PackedProgram::Built(lab::PackageBuild {
                        tools: lab.release_tools().await?,
                        profile,
                        cargo_home: None,
                    }),
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
    match all {
        0 => println!("nothing was tried: no row has a name that begins so"),
        all => println!("{} {right}, {failed} {wrong}", all - failed),
    }
    ExitCode::from(u8::from(failed > 0 || all == 0))
}

/// Makes them, and says what was made; a second time for the comparison.
async fn packages(options: &lab::PackageOptions, twice: bool) -> Result<()> {
    let made = lab::package(options).await?;
    println!(
        "the stripped program: {} bytes, of {} at most, sha256 {}",
        made.program,
        lab::BUDGET,
        made.sha256
    );
    for (file, bytes) in &made.files {
        println!("{bytes:>10}  {file}");
    }
    for what in &made.left_out {
        println!("left out: {what}");
    }
    if twice {
        let again = options.out.with_extension("again");
        let second = lab::clone_elsewhere(options, &again).await?;
        lab::package(&second).await?;
        let differ = lab::differences(&options.out, &second.out)?;
        let differ: Vec<String> = differ.iter().map(ToString::to_string).collect();
        ensure!(
            differ.is_empty(),
            "made twice, in {} and {}, these differ:\n{}",
            options.out.display(),
            second.out.display(),
            differ.join("\n")
        );
        println!(
            "made twice, in two folders: {} files, the same bytes",
            made.files.len()
        );
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
        "--profile",
        "dist",
        "-p",
        "kubevpn",
        "-p",
        BENCHES,
    ]))
    .await?;
    if built != ExitCode::SUCCESS {
        return Ok(built);
    }
    let mut command = at_root(&["run", "--profile", "dist", "-p", BENCHES, "--"]);
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
