//! The service account of a Pod, used without a kubeconfig.

use std::net::IpAddr;

use http::Uri;
use kube::Config;
use kube::config::Cluster;

use super::Loaded;
use super::env::Env;
use super::error::KubeconfigError;
use super::select::{certificates, read_pem};

/// `None` outside a Pod with a service account.
pub(super) fn load(env: &Env) -> Result<Option<Loaded>, KubeconfigError> {
    let account = &env.service_account;
    let token = account.join("token");
    let (Some(host), Some(port), true) = (
        env.var("KUBERNETES_SERVICE_HOST"),
        env.var("KUBERNETES_SERVICE_PORT"),
        token.is_file(),
    ) else {
        return Ok(None);
    };
    let server = match host.parse() {
        Ok(IpAddr::V6(ip)) => format!("https://[{ip}]:{port}"),
        _ => format!("https://{host}:{port}"),
    };
    let url: Result<Uri, _> = server.parse();
    let authority = account.join("ca.crt");
    let entry = Cluster {
        server: Some(server.clone()),
        certificate_authority: Some(authority.to_string_lossy().into_owned()),
        ..Cluster::default()
    };
    let mut config = Config::new(url.map_err(|_| KubeconfigError::BadServer { server })?);
    let pem = read_pem("certificate authority", &authority)?;
    let what = format!("the certificate authority {}", authority.display());
    config.root_cert = Some(certificates(&pem, what)?);
    // Both files are replaced over time; kube reads them again.
    config.root_cert_file = Some(authority);
    config.auth_info.token_file = Some(token.to_string_lossy().into_owned());
    let namespace = env.var("POD_NAMESPACE").or_else(|| {
        let read = std::fs::read_to_string(account.join("namespace")).ok()?;
        Some(read.trim().to_owned()).filter(|name| !name.is_empty())
    });
    Ok(Some(Loaded {
        config,
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        context: None,
        cluster: None,
        user: None,
        server: String::new(),
        files: Vec::new(),
        once: Vec::new(),
        hosts: Vec::new(),
        notes: Vec::new(),
        proxy_of_env: false,
        entry,
    }))
}
