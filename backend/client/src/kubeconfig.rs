//! kubectl's rules for cluster, user, namespace and proxy.

mod document;
mod env;
mod error;
mod files;
mod hosts;
mod incluster;
mod select;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use kube::Config;
use kube::config::{Cluster, Context, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};
use secrecy::{ExposeSecret as _, SecretString};

pub use self::env::{Env, OWN_PROXIES, own_proxies};
pub use self::error::{KubeconfigError, NameList};
use self::files::Files;
use crate::proxy::{self, ApiProxy};
use crate::recipe::server_name;

/// kubectl's flags about the kubeconfig, all optional.
#[derive(Clone, Debug, Default)]
pub struct KubeconfigArgs {
    /// `--kubeconfig`: this file and no other; a leading `~` is the home directory.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`, instead of the current one.
    pub context: Option<String>,
    /// `--cluster`, instead of the context's.
    pub cluster: Option<String>,
    /// `--user`, instead of the context's.
    pub user: Option<String>,
    /// `--namespace`, instead of the context's.
    pub namespace: Option<String>,
    /// `--server`, instead of the cluster's.
    pub server: Option<String>,
    /// `--token`, instead of the user's credentials except a client certificate.
    pub token: Option<SecretString>,
    /// `--as`: the user to act as.
    pub impersonate: Option<String>,
    /// `--as-group`, any number of times.
    pub impersonate_groups: Vec<String>,
    /// `--certificate-authority`, instead of the cluster's.
    pub certificate_authority: Option<PathBuf>,
    /// `--insecure-skip-tls-verify`.
    pub insecure_skip_tls_verify: bool,
    /// `--tls-server-name`: the name to check the certificate against.
    pub tls_server_name: Option<String>,
    /// `--request-timeout`: how long one call may take; `None` or zero for the default.
    pub request_timeout: Option<Duration>,
}

impl KubeconfigArgs {
    /// An empty flag counts as absent, as with kubectl.
    fn without_empty(&self) -> Self {
        let mut args = self.clone();
        for text in [
            &mut args.context,
            &mut args.cluster,
            &mut args.user,
            &mut args.namespace,
            &mut args.server,
            &mut args.impersonate,
            &mut args.tls_server_name,
        ] {
            text.take_if(|text| text.is_empty());
        }
        for path in [&mut args.kubeconfig, &mut args.certificate_authority] {
            path.take_if(|path| path.as_os_str().is_empty());
        }
        args.token.take_if(|token| token.expose_secret().is_empty());
        args
    }
}

/// The configuration from flags, files and environment.
#[derive(Clone)]
#[non_exhaustive]
pub struct Loaded {
    /// Input of [`build`](crate::build); its proxy URL may contain a password.
    pub config: Config,
    /// The active namespace, in which short names are looked up.
    pub namespace: String,
    /// The context; `None` within a cluster, or with `--server` only.
    pub context: Option<String>,
    /// The cluster's entry, if there is one.
    pub cluster: Option<String>,
    /// The user's entry, if there is one.
    pub user: Option<String>,
    /// The API server's URL with its port, for messages.
    pub server: String,
    /// The files that were read; the first has precedence.
    pub files: Vec<PathBuf>,
    /// The files that can be read only once, such as `/dev/fd/63`, which the shell makes of `<(…)`.
    pub once: Vec<PathBuf>,
    /// The hosts of all API servers in the files, and of their known login providers: a proxy into one cluster must not
    /// take their traffic.
    pub hosts: Vec<String>,
    /// Faults of entries that were not selected: a sentence each, without secrets.
    pub notes: Vec<String>,
    /// Whether the proxy to the API server comes from the environment and not from the kubeconfig.
    pub proxy_of_env: bool,
    /// The cluster's entry with the flags applied.
    entry: Cluster,
}

impl Loaded {
    /// The configuration as a kubeconfig of its own: one context, one cluster, one user, with the flags applied. Paths are
    /// absolute, plugins stay plugins, and no file's contents are copied. It may contain secrets.
    ///
    /// A proxy of the environment is included, because the kubeconfig's reader may have another environment.
    pub fn kubeconfig(&self) -> Kubeconfig {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "kubevpn".to_owned());
        let (context, cluster) = (name(&self.context), name(&self.cluster));
        let user = name(&self.user);
        let mut entry = self.entry.clone();
        entry.proxy_url = self.config.proxy_url.as_ref().map(Uri::to_string);
        Kubeconfig {
            clusters: vec![NamedCluster {
                name: cluster.clone(),
                cluster: Some(entry),
                ..NamedCluster::default()
            }],
            auth_infos: vec![NamedAuthInfo {
                name: user.clone(),
                auth_info: Some(self.config.auth_info.clone()),
                ..NamedAuthInfo::default()
            }],
            contexts: vec![NamedContext {
                name: context.clone(),
                context: Some(Context {
                    cluster,
                    user: Some(user),
                    namespace: Some(self.namespace.clone()),
                    ..Context::default()
                }),
                ..NamedContext::default()
            }],
            current_context: Some(context),
            api_version: Some("v1".to_owned()),
            kind: Some("Config".to_owned()),
            ..Kubeconfig::default()
        }
    }
}

/// Leaves out [`Loaded::config`], which contains secrets.
impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("server", &self.server)
            .field("context", &self.context)
            .field("cluster", &self.cluster)
            .field("user", &self.user)
            .field("namespace", &self.namespace)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// Loads the configuration as kubectl does.
///
/// Source: `--kubeconfig`, otherwise the merged files of `KUBECONFIG`, otherwise `~/.kube/config`, otherwise, within a Pod,
/// its service account. Reads files and looks for the credential plugin; runs and sends nothing. kube's own loader is not
/// used: it reads the process environment, treats a missing file of the list as an error, matches `NO_PROXY` against the
/// proxy, and quotes text that it cannot parse, including secrets.
///
/// ```
/// use kubevpn_client::{Env, KubeconfigArgs, KubeconfigError, load};
/// let env = Env::of([("KUBECONFIG", "/nowhere/at/all")]);
/// let error = load(&KubeconfigArgs::default(), &env).unwrap_err();
/// assert!(matches!(error, KubeconfigError::NoneFound { .. }));
/// ```
pub fn load(args: &KubeconfigArgs, env: &Env) -> Result<Loaded, KubeconfigError> {
    let args = &args.without_empty();
    let files = Files::read(args.kubeconfig.as_deref(), env)?;
    let mut loaded = if files.is_empty() && args.server.is_none() {
        match incluster::load(env)? {
            Some(loaded) if args.context.is_none() && args.kubeconfig.is_none() => loaded,
            _ => return Err(files.none_found()),
        }
    } else {
        select::select(files, args, env)?
    };
    loaded.server = server_name(&loaded.config);
    // A server of a flag is in no file.
    let host = loaded.config.cluster_url.host().unwrap_or_default();
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    if !loaded.hosts.contains(&host) {
        loaded.hosts.push(host);
    }
    if let Some(namespace) = &args.namespace {
        loaded.namespace.clone_from(namespace);
    }
    // The namespace becomes part of URLs.
    if !is_label(&loaded.namespace) {
        let namespace = crate::error::clip(&loaded.namespace);
        return Err(KubeconfigError::BadNamespace { namespace });
    }
    let config = &mut loaded.config;
    config.default_namespace.clone_from(&loaded.namespace);
    let user = &mut config.auth_info;
    // As with kubectl, each flag replaces its own field only.
    if args.impersonate.is_some() {
        user.impersonate.clone_from(&args.impersonate);
    }
    if !args.impersonate_groups.is_empty() {
        user.impersonate_groups = Some(args.impersonate_groups.clone());
    }
    let groups = user
        .impersonate_groups
        .as_ref()
        .is_some_and(|groups| !groups.is_empty());
    let extra = user
        .impersonate_user_extra
        .as_ref()
        .is_some_and(|extra| !extra.is_empty());
    if user.impersonate.is_none() && (groups || extra || user.impersonate_uid.is_some()) {
        return Err(KubeconfigError::GroupsWithoutUser);
    }
    config.read_timeout = args.request_timeout.filter(|t| !t.is_zero());
    if config.proxy_url.is_none() {
        config.proxy_url = proxy_of_env(&config.cluster_url, env)?;
        loaded.proxy_of_env = config.proxy_url.is_some();
    }
    if let Some(exec) = &mut config.auth_info.exec {
        env.settle_plugin(exec, loaded.user.as_deref())?;
    }
    Ok(loaded)
}

/// The names of the entries of the kubeconfig files, in the order of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryNames {
    /// The contexts.
    pub contexts: Vec<String>,
    /// The clusters.
    pub clusters: Vec<String>,
    /// The users.
    pub users: Vec<String>,
}

/// The names of all entries of the files that [`load`] reads, whether or not the entries are usable.
///
/// Errors: a file that cannot be read or parsed, as for [`load`].
pub fn entry_names(args: &KubeconfigArgs, env: &Env) -> Result<EntryNames, KubeconfigError> {
    let files = Files::read(args.without_empty().kubeconfig.as_deref(), env)?;
    Ok(EntryNames {
        contexts: files.contexts.names(),
        clusters: files.clusters.names(),
        users: files.users.names(),
    })
}

/// Whether the text is an RFC 1123 label, as a namespace's name has to be.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// `HTTPS_PROXY` or `HTTP_PROXY`, by the server's scheme, unless `NO_PROXY` names the server.
///
/// A server on loopback is never behind a proxy, as in Go and kubectl.
fn proxy_of_env(server: &Uri, env: &Env) -> Result<Option<Uri>, KubeconfigError> {
    let (upper, lower) = match server.scheme_str() {
        Some("http") => ("HTTP_PROXY", "http_proxy"),
        _ => ("HTTPS_PROXY", "https_proxy"),
    };
    let Some((name, url)) = env.first_of([upper, lower]) else {
        return Ok(None);
    };
    let no_proxy = env.first_of(["NO_PROXY", "no_proxy"]);
    let no_proxy = no_proxy.as_ref().map_or("", |(_, list)| list);
    if on_loopback(server) || proxy::bypassed(no_proxy, server) {
        return Ok(None);
    }
    proxy_url(&url, name).map(Some)
}

/// Checks a proxy's URL, and adds a missing scheme. `from` is its source, for errors.
fn proxy_url(text: &str, from: &str) -> Result<Uri, KubeconfigError> {
    let bad = |source| KubeconfigError::Proxy {
        from: from.to_owned(),
        source,
    };
    ApiProxy::parse(text).map_err(bad)?;
    let with_scheme = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    let parsed = with_scheme.parse();
    parsed.map_err(|_| bad(proxy::ProxyError::NotAUrl))
}

fn on_loopback(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    host == "localhost" || address.is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}
