//! Candidates for the word that is completed in a shell. The script of `kubevpn completion` runs this program for them,
//! with [`VARIABLE`] set to the name of the shell and the words behind `--`.
//!
//! A completion is silent: it prints only candidates and prompts for nothing. There are none if the cluster does not answer
//! within [`ANSWER`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use clap::{ArgMatches, FromArgMatches as _};
use clap_complete::engine;
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::Shells;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::Api;
use kube::api::ListParams;
use kubevpn_client::{EntryNames, Env, KubeconfigArgs, Loaded, entry_names, load};
use kubevpn_daemon::{DaemonClient, StateDir};
use kubevpn_proxy::journal::JournalSnapshot;
use tokio::time::timeout;

use super::console;
use super::kube::KubeArgs;
use super::plugin;
use super::reach::reach;
use super::service;
use crate::config;
use crate::exit::Failure;
use crate::out;

/// Environment variable with the shell's name, set for a request for candidates.
pub(super) const VARIABLE: &str = "KUBEVPN_COMPLETE";
/// Time limit of the cluster and the daemon, unless [`WITHIN`] sets another.
const ANSWER: Duration = Duration::from_millis(700);
/// Environment variable that sets the time limit, for a distant cluster.
const WITHIN: &str = "KUBEVPN_COMPLETE_WITHIN";
/// Upper bound on the namespaces, and on the programs.
const MOST: usize = 500;

/// The words before the one that is completed, the program's name first.
static TYPED: OnceLock<Vec<OsString>> = OnceLock::new();

fn typed() -> &'static [OsString] {
    TYPED.get().map_or(&[], Vec::as_slice)
}

/// Prints the candidates, if the environment requests them.
pub(crate) fn answered() -> Option<Result<(), Failure>> {
    let mut words: Vec<_> = std::env::args_os().collect();
    if plugin::is_asked_to_complete() {
        begin();
        return Some(
            print(&candidates(words), |candidate| match candidate.get_help() {
                Some(help) => format!("{}\t{help}", shown(candidate)),
                None => shown(candidate),
            })
            // Directive of kubectl's library: no names of files.
            .and_then(|()| out::line(":4")),
        );
    }
    let shell = std::env::var(VARIABLE).ok().filter(|it| !it.is_empty())?;
    let first = words.iter().position(|word| word == "--")? + 1;
    words.drain(..first);
    begin();
    if shell == "bash" {
        let words = joined(words);
        let stays = words.last().map_or(0, |word| broken_at(word));
        return Some(print(&candidates(words), |candidate| {
            shown(candidate).get(stays..).unwrap_or_default().to_owned()
        }));
    }
    Some(of_library(&shell, words))
}

/// Candidates in the format of the library, for the shells that it supports.
fn of_library(shell: &str, words: Vec<OsString>) -> Result<(), Failure> {
    let shells = Shells::builtins();
    let Some(shell) = shells.completer(shell) else {
        return Ok(());
    };
    // zsh and elvish pass all words, and the index of the completed one.
    let index = std::env::var("_CLAP_COMPLETE_INDEX").ok();
    let index = index.and_then(|index| index.parse().ok());
    let index = index.unwrap_or_else(|| words.len().saturating_sub(1));
    let _ = TYPED.set(words.iter().take(index).cloned().collect());
    let mut said = Vec::new();
    let current_dir = std::env::current_dir().ok();
    let mut command = command(words.get(index));
    // The library returns an error if there is no candidate.
    let _ = shell.write_complete(&mut command, words, current_dir.as_deref(), &mut said);
    out::written(std::io::stdout().write_all(&said))
}

/// Installs the defaults of the configuration file, none if it is broken.
///
/// Standard input and error are closed: output of credential plugins and libraries would appear in the command line.
fn begin() {
    config::install(config::read().unwrap_or_default());
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        // After an error, the stream stays as it was.
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// The clap command, built once.
fn grammar() -> clap::Command {
    static GRAMMAR: OnceLock<clap::Command> = OnceLock::new();
    let grammar = GRAMMAR.get_or_init(|| super::command(config::installed()));
    grammar.clone()
}

/// The clap command with candidates. For an empty word, flags are candidates only if there are no others.
fn command(word: Option<&OsString>) -> clap::Command {
    let is_begun = word.is_some_and(|word| !word.is_empty());
    with_candidates(grammar(), is_begun)
}

/// Candidates for the last word.
fn candidates(words: Vec<OsString>) -> Vec<CompletionCandidate> {
    let Some((current, typed)) = words.split_last() else {
        return Vec::new();
    };
    let _ = TYPED.set(typed.to_vec());
    let (index, current_dir) = (typed.len(), std::env::current_dir().ok());
    let mut command = command(Some(current));
    engine::complete(&mut command, words, index, current_dir.as_deref()).unwrap_or_default()
}

fn shown(candidate: &CompletionCandidate) -> String {
    candidate.get_value().to_string_lossy().into_owned()
}

fn print(
    candidates: &[CompletionCandidate],
    line: impl Fn(&CompletionCandidate) -> String,
) -> Result<(), Failure> {
    let lines: String = candidates.iter().map(|it| line(it) + "\n").collect();
    out::print(lines)
}

// === words of bash, which breaks them at `:` and `=` ===

const BREAKS: [char; 2] = [':', '='];

/// The words as they were typed.
fn joined(words: Vec<OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let mut is_open = false;
    for word in words {
        let text = word.to_string_lossy();
        let is_break = !text.is_empty() && text.chars().all(|c| BREAKS.contains(&c));
        match joined.last_mut().filter(|_| is_break || is_open) {
            Some(last) => last.push(&word),
            None => joined.push(word),
        }
        is_open = is_break;
    }
    joined
}

/// Length of the part that bash takes for earlier words.
fn broken_at(word: &OsStr) -> usize {
    word.to_string_lossy().rfind(BREAKS).map_or(0, |at| at + 1)
}

/// The script for bash.
pub(super) fn of_bash(program: &str) -> String {
    let program = format!("'{}'", program.replace('\'', r"'\''"));
    format!(
        r#"_kubevpn() {{
    local IFS=$'\n' word=${{COMP_WORDS[COMP_CWORD]}}
    [[ -z $2 ]] || word=$2
    COMPREPLY=($({VARIABLE}=bash {program} -- "${{COMP_WORDS[@]:0:COMP_CWORD}}" "$word"))
}}
complete -o nosort -F _kubevpn kubevpn 2>/dev/null || complete -F _kubevpn kubevpn
"#
    )
}

// === candidates of each argument ===

/// The command with candidates for arguments that are names.
fn with_candidates(command: clap::Command, is_begun: bool) -> clap::Command {
    let name = command.get_name().to_owned();
    let command = command
        .disable_help_flag(!is_begun)
        .disable_version_flag(!is_begun)
        .mut_args(|arg| {
            // The library drops hidden candidates if there are others.
            let hidden = arg.is_hide_set() || !is_begun && !arg.is_positional();
            let arg = arg.hide(hidden);
            match completer(&name, arg.get_id().as_str()) {
                Some(completer) => arg.add(completer),
                None => arg,
            }
        });
    command.mut_subcommands(|command| with_candidates(command, is_begun))
}

fn completer(command: &str, argument: &str) -> Option<ArgValueCompleter> {
    let of: fn(&str) -> Vec<CompletionCandidate> = match (command, argument) {
        (_, "context") => |_| entries(|names| names.contexts),
        (_, "cluster") => |_| entries(|names| names.clusters),
        (_, "user") => |_| entries(|names| names.users),
        (_, "namespace") => |_| namespaces(),
        ("resolve" | "check" | "tap", "target") => {
            |text| of_ports(text, |name, port| format!("{name}:{port}"))
        }
        ("nc", "host") | ("open", "page") => |text| of_services(text, ""),
        ("port-forward", "target") => |text| of_services(text, "svc/"),
        ("nc", "port") | ("port-forward", "ports") => |_| ports(),
        ("proxy-out" | "connect" | "run", "forward") => {
            |_| of_ports("", |name, port| format!("{port}:{name}:{port}"))
        }
        ("disconnect" | "logs" | "use", "id") => |_| connections(),
        ("top" | "tap", "proxy") => |_| proxies(),
        ("run", "command") => |text| programs(text),
        _ => return None,
    };
    Some(ArgValueCompleter::new(move |current: &OsStr| {
        let Some(text) = current.to_str() else {
            return Vec::new();
        };
        let mut found = of(text);
        found.retain(|candidate| shown(candidate).starts_with(text));
        found
    }))
}

fn candidate(value: impl Into<OsString>, help: Option<String>) -> CompletionCandidate {
    CompletionCandidate::new(value).help(help.map(Into::into))
}

/// The flags about the cluster among the words so far.
fn kubeconfig_args() -> KubeconfigArgs {
    let words = super::habits::in_order(typed().iter().cloned());
    let matches = grammar().ignore_errors(true).try_get_matches_from(words);
    let of_kube = |matches: &ArgMatches| {
        let (_, matches) = matches.subcommand()?;
        matches.try_contains_id("context").ok()?;
        KubeArgs::from_arg_matches(matches).ok()
    };
    let args = matches.ok().and_then(|matches| of_kube(&matches));
    args.unwrap_or_default().into()
}

fn entries(of: fn(EntryNames) -> Vec<String>) -> Vec<CompletionCandidate> {
    let names = entry_names(&kubeconfig_args(), &Env::of_process());
    let names = names.map(of).unwrap_or_default();
    names
        .into_iter()
        .map(|name| candidate(name, None))
        .collect()
}

/// The result of `ask`, if it completes in time.
fn asked<T>(ask: impl Future<Output = Option<T>>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let within = std::env::var(WITHIN).ok();
    let within = within.and_then(|within| humantime::parse_duration(&within).ok());
    let within = within.unwrap_or(ANSWER);
    let answer = runtime.block_on(async { timeout(within, ask).await.ok().flatten() });
    // The lookup of a name cannot be cancelled.
    runtime.shutdown_background();
    answer
}

async fn cluster() -> Option<(kube::Client, String)> {
    let Loaded {
        config, namespace, ..
    } = load(&kubeconfig_args(), &Env::of_process()).ok()?;
    let (client, _) = reach(config).await.ok()?;
    Some((client, namespace))
}

fn namespaces() -> Vec<CompletionCandidate> {
    let listed = asked(async {
        let (client, _) = cluster().await?;
        let most = ListParams::default().limit(MOST as u32);
        let found = Api::<Namespace>::all(client).list(&most).await.ok()?;
        Some(found.items)
    });
    let names = listed
        .into_iter()
        .flatten()
        .filter_map(|it| it.metadata.name);
    names.map(|name| candidate(name, None)).collect()
}

/// The Services and their names as targets: those of the active namespace, or, once a namespace is being typed, those of
/// all namespaces.
fn services(text: &str) -> Vec<(String, Service)> {
    let with_namespace = text.contains('.');
    let listed = asked(async {
        let (client, namespace) = cluster().await?;
        let namespace = Some(namespace.as_str()).filter(|_| !with_namespace);
        service::services(&client, namespace).await.ok()
    });
    let (found, _) = listed.unwrap_or_default();
    let named = |service: Service| {
        let (namespace, name) = service::name(&service);
        match with_namespace {
            true => (format!("{name}.{namespace}"), service),
            false => (name, service),
        }
    };
    found.into_iter().map(named).collect()
}

fn of_services(text: &str, prefix: &str) -> Vec<CompletionCandidate> {
    let named = services(text).into_iter();
    let all = named.map(|(name, service)| candidate(format!("{prefix}{name}"), ports_of(&service)));
    all.collect()
}

/// A short description of a Service's ports.
fn ports_of(service: &Service) -> Option<String> {
    let ports: Vec<_> = service::ports(service)
        .map(|port| port.port.to_string())
        .collect();
    (!ports.is_empty()).then(|| format!("port {}", ports.join(", ")))
}

/// A candidate for each port of each Service.
fn of_ports(text: &str, value: fn(&str, i32) -> String) -> Vec<CompletionCandidate> {
    let mut candidates = Vec::new();
    for (name, service) in services(text) {
        for port in service::ports(&service) {
            candidates.push(candidate(value(&name, port.port), port.name.clone()));
        }
    }
    candidates
}

/// The ports of the Service in the previous word.
fn ports() -> Vec<CompletionCandidate> {
    let Some(last) = typed().last().and_then(|word| word.to_str()) else {
        return Vec::new();
    };
    let host = last.trim_start_matches("svc/");
    let found = services(host).into_iter().find(|(name, _)| name == host);
    let ports = found
        .iter()
        .flat_map(|(_, service)| service::ports(service));
    ports
        .map(|port| candidate(port.port.to_string(), port.name.clone()))
        .collect()
}

/// The connections of the daemon, if one runs.
fn connections() -> Vec<CompletionCandidate> {
    let listed = asked(async {
        let daemon = DaemonClient::new(StateDir::locate().ok()?);
        match daemon.find().await {
            Ok(true) => Some(daemon.status().await.ok()?.list),
            _ => None,
        }
    });
    let of = |connection: kubevpn_daemon::api::ConnectionInfo| {
        let help = format!("{} {}", connection.context, connection.namespace);
        candidate(connection.id, Some(help))
    };
    listed.into_iter().flatten().map(of).collect()
}

fn proxies() -> Vec<CompletionCandidate> {
    let running = asked(async {
        let daemon = DaemonClient::new(StateDir::locate().ok()?);
        console::running(&daemon).await.ok()
    });
    let of = |(_, seen): (_, JournalSnapshot)| {
        let help = format!("{} {}", seen.about.context, seen.about.namespace);
        candidate(console::name(&seen.about), Some(help))
    };
    running.into_iter().flatten().map(of).collect()
}

/// The programs of `PATH` for the first word of a command, and files for the others.
fn programs(text: &str) -> Vec<CompletionCandidate> {
    let is_first = typed()
        .last()
        .is_some_and(|word| word == "--" || word == "run");
    if !is_first || text.contains('/') {
        return PathCompleter::any().complete(OsStr::new(text));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let files = std::env::split_paths(&path).filter_map(|dir| std::fs::read_dir(dir).ok());
    let names = files
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.starts_with(text)).collect();
    names.sort();
    names.dedup();
    names.truncate(MOST);
    names
        .into_iter()
        .map(|name| candidate(name, None))
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn words_that_bash_broke() {
        let join = |words: &[&str]| {
            let joined = joined(words.iter().map(OsString::from).collect());
            let joined: Vec<_> = joined.iter().map(|word| word.to_string_lossy()).collect();
            joined.join(" ")
        };
        for (words, typed) in [
            (&["kubevpn", "resolve", "web"][..], "kubevpn resolve web"),
            (&["kubevpn", "resolve", "web", ":"], "kubevpn resolve web:"),
            (
                &["kubevpn", "resolve", "web", ":", "8"],
                "kubevpn resolve web:8",
            ),
            (
                &["kubevpn", "run", "--context", "=", "la"],
                "kubevpn run --context=la",
            ),
            (&["kubevpn", "run", ""], "kubevpn run "),
        ] {
            assert_eq!(join(words), typed);
        }
        assert_eq!(broken_at(OsStr::new("web:8")), 4);
        assert_eq!(broken_at(OsStr::new("web")), 0);
    }

    /// Each row of the table has to be an argument of a command: a renamed one would lose its candidates.
    #[test]
    fn arguments_with_candidates_are_there() {
        let command = super::super::Args::command();
        for (name, id) in [
            ("resolve", "target"),
            ("check", "target"),
            ("nc", "host"),
            ("nc", "port"),
            ("open", "page"),
            ("port-forward", "target"),
            ("port-forward", "ports"),
            ("proxy-out", "forward"),
            ("connect", "forward"),
            ("run", "forward"),
            ("run", "command"),
            ("run", "context"),
            ("run", "cluster"),
            ("run", "user"),
            ("run", "namespace"),
            ("disconnect", "id"),
            ("logs", "id"),
        ] {
            let of = command.find_subcommand(name).unwrap();
            assert!(
                of.get_arguments().any(|arg| arg.get_id() == id),
                "{name} {id}"
            );
            assert!(completer(name, id).is_some(), "{name} {id}");
        }
    }
}
