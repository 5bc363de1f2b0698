//! `kubevpn bugreport`.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_daemon::{DaemonClient, StateDir, log};
use serde_json::{Value, json};

use super::kube::KubeArgs;
use super::{check, status, version};
use crate::exit::Failure;
use crate::out;
use crate::progress;

/// Bytes of each log, from its end, and number of logs.
const LOG_BYTES: u64 = 128 << 10;
const LOGS: usize = 8;

/// Write a file to attach to a bug report
///
/// The file contains the versions, the results of `kubevpn check` and `kubevpn status`, and the last lines of the logs. It
/// contains no secrets. With --redact, addresses and the names of hosts, contexts, clusters and users are replaced, each by
/// the same word everywhere; the names of Services and namespaces are kept.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # for a public issue
  kubevpn bugreport --redact -f report.json")]
pub(crate) struct BugReport {
    /// Write the report to FILE
    #[arg(
        short = 'f',
        long,
        short_alias = 'o',
        alias = "output",
        value_name = "FILE",
        default_value = "kubevpn-bugreport.json"
    )]
    file: PathBuf,
    /// Replace addresses, and names of hosts, contexts, clusters and users
    #[arg(long)]
    redact: bool,
    #[command(flatten)]
    kube: KubeArgs,
}

impl BugReport {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let args = KubeconfigArgs::from(self.kube.clone());
        let write = |text: &str| {
            write(&self.file, text).map_err(|error| {
                Failure::value(format!(
                    "--file: cannot write {}: {error}",
                    self.file.display()
                ))
            })
        };
        // The file is written first, because the report may take long.
        write("")?;
        let report = progress::said("the report", self.report(&args)).await?;
        write(&format!("{report:#}\n"))?;
        out::line(format_args!(
            "Written to {}: look at it before you attach it",
            self.file.display()
        ))
    }

    async fn report(&self, args: &KubeconfigArgs) -> Result<Value, Failure> {
        let dir = StateDir::locate();
        let found = match &dir {
            Ok(dir) => {
                let asked = status::ask(&DaemonClient::new(dir.clone())).await;
                let status = match asked {
                    Ok(status) => serde_json::to_value(status).map_err(anyhow::Error::from)?,
                    Err(failure) => json!({"error": failure.message()}),
                };
                (status, logs(dir))
            }
            Err(error) => (json!({"error": error.whole()}), Value::Null),
        };
        let mut report = json!({
            "version": version::document(Some(args)).await,
            "check": check::document_of(args).await?,
            "status": found.0,
            "logs": found.1,
        });
        if self.redact {
            let names = load(args, &Env::of_process()).map(|loaded| {
                let of_kubeconfig = [loaded.context, loaded.cluster, loaded.user];
                let names = of_kubeconfig.into_iter().flatten();
                names.chain(loaded.hosts).collect::<Vec<_>>()
            });
            let mut redacted = Redacted::new(names.unwrap_or_default());
            redacted.value(&mut report);
        }
        Ok(report)
    }
}

/// Only the user may read the file. Earlier contents are kept until the new ones are complete.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path)?;
    match text {
        "" => Ok(()),
        text => {
            file.set_len(0)?;
            file.write_all(text.as_bytes())
        }
    }
}

/// The last lines of the newest logs, by file name.
fn logs(dir: &StateDir) -> Value {
    let daemon = dir.log(None);
    let files = log::files(&daemon).into_iter();
    let there = daemon.parent().map(std::fs::read_dir);
    let others = there.into_iter().flatten().flatten().flatten();
    let others = others.map(|entry| entry.path());
    let others = others.filter(|path| path.extension().is_some_and(|end| end == "log"));
    let mut all: Vec<_> = files.chain(others).collect();
    all.sort();
    all.dedup();
    let mut logs = json!({});
    for path in all.into_iter().take(LOGS) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        logs[&*name] = end(&path).unwrap_or_else(|error| error.to_string()).into();
    }
    logs
}

fn end(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
    let mut text = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Replacements of names, the same everywhere.
struct Redacted {
    known: Vec<String>,
    words: BTreeMap<String, String>,
}

impl Redacted {
    fn new(mut known: Vec<String>) -> Self {
        known.retain(|name| !name.is_empty());
        Self {
            known,
            words: BTreeMap::new(),
        }
    }

    /// Replaces names in every text of a document.
    fn value(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(list) => list.iter_mut().for_each(|value| self.value(value)),
            Value::Object(fields) => fields.values_mut().for_each(|value| self.value(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn text(&mut self, text: &str) -> String {
        let is_part = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let mut redacted = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(is_part) {
            let (before, from) = rest.split_at(at);
            let (word, behind) = from.split_at(from.find(|c| !is_part(c)).unwrap_or(from.len()));
            redacted.push_str(before);
            redacted.push_str(&self.word(word));
            rest = behind;
        }
        redacted + rest
    }

    fn word(&mut self, word: &str) -> String {
        let bare = word.trim_matches('.');
        if !(is_host(bare) || self.known.iter().any(|name| name == bare)) {
            return word.to_owned();
        }
        let n = self.words.len() + 1;
        let instead = self.words.entry(bare.to_owned());
        let instead = instead.or_insert_with(|| format!("redacted-{n}"));
        word.replace(bare, instead)
    }
}

/// Whether the word is an address of another machine, or a name with a public top-level domain. Names of the cluster, files
/// and API groups are kept.
fn is_host(word: &str) -> bool {
    if let Ok(ip) = word.parse::<IpAddr>() {
        return !ip.is_loopback() && !ip.is_unspecified();
    }
    const STAY: [&str; 6] = ["local", "svc", "pod", "log", "json", "yaml"];
    let Some((first, last)) = word.rsplit_once('.') else {
        return false;
    };
    let is_ending = last.len() >= 2 && last.bytes().all(|b| b.is_ascii_alphabetic());
    is_ending && !first.is_empty() && !STAY.contains(&last) && !word.ends_with("k8s.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_each_by_its_own_word() {
        let mut redacted = Redacted::new(vec!["prod".into(), "api.corp.example".into()]);
        let mut value = json!({
            "a": "https://api.corp.example:6443 (context prod), 10.1.2.3:443.",
            "b": ["api.corp.example", "127.0.0.1:1080 reviews.default.svc.cluster.local", 7],
            "c": "discovery.k8s.io daemon.log v1.34.4 production",
        });
        redacted.value(&mut value);
        assert_eq!(
            value,
            json!({
                "a": "https://redacted-1:6443 (context redacted-2), redacted-3:443.",
                "b": ["redacted-1", "127.0.0.1:1080 reviews.default.svc.cluster.local", 7],
                "c": "discovery.k8s.io daemon.log v1.34.4 production",
            })
        );
    }
}
