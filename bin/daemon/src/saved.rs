//! The state file of a connection, from which it is restored.

use kubevpn_conn::Addr;
use kubevpn_proxy::{ListenerSpec, Policy, text};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{ClusterRef, KubeconfigSelection};
use crate::error::{ApiError, ErrorContext as _};
use crate::log::LogLevel;
use crate::state_dir::{self, StateDir};

/// Version of the written state file. `tests/golden` pins its format: a change needs another version and a migration.
const VERSION: u64 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Saved {
    version: u64,
    pub(crate) id: String,
    pub(crate) started_at: String,
    pub(crate) cluster: ClusterRef,
    pub(crate) kubeconfig: KubeconfigSelection,
    pub(crate) policy: Policy,
    pub(crate) log_level: LogLevel,
    pub(crate) listeners: Vec<SavedListener>,
}

/// A listener, and the address it got, at which it is opened again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SavedListener {
    #[serde(flatten)]
    pub(crate) spec: ListenerSpec,
    #[serde(with = "text")]
    pub(crate) bound: Addr,
}

impl Saved {
    pub(crate) fn new(
        id: String,
        cluster: ClusterRef,
        kubeconfig: KubeconfigSelection,
        policy: Policy,
    ) -> Self {
        Self {
            version: VERSION,
            id,
            started_at: jiff::Timestamp::now().to_string(),
            cluster,
            kubeconfig,
            policy,
            log_level: LogLevel::default(),
            listeners: Vec::new(),
        }
    }

    pub(crate) fn write(&self, dir: &StateDir) -> Result<(), ApiError> {
        let text = serde_json::to_vec_pretty(self).context("cannot write the state file")?;
        state_dir::write(&dir.state(&self.id), &text)
    }

    /// Reads the state file of this ID.
    pub(crate) fn read(dir: &StateDir, id: &str) -> Result<Self, String> {
        let text = state_dir::read(&dir.state(id)).map_err(|error| error.whole())?;
        let text = text.ok_or("its state file is gone")?;
        Self::parse(&text, id)
    }

    fn parse(text: &str, id: &str) -> Result<Self, String> {
        let broken = |error: serde_json::Error| {
            format!("its state file is broken: {error}; disconnect it, and connect again")
        };
        let mut document: Value = serde_json::from_str(text).map_err(broken)?;
        match document.get("version").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(1) => migrate_from_1(&mut document),
            Some(version) => {
                return Err(format!(
                    "its state file has version {version}, and this kubevpn reads versions 1 to {VERSION}: use the kubevpn \
                     that wrote it, or disconnect it and connect again"
                ));
            }
            None => {
                return Err(
                    "its state file does not say its version: disconnect it, and connect again"
                        .into(),
                );
            }
        }
        let saved: Self = serde_json::from_value(document).map_err(broken)?;
        if saved.id != id {
            return Err(format!(
                "its state file is that of connection {}: disconnect it, and connect again",
                saved.id
            ));
        }
        Ok(saved)
    }
}

/// Version 1 had the names of flags: `source`, `kind`, `pacRange` and `pacUpstream`, a DNS upstream without its port, and
/// no log level. Missing fields are reported by the parser.
fn migrate_from_1(document: &mut Value) {
    let Some(document) = document.as_object_mut() else {
        return;
    };
    document.insert("version".into(), VERSION.into());
    document.insert("logLevel".into(), json!(LogLevel::Info));
    rename(document, "source", "kubeconfig");
    let listeners = document.get_mut("listeners").and_then(Value::as_array_mut);
    for listener in listeners.into_iter().flatten() {
        let Some(listener) = listener.as_object_mut() else {
            continue;
        };
        rename(listener, "kind", "protocol");
        if let Some(Value::String(upstream)) = listener.get_mut("dnsUpstream")
            && let Ok(ip) = upstream.parse::<std::net::IpAddr>()
        {
            *upstream = std::net::SocketAddr::from((ip, 53)).to_string();
        }
        if let Some(Value::Object(pac)) = listener.get_mut("pac") {
            rename(pac, "pacRange", "ranges");
            rename(pac, "pacUpstream", "upstream");
        }
    }
}

fn rename(object: &mut serde_json::Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = object.remove(from) {
        object.insert(to.into(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789ab";

    /// Version 2 with all fields and with only the required ones, and version 1 of the same. A change of these files is a
    /// change of the format: it needs another version and a migration.
    #[test]
    fn golden_files_are_read_and_written_as_they_are() {
        for (golden, before) in [
            (
                include_str!("../tests/golden/full-v2.json"),
                include_str!("../tests/golden/full-v1.json"),
            ),
            (
                include_str!("../tests/golden/plain-v2.json"),
                include_str!("../tests/golden/plain-v1.json"),
            ),
        ] {
            let saved = Saved::parse(golden, ID).unwrap();
            let written = serde_json::to_string_pretty(&saved).unwrap();
            assert_eq!(written.trim(), golden.trim());
            assert_eq!(Saved::parse(before, ID), Ok(saved));
        }
    }

    #[test]
    fn back_as_it_was_or_a_reason() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(tmp.path());
        dir.prepare().unwrap();
        let cluster = ClusterRef {
            server: "https://127.0.0.1:6443".into(),
            name: None,
            context: Some("lab".into()),
            namespace: "shop".into(),
        };
        let saved = Saved::new(
            ID.into(),
            cluster,
            KubeconfigSelection {
                read_once: true,
                ..KubeconfigSelection::default()
            },
            Policy::default(),
        );
        saved.write(&dir).unwrap();
        assert_eq!(Saved::read(&dir, ID), Ok(saved.clone()));
        let text = serde_json::to_string(&saved).unwrap();
        for (text, reason) in [
            ("{", "is broken"),
            ("{}", "does not say its version"),
            (r#"{"version":0}"#, "has version 0, and this kubevpn reads"),
            (r#"{"version":3}"#, "has version 3"),
            (r#"{"version":1}"#, "is broken"),
            (r#"{"version":2}"#, "is broken"),
            (&text.replace(ID, "x"), "is that of connection x"),
        ] {
            let said = Saved::parse(text, ID).unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
    }
}
