//! What a client needs to reach the simulation.

use std::io::{self, Write};
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

#[derive(Debug)]
pub(crate) struct SimKubeconfig {
    pub(crate) server: String,
    pub(crate) namespace: String,
    /// The authority's certificate, as PEM and DER; none without TLS.
    pub(crate) ca: Option<(String, Vec<u8>)>,
}

impl SimKubeconfig {
    pub(crate) fn yaml(&self, token: &str) -> String {
        let mut cluster = json!({"server": self.server});
        if let Some((pem, _)) = &self.ca {
            cluster["certificate-authority-data"] = BASE64_STANDARD.encode(pem).into();
        }
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "sim", "cluster": cluster}],
            "users": [{"name": "sim", "user": {"token": token}}],
            "contexts": [{"name": "sim", "context":
                {"cluster": "sim", "user": "sim", "namespace": self.namespace}}],
            "current-context": "sim",
        });
        // JSON is YAML; this way around it is easier on the eye.
        serde_yaml_ng::to_string(&config).unwrap_or_else(|_| config.to_string())
    }

    pub(crate) fn config(&self, token: &str) -> kube::Config {
        let url = self.server.parse().expect("a URL of our own making");
        let mut config = kube::Config::new(url);
        config.default_namespace.clone_from(&self.namespace);
        config.root_cert = self.ca.as_ref().map(|(_, der)| vec![der.clone()]);
        let auth = serde_json::from_value(json!({"token": token}));
        config.auth_info = auth.expect("a user with a token");
        config
    }

    /// Writes a file that only its owner can read.
    pub(crate) fn write(path: &Path, yaml: &str) -> io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path)?.write_all(yaml.as_bytes())
    }
}
