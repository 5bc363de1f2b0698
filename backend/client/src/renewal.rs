//! A client's configuration, for as long as it lives.

use std::sync::Arc;

use kube::Config;
use kubevpn_target::ConnectError;

use crate::classify::classify_login;
use crate::error::ClientError;
use crate::login::{Login, LoginNews};
use crate::options::Options;
use crate::raw::ApiServer;
use crate::recipe::Recipe;
use crate::shown::Shown;

/// Gives a running client another configuration. Clones are the same.
#[derive(Clone)]
pub struct Renewal {
    pub(crate) login: Login,
    pub(crate) options: Options,
}

impl Renewal {
    /// Logs in now instead of at the first request. A credential plugin may ask its user questions, and takes the time
    /// that takes: no limit on an answer of the API server's should count it. Without a plugin it returns at once.
    ///
    /// Cancellation: a plugin that runs goes on, and the next request has its outcome.
    pub async fn log_in(&self) -> Result<(), ConnectError> {
        self.login.log_in_now().await.map_err(classify_login)
    }

    /// Why requests fail until somebody logs in: what the credential plugin, or reading the files again, ended with
    /// the last time. `None` while there are credentials, or a login goes on.
    pub fn trouble(&self) -> Option<ConnectError> {
        self.login.trouble().map(classify_login)
    }

    /// Credentials that the client shows the API server now. `None` where a credential plugin has not been asked yet, or failed.
    pub fn shown(&self) -> Option<Shown> {
        self.login.shown()
    }

    /// Tells what becomes of the credentials from now on. It must be quick, and not wait.
    pub fn tell(&self, told: impl Fn(LoginNews<'_>) + Send + Sync + 'static) {
        self.login.tell_to(Arc::new(told));
    }

    /// Connections to the API server for others, by the configuration that the client has at that time.
    pub fn api_server(&self) -> ApiServer {
        let login = self.login.clone();
        ApiServer { login }
    }

    /// From the next request on the client uses this configuration: other credentials, perhaps another address. What
    /// is open stays open. After an error nothing has changed.
    pub fn replace(&self, config: Config) -> Result<(), ClientError> {
        self.login.replace(Recipe::new(config, &self.options)?);
        Ok(())
    }
}
