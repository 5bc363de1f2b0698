//! Credentials for the API server: an `Authorization` header, a certificate, or both.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::HeaderValue;
use kube::config::{AuthInfo, AuthProviderConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use secrecy::ExposeSecret;

use crate::error::ClientError;
use crate::{pem, tls};

/// Age at which a token file is read again: kubelet and other programs replace it before it expires.
const FILE_AGE: Duration = Duration::from_secs(60);

/// No `Debug`: it is a secret.
#[derive(Clone, Default)]
pub(crate) struct Credential {
    /// The value of `Authorization`.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) identity: Option<Arc<CertifiedKey>>,
    /// When it has to be replaced.
    pub(crate) expires: Option<SystemTime>,
}

impl Credential {
    /// The credential in the user's entry or in the files that it names. Reads files, runs no program.
    ///
    /// As with kubectl, a token file takes precedence over a token, which is used while the file does not exist.
    pub(crate) fn of_user(user: &AuthInfo) -> Result<Self, ClientError> {
        let mut token = user
            .token
            .as_ref()
            .map(|token| token.expose_secret().to_owned());
        let mut expires = None;
        if let Some(path) = &user.token_file {
            let read = std::fs::read_to_string(path).and_then(|text| match text.trim() {
                "" => Err(std::io::Error::other("it is empty")),
                _ => Ok(text),
            });
            match read {
                Ok(text) => {
                    token = Some(text.trim().to_owned());
                    expires = Some(SystemTime::now() + FILE_AGE);
                }
                Err(_) if token.is_some() => {}
                Err(source) => {
                    let path = path.into();
                    return Err(ClientError::TokenFile { path, source });
                }
            }
        }
        if let (None, None, Some(provider)) = (&token, &user.username, &user.auth_provider) {
            token = Some(of_provider(provider)?);
        }
        let authorization = match token.as_deref() {
            Some("") => None,
            Some(token) => Some(bearer(token).ok_or(ClientError::Token)?),
            // As with kubectl, a password without a user name is ignored.
            None => user.username.is_some().then(|| basic(user)),
        };
        Ok(Self {
            authorization,
            identity: identity_of_user(user)?,
            expires,
        })
    }

    pub(crate) fn is_none(&self) -> bool {
        self.authorization.is_none() && self.identity.is_none()
    }

    /// The certificate chain; connections made with another one must not be used with this credential.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        self.identity
            .as_ref()
            .map_or(&[], |identity| &identity.cert)
    }
}

/// `None` if the token is not valid in a header.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}").into_bytes()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn basic(user: &AuthInfo) -> HeaderValue {
    let name = user.username.as_deref().unwrap_or_default();
    let password = user.password.as_ref().map_or("", |p| p.expose_secret());
    let encoded = BASE64_STANDARD.encode(format!("{name}:{password}"));
    let mut value = HeaderValue::try_from(format!("Basic {encoded}")).expect("base64 is ASCII");
    value.set_sensitive(true);
    value
}

fn identity_of_user(user: &AuthInfo) -> Result<Option<Arc<CertifiedKey>>, ClientError> {
    let read = |data: Option<&str>, path: &Option<String>, what: &'static str| {
        match (data, path) {
            (Some(data), _) => {
                pem::decode(data).ok_or_else(|| format!("{what}-data is not base64").into())
            }
            (None, Some(path)) => std::fs::read(Path::new(path)).map_err(|source| source.into()),
            (None, None) => Ok(Vec::new()),
        }
        .map_err(ClientError::Certificates)
    };
    let key = user.client_key_data.as_ref().map(|key| key.expose_secret());
    let certificate = user.client_certificate_data.as_deref();
    if certificate.is_none() && user.client_certificate.is_none() {
        return Ok(None);
    }
    let certificate = read(certificate, &user.client_certificate, "client-certificate")?;
    let key = read(key, &user.client_key, "client-key")?;
    identity(&certificate, &key)
        .map(Some)
        .map_err(|why| ClientError::Certificates(why.into()))
}

/// A certificate with its chain and its key, both PEM. The error text quotes neither.
pub(crate) fn identity(certificate: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, &'static str> {
    let chain = pem::certificates(certificate);
    if chain.is_empty() {
        return Err("the client certificate holds no PEM certificate");
    }
    let key: PrivateKeyDer<'_> =
        pem::private_key(key).ok_or("the client key holds no unencrypted PEM private key")?;
    let key = tls::provider()
        .key_provider
        .load_private_key(key)
        .map_err(|_| "the client key is of a kind that is not supported")?;
    let identity = CertifiedKey::new(chain, key);
    match identity.keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err("the client key is not the certificate's")
        }
        // If the expiry is unreadable, e.g. of an X.509 version 1 certificate, the server will reject it in time.
        _ => Ok(identity.into()),
    }
}

/// The token of an `auth-provider`, of which OpenID Connect is the only one left in kubectl.
///
/// The token is used until it expires and not refreshed: many issuers return a new refresh token with each use and reject
/// the old one, so refreshing requires writing the kubeconfig, which kubectl does and we do not.
fn of_provider(provider: &AuthProviderConfig) -> Result<String, ClientError> {
    let instead = match provider.name.as_str() {
        "oidc" => {
            let token = provider.config.get("id-token").filter(|token| lasts(token));
            return token.cloned().ok_or(ClientError::IdToken);
        }
        "gcp" => {
            "gke-gcloud-auth-plugin, which `gcloud container clusters get-credentials` sets up"
        }
        "azure" => "kubelogin, which `kubelogin convert-kubeconfig` sets up",
        "openstack" => "client-keystone-auth",
        _ => "a credential plugin (exec)",
    };
    Err(ClientError::Provider {
        name: crate::error::clip(&provider.name),
        instead,
    })
}

/// Whether a JSON Web Token is not known to have expired.
fn lasts(token: &str) -> bool {
    token_expires(token).is_none_or(|at| at > SystemTime::now())
}

/// The `exp` of a JSON Web Token (RFC 7519 section 4.1.4); `None` for any other token.
pub(crate) fn token_expires(token: &str) -> Option<SystemTime> {
    let payload = token.split('.').nth(1)?;
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('='));
    let claims: serde_json::Value = serde_json::from_slice(&decoded.ok()?).ok()?;
    let seconds = claims["exp"].as_f64()?.max(0.0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}
