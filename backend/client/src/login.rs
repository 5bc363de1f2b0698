//! Credentials over days: asked for when the first request needs them, and anew when they run out or the server stops
//! taking them.
//!
//! A credential may say when it runs out, and is used until then. What runs out without a word, or is revoked, shows by
//! a 401 or by the TLS alert that refuses a certificate; the request is then sent once more. What is open on connections
//! with an old certificate stays open; new requests open others.

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
use crate::recipe::{Recipe, Stack};
use crate::shown::Shown;
use crate::transport::{Received, Transport};

/// The longest wait before credentials that were never taken are made again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Between two runs of a plugin, whatever it gave: a failure, or what had run out before it was there.
const BETWEEN_LOGINS: Duration = Duration::from_secs(3);

/// A client's credentials, and the way to the server that they open.
///
/// However many requests come at once, a plugin runs once, and all of them have its outcome. A request that is given
/// up does not stop it: somebody may be typing a password.
#[derive(Clone)]
pub(crate) struct Login(Arc<Mutex<State>>);

type Outcome = Result<Arc<Credentials>, Arc<ClientError>>;
type LoggingIn = Shared<BoxFuture<'static, Outcome>>;

struct State {
    recipe: Arc<Recipe>,
    phase: Phase,
    /// The last that there were.
    last: Option<Arc<Credentials>>,
    /// Logins begun so far.
    logins: u64,
    /// Logins in a row whose credentials the server never took.
    in_vain: u32,
    /// An upgrade was expected while there were no credentials.
    upgrade_expected: bool,
    told: Option<Told>,
}

/// Change of the credentials: a login, its failure, or their refusal by the API server.
#[derive(Clone, Copy, Debug)]
pub enum LoginNews<'a> {
    /// The credential plugin has given some, which end then as far as they say.
    LoggedIn {
        /// When they end.
        expires: Option<SystemTime>,
    },
    /// The plugin, or reading the files again, failed.
    Failed {
        /// Why.
        why: &'a str,
    },
    /// The API server does not take those that there are any more; others are made.
    Refused,
}

pub(crate) type Told = Arc<dyn Fn(LoginNews<'_>) + Send + Sync>;

enum Phase {
    LoggedOut,
    LoggingIn {
        login: LoggingIn,
        since: Instant,
    },
    LoggedIn(Arc<Credentials>),
    Failed {
        error: Arc<ClientError>,
        at: Instant,
    },
}

struct Credentials {
    credential: Credential,
    transport: Transport,
    stack: Stack,
    /// Which login made them.
    login: u64,
    made: Instant,
    /// The server has taken them.
    taken: AtomicBool,
}

/// What there is to do before a request can be sent.
enum Step {
    Done(Outcome),
    Wait { login: LoggingIn, since: Instant },
}

impl Login {
    /// Runs no plugin yet; anything else that is wrong with the credentials is said now.
    pub(crate) fn new(recipe: Recipe) -> Self {
        Self(Arc::new(Mutex::new(State {
            phase: first(&recipe, 0),
            recipe: Arc::new(recipe),
            last: None,
            logins: 0,
            in_vain: 0,
            upgrade_expected: false,
            told: None,
        })))
    }

    pub(crate) fn tell_to(&self, told: Told) {
        self.state().told = Some(told);
    }

    fn tell(&self, news: LoginNews<'_>) {
        let told = self.state().told.clone();
        if let Some(told) = told {
            told(news);
        }
    }

    /// Other credentials, or another way to the server, for every request from now on.
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
            Step::Done(outcome) => outcome,
            Step::Wait { login, .. } => login.await,
        };
        outcome.map(drop)
    }

    /// An upgrade is likely soon: its connection is made now, or once there are credentials.
    pub(crate) fn expect_upgrade(&self) {
        let mut state = self.state();
        match &state.phase {
            Phase::LoggedIn(credentials) => credentials.transport.expect_upgrade(),
            _ => state.upgrade_expected = true,
        }
    }

    pub(crate) fn recipe(&self) -> Arc<Recipe> {
        self.state().recipe.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `at_once`: a failure a moment ago is no reason to wait.
    fn step(&self, at_once: bool) -> Step {
        let mut state = self.state();
        match &state.phase {
            Phase::LoggedIn(it) if !it.has_expired() || !state.recipe.can_renew() => {
                return Step::Done(Ok(it.clone()));
            }
            Phase::LoggingIn { login, since } => {
                let (login, since) = (login.clone(), *since);
                return Step::Wait { login, since };
            }
            Phase::Failed { error, at } if !at_once && at.elapsed() < BETWEEN_LOGINS => {
                return Step::Done(Err(error.clone()));
            }
            Phase::LoggedIn(it) => state.last = Some(it.clone()),
            Phase::LoggedOut | Phase::Failed { .. } => {}
        }
        state.logins += 1;
        let login = self.log_in(state.recipe.clone(), state.logins, state.last.clone());
        let since = Instant::now();
        state.phase = Phase::LoggingIn {
            login: login.clone(),
            since,
        };
        Step::Wait { login, since }
    }

    /// For a request, which waits for a plugin only so long.
    async fn credentials(&self) -> Outcome {
        let (login, since) = match self.step(false) {
            Step::Done(outcome) => return outcome,
            Step::Wait { login, since } => (login, since),
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

    fn log_in(&self, recipe: Arc<Recipe>, login: u64, last: Option<Arc<Credentials>>) -> LoggingIn {
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
                        Phase::LoggedIn(credentials.clone())
                    }
                    Err(error) => Phase::Failed {
                        error: error.clone(),
                        at: Instant::now(),
                    },
                };
            }
            drop(state);
            match &outcome {
                // Credentials in files are read again every minute: no change worth telling.
                Ok(_) if recipe.plugin().is_none() => {}
                Ok(made) => {
                    let expires = Shown::new(&recipe, &made.credential).expires;
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

    /// The server did not take these: whether there are, or may be, others to try with.
    fn not_taken(&self, credentials: &Arc<Credentials>) -> bool {
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
        state.last = Some(credentials.clone());
        state.phase = Phase::LoggedOut;
        drop(state);
        self.tell(LoginNews::Refused);
        true
    }

    /// Credentials in use.
    pub(crate) fn shown(&self) -> Option<Shown> {
        let state = self.state();
        match &state.phase {
            Phase::LoggedIn(credentials) => {
                Some(Shown::new(&state.recipe, &credentials.credential))
            }
            _ => None,
        }
    }

    /// Why requests fail until somebody logs in.
    pub(crate) fn trouble(&self) -> Option<Arc<ClientError>> {
        match &self.state().phase {
            Phase::Failed { error, .. } => Some(error.clone()),
            _ => None,
        }
    }
}

impl Credentials {
    /// With new connections, unless the last ones were made with the same certificate.
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

/// Where a client begins: with what the kubeconfig holds, unless a plugin must be asked.
fn first(recipe: &Recipe, login: u64) -> Phase {
    if recipe.plugin().is_some() {
        return Phase::LoggedOut;
    }
    let credential = recipe.credential.clone();
    Phase::LoggedIn(Arc::new(Credentials::new(recipe, credential, login, None)))
}

/// Runs the plugin; without one, reads the files again. A token file that is gone leaves the last token in use.
async fn log_in(
    recipe: Arc<Recipe>,
    login: u64,
    last: Option<Arc<Credentials>>,
) -> Result<Credentials, ClientError> {
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
    Ok(Credentials::new(
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

impl Credentials {
    async fn send(&self, request: Request<Body>) -> Result<Response<Received>, BoxError> {
        let answered = self.stack.clone().oneshot(request).await;
        if answered.is_ok() && !self.are_refused(&answered) {
            self.taken.store(true, Ordering::Relaxed);
        }
        answered
    }

    /// Whether the server did not take these.
    fn are_refused(&self, answered: &Result<Response<Received>, BoxError>) -> bool {
        let response = match answered {
            Ok(response) => response,
            Err(error) => return certificate_refused(&**error),
        };
        // nginx has the certificate's fault in HTML (its own codes 495 and 496), where an API server has a `Status`.
        let kind = response.headers().get(CONTENT_TYPE);
        let html = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        match response.status() {
            StatusCode::UNAUTHORIZED => true,
            StatusCode::BAD_REQUEST => html && self.credential.identity.is_some(),
            _ => false,
        }
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
