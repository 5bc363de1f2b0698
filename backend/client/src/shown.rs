//! Credentials without their secrets: kinds and expiry.

use std::time::SystemTime;

use crate::credential::{Credential, token_expires};
use crate::recipe::Recipe;
use crate::tls::not_after;

/// The client's credentials, without anything secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShownCredentials {
    /// A bearer token.
    pub token: bool,
    /// A user and a password.
    pub password: bool,
    /// A client certificate.
    pub certificate: bool,
    /// The earliest known expiry: the `exp` of a JSON Web Token, the `notAfter` of the certificate, the
    /// `expirationTimestamp` of a credential plugin.
    pub expires: Option<SystemTime>,
    /// The credential plugin that makes them, as the kubeconfig names it.
    pub plugin: Option<String>,
    /// Whether the plugin, or the files, can provide new ones.
    pub renewable: bool,
}

impl ShownCredentials {
    pub(crate) fn new(recipe: &Recipe, credential: &Credential) -> Self {
        let header = credential.authorization.as_ref();
        let header = header.and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer "));
        let plugin = recipe.plugin();
        // For a token file this would be the time of the next read.
        let of_plugin = credential.expires.filter(|_| plugin.is_some());
        let of_certificate = credential.chain().first().and_then(not_after);
        let ends = [of_plugin, token.and_then(token_expires), of_certificate];
        Self {
            token: token.is_some(),
            password: header.is_some() && token.is_none(),
            certificate: credential.identity.is_some(),
            expires: ends.into_iter().flatten().min(),
            plugin: plugin.map(|exec| exec.command.clone().unwrap_or_default()),
            renewable: recipe.can_renew(),
        }
    }

    /// Whether there are no credentials.
    pub fn is_none(&self) -> bool {
        !(self.token || self.password || self.certificate)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::Engine as _;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    use kube::Config;
    use kube::config::AuthInfo;

    use super::*;
    use crate::{Options, build_renewable};

    fn shown(user: AuthInfo) -> ShownCredentials {
        let mut config = Config::new("https://127.0.0.1:1".parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info = user;
        let (_, renewal) = build_renewable(config, &Options::new("test")).unwrap();
        renewal.shown().unwrap()
    }

    /// Midnight of this year's first day, UTC.
    fn first_of(year: u64) -> Option<SystemTime> {
        let days = (year - 1970) * 365 + (year - 1969) / 4;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(days * 86400))
    }

    #[tokio::test]
    async fn every_kind_and_its_end() {
        assert!(shown(AuthInfo::default()).is_none());
        let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":1893456000}"#);
        let token = AuthInfo {
            token: Some(format!("e30.{claims}.x").into()),
            ..AuthInfo::default()
        };
        let of_token = shown(token.clone());
        assert!(of_token.token && !of_token.certificate && !of_token.renewable);
        assert_eq!(of_token.expires, first_of(2030));
        let opaque = AuthInfo {
            token: Some("opaque".to_owned().into()),
            ..AuthInfo::default()
        };
        assert_eq!(shown(opaque).expires, None);
        let mut params = rcgen::CertificateParams::new(vec!["jane".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let both = AuthInfo {
            client_certificate_data: Some(BASE64_STANDARD.encode(certificate)),
            client_key_data: Some(BASE64_STANDARD.encode(key.serialize_pem()).into()),
            ..token
        };
        let both = shown(both);
        assert!(both.token && both.certificate);
        assert_eq!(both.expires, first_of(2027), "the earlier end");
    }
}
