//! Who asked the API server for what: its audit log, read as a list of requests.
//!
//! The policy (`cluster/config/audit.yaml`) leaves out the cluster's own components, so what is here came
//! from clients. A request is one event, however many stages it was logged in: a port-forward is there
//! from the moment it is accepted, not when it ends.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::Lab;
use crate::process::until;

/// One request of a client. What does not apply is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// As RBAC has it: `get`, `list`, `watch`, `create`, …
    pub verb: String,
    /// `pods`; empty for a path that is no resource, such as `/version`.
    pub resource: String,
    /// `portforward`.
    pub subresource: String,
    /// Of the object asked for.
    pub namespace: String,
    /// Of the object asked for.
    pub name: String,
    /// Who asked.
    pub user: String,
    /// What the client calls itself.
    pub user_agent: String,
    /// Path and query.
    pub uri: String,
    /// HTTP status: 101 for an upgrade.
    pub code: u16,
}

/// A moment in the audit log; text and back, for a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditMark {
    inode: u64,
    offset: u64,
}

impl fmt::Display for AuditMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.inode, self.offset)
    }
}

impl FromStr for AuditMark {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (inode, offset) = text.split_once(':')?;
            Some(Self {
                inode: inode.parse().ok()?,
                offset: offset.parse().ok()?,
            })
        };
        parse().with_context(|| format!("{text:?} is no mark: lab audit mark prints one"))
    }
}

impl Lab {
    /// Now. Requests that were answered before this are not counted from here.
    ///
    /// # Errors
    /// No audit log, since no cluster was up.
    pub fn audit_mark(&self) -> Result<AuditMark> {
        let log = self.settings.path("log/audit.log");
        let meta = fs::metadata(&log).with_context(|| format!("cannot read {log}"))?;
        Ok(AuditMark {
            inode: meta.ino(),
            offset: meta.len(),
        })
    }

    /// What clients asked since then, in the order it was logged. All that was answered when this is
    /// called is in it: a request of its own goes through the log first (and is left out).
    ///
    /// # Errors
    /// An API server that is away; a mark that the log has forgotten (it keeps five files of 50 MB).
    pub async fn audit_since(&self, mark: &AuditMark) -> Result<Vec<AuditEvent>> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let own = format!(
            "/version?lab={now}-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        self.kubectl(&["get", "--raw", &own]).await?;
        let mut events = until(
            Duration::from_secs(10),
            "our own request in the audit log",
            async || {
                let events = parse(&self.audit_text(mark)?)?;
                Ok(events
                    .iter()
                    .any(|event| event.uri == own)
                    .then_some(events))
            },
        )
        .await?;
        events.retain(|event| !event.uri.starts_with("/version?lab="));
        Ok(events)
    }

    /// How often each was asked since then: the command line's view of [`Self::audit_since`].
    ///
    /// # Errors
    /// As above.
    pub async fn audit_counts(&self, mark: &AuditMark) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        for event in self.audit_since(mark).await? {
            let slash = if event.subresource.is_empty() {
                ""
            } else {
                "/"
            };
            let what = if event.resource.is_empty() {
                event.uri
            } else {
                event.resource + slash + &event.subresource
            };
            *counts
                .entry(format!(
                    "{} {what} {} {}",
                    event.verb, event.code, event.user_agent
                ))
                .or_default() += 1;
        }
        Ok(counts)
    }

    fn audit_text(&self, mark: &AuditMark) -> Result<String> {
        let mut text = String::new();
        let mut found = false;
        for log in self.audit_logs()? {
            let mut file = match File::open(&log) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue, // rotated away just now
                file => file.with_context(|| format!("cannot read {}", log.display()))?,
            };
            let meta = file.metadata()?;
            if meta.ino() == mark.inode && meta.len() >= mark.offset {
                file.seek(SeekFrom::Start(mark.offset))?;
                found = true;
            }
            if found {
                file.read_to_string(&mut text)?;
            }
        }
        ensure!(found, "the audit log no longer goes back to {mark}");
        Ok(text)
    }

    /// Oldest first: the API server puts the time into the names of those it has put aside.
    fn audit_logs(&self) -> Result<Vec<PathBuf>> {
        let dir = self.settings.path("log");
        let mut logs: Vec<PathBuf> = fs::read_dir(&dir)
            .with_context(|| format!("cannot read {dir}"))?
            .map(|entry| Ok(entry?.path()))
            .filter(|path| {
                path.as_ref().map_or(true, |path| {
                    path.to_str().is_some_and(|path| path.contains("/audit-"))
                })
            })
            .collect::<Result<_>>()?;
        logs.sort();
        logs.push(PathBuf::from(dir).join("audit.log"));
        Ok(logs)
    }
}

/// The fields of `audit.k8s.io/v1` Event that are used here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditLine {
    #[serde(rename = "auditID")]
    audit_id: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: AuditUser,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: ObjectRef,
    #[serde(default)]
    response_status: ResponseStatus,
}

#[derive(Deserialize)]
struct AuditUser {
    #[serde(default)]
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
}

/// The first stage of each request. A last line that is not whole yet is left for later.
fn parse(text: &str) -> Result<Vec<AuditEvent>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut seen = HashSet::new();
    let mut events = Vec::new();
    for line in whole.lines() {
        let line: AuditLine =
            serde_json::from_str(line).with_context(|| format!("not an audit event: {line}"))?;
        if seen.insert(line.audit_id) {
            events.push(AuditEvent {
                verb: line.verb,
                resource: line.object_ref.resource,
                subresource: line.object_ref.subresource,
                namespace: line.object_ref.namespace,
                name: line.object_ref.name,
                user: line.user.username,
                user_agent: line.user_agent,
                uri: line.request_uri,
                code: line.response_status.code,
            });
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured from kube-apiserver 1.34.4: a list, then a port-forward in both of its stages, shortened.
    const LOG: &str = concat!(
        r#"{"kind":"Event","auditID":"e2","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/default/pods?labelSelector=a","verb":"list","user":{"username":"admin"},"userAgent":"kubectl/v1.34.4","objectRef":{"resource":"pods","namespace":"default","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":200}}"#,
        "\n",
        r#"{"kind":"Event","auditID":"68","stage":"ResponseStarted","requestURI":"/api/v1/namespaces/default/pods/p-1/portforward","verb":"get","user":{"username":"viewer"},"userAgent":"kubevpn/0.1.0","objectRef":{"resource":"pods","namespace":"default","name":"p-1","apiVersion":"v1","subresource":"portforward"},"responseStatus":{"metadata":{},"code":101}}"#,
        "\n",
        r#"{"kind":"Event","auditID":"68","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/default/pods/p-1/portforward","verb":"get","user":{"username":"viewer"},"userAgent":"kubevpn/0.1.0","objectRef":{"resource":"pods","namespace":"default","name":"p-1","apiVersion":"v1","subresource":"portforward"},"responseStatus":{"metadata":{},"code":101}}"#,
        "\n",
        r#"{"kind":"Event","auditID":"70","stage":"ResponseComplete","requestURI":"/version","verb":"get","user":{"username":"admin"}}"#,
        "\n",
    );

    #[test]
    fn a_request_is_counted_once() {
        let events = parse(LOG).unwrap();
        let brief: Vec<_> = events
            .iter()
            .map(|e| {
                (
                    e.verb.as_str(),
                    e.resource.as_str(),
                    e.subresource.as_str(),
                    e.code,
                )
            })
            .collect();
        assert_eq!(
            brief,
            [
                ("list", "pods", "", 200),
                ("get", "pods", "portforward", 101),
                ("get", "", "", 0)
            ]
        );
        let forward = &events[1];
        assert_eq!(
            (
                forward.name.as_str(),
                forward.user.as_str(),
                forward.user_agent.as_str()
            ),
            ("p-1", "viewer", "kubevpn/0.1.0")
        );
    }

    #[test]
    fn half_a_line_is_left_for_later() {
        for cut in 0..LOG.len() {
            let lines = LOG[..cut].matches('\n').count();
            assert_eq!(
                parse(&LOG[..cut]).unwrap().len(),
                [0, 1, 2, 2, 3][lines],
                "cut at {cut}"
            );
        }
        assert!(parse("{}\n").is_err());
    }

    #[test]
    fn a_mark_is_text_and_back() {
        let mark = AuditMark {
            inode: 7,
            offset: 4711,
        };
        assert_eq!(mark.to_string().parse::<AuditMark>().unwrap(), mark);
        for text in ["", "7", "7:", "a:1", "1:2:3"] {
            assert!(text.parse::<AuditMark>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_was_rotated_is_read_first_and_what_is_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::create_dir(&log).unwrap();
        let settings = crate::settings::Settings::in_dir(dir.path());
        let lab = Lab { settings };
        assert!(lab.audit_mark().is_err());
        fs::write(log.join("audit.log"), "old\n").unwrap();
        let mark = lab.audit_mark().unwrap();
        fs::write(log.join("audit.log"), "old\nlast\n").unwrap();
        assert_eq!(lab.audit_text(&mark).unwrap(), "last\n");
        fs::rename(log.join("audit.log"), log.join("audit-2026-01-02.log")).unwrap();
        fs::write(log.join("audit-2026-01-01.log"), "older\n").unwrap();
        fs::write(log.join("audit.log"), "new\n").unwrap();
        assert_eq!(lab.audit_text(&mark).unwrap(), "last\nnew\n");
        fs::remove_file(log.join("audit-2026-01-02.log")).unwrap();
        assert!(lab.audit_text(&mark).is_err());
    }
}
