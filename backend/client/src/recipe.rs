//! What a client is made of: the configuration, checked, and the layers between a request and the wire.

use std::sync::Arc;
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response};
use kube::Config;
use kube::client::middleware::{AuthLayer, ExtraHeadersLayer};
use kube::client::retry::RetryPolicy;
use kube::client::{AuthError, Body, ConfigExt};
use kubevpn_target::BoxError;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret, SecretString};
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;

use crate::connector::{Connector, Reach};
use crate::error::ClientError;
use crate::options::Options;
use crate::proxy::{Proxy, default_port, with_port};
use crate::transport::{Received, Transport};

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
