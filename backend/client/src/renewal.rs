//! Replacement of a running client's configuration.

use std::sync::Arc;

use kube::Config;
use kubevpn_target::ConnectError;

use crate::classify::classify_login;
use crate::error::ClientError;
use crate::login::{Login, LoginNews};
use crate::options::Options;
use crate::raw::ApiServer;
use crate::recipe::Recipe;
use crate::shown::ShownCredentials;

/// Gives a running client another configuration. Clones control the same client.
#[derive(Clone)]
pub struct Renewal {
    pub(crate) login: Login,
    pub(crate) options: Options,
}

impl Renewal {
    /// Logs in now instead of at the first request. A credential plugin may ask questions, without a time limit: do not
    /// count it in a limit on the API server's answer. Returns at once without a plugin.
    ///
    /// Cancellation: a running plugin continues, and the next request gets its outcome.
    pub async fn log_in(&self) -> Result<(), ConnectError> {
        self.login.log_in_now().await.map_err(classify_login)
    }

    /// The error with which requests fail until a person logs in: that of the credential plugin, or of re-reading the files.
    /// `None` while there are credentials, or a login is running.
    pub fn trouble(&self) -> Option<ConnectError> {
        self.login.trouble().map(classify_login)
    }

    /// The client's current credentials, without secrets. `None` if a credential plugin has not run yet, or failed.
    pub fn shown(&self) -> Option<ShownCredentials> {
        self.login.shown()
    }

    /// Reports changes of the credentials to `told` from now on. `told` must be quick and must not block.
    pub fn tell(&self, told: impl Fn(LoginNews<'_>) + Send + Sync + 'static) {
        self.login.tell_to(Arc::new(told));
    }

    /// Opens bare connections to the API server with the client's configuration at that time.
    pub fn api_server(&self) -> ApiServer {
        let login = self.login.clone();
        ApiServer { login }
    }

    /// Uses this configuration from the next request on: other credentials, perhaps another address. Open streams stay open.
    /// Errors: those of [`build`](crate::build); nothing has changed then.
    pub fn replace(&self, config: Config) -> Result<(), ClientError> {
        self.login.replace(Recipe::new(config, &self.options)?);
        Ok(())
    }
}
