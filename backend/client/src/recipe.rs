//! The parts of a client: the checked configuration, and the layers between a request and the wire.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request, Response};
use kube::Config;
use kube::client::middleware::ExtraHeadersLayer;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::config::ExecConfig;
use kubevpn_target::BoxError;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;

use crate::connector::{ApiConnector, Reach};
use crate::credential::Credential;
use crate::error::{ClientError, clip};
use crate::options::Options;
use crate::proxy::{ApiProxy, default_port, with_port, without_login};
use crate::tls;
use crate::transport::{HttpTransport, Received};

/// The layers of a request, from the base URL to the wire.
pub(crate) type RequestStack = BoxCloneSyncService<Request<Body>, Response<Received>, BoxError>;

/// Builds a [`RequestStack`] once credentials are known.
pub(crate) struct Recipe {
    /// The configuration as given.
    given: Config,
    pub(crate) config: Config,
    /// The credential of the user's entry.
    pub(crate) credential: Credential,
    /// The TLS configuration with that credential's certificate.
    pub(crate) tls: ClientConfig,
    headers: ExtraHeadersLayer,
    pub(crate) server: Arc<str>,
    server_name: Option<ServerName<'static>>,
    proxy: Option<ApiProxy>,
    retry: RetryPolicy,
    pub(crate) options: Options,
}

impl Recipe {
    pub(crate) fn new(mut config: Config, options: &Options) -> Result<Self, ClientError> {
        let given = config.clone();
        let url = &config.cluster_url;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
            let url = without_login(&url.to_string());
            return Err(ClientError::Server(clip(&url)));
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
            Some(url) => Some(ApiProxy::parse(&url.to_string()).map_err(ClientError::Proxy)?),
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
        let credential = Credential::of_user(&config.auth_info)?;
        Ok(Self {
            given,
            tls: tls::showing(
                &tls::client_config(&config, proxy.is_some())?,
                credential.identity.as_ref(),
            ),
            credential,
            config,
            headers,
            server,
            server_name,
            proxy,
            retry,
            options,
        })
    }

    /// The plugin to run. As with kubectl, it is not used if the user's entry has a credential.
    pub(crate) fn plugin(&self) -> Option<&ExecConfig> {
        let exec = self.config.auth_info.exec.as_ref();
        exec.filter(|_| self.credential.is_none())
    }

    /// Whether credentials can be obtained anew.
    pub(crate) fn can_renew(&self) -> bool {
        let user = &self.config.auth_info;
        let files = [&user.token_file, &user.client_certificate, &user.client_key];
        self.plugin().is_some() || files.into_iter().any(Option::is_some)
    }

    /// The credential of the user's entry, with its files read again.
    pub(crate) fn read_again(&self) -> Result<Credential, ClientError> {
        Credential::of_user(&self.given.auth_info)
    }

    /// The connector to the server, or to the proxy before it.
    pub(crate) fn reach(&self, tls: &ClientConfig) -> Reach {
        let Options {
            connect_timeout,
            dialer,
            ..
        } = &self.options;
        Reach::new(self.proxy.as_ref(), tls, dialer.as_ref(), *connect_timeout)
    }

    /// The transport that presents this credential's certificate.
    pub(crate) fn transport(&self, credential: &Credential) -> HttpTransport {
        let tls = &tls::showing(&self.tls, credential.identity.as_ref());
        let reach = self.reach(tls);
        HttpTransport::new(
            ApiConnector::negotiating(reach.clone(), tls, self.server_name.as_ref()),
            ApiConnector::http1(reach, tls, self.server_name.as_ref()),
            self.config.cluster_url.clone(),
            self.server.clone(),
            self.retry.clone(),
            &self.options,
        )
    }

    /// Builds the layers.
    pub(crate) fn stack(&self, credential: &Credential, transport: HttpTransport) -> RequestStack {
        let authorization = credential.authorization.clone();
        let stack = ServiceBuilder::new()
            // First the request is completed …
            .layer(self.config.base_uri_layer())
            .layer(self.headers.clone())
            // … then signed.
            .map_request(move |mut request: Request<Body>| {
                if let Some(value) = &authorization {
                    request.headers_mut().insert(AUTHORIZATION, value.clone());
                }
                request
            })
            .service(transport);
        BoxCloneSyncService::new(stack)
    }
}

/// `https://host:port/path` of the API server, for messages.
pub(crate) fn server_name(config: &Config) -> String {
    let url = &config.cluster_url;
    let shown = with_port(url, default_port(url)).unwrap_or_else(|| url.clone());
    without_login(&shown.to_string())
        .trim_end_matches('/')
        .to_owned()
}
