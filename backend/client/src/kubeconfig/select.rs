//! One context of the kubeconfig, with the flags laid over it.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Uri;
use kube::Config;
use kube::config::{AuthInfo, Cluster, Context, ExecAuthCluster};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::env::Env;
use super::error::{KubeconfigError, Names};
use super::files::Files;
use super::{KubeconfigArgs, Loaded, proxy_url};

/// Certificate bundles of whole operating systems are smaller.
const MOST_PEM_BYTES: u64 = 8 << 20;

pub(super) fn select(
    files: Files,
    args: &KubeconfigArgs,
    env: &Env,
) -> Result<Loaded, KubeconfigError> {
    let Files { merged, read, .. } = files;
    let contexts = || Names(merged.contexts.iter().map(|c| c.name.clone()).collect());
    let asked = args.context.clone().filter(|name| !name.is_empty());
    let context_name = asked.or_else(|| merged.current_context.clone());
    let context = match &context_name {
        Some(name) => {
            let found = merged.contexts.iter().find(|c| c.name == *name);
            let found = found.and_then(|c| c.context.clone());
            found.ok_or_else(|| KubeconfigError::UnknownContext {
                name: name.clone(),
                known: contexts(),
            })?
        }
        // The flags may say it all.
        None if args.cluster.is_some() || args.server.is_some() => Context::default(),
        None => {
            return Err(KubeconfigError::NoContext {
                contexts: contexts(),
            });
        }
    };

    let cluster_name = args.cluster.clone().unwrap_or(context.cluster);
    let found = merged.clusters.iter().find(|c| c.name == cluster_name);
    let mut cluster = match found.and_then(|c| c.cluster.clone()) {
        Some(cluster) => cluster,
        None if args.server.is_some() && args.cluster.is_none() => Cluster::default(),
        None => {
            return Err(KubeconfigError::UnknownCluster {
                name: cluster_name,
                known: Names(merged.clusters.iter().map(|c| c.name.clone()).collect()),
            });
        }
    };
    override_cluster(&mut cluster, args, env);

    let user_name = args.user.clone().or(context.user);
    let user_name = user_name.filter(|name| !name.is_empty());
    let mut user = AuthInfo::default();
    if let Some(name) = &user_name {
        let found = merged.auth_infos.iter().find(|u| u.name == *name);
        match found {
            Some(found) => user = found.auth_info.clone().unwrap_or_default(),
            None if args.user.is_some() => {
                return Err(KubeconfigError::UnknownUser {
                    name: name.clone(),
                    known: Names(merged.auth_infos.iter().map(|u| u.name.clone()).collect()),
                });
            }
            // kubectl goes on without credentials too, which is enough for some servers.
            None => {
                tracing::warn!(user = %name, "the kubeconfig has no such user, going on as nobody")
            }
        }
    }
    check_identity(&user, user_name.as_deref().unwrap_or_default())?;
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
    config.tls_server_name = cluster.tls_server_name.filter(|name| !name.is_empty());
    config.proxy_url = match cluster.proxy_url.filter(|url| !url.is_empty()) {
        Some(url) => Some(proxy_url(
            &url,
            &format!("cluster {cluster_name:?} of the kubeconfig"),
        )?),
        None => None,
    };
    config.auth_info = user;
    let namespace = context.namespace.filter(|name| !name.is_empty());
    Ok(Loaded {
        config,
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        context: context_name,
        cluster: Some(cluster_name).filter(|name| !name.is_empty()),
        user: user_name,
        server: String::new(),
        files: read,
        proxy_of_env: false,
        entry,
    })
}

/// As client-go lays flags over a cluster's entry: what contradicts a flag goes.
fn override_cluster(cluster: &mut Cluster, args: &KubeconfigArgs, env: &Env) {
    if args.server.is_some() || args.tls_server_name.is_some() {
        cluster.tls_server_name.clone_from(&args.tls_server_name);
    }
    if args.server.is_some() {
        cluster.server.clone_from(&args.server);
    }
    if let Some(path) = &args.certificate_authority {
        let path = env.expand(path);
        // Must outlive a change of directory.
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
        server: crate::error::clip(server),
    };
    let url: Uri = url.parse().map_err(|_| bad())?;
    let known = matches!(url.scheme_str(), Some("http" | "https"));
    match url.host() {
        Some(host) if known && !host.is_empty() && has_port_or_none(&url, host) => Ok(url),
        _ => Err(bad()),
    }
}

/// A port that is no number, or too large a one, passes for none with `http`.
fn has_port_or_none(url: &Uri, host: &str) -> bool {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    match url.port_u16() {
        Some(port) => port != 0,
        None => authority.ends_with(host),
    }
}

/// The certificates that sign the server's, in DER; `None` to trust whom the system trusts.
fn authority(cluster: &Cluster, name: &str) -> Result<Option<Vec<Vec<u8>>>, KubeconfigError> {
    let data = cluster.certificate_authority_data.as_deref();
    let file = cluster.certificate_authority.as_deref();
    let (what, pem) = match (
        data.filter(|d| !d.is_empty()),
        file.filter(|f| !f.is_empty()),
    ) {
        (Some(data), _) => {
            let what = format!("certificate-authority-data of cluster {name:?}");
            match BASE64_STANDARD.decode(data.trim()) {
                Ok(pem) => (what, pem),
                Err(_) => return Err(KubeconfigError::NotBase64 { what }),
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
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem)
        .map(|der| der.map(|der| der.to_vec()))
        .collect();
    match certificates {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(KubeconfigError::NoCertificate { what }),
    }
}

pub(super) fn read_pem(what: &str, path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    let unreadable = |e| KubeconfigError::unreadable(what, path, e);
    let found = std::fs::metadata(path).map_err(unreadable)?;
    if found.len() > MOST_PEM_BYTES {
        return Err(unreadable(std::io::ErrorKind::FileTooLarge.into()));
    }
    std::fs::read(path).map_err(unreadable)
}

/// That certificate and key are both there, and their files and the token's can be read.
fn check_identity(user: &AuthInfo, name: &str) -> Result<(), KubeconfigError> {
    let certificate = user.client_certificate.is_some() || user.client_certificate_data.is_some();
    let key = user.client_key.is_some() || user.client_key_data.is_some();
    let missing = match (certificate, key) {
        (true, false) => Some("client-key"),
        (false, true) => Some("client-certificate"),
        _ => None,
    };
    if let Some(missing) = missing {
        let user = name.to_owned();
        return Err(KubeconfigError::HalfAnIdentity { user, missing });
    }
    let files = [
        (
            "client certificate",
            &user.client_certificate,
            user.client_certificate_data.is_some(),
        ),
        (
            "client key",
            &user.client_key,
            user.client_key_data.is_some(),
        ),
        ("token file", &user.token_file, user.token.is_some()),
    ];
    for (what, path, inline) in files {
        if let (Some(path), false) = (path, inline) {
            read_pem(what, Path::new(path))?;
        }
    }
    Ok(())
}
