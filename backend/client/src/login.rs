//! Credentials over days: asked for when the first request needs them, and anew when the server stops taking them.
//!
//! kube renews a token that said when it runs out. Here the others are renewed: a plugin's token without an end that
//! was revoked, a certificate that has expired, files that were rotated. A 401 is what tells, as it is what the API
//! server answers to all of these; the request is then sent once more. What is open on the old connections stays open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, Ready, Shared, ready};
use http::{Request, Response, StatusCode};
use kube::Config;
use kube::client::Body;
use kubevpn_target::{BoxError, ConnectError};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use crate::classify::classify_login;
use crate::error::{ClientError, PluginError, PluginFailure};
use crate::options::Options;
use crate::recipe::{Recipe, Stack};
use crate::transport::Received;

/// The longest wait before credentials that were never taken are made again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A client's credentials, and the way to the server that they open.
///
/// However many requests come at once, a plugin runs once, and all of them have its outcome; after a
/// failure the next request runs it again. A request that is given up does not stop it: somebody may be
/// typing a password.
#[derive(Clone)]
pub(crate) struct Login(Arc<Mutex<State>>);

type Outcome = Result<Arc<Credentials>, Arc<ClientError>>;
type LoggingIn = Shared<BoxFuture<'static, Outcome>>;

struct State {
    recipe: Arc<Recipe>,
    phase: Phase,
    /// Logins begun so far.
    logins: u64,
    /// Logins in a row whose credentials the server never took.
    in_vain: u32,
}

enum Phase {
    LoggedOut,
    LoggingIn(LoggingIn),
    LoggedIn(Arc<Credentials>),
}

struct Credentials {
    stack: Stack,
    /// Which login made them.
    login: u64,
    made: Instant,
    /// The server has taken them.
    taken: AtomicBool,
}

impl Login {
    /// Runs no plugin yet; anything else that is wrong with the credentials is said now.
    pub(crate) fn new(recipe: Recipe) -> Result<Self, ClientError> {
        let phase = first(&recipe)?;
        Ok(Self(Arc::new(Mutex::new(State {
            recipe: Arc::new(recipe),
            phase,
            logins: 0,
            in_vain: 0,
        }))))
    }

    /// Other credentials, or another way to the server, for every request from now on.
    pub(crate) fn replace(&self, recipe: Recipe) -> Result<(), ClientError> {
        let phase = first(&recipe)?;
        let mut state = self.state();
        state.recipe = Arc::new(recipe);
        state.logins += 1;
        state.in_vain = 0;
        state.phase = match phase {
            Phase::LoggedIn(credentials) => Phase::LoggedIn(Arc::new(Credentials {
                login: state.logins,
                stack: credentials.stack.clone(),
                made: credentials.made,
                taken: AtomicBool::new(false),
            })),
            other => other,
        };
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn credentials(&self) -> Either<Ready<Outcome>, LoggingIn> {
        let mut state = self.state();
        match &state.phase {
            Phase::LoggedIn(credentials) => Either::Left(ready(Ok(credentials.clone()))),
            Phase::LoggingIn(login) => Either::Right(login.clone()),
            Phase::LoggedOut => {
                state.logins += 1;
                let login = self.log_in(state.recipe.clone(), state.logins);
                state.phase = Phase::LoggingIn(login.clone());
                Either::Right(login)
            }
        }
    }

    fn log_in(&self, recipe: Arc<Recipe>, login: u64) -> LoggingIn {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let made = tokio::task::spawn_blocking(move || log_in(&recipe)).await;
            let outcome = made.unwrap_or_else(|e| Err(ClientError::Login(e)));
            let outcome = outcome.map(|stack| Arc::new(Credentials::new(stack, login)));
            let mut state = this.state();
            // Unless they were replaced meanwhile.
            if state.logins == login {
                state.phase = match &outcome {
                    Ok(credentials) => Phase::LoggedIn(credentials.clone()),
                    Err(_) => Phase::LoggedOut,
                };
            }
            drop(state);
            outcome.map_err(Arc::new)
        });
        async {
            task.await
                .unwrap_or_else(|e| Err(Arc::new(ClientError::Login(e))))
        }
        .boxed()
        .shared()
    }

    /// The server did not take these: whether there are, or may be, others to try with.
    fn not_taken(&self, credentials: &Credentials) -> bool {
        let mut state = self.state();
        if state.logins != credentials.login {
            return true;
        }
        if !state.recipe.can_renew() {
            return false;
        }
        if credentials.taken.load(Ordering::Relaxed) {
            state.in_vain = 0;
        } else if state.in_vain > 0 {
            // New ones were no better: a plugin is not run for every request that fails.
            let pause = Duration::from_secs(1 << (state.in_vain - 1).min(6)).min(LONGEST_PAUSE);
            if credentials.made.elapsed() < pause {
                return false;
            }
        }
        tracing::info!("the API server does not take our credentials any more: making new ones");
        state.in_vain += 1;
        state.phase = Phase::LoggedOut;
        true
    }
}

impl Credentials {
    fn new(stack: Stack, login: u64) -> Self {
        Self {
            stack,
            login,
            made: Instant::now(),
            taken: AtomicBool::new(false),
        }
    }
}

/// Where a client begins: with what the kubeconfig holds, unless a plugin must be asked.
fn first(recipe: &Recipe) -> Result<Phase, ClientError> {
    if recipe.has_plugin() {
        return Ok(Phase::LoggedOut);
    }
    let stack = recipe.stack(recipe.auth_layer()?, &recipe.tls);
    Ok(Phase::LoggedIn(Arc::new(Credentials::new(stack, 0))))
}

/// Runs the plugin: once for a token, twice for a certificate, which kube asks for apart. Without one, reads the
/// files again.
fn log_in(recipe: &Recipe) -> Result<Stack, ClientError> {
    let Some(exec) = &recipe.config.auth_info.exec else {
        let recipe = recipe.again()?;
        return Ok(recipe.stack(recipe.auth_layer()?, &recipe.tls));
    };
    let auth = recipe.auth_layer()?;
    if auth.is_some() {
        return Ok(recipe.stack(auth, &recipe.tls));
    }
    let tls = recipe.plugin_tls()?;
    if !tls.client_auth_cert_resolver.has_certs() {
        return Err(PluginError::new(exec, PluginFailure::NoCredentials).into());
    }
    Ok(recipe.stack(None, &tls))
}

impl Service<Request<Body>> for Login {
    type Response = Response<Received>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Received>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let again = copy(&request);
            let credentials = this.credentials().await?;
            let response = credentials.stack.clone().oneshot(request).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                credentials.taken.store(true, Ordering::Relaxed);
                return Ok(response);
            }
            let Some(again) = again.filter(|_| this.not_taken(&credentials)) else {
                return Ok(response);
            };
            drop(response);
            let credentials = this.credentials().await?;
            let response = credentials.stack.clone().oneshot(again).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                credentials.taken.store(true, Ordering::Relaxed);
            }
            Ok(response)
        })
    }
}

/// The same once more; `None` for a body that can only be read once, which none of kube's is.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let body = request.body().try_clone()?;
    let mut copy = Request::new(body);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}

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
        let login = self.login.credentials().await;
        login.map(drop).map_err(classify_login)
    }

    /// From the next request on the client uses this configuration: other credentials, perhaps another address. What
    /// is open stays open. After an error nothing has changed.
    pub fn replace(&self, config: Config) -> Result<(), ClientError> {
        self.login.replace(Recipe::new(config, &self.options)?)
    }
}
