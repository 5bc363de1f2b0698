//! Login: credentials are obtained when the first request needs them, and again when they expire or the server rejects
//! them.
//!
//! A credential with a known expiry is used until then. If the expiry is unknown, or the credential is revoked, a 401 or the
//! TLS alert for a refused certificate shows it, and the request is sent once more. Streams on connections with an old
//! certificate stay open; new requests use new connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use kube::client::Body;
use kubevpn_target::BoxError;
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tracing::instrument::WithSubscriber as _;

use crate::classify::certificate_refused;
use crate::credential::Credential;
use crate::error::ClientError;
use crate::plugin;
use crate::recipe::{Recipe, RequestStack};
use crate::shown::ShownCredentials;
use crate::transport::{HttpTransport, Received};

/// The longest wait before credentials that were never accepted are made again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Time between two runs of a plugin, also after a failure or an expired credential.
const BETWEEN_LOGINS: Duration = Duration::from_secs(3);

/// A client's credentials, with the transport that uses them.
///
/// A plugin runs once for all simultaneous requests, which share its outcome. A request that is given up does not stop it: a
/// person may be typing a password.
#[derive(Clone)]
pub(crate) struct Login(Arc<Mutex<LoginState>>);

type LoginOutcome = Result<Arc<AuthenticatedClient>, Arc<ClientError>>;
type LoggingIn = Shared<BoxFuture<'static, LoginOutcome>>;

struct LoginState {
    recipe: Arc<Recipe>,
    phase: LoginPhase,
    /// The last credentials.
    last: Option<Arc<AuthenticatedClient>>,
    /// Number of logins started.
    logins: u64,
    /// Number of logins in a row whose credentials the server never accepted.
    in_vain: u32,
    /// Whether an upgrade was announced while there were no credentials.
    upgrade_expected: bool,
    told: Option<LoginObserver>,
}

/// Change of the credentials: a login, its failure, or their refusal by the API server.
#[derive(Clone, Copy, Debug)]
pub enum LoginNews<'a> {
    /// The credential plugin returned credentials.
    LoggedIn {
        /// Their expiry, if known.
        expires: Option<SystemTime>,
    },
    /// The plugin, or re-reading the files, failed.
    Failed {
        /// The error.
        why: &'a str,
    },
    /// The API server rejects the current credentials; new ones are obtained.
    Refused,
}

pub(crate) type LoginObserver = Arc<dyn Fn(LoginNews<'_>) + Send + Sync>;

enum LoginPhase {
    LoggedOut,
    LoggingIn {
        login: LoggingIn,
        since: Instant,
    },
    LoggedIn(Arc<AuthenticatedClient>),
    Failed {
        error: Arc<ClientError>,
        at: Instant,
    },
}

struct AuthenticatedClient {
    credential: Credential,
    transport: HttpTransport,
    stack: RequestStack,
    /// The number of the login that made them.
    login: u64,
    made: Instant,
    /// Whether the server has accepted them.
    taken: AtomicBool,
}

/// The next step before a request can be sent.
enum LoginStep {
    Done(LoginOutcome),
    Wait { login: LoggingIn, since: Instant },
}

impl Login {
    /// Runs no plugin yet; any other fault of the credentials is an error now.
    pub(crate) fn new(recipe: Recipe) -> Self {
        Self(Arc::new(Mutex::new(LoginState {
            phase: first(&recipe, 0),
            recipe: Arc::new(recipe),
            last: None,
            logins: 0,
            in_vain: 0,
            upgrade_expected: false,
            told: None,
        })))
    }

    pub(crate) fn tell_to(&self, told: LoginObserver) {
        self.state().told = Some(told);
    }

    fn tell(&self, news: LoginNews<'_>) {
        let told = self.state().told.clone();
        if let Some(told) = told {
            told(news);
        }
    }

    /// Uses other credentials, or another address, for every request from now on.
    pub(crate) fn replace(&self, recipe: Recipe) {
        let mut state = self.state();
        state.logins += 1;
        state.in_vain = 0;
        state.last = None;
        state.phase = first(&recipe, state.logins);
        state.recipe = Arc::new(recipe);
    }

    pub(crate) async fn log_in_now(&self) -> Result<(), Arc<ClientError>> {
        let outcome = match self.step(true) {
            LoginStep::Done(outcome) => outcome,
            LoginStep::Wait { login, .. } => login.await,
        };
        outcome.map(drop)
    }

    /// Announces an upgrade: its connection is made now, or once there are credentials.
    pub(crate) fn expect_upgrade(&self) {
        let mut state = self.state();
        match &state.phase {
            LoginPhase::LoggedIn(credentials) => credentials.transport.expect_upgrade(),
            _ => state.upgrade_expected = true,
        }
    }

    pub(crate) fn recipe(&self) -> Arc<Recipe> {
        self.state().recipe.clone()
    }

    fn state(&self) -> MutexGuard<'_, LoginState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With `at_once` a recent failure is not waited out.
    fn step(&self, at_once: bool) -> LoginStep {
        let mut state = self.state();
        match &state.phase {
            LoginPhase::LoggedIn(it) if !it.has_expired() || !state.recipe.can_renew() => {
                return LoginStep::Done(Ok(it.clone()));
            }
            LoginPhase::LoggingIn { login, since } => {
                let (login, since) = (login.clone(), *since);
                return LoginStep::Wait { login, since };
            }
            LoginPhase::Failed { error, at } if !at_once && at.elapsed() < BETWEEN_LOGINS => {
                return LoginStep::Done(Err(error.clone()));
            }
            LoginPhase::LoggedIn(it) => state.last = Some(it.clone()),
            LoginPhase::LoggedOut | LoginPhase::Failed { .. } => {}
        }
        state.logins += 1;
        let login = self.log_in(state.recipe.clone(), state.logins, state.last.clone());
        let since = Instant::now();
        state.phase = LoginPhase::LoggingIn {
            login: login.clone(),
            since,
        };
        LoginStep::Wait { login, since }
    }

    /// Credentials for a request, which waits for a plugin for a limited time.
    async fn credentials(&self) -> LoginOutcome {
        let (login, since) = match self.step(false) {
            LoginStep::Done(outcome) => return outcome,
            LoginStep::Wait { login, since } => (login, since),
        };
        let recipe = self.recipe();
        let Some(exec) = recipe.plugin() else {
            return login.await;
        };
        match tokio::time::timeout(recipe.options.plugin_timeout, login).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Arc::new(ClientError::PluginRuns {
                command: exec.command.clone().unwrap_or_default(),
                after: Duration::from_secs(since.elapsed().as_secs()),
            })),
        }
    }

    fn log_in(
        &self,
        recipe: Arc<Recipe>,
        login: u64,
        last: Option<Arc<AuthenticatedClient>>,
    ) -> LoggingIn {
        let this = self.clone();
        let logging_in = async move {
            let outcome = log_in(recipe.clone(), login, last).await;
            let outcome = outcome.map(Arc::new).map_err(Arc::new);
            let mut state = this.state();
            // Unless they were replaced meanwhile.
            if state.logins == login {
                let expected = std::mem::take(&mut state.upgrade_expected);
                state.phase = match &outcome {
                    Ok(credentials) => {
                        if expected {
                            credentials.transport.expect_upgrade();
                        }
                        LoginPhase::LoggedIn(credentials.clone())
                    }
                    Err(error) => LoginPhase::Failed {
                        error: error.clone(),
                        at: Instant::now(),
                    },
                };
            }
            drop(state);
            match &outcome {
                // Files are read again every minute, which is not reported.
                Ok(_) if recipe.plugin().is_none() => {}
                Ok(made) => {
                    let expires = ShownCredentials::new(&recipe, &made.credential).expires;
                    this.tell(LoginNews::LoggedIn { expires });
                }
                Err(error) => this.tell(LoginNews::Failed {
                    why: &error.to_string(),
                }),
            }
            outcome
        };
        let task = tokio::spawn(logging_in.with_current_subscriber());
        async {
            task.await
                .unwrap_or_else(|e| Err(Arc::new(ClientError::Login(e))))
        }
        .boxed()
        .shared()
    }

    /// Notes that the server rejected these credentials. Returns whether to try with others.
    fn not_taken(&self, credentials: &Arc<AuthenticatedClient>) -> bool {
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
            // New credentials were rejected too: do not run the plugin for every failed request.
            let pause = Duration::from_secs(1 << (state.in_vain - 1).min(6)).min(LONGEST_PAUSE);
            if credentials.made.elapsed() < pause {
                return false;
            }
        }
        tracing::info!("the API server rejects the credentials: renewing them");
        state.in_vain += 1;
        state.last = Some(credentials.clone());
        state.phase = LoginPhase::LoggedOut;
        drop(state);
        self.tell(LoginNews::Refused);
        true
    }

    /// Credentials in use.
    pub(crate) fn shown(&self) -> Option<ShownCredentials> {
        let state = self.state();
        match &state.phase {
            LoginPhase::LoggedIn(credentials) => Some(ShownCredentials::new(
                &state.recipe,
                &credentials.credential,
            )),
            _ => None,
        }
    }

    /// The error with which requests fail until a person logs in.
    pub(crate) fn trouble(&self) -> Option<Arc<ClientError>> {
        match &self.state().phase {
            LoginPhase::Failed { error, .. } => Some(error.clone()),
            _ => None,
        }
    }
}

impl AuthenticatedClient {
    /// Uses new connections, unless the last ones were made with the same certificate.
    fn new(recipe: &Recipe, credential: Credential, login: u64, last: Option<&Self>) -> Self {
        let last = last.filter(|last| last.credential.chain() == credential.chain());
        let transport = match last {
            Some(last) => last.transport.clone(),
            None => recipe.transport(&credential),
        };
        Self {
            stack: recipe.stack(&credential, transport.clone()),
            transport,
            credential,
            login,
            made: Instant::now(),
            taken: AtomicBool::new(false),
        }
    }

    fn has_expired(&self) -> bool {
        let expired = |at: SystemTime| at <= SystemTime::now();
        self.credential.expires.is_some_and(expired) && self.made.elapsed() >= BETWEEN_LOGINS
    }
}

/// The initial state: the kubeconfig's own credentials, unless a plugin is needed.
fn first(recipe: &Recipe, login: u64) -> LoginPhase {
    if recipe.plugin().is_some() {
        return LoginPhase::LoggedOut;
    }
    let credential = recipe.credential.clone();
    LoginPhase::LoggedIn(Arc::new(AuthenticatedClient::new(
        recipe, credential, login, None,
    )))
}

/// Runs the plugin; without one, reads the files again. If a token file is gone, the last token stays in use.
async fn log_in(
    recipe: Arc<Recipe>,
    login: u64,
    last: Option<Arc<AuthenticatedClient>>,
) -> Result<AuthenticatedClient, ClientError> {
    let credential = match recipe.plugin() {
        Some(exec) => plugin::run(exec).await?,
        None => {
            let again = recipe.clone();
            let read = tokio::task::spawn_blocking(move || again.read_again()).await;
            match (read.map_err(ClientError::Login)?, &last) {
                (Ok(credential), _) => credential,
                (Err(error), Some(last)) => {
                    tracing::warn!(%error, "the last credentials stay in use");
                    let expires = Some(SystemTime::now() + LONGEST_PAUSE);
                    Credential {
                        expires,
                        ..last.credential.clone()
                    }
                }
                (Err(error), None) => return Err(error),
            }
        }
    };
    Ok(AuthenticatedClient::new(
        &recipe,
        credential,
        login,
        last.as_deref(),
    ))
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
            let answered = credentials.send(request).await;
            if !credentials.are_refused(&answered) {
                return answered;
            }
            let Some(again) = again.filter(|_| this.not_taken(&credentials)) else {
                return answered;
            };
            drop(answered);
            let credentials = this.credentials().await?;
            credentials.send(again).await
        })
    }
}

impl AuthenticatedClient {
    async fn send(&self, request: Request<Body>) -> Result<Response<Received>, BoxError> {
        let answered = self.stack.clone().oneshot(request).await;
        if answered.is_ok() && !self.are_refused(&answered) {
            self.taken.store(true, Ordering::Relaxed);
        }
        answered
    }

    /// Whether the server rejected the credentials.
    fn are_refused(&self, answered: &Result<Response<Received>, BoxError>) -> bool {
        let response = match answered {
            Ok(response) => response,
            Err(error) => return certificate_refused(&**error),
        };
        // nginx reports a bad certificate in HTML (its own codes 495 and 496), an API server in a `Status`.
        let kind = response.headers().get(CONTENT_TYPE);
        let html = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        match response.status() {
            StatusCode::UNAUTHORIZED => true,
            StatusCode::BAD_REQUEST => html && self.credential.identity.is_some(),
            _ => false,
        }
    }
}

/// A copy of the request; `None` for a body that can be read only once, which none of kube's is.
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
