//! A certificate authority per test.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

/// A certificate and its key.
pub(crate) struct Identity {
    der: CertificateDer<'static>,
    key: KeyPair,
    pub(crate) pem: String,
}

impl Identity {
    /// Signed by its own key, as `openssl req -x509` does it; `ca` is its CA:TRUE.
    pub(crate) fn self_signed(names: &[&str], until: i32, ca: bool) -> Self {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Self {
            der: cert.der().clone(),
            pem: cert.pem(),
            key,
        }
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.der.clone()]
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::named("kubernetes")
    }

    pub(crate) fn named(name: &str) -> Self {
        Self::of(name, KeyPair::generate().unwrap(), |_| {})
    }

    /// A certificate for `key`, with `change` applied to its parameters.
    pub(crate) fn of(
        name: &str,
        key: KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        let cert = params.self_signed(&key).unwrap();
        Self {
            der: cert.der().clone(),
            pem: cert.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A TLS client that trusts what this authority issues.
    pub(crate) fn trusted(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// A certificate for these names and addresses, ending in this year.
    pub(crate) fn issue(&self, names: &[&str], until: i32) -> Identity {
        self.issue_to(KeyPair::generate().unwrap(), names, until)
    }

    /// The same for this key.
    pub(crate) fn issue_to(&self, key: KeyPair, names: &[&str], until: i32) -> Identity {
        self.issue_until(key, names, |params| {
            params.not_after = rcgen::date_time_ymd(until, 1, 1)
        })
    }

    /// The same with this lifetime; returns its end too.
    pub(crate) fn issue_for(&self, names: &[&str], life: Duration) -> (Identity, Timestamp) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let end = Duration::from_secs((now.unwrap() + life).as_secs());
        let key = KeyPair::generate().unwrap();
        let identity = self.issue_until(key, names, |params| {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end;
        });
        let end = Timestamp::try_from(SystemTime::UNIX_EPOCH + end);
        (identity, end.unwrap())
    }

    fn issue_until(
        &self,
        key: KeyPair,
        names: &[&str],
        end: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        let dn = &mut params.distinguished_name;
        dn.push(DnType::CommonName, "jane");
        end(&mut params);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            der: cert.der().clone(),
            pem: cert.pem(),
            key,
        }
    }

    /// A TLS server of this identity; `clients` makes it ask for certificates of ours.
    pub(crate) fn server(&self, identity: &Identity, alpn: &[&str], clients: bool) -> ServerConfig {
        let provider: Arc<CryptoProvider> = aws_lc_rs::default_provider().into();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.der.clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder
            .with_single_cert(identity.chain(), identity.private_key())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        config
    }
}
