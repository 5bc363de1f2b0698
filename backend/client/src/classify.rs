//! Classification of failures on the way to the API server.

use std::error::Error;
use std::io;
use std::sync::Arc;

use http::StatusCode;
use kube::client::AuthError;
use kube::core::Status;
use kubevpn_target::{ConnectError, Refusal};
use rustls::{AlertDescription, CertificateError};

use crate::action::Action;
use crate::connector::ReachError;
use crate::error::{ClientError, clip};

/// Classifies the failure of a request to the API server.
///
/// | what happened | class |
/// |---|---|
/// | 401; no credentials from the plugin; our certificate refused in the TLS handshake | `Unauthenticated` |
/// | 403 | `Forbidden` |
/// | 404 | `NameNotFound` (the caller says what is missing) |
/// | 408, 504; no answer in time on an open connection | `TimedOut` |
/// | 429 | `Overloaded` |
/// | 5xx; an answer that is not an API server's; no connection, in time or at all; TLS; a proxy | `ClusterAway` |
/// | anything else: our request was wrong | `Internal` |
///
/// A connection that takes too long is not `TimedOut`: a server that swallows packets is as unavailable as one
/// that refuses them.
pub fn classify_api(error: kube::Error, doing: &Action<'_>) -> ConnectError {
    match error {
        kube::Error::Api(status) => classify_status(&status, doing),
        // The error's text contains the whole answer, which may be a page of HTML.
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => ConnectError::new(
            Refusal::ClusterAway,
            format!(
                "cannot {doing}: what answered is no API server, or one too new: check the server in the kubeconfig"
            ),
        ),
        // The error's text repeats its cause.
        kube::Error::Service(cause) => {
            let (refusal, why) = explain(&*cause);
            ConnectError::new(refusal, format!("cannot {doing}: {why}")).with_source(cause)
        }
        other => {
            let (refusal, why) = explain(&other);
            ConnectError::new(refusal, format!("cannot {doing}: {why}")).with_source(other)
        }
    }
}

/// Whether a call failed because no connection could be made: neither the server nor a proxy has seen it.
pub fn is_unconnected(error: &kube::Error) -> bool {
    let of_connector = |e: &(dyn Error + 'static)| {
        let e = e.downcast_ref::<hyper_util::client::legacy::Error>();
        e.is_some_and(|e| e.is_connect())
    };
    causes(error).any(of_connector)
}

/// Classifies a refusal with the API server's text, as [`classify_api`] does.
///
/// For callers that read responses themselves: a refused upgrade is an ordinary response with a `Status` in its body.
pub fn classify_status(status: &Status, doing: &Action<'_>) -> ConnectError {
    let said = clip(&status.message);
    // kube's substitute for a body that is not a Status: the answer is that of a proxy before the API server.
    let foreign = status.reason == "Failed to parse error data";
    let (refusal, sentence) = match status.code {
        401 => (
            Refusal::Unauthenticated,
            format!(
                "cannot {doing}: the API server does not accept our credentials (401): log in again, or check the user of the kubeconfig's context"
            ),
        ),
        400 if foreign && said.contains("SSL certificate") => (
            Refusal::Unauthenticated,
            format!(
                "cannot {doing}: a gateway before the API server wants a client certificate that it accepts (400: {said}): check client-certificate in the kubeconfig"
            ),
        ),
        403 if foreign => (
            Refusal::Forbidden,
            format!(
                "cannot {doing}: something before the API server forbids it (403: {said}): check proxy and VPN"
            ),
        ),
        403 => {
            let who = user_of(&said).unwrap_or("the kubeconfig's user");
            (
                Refusal::Forbidden,
                format!("{who} cannot {doing}: ask for {}", doing.grant()),
            )
        }
        404 => (
            Refusal::NameNotFound,
            format!("cannot {doing}: not found ({said})"),
        ),
        408 | 504 => (
            Refusal::TimedOut,
            format!("cannot {doing}: the API server ran out of time ({said}): try again"),
        ),
        429 => (
            Refusal::Overloaded,
            format!("cannot {doing}: the API server has too much to do (429): try again later"),
        ),
        code if foreign || code >= 500 => (
            Refusal::ClusterAway,
            format!(
                "cannot {doing}: {} answered {}: check the server in the kubeconfig, and try again",
                if foreign {
                    "something that is no API server"
                } else {
                    "the API server"
                },
                StatusText(code, &said)
            ),
        ),
        code => (
            Refusal::Internal,
            format!(
                "cannot {doing}: the API server answered {}",
                StatusText(code, &said)
            ),
        ),
    };
    ConnectError::new(refusal, sentence).with_source(status.clone())
}

/// Classifies why there is no connection, before any request.
pub(crate) fn classify_connection(error: ClientError) -> ConnectError {
    let (refusal, why) = explain(&error);
    ConnectError::new(refusal, why).with_source(error)
}

/// Classifies why there are no credentials.
pub(crate) fn classify_login(error: Arc<ClientError>) -> ConnectError {
    let (refusal, why) = explain(&error);
    ConnectError::new(refusal, why).with_source(error)
}

struct StatusText<'a>(u16, &'a str);

impl std::fmt::Display for StatusText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match StatusCode::from_u16(self.0) {
            Ok(code) => write!(f, "{code}")?,
            Err(_) => write!(f, "{}", self.0)?,
        }
        match self.1 {
            "" => Ok(()),
            said => write!(f, " ({said})"),
        }
    }
}

/// The user's name in the API server's `… is forbidden: User "jane" cannot …`; for display only.
fn user_of(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("User \"")?;
    let (user, _) = rest.split_once('"')?;
    (!user.is_empty()).then_some(user)
}

/// Whether the server refused our certificate, or its absence: the counterpart of a 401 for a token.
pub(crate) fn certificate_refused(error: &(dyn Error + 'static)) -> bool {
    let alert = |e: &(dyn Error + 'static)| match e.downcast_ref() {
        Some(rustls::Error::AlertReceived(alert)) => refuses_certificate(*alert),
        _ => false,
    };
    causes(error).any(alert) || certificate_alert(error).is_some()
}

const CERTIFICATE_ALERTS: [AlertDescription; 8] = [
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::CertificateRequired,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
];

fn refuses_certificate(alert: AlertDescription) -> bool {
    CERTIFICATE_ALERTS.contains(&alert)
}

/// The alert's name in the text of the innermost error. TLS 1.3 sends these alerts after the handshake, and hyper's HTTP/2
/// keeps only their text.
fn certificate_alert(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let text = root(error).to_string();
    let (_, alert) = text.split_once("received fatal alert: ")?;
    CERTIFICATE_ALERTS
        .iter()
        .filter_map(AlertDescription::as_str)
        .find(|name| alert.starts_with(name))
}

/// The class of an error without a status, and the reason in words with what to try.
fn explain(error: &(dyn Error + 'static)) -> (Refusal, String) {
    let mut at = Whereabouts::default();
    if let Some(known) = causes(error).find_map(|e| at.visit(e)) {
        return known;
    }
    if let Some(alert) = certificate_alert(error) {
        return at.certificate(alert);
    }
    match at.server {
        Some(_) => (
            Refusal::ClusterAway,
            at.away(&format!(
                "the connection failed ({})",
                clip(&root(error).to_string())
            )),
        ),
        None => (Refusal::Internal, clip(&root(error).to_string())),
    }
}

/// Findings from the chain of causes.
#[derive(Default)]
struct Whereabouts {
    server: Option<Arc<str>>,
    proxy: Option<String>,
}

impl Whereabouts {
    /// Examines one error of the chain.
    fn visit(&mut self, e: &(dyn Error + 'static)) -> Option<(Refusal, String)> {
        let shared = e.downcast_ref::<Arc<ClientError>>().map(|e| &**e);
        if let Some(e) = shared.or_else(|| e.downcast_ref()) {
            return match e {
                ClientError::Transport { server, .. } => {
                    self.server = Some(server.clone());
                    None
                }
                ClientError::NoAnswer { .. } => Some((
                    Refusal::TimedOut,
                    format!("{e}: try again, or raise --request-timeout"),
                )),
                // The cause is more detailed than the sentence, except in this case.
                ClientError::Certificates(cause) => Some((
                    e.refusal(),
                    format!("{e} ({})", clip(&root(&**cause).to_string())),
                )),
                other => Some((other.refusal(), other.to_string())),
            };
        }
        if e.is::<AuthError>() {
            // From a client of kube's own; its text may contain a plugin's arguments and output.
            let sentence = "there are no credentials: log in again".to_owned();
            return Some((Refusal::Unauthenticated, sentence));
        }
        if let Some(e) = e.downcast_ref::<ReachError>() {
            return self.reach(e);
        }
        if let Some(e) = e.downcast_ref::<rustls::Error>() {
            return Some(self.tls(e));
        }
        if let Some(e) = e.downcast_ref::<hyper::Error>()
            && e.is_timeout()
        {
            // The HTTP/2 PING was not answered.
            return Some((Refusal::ClusterAway, self.away("the connection is dead")));
        }
        let e = e.downcast_ref::<io::Error>()?;
        if e.get_ref().is_some() {
            return None;
        }
        let what = match e.kind() {
            io::ErrorKind::ConnectionRefused => "the connection was refused",
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => "the connection was cut",
            io::ErrorKind::TimedOut => "nothing answered in time",
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                "there is no route to it"
            }
            _ => return None,
        };
        Some((Refusal::ClusterAway, self.away(what)))
    }

    fn reach(&mut self, e: &ReachError) -> Option<(Refusal, String)> {
        let what = match e {
            ReachError::TimedOut(after) => format!("nothing answered within {after:?}"),
            ReachError::Lookup(cause) => {
                format!("its name cannot be resolved ({})", clip(&cause.to_string()))
            }
            ReachError::ProxyAway { proxy, .. } => {
                self.proxy = Some(proxy.clone());
                return None;
            }
            ReachError::ProxyLogin { .. } => {
                format!("{e}: put them into the proxy's URL, as http://user:password@host:port")
            }
            ReachError::ProxyRefused { .. } => e.to_string(),
        };
        Some((Refusal::ClusterAway, self.away(&what)))
    }

    fn tls(&self, e: &rustls::Error) -> (Refusal, String) {
        let server = self.target();
        let what = match e {
            rustls::Error::InvalidCertificate(bad) => match bad {
                // The same name with another key means that the cluster was created anew.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                    "the certificate of {server} is signed by nobody we trust: check certificate-authority in the kubeconfig"
                ),
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    format!(
                        "the certificate of {server} has expired: renew it, or check this machine's clock"
                    )
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    format!(
                        "the certificate of {server} is not valid yet: check this machine's clock"
                    )
                }
                CertificateError::NotValidForName => format!(
                    "the certificate of {server} is for another name: check the server, or set tls-server-name in the kubeconfig"
                ),
                CertificateError::NotValidForNameContext { presented, .. } => format!(
                    "the certificate of {server} is for other names ({}): check the server, or set tls-server-name in the kubeconfig",
                    clip(&presented.join(", "))
                ),
                other => format!(
                    "the certificate of {server} is not acceptable ({}): check certificate-authority in the kubeconfig",
                    clip(&other.to_string())
                ),
            },
            rustls::Error::AlertReceived(alert) if refuses_certificate(*alert) => {
                return self.certificate(&format!("{alert:?}"));
            }
            rustls::Error::InvalidMessage(_) => format!(
                "{server} does not speak TLS: check the server in the kubeconfig, is it http?"
            ),
            other => format!(
                "TLS with {server} failed ({}): check the server in the kubeconfig, and what stands before it",
                clip(&other.to_string())
            ),
        };
        (Refusal::ClusterAway, what)
    }

    /// The server refused the certificate we showed, or that we showed none.
    fn certificate(&self, alert: &str) -> (Refusal, String) {
        let server = self.target();
        (
            Refusal::Unauthenticated,
            format!(
                "{server} does not accept our certificate ({alert}): check client-certificate in the kubeconfig, or log in again"
            ),
        )
    }

    fn target(&self) -> String {
        match (&self.proxy, &self.server) {
            (Some(proxy), Some(server)) => format!("the proxy {proxy} before {server}"),
            (Some(proxy), None) => format!("the proxy {proxy}"),
            (None, Some(server)) => format!("the API server {server}"),
            (None, None) => "the API server".to_owned(),
        }
    }

    fn away(&self, what: &str) -> String {
        format!(
            "{} cannot be reached: {what}; check network, VPN and the server in the kubeconfig",
            self.target()
        )
    }
}

/// The error and its causes. The `source` of an [`io::Error`] skips the error that it wraps.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    // A limit above any real nesting: a cycle must not hang.
    const MOST: usize = 32;
    let cause = |e: &&'e (dyn Error + 'static)| {
        let e: &'e (dyn Error + 'static) = *e;
        match e.downcast_ref().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => e.source(),
        }
    };
    std::iter::successors(Some(error), cause).take(MOST)
}

/// The innermost cause.
fn root<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    causes(error).last().unwrap_or(error)
}
