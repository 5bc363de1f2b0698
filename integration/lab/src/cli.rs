//! The grammar of the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use lab::{AuditMark, ClusterDaemon, Containerd, Signal};

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
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
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
    /// Open the status page of a proxy with 1,000 connections in Chromium: rows, numbers, widths and colours, one line a claim; exit
    /// code 1 if one fails
    Page {
        /// The program under test [default: `kubevpn` beside this one]
        #[arg(long)]
        kubevpn: Option<PathBuf>,
        /// Show the page of `kubevpn demo`: no cluster has to be up
        #[arg(long, conflicts_with = "page")]
        demo: bool,
        /// Folder for pictures of it
        #[arg(long, value_name = "DIR", default_value = "target/page")]
        shots: PathBuf,
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
        #[arg(long, conflicts_with = "filters")]
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
        /// Make them a second time, from a clone in another folder, and compare each byte
        #[arg(long)]
        twice: bool,
        /// Profile of cargo that builds the program: `dev` takes minutes, and tries everything but the size
        #[arg(
            long,
            value_name = "NAME",
            default_value = "dist",
            conflicts_with = "program"
        )]
        profile: String,
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
pub(crate) enum AuditCommand {
    /// Print a mark that means now
    Mark,
    /// Requests since a mark, counted by verb, resource, answer and client
    Count {
        #[arg(long, value_name = "MARK")]
        since: AuditMark,
    },
}
