//! From a [`Config`] to a [`Client`].

use std::sync::Arc;
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response};
use kube::client::middleware::{AuthLayer, ExtraHeadersLayer};
use kube::client::retry::RetryPolicy;
use kube::client::{AuthError, Body, ConfigExt};
use kube::{Client, Config};
use kubevpn_target::BoxError;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret, SecretString};
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;

use crate::connector::{Connector, Reach};
use crate::error::ClientError;
use crate::login::{Login, Renewal};
use crate::proxy::{Proxy, default_port, with_port};
use crate::transport::{Received, Transport};

/// How to behave towards the API server.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `User-Agent` of every request.
    pub user_agent: String,
    /// How long one connection may take: name lookup, TCP, proxy and TLS together. 10 s.
    pub connect_timeout: Duration,
    /// How long a call may take until the head of its response is there; a watch's events and an
    /// upgraded stream have no limit, upgrades are timed by who asks for them. `--request-timeout`
    /// ([`Config::read_timeout`]) goes before it. 30 s.
    pub answer_timeout: Duration,
    /// A shared connection that was silent for so long is probed with an HTTP/2 PING. 5 s.
    pub ping_interval: Duration,
    /// It is given up when the answer takes longer than this. 5 s.
    pub ping_timeout: Duration,
    /// How often a call (never an upgrade) is tried again after a 429, 503 or 504. 3.
    pub retries: u32,
}

impl Options {
    /// The defaults, under this name.
    pub fn new(user_agent: impl Into<String>) -> Self {
        Self {
            user_agent: user_agent.into(),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(5),
            retries: 3,
        }
    }
}

/// Makes the client; must be called within a tokio runtime, as the client's queue is a task.
///
/// Nothing is sent. A credential plugin runs when the first request needs it; everything else that can
/// be wrong with the configuration is an error here. When the API server answers 401, the plugin is run again, or the
/// files with the credentials are read again, and the request is sent once more. Of `config`, the timeouts for connecting and writing
/// are replaced by those of `options`: kube's default of 295 s for writing would end upgraded streams
/// that send nothing for so long, and its connector knows no limit for TLS.
///
/// Where rustls has no process-wide cryptography yet, *ring* becomes it: kube's TLS needs one.
pub fn build(config: Config, options: &Options) -> Result<Client, ClientError> {
    build_renewable(config, options).map(|(client, _)| client)
}

/// As [`build`], for a client whose configuration may change while it lives.
pub fn build_renewable(
    config: Config,
    options: &Options,
) -> Result<(Client, Renewal), ClientError> {
    let namespace = config.default_namespace.clone();
    let login = Login::new(Recipe::new(config, options)?)?;
    let client = Client::new(login.clone(), namespace);
    let options = options.clone();
    Ok((client, Renewal { login, options }))
}

/// A request's way from the base URL to the wire.
pub(crate) type Stack = BoxCloneSyncService<Request<Body>, Response<Received>, BoxError>;

/// What a [`Stack`] is made of, once credentials are known.
pub(crate) struct Recipe {
    /// As handed in.
    given: Config,
    pub(crate) config: Config,
    /// Without what a plugin may add.
    pub(crate) tls: ClientConfig,
    headers: ExtraHeadersLayer,
    pub(crate) server: Arc<str>,
    server_name: Option<ServerName<'static>>,
    proxy: Option<Proxy>,
    retry: RetryPolicy,
    options: Options,
}

impl Recipe {
    pub(crate) fn new(mut config: Config, options: &Options) -> Result<Self, ClientError> {
        let given = config.clone();
        let url = &config.cluster_url;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
            return Err(ClientError::Server(url.to_string()));
        }
        let server = server_name(&config).into();
        let mut options = options.clone();
        options.answer_timeout = config.read_timeout.unwrap_or(options.answer_timeout);
        let agent = HeaderValue::from_str(&options.user_agent)
            .map_err(|e| ClientError::Header(e.into()))?;
        config.headers.push((USER_AGENT, agent));
        let headers = config.extra_headers_layer();
        let headers = headers.map_err(|e| ClientError::Header(e.into()))?;
        let proxy = match &config.proxy_url {
            Some(url) => Some(Proxy::parse(&url.to_string()).map_err(ClientError::Proxy)?),
            None => None,
        };
        let server_name = match config.tls_server_name.clone() {
            Some(name) => {
                let known = ServerName::try_from(name.clone());
                Some(known.map_err(|_| ClientError::ServerName(name))?)
            }
            None => None,
        };
        let retries = if config.default_retry {
            options.retries
        } else {
            0
        };
        let retry = RetryPolicy::new(
            Duration::from_millis(100),
            Duration::from_secs(2),
            retries,
            true,
        )
        .expect("these delays make a backoff");
        check_token(&mut config)?;
        let mut without_plugin = config.clone();
        without_plugin.auth_info.exec = None;
        without_plugin.auth_info.auth_provider = None;
        Ok(Self {
            given,
            tls: tls(&without_plugin)?,
            config,
            headers,
            server,
            server_name,
            proxy,
            retry,
            options,
        })
    }

    pub(crate) fn has_plugin(&self) -> bool {
        let user = &self.config.auth_info;
        user.exec.is_some() || user.auth_provider.is_some()
    }

    /// Whether credentials can be different the next time they are asked for.
    pub(crate) fn can_renew(&self) -> bool {
        let user = &self.config.auth_info;
        let files = [&user.token_file, &user.client_certificate, &user.client_key];
        self.has_plugin() || files.into_iter().any(Option::is_some)
    }

    /// The same with the files read anew.
    pub(crate) fn again(&self) -> Result<Self, ClientError> {
        Self::new(self.given.clone(), &self.options)
    }

    /// Reads the credentials; runs the plugin if the user has one, and blocks meanwhile.
    pub(crate) fn auth_layer(&self) -> Result<Option<AuthLayer>, ClientError> {
        let user = &self.config.auth_info;
        match self.config.auth_layer() {
            Ok(layer) => Ok(layer),
            Err(kube::Error::Auth(e)) => Err(ClientError::of_auth(e, user.exec.as_ref())),
            Err(other) => Err(ClientError::Certificates(other)),
        }
    }

    /// The TLS configuration with the certificate a plugin gives: runs it, and blocks meanwhile.
    pub(crate) fn plugin_tls(&self) -> Result<ClientConfig, ClientError> {
        tls(&self.config)
    }

    /// The way to the server, or to the proxy before it.
    pub(crate) fn reach(&self, tls: &ClientConfig) -> Reach {
        Reach::new(self.proxy.as_ref(), tls, self.options.connect_timeout)
    }

    /// Puts it all together.
    pub(crate) fn stack(&self, auth: Option<AuthLayer>, tls: &ClientConfig) -> Stack {
        let exec = self.config.auth_info.exec.clone();
        let reach = self.reach(tls);
        let transport = Transport::new(
            Connector::negotiating(reach.clone(), tls, self.server_name.as_ref()),
            Connector::http1(reach, tls, self.server_name.as_ref()),
            self.server.clone(),
            self.retry.clone(),
            &self.options,
        );
        let stack = ServiceBuilder::new()
            // First the request is made whole …
            .layer(self.config.base_uri_layer())
            .layer(self.headers.clone())
            // … then signed. A token that has run out is renewed here, and may fail to be.
            .map_err(move |e| ClientError::of_signing(e, exec.as_ref()))
            .option_layer(auth)
            .service(transport);
        BoxCloneSyncService::new(stack)
    }
}

/// A token is trimmed, as client-go does it: kube would panic on the line break at the end of one.
fn check_token(config: &mut Config) -> Result<(), ClientError> {
    let user = &mut config.auth_info;
    let mut token = user.token.as_ref().map(|t| t.expose_secret().to_owned());
    if let (None, Some(path)) = (&token, &user.token_file) {
        let read = std::fs::read_to_string(path);
        let read =
            read.map_err(|e| ClientError::Credentials(AuthError::ReadTokenFile(e, path.into())))?;
        // A file somebody wrote by hand. One that is rotated has no line break, and stays a file.
        token = (read.trim() != read).then_some(read);
    }
    if let Some(token) = token {
        let token = token.trim();
        HeaderValue::from_str(token).map_err(|_| ClientError::Token)?;
        user.token = (!token.is_empty()).then(|| SecretString::from(token));
    }
    Ok(())
}

/// kube's TLS configuration for these certificates.
fn tls(config: &Config) -> Result<ClientConfig, ClientError> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails if somebody was faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    config
        .rustls_client_config()
        .map_err(ClientError::Certificates)
}

/// `https://host:port/path` of the API server, as messages name it.
pub(crate) fn server_name(config: &Config) -> String {
    let url = &config.cluster_url;
    let shown = with_port(url, default_port(url)).unwrap_or_else(|| url.clone());
    shown.to_string().trim_end_matches('/').to_owned()
}
