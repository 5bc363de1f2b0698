//! The `kubevpn` command. One file per subcommand in `cli/`; exit codes in `exit.rs`.

mod age;
mod cli;
mod config;
mod exit;
mod live;
mod notify;
#[cfg(feature = "otel")]
mod otel;
mod out;
mod progress;
mod report;
mod table;
mod telemetry;
mod terminal;

use std::process::ExitCode;
use std::time::Duration;

use self::config::ConfigFile;

// jemalloc returns memory to the system after a burst of connections; glibc's allocator does not, and musl's has one lock for
// all threads.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Time limit, at the end, for blocking tasks that cannot be cancelled, e.g. the lookup of a name.
const PARTING: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // This has to precede the second thread.
    #[cfg(target_os = "linux")]
    if kubevpn_namespace::is_helper() {
        return kubevpn_namespace::helper();
    }
    if let Some(answered) = cli::complete::answered() {
        return ended(answered);
    }
    let words = cli::habits::in_order(std::env::args_os());
    let read = config::read().and_then(cli::judged);
    let defaults = ConfigFile::default();
    let args = match cli::parse(words, read.as_ref().unwrap_or(&defaults)) {
        Ok(args) => args,
        Err(error) if error.use_stderr() => error.exit(),
        Err(help) => return ended(out::written(help.print())),
    };
    match read {
        Ok(config) => config::install(config),
        Err(_) if args.needs_no_config() => {}
        Err(failure) => return ended(Err(failure)),
    }
    let steps = telemetry::LoggedSteps::new();
    if !args.is_daemon() {
        let told = args.tells_steps().then(|| steps.clone());
        telemetry::init(&args.log, args.usual_log(), told);
    }
    if args.log.quiet {
        out::hush();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let parting = match args.reads_input() {
                true => Duration::ZERO,
                false => PARTING,
            };
            let result = runtime.block_on(args.run(steps));
            runtime.shutdown_timeout(parting);
            result
        }
        Err(error) => Err(exit::Failure::Other(error.into())),
    };
    ended(result)
}

fn ended(result: Result<(), exit::Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report::report(&failure),
    }
}
