//! `run --isolated` beside the environment's way and beside SOCKS5, in one run, by the same client.
//!
//!     cargo build --profile dist -p kubevpn -p kubevpn-benches
//!     target/dist/kubevpn-benches isolated
//!
//! with the cluster up. The client is this program again: in the network of `run --isolated` it connects, outside it does so by the
//! SOCKS5 proxy of `proxy-out`. A connection and the answer over it are one measurement, the lookup of its name too.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::Lab;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::Instant;

use crate::report;
use crate::subject::RunningSubject;
use crate::wire::{self, quantile};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";
/// Connections one after another.
const SEQUENTIAL: usize = 300;
const CLIENTS: usize = 16;
const WINDOW: Duration = Duration::from_secs(3);
const BULK: u64 = 256 << 20;
/// Starts of a command that does nothing.
const STARTS: usize = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct IsolatedArgs {
    /// How many times everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The program under test [default: `kubevpn` beside this one]
    #[arg(long)]
    kubevpn: Option<PathBuf>,
    /// Be the client instead, of these hosts
    #[arg(long, hide = true)]
    client: Vec<String>,
    /// By this SOCKS5 proxy
    #[arg(long, hide = true)]
    socks: Option<SocketAddr>,
}

/// By what is measured: the figure of each round.
type Figures = BTreeMap<String, Vec<f64>>;

pub(crate) async fn run(args: IsolatedArgs) -> anyhow::Result<()> {
    if !args.client.is_empty() {
        let mut figures = Figures::new();
        for host in &args.client {
            measure(args.socks, host, &mut figures).await?;
        }
        return report::print(&serde_json::to_string(&figures)?);
    }
    let lab = Lab::attach().await?;
    let me = std::env::current_exe()?;
    let kubevpn = args.kubevpn.unwrap_or_else(|| me.with_file_name("kubevpn"));
    let field = "jsonpath={.spec.clusterIP}";
    let address = lab
        .kubectl(&["get", "service", "reviews", "-o", field])
        .await?;
    let hosts = ["--client", "reviews", "--client", &address];
    let ways = ["SOCKS5", "isolated"];
    let mut all: BTreeMap<&str, Figures> = BTreeMap::new();
    for round in 0..args.rounds {
        for turn in 0..ways.len() {
            let way = ways[(turn + round) % ways.len()];
            let (figures, starting): (_, &[&str]) = match way {
                "SOCKS5" => {
                    let proxy = RunningSubject::proxy(&kubevpn, &lab.kubeconfig(), &[]).await?;
                    let socks = proxy.socks()?.to_string();
                    let mut client = Command::new(&me);
                    client.arg("isolated").args(hosts).args(["--socks", &socks]);
                    (output(client).await?, &["run", "--"])
                }
                _ => {
                    let mut client = isolated(&kubevpn, &lab);
                    client.arg("--").arg(&me).arg("isolated").args(hosts);
                    (output(client).await?, &["run", "--isolated", "--"])
                }
            };
            let figures: Figures = serde_json::from_str(&figures)?;
            let of_way = all.entry(way).or_default();
            for (what, values) in figures {
                let what = what
                    .replace(&address, "an address")
                    .replace("reviews", "a name");
                of_way.entry(what).or_default().extend(values);
            }
            let start = of_way
                .entry("start of a command, ms".to_owned())
                .or_default();
            start.push(starts(&kubevpn, &lab, starting).await?);
        }
    }
    let mut text = String::from(
        "| | SOCKS5, or the environment's way | isolated | ratio |\n|---|---|---|---|\n",
    );
    for (what, socks) in &all["SOCKS5"] {
        let isolated = &all["isolated"][what];
        let (socks, isolated) = (median(socks), median(isolated));
        text += &format!(
            "| {what} | {socks:.1} | {isolated:.1} | {:.2} |\n",
            isolated / socks
        );
    }
    report::print(&text)
}

fn isolated(kubevpn: &Path, lab: &Lab) -> Command {
    let mut command = Command::new(kubevpn);
    command
        .args(["run", "--isolated", "--kubeconfig"])
        .arg(lab.kubeconfig());
    command
}

async fn output(mut command: Command) -> anyhow::Result<String> {
    command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let output = command.output().await?;
    ensure!(
        output.status.success(),
        "the client ended with {}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Until a command that does nothing has ended.
async fn starts(kubevpn: &Path, lab: &Lab, words: &[&str]) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let mut command = Command::new(kubevpn);
        command
            .args(words)
            .arg("true")
            .env("KUBECONFIG", lab.kubeconfig());
        let start = Instant::now();
        output(command).await?;
        times.push(start.elapsed());
    }
    Ok(quantile(&mut times, 0.5))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

async fn connect(socks: Option<SocketAddr>, host: &str) -> anyhow::Result<TcpStream> {
    let Some(proxy) = socks else {
        let stream = TcpStream::connect((host, 80)).await?;
        stream.set_nodelay(true)?;
        return Ok(stream);
    };
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    let mut address = vec![3, u8::try_from(host.len())?];
    address.extend_from_slice(host.as_bytes());
    address.extend_from_slice(&80_u16.to_be_bytes());
    wire::socks5(&mut stream, &address).await?;
    Ok(stream)
}

async fn get(socks: Option<SocketAddr>, host: &str) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let exchange = async {
        let mut stream = connect(socks, host).await?;
        wire::exchange(&mut stream, GET, &mut Vec::new()).await
    };
    let done = tokio::time::timeout(wire::LIMIT, exchange).await;
    done.context("no answer in time")??;
    Ok(start.elapsed())
}

async fn measure(socks: Option<SocketAddr>, host: &str, to: &mut Figures) -> anyhow::Result<()> {
    let mut add = |what: &str, value| to.entry(what.replace("{}", host)).or_default().push(value);
    // A session, and a resolution, are there.
    for _ in 0..5 {
        get(socks, host).await?;
    }
    let mut times = Vec::new();
    for _ in 0..SEQUENTIAL {
        times.push(get(socks, host).await?);
    }
    add(
        "new connection to {} + GET, one at a time, p50, ms",
        quantile(&mut times, 0.5),
    );
    let end = Instant::now() + WINDOW;
    let client = async || {
        let mut count = 0_u32;
        while Instant::now() < end {
            get(socks, host).await?;
            count += 1;
        }
        anyhow::Ok(count)
    };
    let counts = futures_util::future::try_join_all((0..CLIENTS).map(|_| client())).await?;
    let rate = f64::from(counts.iter().sum::<u32>()) / WINDOW.as_secs_f64();
    add("new connections to {} + GET, 16 clients, /s", rate);
    let mib = (BULK >> 20) as f64;
    let start = Instant::now();
    wire::download(&mut connect(socks, host).await?, BULK).await?;
    add(
        "download from {}, MiB/s",
        mib / start.elapsed().as_secs_f64(),
    );
    let start = Instant::now();
    wire::upload(&mut connect(socks, host).await?, BULK).await?;
    add("upload to {}, MiB/s", mib / start.elapsed().as_secs_f64());
    Ok(())
}
