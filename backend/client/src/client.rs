//! From a [`Config`] to a [`Client`].

use kube::{Client, Config};

use crate::error::ClientError;
use crate::login::Login;
use crate::options::Options;
use crate::recipe::Recipe;
use crate::renewal::Renewal;
use crate::tls;

/// Makes the client; must be called within a tokio runtime, as the client's queue is a task.
///
/// Nothing is sent. A credential plugin runs when the first request needs it; any other fault of the configuration is an
/// error here. If the API server answers 401, or refuses our certificate in TLS, the plugin runs again, or the files with
/// the credentials are read again, and the request is sent once more. The time-outs for connecting and writing in `config`
/// are replaced by those of `options`: kube's default of 295 s for writing would end upgraded streams that send nothing for
/// so long, and its connector has no limit for TLS.
///
/// If rustls has no process-wide crypto provider yet, aws-lc-rs is installed: kube's TLS needs one.
pub fn build(config: Config, options: &Options) -> Result<Client, ClientError> {
    build_renewable(config, options).map(|(client, _)| client)
}

/// As [`build`], for a client whose configuration may change while it lives.
pub fn build_renewable(
    config: Config,
    options: &Options,
) -> Result<(Client, Renewal), ClientError> {
    tls::seed_ahead();
    let namespace = config.default_namespace.clone();
    let recipe = Recipe::new(config, options)?;
    if recipe.config.accept_invalid_certs {
        tracing::warn!(
            server = %recipe.server,
            "the API server's certificate is not verified (insecure-skip-tls-verify): traffic can be intercepted"
        );
    }
    let login = Login::new(recipe);
    let client = Client::new(login.clone(), namespace);
    let options = options.clone();
    Ok((client, Renewal { login, options }))
}
