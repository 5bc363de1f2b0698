//! The `kubevpn` command. One file per subcommand in `cli/`; exit codes in `exit.rs`.

mod cli;
mod daemon;
mod exit;
mod pac;
mod proxy;
mod telemetry;

use std::process::ExitCode;

use clap::Parser as _;

// Gives memory back to the system after a burst of connections, which glibc's does not.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    let steps = telemetry::Steps::new();
    if !args.is_daemon() {
        telemetry::init(args.verbose, args.tells_steps().then(|| steps.clone()));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(args.run(steps)),
        Err(error) => Err(exit::Failure::Other(error.into())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
