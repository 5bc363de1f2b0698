//! One context of the kubeconfig, with the flags applied.

use std::path::{MAIN_SEPARATOR, Path};

use http::Uri;
use kube::Config;
use kube::config::{AuthInfo, Cluster, Context, ExecAuthCluster, ExecConfig};
use secrecy::{ExposeSecret, SecretString};

use super::env::Env;
use super::error::{KubeconfigError, NameList};
use super::files::Files;
use super::hosts::hosts;
use super::{KubeconfigArgs, Loaded, proxy_url};
use crate::error::clip;
use crate::{pem, proxy};

/// Limit on a CA file: the bundles of operating systems are smaller.
const MOST_PEM_BYTES: u64 = 8 << 20;

pub(super) fn select(
    files: Files,
    args: &KubeconfigArgs,
    env: &Env,
) -> Result<Loaded, KubeconfigError> {
    let context_name = args
        .context
        .clone()
        .or_else(|| files.current_context.clone());
    let context: Context = match &context_name {
        Some(name) => match files.contexts.find(name) {
            Some(found) => found.read()?,
            None => {
                return Err(KubeconfigError::UnknownContext {
                    name: name.clone(),
                    known: NameList(files.contexts.names()),
                });
            }
        },
        // The flags may be sufficient.
        None if args.cluster.is_some() || args.server.is_some() => Context::default(),
        None => {
            return Err(KubeconfigError::NoContext {
                contexts: NameList(files.contexts.names()),
            });
        }
    };

    let cluster_name = args.cluster.clone().unwrap_or(context.cluster);
    let mut cluster = match files.clusters.find(&cluster_name) {
        Some(found) => {
            let mut cluster = found.read()?;
            tidy_cluster(&mut cluster, &found.file);
            cluster
        }
        None if args.server.is_some() && args.cluster.is_none() => Cluster::default(),
        None => {
            return Err(KubeconfigError::UnknownCluster {
                name: cluster_name,
                known: NameList(files.clusters.names()),
            });
        }
    };
    override_cluster(&mut cluster, args, env);
    check_cluster(&cluster, &cluster_name)?;

    let user_name = args.user.clone().or(context.user).unwrap_or_default();
    let mut user = AuthInfo::default();
    match files.users.find(&user_name) {
        Some(found) => {
            user = found.read()?;
            tidy_user(&mut user, &found.file);
        }
        None if args.user.is_some() => {
            return Err(KubeconfigError::UnknownUser {
                name: user_name,
                known: NameList(files.users.names()),
            });
        }
        None if user_name.is_empty() => {}
        // Like kubectl, continue without credentials: some servers need none.
        None => {
            tracing::warn!(user = %user_name, "the kubeconfig has no such user, continuing without credentials")
        }
    }
    if let Some(token) = &args.token {
        user.token = Some(token.clone());
        (user.token_file, user.username, user.password) = (None, None, None);
        (user.exec, user.auth_provider) = (None, None);
    }
    let url = server(&cluster, &cluster_name, &user)?;
    if url.scheme_str() == Some("http") {
        // Like kubectl, send no credentials without TLS.
        user = unsigned(user);
    }
    log_in_by_server(&mut cluster, &mut user);
    check_user(&user, &user_name)?;
    if let Some(exec) = &user.exec {
        check_plugin(exec, &user_name)?;
    }
    if let Some(exec) = &mut user.exec
        && exec.provide_cluster_info
    {
        let info = ExecAuthCluster::try_from(&cluster);
        exec.cluster = Some(info.map_err(|_| KubeconfigError::NotBase64 {
            what: format!("certificate-authority-data of cluster {cluster_name:?}"),
        })?);
    }

    let url = server(&cluster, &cluster_name, &user)?;
    let mut entry = cluster.clone();
    entry.server = Some(url.to_string());
    let mut config = Config::new(url);
    config.root_cert = authority(&cluster, &cluster_name)?;
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or(false);
    config.disable_compression = cluster.disable_compression.unwrap_or(false);
    config.tls_server_name = cluster.tls_server_name;
    config.proxy_url = match cluster.proxy_url {
        Some(url) => Some(proxy_url(
            &url,
            &format!("cluster {cluster_name:?} of the kubeconfig"),
        )?),
        None => None,
    };
    config.auth_info = user;
    let namespace = context.namespace.filter(|name| !name.is_empty());
    let (notes, hosts) = (files.notes(), hosts(&files));
    Ok(Loaded {
        config,
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        context: context_name,
        cluster: Some(cluster_name).filter(|name| !name.is_empty()),
        user: Some(user_name).filter(|name| !name.is_empty()),
        server: String::new(),
        files: files.read,
        once: files.once,
        hosts,
        notes,
        proxy_of_env: false,
        entry,
    })
}

/// An empty field counts as absent, as with kubectl.
fn tidy(field: &mut Option<String>) {
    field.take_if(|text| text.is_empty());
}

fn tidy_secret(field: &mut Option<SecretString>) {
    field.take_if(|text| text.expose_secret().is_empty());
}

/// Resolves a path relative to the directory of its kubeconfig.
fn beside(field: &mut Option<String>, file: &Path) {
    if let (Some(path), Some(dir)) = (field, file.parent()) {
        *path = dir.join(&*path).to_string_lossy().into_owned();
    }
}

fn tidy_cluster(cluster: &mut Cluster, file: &Path) {
    for field in [
        &mut cluster.certificate_authority,
        &mut cluster.certificate_authority_data,
        &mut cluster.tls_server_name,
        &mut cluster.proxy_url,
    ] {
        tidy(field);
    }
    beside(&mut cluster.certificate_authority, file);
    if let Some(data) = &mut cluster.certificate_authority_data {
        *data = pem::unwrapped(data);
    }
}

fn tidy_user(user: &mut AuthInfo, file: &Path) {
    for field in [
        &mut user.username,
        &mut user.token_file,
        &mut user.client_certificate,
        &mut user.client_certificate_data,
        &mut user.client_key,
        &mut user.impersonate,
        &mut user.impersonate_uid,
    ] {
        tidy(field);
    }
    for field in [
        &mut user.password,
        &mut user.token,
        &mut user.client_key_data,
    ] {
        tidy_secret(field);
    }
    // A key without a certificate is ignored, as with kubectl.
    if user.client_certificate.is_none() && user.client_certificate_data.is_none() {
        (user.client_key, user.client_key_data) = (None, None);
    }
    for field in [
        &mut user.token_file,
        &mut user.client_certificate,
        &mut user.client_key,
    ] {
        beside(field, file);
    }
    if let Some(data) = &mut user.client_certificate_data {
        *data = pem::unwrapped(data);
    }
    if let Some(data) = &mut user.client_key_data {
        *data = SecretString::from(pem::unwrapped(data.expose_secret()));
    }
    if let Some(exec) = &mut user.exec
        && exec
            .command
            .as_ref()
            .is_some_and(|c| c.contains(MAIN_SEPARATOR))
    {
        beside(&mut exec.command, file);
    }
}

/// The user to impersonate is not a secret, and stays.
fn unsigned(user: AuthInfo) -> AuthInfo {
    AuthInfo {
        impersonate: user.impersonate,
        impersonate_uid: user.impersonate_uid,
        impersonate_groups: user.impersonate_groups,
        impersonate_user_extra: user.impersonate_user_extra,
        ..AuthInfo::default()
    }
}

/// User and password in the server's URL take precedence, as in Go's HTTP client.
fn log_in_by_server(cluster: &mut Cluster, user: &mut AuthInfo) {
    let Some((url, name, password)) = cluster.server.as_deref().and_then(proxy::login_of) else {
        return;
    };
    cluster.server = Some(url);
    (user.username, user.password) = (Some(name), Some(password.into()));
    (user.token, user.token_file) = (None, None);
    (user.exec, user.auth_provider) = (None, None);
}

/// Combinations that kubectl refuses.
fn check_cluster(cluster: &Cluster, name: &str) -> Result<(), KubeconfigError> {
    let file = cluster.certificate_authority.is_some();
    let data = cluster.certificate_authority_data.is_some();
    let insecure = cluster.insecure_skip_tls_verify == Some(true);
    let both = match (file, data, insecure) {
        (true, true, _) => ("certificate-authority", "certificate-authority-data"),
        (true, _, true) => ("certificate-authority", "insecure-skip-tls-verify"),
        (_, true, true) => ("certificate-authority-data", "insecure-skip-tls-verify"),
        _ => return Ok(()),
    };
    Err(KubeconfigError::TooMuch {
        of: format!("cluster {name:?}"),
        first: both.0,
        second: both.1,
    })
}

/// Applies flags to a cluster's entry as client-go does: fields that contradict a flag are removed.
fn override_cluster(cluster: &mut Cluster, args: &KubeconfigArgs, env: &Env) {
    if args.server.is_some() || args.tls_server_name.is_some() {
        cluster.tls_server_name.clone_from(&args.tls_server_name);
    }
    if args.server.is_some() {
        cluster.server.clone_from(&args.server);
    }
    if let Some(path) = &args.certificate_authority {
        let path = env.expand(path);
        // Made absolute, to survive a change of directory.
        let path = std::path::absolute(&path).unwrap_or(path);
        cluster.certificate_authority = Some(path.to_string_lossy().into_owned());
        cluster.certificate_authority_data = None;
        cluster.insecure_skip_tls_verify = None;
    }
    if args.insecure_skip_tls_verify {
        cluster.insecure_skip_tls_verify = Some(true);
        if args.certificate_authority.is_none() {
            cluster.certificate_authority = None;
            cluster.certificate_authority_data = None;
        }
    }
}

/// The server's URL. Without a scheme it is https where anything about TLS is configured, else http.
fn server(cluster: &Cluster, name: &str, user: &AuthInfo) -> Result<Uri, KubeconfigError> {
    let server = cluster.server.as_deref().unwrap_or_default().trim();
    if server.is_empty() {
        return Err(KubeconfigError::NoServer {
            cluster: name.to_owned(),
        });
    }
    let tls = cluster.certificate_authority.is_some()
        || cluster.certificate_authority_data.is_some()
        || cluster.insecure_skip_tls_verify == Some(true)
        || user.client_certificate.is_some()
        || user.client_certificate_data.is_some();
    let url = match (server.contains("://"), tls) {
        (true, _) => server.to_owned(),
        (false, true) => format!("https://{server}"),
        (false, false) => format!("http://{server}"),
    };
    let bad = || KubeconfigError::BadServer {
        server: clip(&proxy::without_login(server)),
    };
    let url: Uri = url.parse().map_err(|_| bad())?;
    let known = matches!(url.scheme_str(), Some("http" | "https"));
    match url.host() {
        Some(host) if known && !host.is_empty() && has_port_or_none(&url, host) => Ok(url),
        _ => Err(bad()),
    }
}

/// The crate `http` reads an invalid port as none.
fn has_port_or_none(url: &Uri, host: &str) -> bool {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    match url.port_u16() {
        Some(port) => port != 0,
        None => authority.ends_with(host),
    }
}

/// The CA certificates in DER; `None` for the system's trust store.
fn authority(cluster: &Cluster, name: &str) -> Result<Option<Vec<Vec<u8>>>, KubeconfigError> {
    let (what, pem) = match (
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
    ) {
        (Some(data), _) => {
            let what = format!("certificate-authority-data of cluster {name:?}");
            match pem::decode(data) {
                Some(pem) => (what, pem),
                None => return Err(KubeconfigError::NotBase64 { what }),
            }
        }
        (None, Some(path)) => (
            format!("the certificate authority {path}"),
            read_pem("certificate authority", Path::new(path))?,
        ),
        (None, None) => return Ok(None),
    };
    Ok(Some(certificates(&pem, what)?))
}

pub(super) fn certificates(pem: &[u8], what: String) -> Result<Vec<Vec<u8>>, KubeconfigError> {
    let found = pem::certificates(pem);
    if found.is_empty() {
        return Err(KubeconfigError::NoCertificate { what });
    }
    Ok(found.into_iter().map(|der| der.to_vec()).collect())
}

pub(super) fn read_pem(what: &str, path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    let unreadable = |e| KubeconfigError::unreadable(what, path, e);
    let found = std::fs::metadata(path).map_err(unreadable)?;
    if found.len() > MOST_PEM_BYTES {
        return Err(unreadable(std::io::ErrorKind::FileTooLarge.into()));
    }
    std::fs::read(path).map_err(unreadable)
}

/// Checks a plugin's entry as kubectl does before it runs the plugin.
fn check_plugin(exec: &ExecConfig, user: &str) -> Result<(), KubeconfigError> {
    const V1: &str = "client.authentication.k8s.io/v1";
    const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";
    let problem = match exec.api_version.as_deref() {
        Some(V1) if exec.interactive_mode.is_none() => {
            "has no interactiveMode, which must be Never, IfAvailable or Always"
        }
        Some(V1 | V1BETA1) => return Ok(()),
        _ => {
            "has another apiVersion than client.authentication.k8s.io/v1 and v1beta1: update the plugin, and the kubeconfig with it"
        }
    };
    let user = user.to_owned();
    Err(KubeconfigError::PluginEntry { user, problem })
}

/// Checks that no field is duplicated or incomplete, and that the files of certificate, key and token are readable.
fn check_user(user: &AuthInfo, name: &str) -> Result<(), KubeconfigError> {
    let certificate = user.client_certificate.is_some() || user.client_certificate_data.is_some();
    let key = user.client_key.is_some() || user.client_key_data.is_some();
    if certificate && !key {
        let user = name.to_owned();
        return Err(KubeconfigError::NoKey { user });
    }
    for (first, has_first, second, has_second) in [
        (
            "a token",
            user.token.is_some() || user.token_file.is_some(),
            "a username or password",
            user.username.is_some() || user.password.is_some(),
        ),
        (
            "client-certificate",
            user.client_certificate.is_some(),
            "client-certificate-data",
            user.client_certificate_data.is_some(),
        ),
        (
            "client-key",
            user.client_key.is_some(),
            "client-key-data",
            user.client_key_data.is_some(),
        ),
        (
            "an auth-provider",
            user.auth_provider.is_some(),
            "a credential plugin",
            user.exec.is_some(),
        ),
    ] {
        if has_first && has_second {
            let of = format!("user {name:?}");
            return Err(KubeconfigError::TooMuch { of, first, second });
        }
    }
    for (what, path, otherwise) in [
        ("client certificate", &user.client_certificate, false),
        ("client key", &user.client_key, false),
        ("token file", &user.token_file, user.token.is_some()),
    ] {
        if let (Some(path), false) = (path, otherwise) {
            read_pem(what, Path::new(path))?;
        }
    }
    Ok(())
}
