//! The table: each row on every way, and each real client through ours. Writes docs/odd.md when all of it was run.

#![allow(clippy::print_stderr)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use kubevpn_odd::{
    MissingProgram, Peers, Played, RouteVerdict, install_libraries, libraries, play, rows, write,
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/odd.md");
    let runtime = Runtime::new().expect("a runtime");
    let missing = match arguments.list {
        true => None,
        false => {
            install_libraries();
            Peers::check().err()
        }
    };
    let (played, ran) = <(Arc<Mutex<Vec<_>>>, Arc<Mutex<Vec<_>>>)>::default();
    let mut trials = Vec::new();
    if let Some(MissingProgram(why)) = missing {
        eprintln!("ignored: {why}");
        let table = Trial::test("rows", || Ok(())).with_ignored_flag(true);
        trials.push(table);
    } else if !arguments.list {
        let peers = match runtime.block_on(Peers::start()) {
            Ok(peers) => Arc::new(peers),
            Err(error) => {
                eprintln!("{error:#}");
                return ExitCode::FAILURE;
            }
        };
        for (number, row) in rows().into_iter().enumerate() {
            let (handle, peers) = (runtime.handle().clone(), Arc::clone(&peers));
            let played = Arc::clone(&played);
            trials.push(Trial::test(row.name.clone(), move || {
                let outcome = handle.block_on(play(&row, &peers))?;
                let verdict = judge(&outcome, &peers.names());
                played.lock().unwrap().push((number, outcome));
                verdict
            }));
        }
    }
    for (number, library) in libraries().into_iter().enumerate() {
        let (handle, ran) = (runtime.handle().clone(), Arc::clone(&ran));
        let is_there = library.is_there();
        if !is_there && !arguments.list {
            eprintln!("ignored: {} needs {}", library.name(), library.needs());
        }
        let trial = Trial::test(library.name(), move || {
            let outcome = handle.block_on(library.run())?;
            let text = format!("{outcome:?}");
            let fails = outcome.fails();
            ran.lock().unwrap().push((number, outcome));
            match fails {
                true => Err(text.into()),
                false => Ok(()),
            }
        });
        // Not on this machine.
        trials.push(trial.with_kind("client").with_ignored_flag(!is_there));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut played = std::mem::take(&mut *played.lock().unwrap());
    let mut ran = std::mem::take(&mut *ran.lock().unwrap());
    // The page is a file of the repository: written when asked for.
    let wanted = std::env::var_os("KUBEVPN_ODD_PAGE").is_some();
    if wanted && played.len() == rows().len() {
        played.sort_by_key(|(number, _)| *number);
        ran.sort_by_key(|(number, _)| *number);
        let played: Vec<Played> = played.into_iter().map(|(_, played)| played).collect();
        let ran: Vec<_> = ran.into_iter().map(|(_, ran)| ran).collect();
        let names = ["direct", "ours", "squid", "tinyproxy", "Apache"];
        if let Err(error) = write(&page, &names, &played, &ran) {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}

/// Ours is at least as good as the best, or the row says why not; and a reason that is none any more goes.
fn judge(played: &Played, names: &[&str]) -> Result<(), Failed> {
    let better: Vec<&str> = names
        .iter()
        .zip(&played.verdicts)
        .filter(|(_, verdict)| **verdict == RouteVerdict::Right)
        .map(|(name, _)| *name)
        .collect();
    match (played.is_worse(), played.row.because) {
        (true, None) => {
            let ours = &played.verdicts[1];
            Err(format!(
                "{better:?} are right by {}, and ours: {ours:?}",
                played.row.rule
            )
            .into())
        }
        (false, Some(because)) => Err(format!("ours is not worse any more: {because}").into()),
        _ => Ok(()),
    }
}
