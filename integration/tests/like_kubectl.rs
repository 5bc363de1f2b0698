//! Whatever kubectl can log in to, we can: both get the same kubeconfig, and talk to a server that records what it is shown
//! and refuses. Right is the same credential from both, or none from either.
//!
//! A row of the tables in `like_kubectl/` (clusters, users, files) is a test. What is meant to be different stands in `like_kubectl/meant.rs` with
//! its reason: a difference that does not fails, and so does a row there that is no difference any more.
//!
//! Without `KUBEVPN_LAB` in the environment all of them are ignored; with it the kubectl is that of the real cluster, which
//! `cargo run -p lab -- up` boots, or the one that `KUBECTL` names.
#![cfg(unix)]

mod like_kubectl {
    pub(crate) mod cases;
    pub(crate) mod clusters;
    pub(crate) mod files;
    pub(crate) mod meant;
    pub(crate) mod pki;
    pub(crate) mod server;
    pub(crate) mod users;
}

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::time::Instant;

use self::like_kubectl::cases::{Case, all};
use self::like_kubectl::meant::MEANT;
use self::like_kubectl::pki::Pki;
use self::like_kubectl::server::{Recorder, Shown};

/// How long a program may take: none of them waits for more than a plugin.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let ignored = std::env::var_os("KUBEVPN_LAB").is_none();
    let world: Arc<OnceLock<World>> = Arc::default();
    let cases = all();
    let mut trials = vec![Trial::test("the_tables", {
        let names: Vec<_> = cases.iter().map(|case| case.name.clone()).collect();
        move || tables(&names)
    })];
    for case in cases {
        let world = world.clone();
        let trial = Trial::test(case.name.clone(), move || {
            world.get_or_init(World::new).compare(&case)
        });
        trials.push(trial.with_ignored_flag(ignored));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Names are unique, there are as many as promised, and none is meant that is none.
fn tables(names: &[String]) -> Result<(), Failed> {
    let mut unique = names.to_vec();
    unique.sort();
    unique.dedup();
    if unique.len() != names.len() {
        return Err("two cases have the same name".into());
    }
    if names.len() < 200 {
        return Err(format!("{} cases are too few", names.len()).into());
    }
    for (name, reason) in MEANT {
        if !names.iter().any(|known| known == name) || reason.is_empty() {
            return Err(format!("{name} is meant to differ, and no case with a reason").into());
        }
    }
    Ok(())
}

struct World {
    kubectl: PathBuf,
    dir: tempfile::TempDir,
    pki: Pki,
}

impl World {
    fn new() -> Self {
        let kubectl = std::env::var_os("KUBECTL").map(PathBuf::from);
        let kubectl = kubectl.unwrap_or_else(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let lab = runtime.block_on(lab::Lab::attach()).unwrap();
            lab.dir().join("bin/kubectl")
        });
        let dir = tempfile::tempdir().unwrap();
        Self {
            pki: Pki::new(&dir.path().join("pki")),
            kubectl,
            dir,
        }
    }

    fn compare(&self, case: &Case) -> Result<(), Failed> {
        let server = Recorder::start(self.pki.server(case.server));
        let dir = self.dir.path().join(case.name.replace([' ', '/'], "-"));
        case.write(&dir, &self.pki, server.address());
        let programs = [
            (&*self.kubectl, &["get", "--raw", "/version"][..]),
            (
                Path::new(env!("CARGO_BIN_EXE_kubevpn")),
                &["resolve", "reviews"],
            ),
        ];
        let [kubectl, ours] = programs.map(|(program, words)| {
            let mut command = Command::new(program);
            command
                .args(words)
                .args(case.args(&self.pki, server.address()));
            command
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .env("HOME", dir.join("home"))
                .envs(case.env(&dir))
                .current_dir(&dir);
            shown(command, &server)
        });
        let meant = MEANT.iter().find(|(name, _)| *name == case.name);
        match (kubectl.0 == ours.0, meant) {
            (true, None) | (false, Some(_)) => Ok(()),
            (true, Some((_, reason))) => Err(format!(
                "both {} now, and are meant to differ: {reason}",
                Told(&ours.0)
            )
            .into()),
            (false, None) => Err(format!(
                "kubectl {} ({})\nwe {} ({})",
                Told(&kubectl.0),
                kubectl.1,
                Told(&ours.0),
                ours.1,
            )
            .into()),
        }
    }
}

/// What the program shows first, if it comes to that, and what it says otherwise. Who shows no credential is as one who is not
/// there: kubectl then asks its user for a name and a password before it asks the server, or after.
fn shown(mut command: Command, server: &Recorder) -> (Option<Shown>, String) {
    server.forget();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    let said = child.stderr.take().map(|mut stderr| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // What cannot be read is not there.
            let _ = std::io::Read::read_to_end(&mut stderr, &mut text);
            String::from_utf8_lossy(&text).trim().replace('\n', " | ")
        })
    });
    let ended = loop {
        if let Some(shown) = server.first() {
            break Some(shown);
        }
        if has_ended(&mut child) || Instant::now() > until {
            break server.first();
        }
        server.wait();
    };
    let _ = child.kill();
    let _ = child.wait();
    let said = said.and_then(|said| said.join().ok()).unwrap_or_default();
    (ended.filter(Shown::has_credential), said)
}

fn has_ended(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_some()
}

struct Told<'a>(&'a Option<Shown>);

impl std::fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(shown) => write!(f, "show {shown:?}"),
            None => write!(f, "show nothing"),
        }
    }
}
