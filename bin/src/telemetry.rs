//! Logs: on stderr, so that stdout holds nothing but what a command was asked for.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// `-v` says more about us, `-vv` about the libraries too. `RUST_LOG`, where set, has the last word.
pub(crate) fn init(verbose: u8) {
    let directives = match verbose {
        // A watch that breaks is mended by us, and is no news: kube_runtime warns of each.
        0 => "warn,kube_runtime=error,kubevpn=info,access=info",
        1 => "info,kube_runtime=error,kubevpn=debug,access=info",
        _ => "debug,kubevpn=trace,access=info",
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(own) if !own.is_empty() => EnvFilter::new(own),
        _ => EnvFilter::new(directives),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
