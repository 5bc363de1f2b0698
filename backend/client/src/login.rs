//! Credentials that a plugin makes: asked for once, when the first request needs them.
//!
//! kube renews a token that said when it runs out. Here is where renewal of the others belongs: a token
//! without an end that is revoked, a certificate that expires.

use std::io;
use std::process::Output;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, Ready, Shared, ready};
use http::{Request, Response};
use kube::client::{AuthError, Body};
use kube::config::ExecConfig;
use kubevpn_target::BoxError;
use tower::{Service, ServiceExt};

use crate::client::{Recipe, Stack};
use crate::error::{ClientError, clip};
use crate::transport::Received;

/// Why a credential plugin gave no credentials.
#[derive(Debug)]
pub struct PluginError {
    /// The command, as the kubeconfig names it.
    pub command: String,
    /// What went wrong.
    pub failure: PluginFailure,
    /// The kubeconfig's advice on how to install it.
    pub hint: Option<String>,
}

/// What went wrong with a credential plugin.
#[derive(Debug)]
pub enum PluginFailure {
    /// There is no such program.
    Missing,
    /// It could not be started.
    NotStarted(io::Error),
    /// It ended with a failure; the last line it wrote to standard error, which kube leaves to the
    /// terminal when the plugin may ask questions there.
    Failed {
        /// How it ended.
        status: String,
        /// What it said, shortened.
        said: String,
    },
    /// What it printed is no `ExecCredential` of kind token or certificate.
    NoCredentials,
}

impl PluginError {
    pub(crate) fn new(exec: &ExecConfig, failure: PluginFailure) -> Self {
        Self {
            command: exec.command.clone().unwrap_or_default(),
            failure,
            hint: exec.install_hint.as_deref().map(clip),
        }
    }

    /// Gives the error back when it is not about a plugin.
    pub(crate) fn of(error: AuthError, exec: &ExecConfig) -> Result<Self, AuthError> {
        let failure = match error {
            AuthError::AuthExecStart(e) if e.kind() == io::ErrorKind::NotFound => {
                PluginFailure::Missing
            }
            AuthError::AuthExecStart(e) => PluginFailure::NotStarted(e),
            // Its text holds the plugin's arguments, environment and output: none of it goes on.
            AuthError::AuthExecRun { out, .. } => PluginFailure::of_output(&out),
            AuthError::ExecPluginFailed
            | AuthError::AuthExecParse(_)
            | AuthError::MalformedTokenExpirationDate(_)
            | AuthError::UnrefreshableTokenResponse
            | AuthError::MissingCommand => PluginFailure::NoCredentials,
            other => return Err(other),
        };
        Ok(Self::new(exec, failure))
    }
}

impl PluginFailure {
    fn of_output(out: &Output) -> Self {
        let said = String::from_utf8_lossy(&out.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        Self::Failed {
            status: out.status.to_string(),
            said: clip(last.unwrap_or_default()),
        }
    }
}

impl std::fmt::Display for PluginError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let command = &self.command;
        match &self.failure {
            PluginFailure::Missing => {
                write!(
                    f,
                    "the credential plugin {command:?} of the kubeconfig is not installed or not on PATH"
                )?;
                return match &self.hint {
                    Some(hint) => write!(f, ": {hint}"),
                    None => f.write_str(": install it, or pass another --user"),
                };
            }
            PluginFailure::NotStarted(_) => {
                write!(f, "the credential plugin {command:?} cannot be started")?;
            }
            PluginFailure::Failed { status, said } => {
                write!(f, "the credential plugin {command:?} failed ({status}")?;
                if !said.is_empty() {
                    write!(f, "; it said: {said}")?;
                }
                f.write_str(")")?;
            }
            PluginFailure::NoCredentials => write!(
                f,
                "the credential plugin {command:?} gave neither a token nor a certificate"
            )?,
        }
        f.write_str(": run it by hand, or log in again")
    }
}

impl std::error::Error for PluginError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.failure {
            PluginFailure::NotStarted(e) => Some(e),
            _ => None,
        }
    }
}

/// The client of a user whose plugin has not run yet.
///
/// However many requests come at once, the plugin runs once, and all of them have its outcome; after a
/// failure the next request runs it again. A request that is given up does not stop it: somebody may be
/// typing a password.
pub(crate) struct LoginOnce {
    recipe: Arc<Recipe>,
    state: Arc<Mutex<State>>,
}

type Outcome = Result<Stack, Arc<ClientError>>;
type Login = Shared<BoxFuture<'static, Outcome>>;

enum State {
    LoggedOut,
    LoggingIn(Login),
    LoggedIn(Stack),
}

impl LoginOnce {
    pub(crate) fn new(recipe: Recipe) -> Self {
        Self {
            recipe: Arc::new(recipe),
            state: Arc::new(Mutex::new(State::LoggedOut)),
        }
    }

    fn stack(&self) -> Either<Ready<Outcome>, Login> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::LoggedIn(stack) => Either::Left(ready(Ok(stack.clone()))),
            State::LoggingIn(login) => Either::Right(login.clone()),
            State::LoggedOut => {
                let login = self.log_in();
                *state = State::LoggingIn(login.clone());
                Either::Right(login)
            }
        }
    }

    fn log_in(&self) -> Login {
        let (recipe, state) = (self.recipe.clone(), self.state.clone());
        let task = tokio::spawn(async move {
            let login = tokio::task::spawn_blocking(move || log_in(&recipe)).await;
            let outcome = login.unwrap_or_else(|e| Err(ClientError::Login(e)));
            *state.lock().unwrap_or_else(PoisonError::into_inner) = match &outcome {
                Ok(stack) => State::LoggedIn(stack.clone()),
                Err(_) => State::LoggedOut,
            };
            outcome.map_err(Arc::new)
        });
        async {
            task.await
                .unwrap_or_else(|e| Err(Arc::new(ClientError::Login(e))))
        }
        .boxed()
        .shared()
    }
}

/// Runs the plugin: once for a token, twice for a certificate, which kube asks for apart.
fn log_in(recipe: &Recipe) -> Result<Stack, ClientError> {
    let auth = recipe.auth_layer()?;
    let (None, Some(exec)) = (&auth, &recipe.config.auth_info.exec) else {
        return Ok(recipe.stack(auth, &recipe.tls));
    };
    let tls = recipe.plugin_tls()?;
    if !tls.client_auth_cert_resolver.has_certs() {
        return Err(PluginError::new(exec, PluginFailure::NoCredentials).into());
    }
    Ok(recipe.stack(None, &tls))
}

impl Service<Request<Body>> for LoginOnce {
    type Response = Response<Received>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Received>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let stack = self.stack();
        Box::pin(async move { stack.await?.oneshot(request).await })
    }
}
