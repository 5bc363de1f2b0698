//! A connection's state file: what it takes to bring it back.

use serde::{Deserialize, Serialize};

use super::api::{Cluster, Source};
use super::home::{self, Home};
use super::listener::Wanted;
use crate::cli::policy::PolicyArgs;

/// The version of the state file that is written here.
const VERSION: u64 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Saved {
    version: u64,
    pub(crate) id: String,
    pub(crate) started_at: String,
    pub(crate) cluster: Cluster,
    pub(crate) source: Source,
    pub(crate) policy: PolicyArgs,
    pub(crate) listeners: Vec<SavedListener>,
}

/// A listener, and where it came to be: there it is looked for again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SavedListener {
    #[serde(flatten)]
    pub(crate) wanted: Wanted,
    pub(crate) bound: String,
}

impl Saved {
    pub(crate) fn new(id: String, cluster: Cluster, source: Source, policy: PolicyArgs) -> Self {
        Self {
            version: VERSION,
            id,
            started_at: jiff::Timestamp::now().to_string(),
            cluster,
            source,
            policy,
            listeners: Vec::new(),
        }
    }

    pub(crate) fn write(&self, home: &Home) -> anyhow::Result<()> {
        home::write(&home.state(&self.id), &serde_json::to_vec_pretty(self)?)
    }

    /// The connection of this ID, or why it cannot be had.
    pub(crate) fn read(home: &Home, id: &str) -> Result<Self, String> {
        let text = home::read(&home.state(id)).map_err(|error| format!("{error:#}"))?;
        let text = text.ok_or("its state file is gone")?;
        Self::parse(&text, id)
    }

    fn parse(text: &str, id: &str) -> Result<Self, String> {
        let broken = |error: serde_json::Error| {
            format!("its state file is broken: {error}; disconnect it, and connect again")
        };
        let document: serde_json::Value = serde_json::from_str(text).map_err(broken)?;
        match document.get("version").and_then(serde_json::Value::as_u64) {
            Some(VERSION) => {}
            Some(version) => {
                return Err(format!(
                    "its state file has version {version}, and this kubevpn reads version {VERSION}: use the kubevpn \
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_as_it_was_or_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        home.prepare().unwrap();
        let cluster = Cluster {
            server: "https://127.0.0.1:6443".into(),
            name: None,
            context: Some("lab".into()),
            namespace: "shop".into(),
        };
        let saved = Saved::new(
            "0123456789ab".into(),
            cluster,
            Source::default(),
            PolicyArgs::default(),
        );
        saved.write(&home).unwrap();
        assert_eq!(Saved::read(&home, "0123456789ab"), Ok(saved.clone()));
        let text = serde_json::to_string(&saved).unwrap();
        for (text, reason) in [
            ("{", "is broken"),
            ("{}", "does not say its version"),
            (r#"{"version":0}"#, "has version 0, and this kubevpn reads"),
            (r#"{"version":2}"#, "has version 2"),
            (r#"{"version":1}"#, "is broken"),
            (
                &text.replace("0123456789ab", "x"),
                "is that of connection x",
            ),
        ] {
            let said = Saved::parse(text, "0123456789ab").unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
    }
}
