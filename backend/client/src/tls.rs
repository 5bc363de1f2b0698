//! TLS with the API server: verification of its certificate, and our own certificate.

use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, SystemTime};

use kube::Config;
use kube::client::ConfigExt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use crate::error::ClientError;
use crate::p521::Secp521r1;

/// Seeds AWS-LC's random numbers on a thread of its own, once. Unless built otherwise (docs/decisions/0008-aws-lc.md), it
/// gathers the processor's jitter for 50 ms of processor time, which would delay the TLS handshake of the first connection;
/// on a thread it is done while a distant API server answers the TCP handshake.
pub(crate) fn seed_ahead() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        let seed = || {
            rustls::crypto::aws_lc_rs::default_provider()
                .secure_random
                .fill(&mut [0])
        };
        // Without the thread the handshake does the seeding, and reports an error.
        let _ = thread::Builder::new().name("seed".into()).spawn(seed);
    });
}

/// The process's crypto provider; installs ours if it has none, because kube's TLS needs one.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    if CryptoProvider::get_default().is_none() {
        let mut ours = rustls::crypto::aws_lc_rs::default_provider();
        ours.kx_groups.push(&Secp521r1);
        // An error means that another thread has installed one.
        let _ = ours.install_default();
    }
    CryptoProvider::get_default()
        .expect("it was installed")
        .clone()
}

/// The configuration for this cluster without a client certificate. `proxied`: there is a proxy, which may use TLS itself.
pub(crate) fn client_config(config: &Config, proxied: bool) -> Result<ClientConfig, ClientError> {
    let plain = !proxied && config.cluster_url.scheme_str() == Some("http");
    let verifier: Arc<dyn ServerCertVerifier> =
        match (config.accept_invalid_certs, &config.root_cert) {
            (true, _) => Arc::new(Unchecked(provider())),
            (false, Some(trusted)) if config.root_cert_file.is_none() => {
                Arc::new(Trusted::new(trusted))
            }
            // No TLS is used, as in `kubevpn demo`, so no trust store is needed.
            (false, None) if plain => Arc::new(Trusted::new(&[])),
            // The system's trust store, or a service account's file that is read again when it is replaced.
            _ => {
                provider();
                let mut config = config.clone();
                config.auth_info = kube::config::AuthInfo::default();
                return config
                    .rustls_client_config()
                    .map_err(|e| ClientError::Certificates(e.into()));
            }
        };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Certificates(e.into()))?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// The same with a client certificate. No session of another identity is resumed.
pub(crate) fn showing(tls: &ClientConfig, identity: Option<&Arc<CertifiedKey>>) -> ClientConfig {
    let mut tls = tls.clone();
    if let Some(identity) = identity {
        tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(identity.clone()));
        tls.resumption = Resumption::default();
    }
    tls
}

/// Trusts certificates signed by these, and these certificates themselves.
///
/// The latter is needed if the CA file is the server's own certificate, as with Rancher, RKE2 or `openssl req -x509`: webpki
/// rejects it as a leaf (RFC 5280 section 4.2.1.9) or finds no issuer; OpenSSL and Go accept it. Its name and dates are checked
/// as usual.
#[derive(Debug)]
struct Trusted {
    certificates: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trusted {
    fn new(certificates: &[Vec<u8>]) -> Self {
        let certificates = certificates.iter().cloned().map(CertificateDer::from);
        Self {
            certificates: certificates.collect(),
            algorithms: provider().signature_verification_algorithms,
        }
    }

    /// CAs that may sign now. Like Go, and unlike webpki, this checks CA:TRUE and the dates of the CA itself.
    fn authorities(&self, now: UnixTime) -> RootCertStore {
        let signs = |certificate: &&CertificateDer<'_>| {
            // Certificates of version 1, which lack the field, are not readable here.
            let Ok(leaf) = ParsedCertificate::try_from(*certificate) else {
                return true;
            };
            let alone = RootCertStore::empty();
            self.signed(&leaf, &alone, &[], now)
                .is_err_and(|error| is_an_authority(&error))
        };
        let mut roots = RootCertStore::empty();
        // As in Go, an unreadable certificate does not affect the others.
        let certificates = self.certificates.iter().filter(signs);
        roots.add_parsable_certificates(certificates.cloned());
        roots
    }

    fn signed(
        &self,
        leaf: &ParsedCertificate<'_>,
        roots: &RootCertStore,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(leaf, roots, intermediates, now, algorithms)
    }
}

/// Whether webpki rejects the certificate as a server's. The dates were checked before.
fn is_an_authority(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => matches!(
            other.0.downcast_ref(),
            Some(webpki::Error::CaUsedAsEndEntity)
        ),
        _ => false,
    }
}

/// Whether webpki accepted the dates, which it checks before the issuer.
fn dates_are_good(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature
        )
    ) || is_an_authority(error)
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let signed = self.signed(&parsed, &self.authorities(now), intermediates, now);
        match signed {
            Err(error) if dates_are_good(&error) && self.certificates.contains(leaf) => {}
            signed => signed?,
        }
        verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// `insecure-skip-tls-verify`: accepts any certificate whose key signed the handshake, which Go checks too.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = public_key(leaf).ok_or(CertificateError::BadEncoding)?;
        let key = webpki::RawPublicKeyEntity::try_from(&key)
            .map_err(|_| CertificateError::BadEncoding)?;
        let known = self.0.signature_verification_algorithms.mapping.iter();
        let of_scheme = known.filter(|(scheme, _)| *scheme == signature.scheme);
        let mut algorithms = of_scheme.flat_map(|(_, algorithms)| algorithms.iter());
        match algorithms.any(|algorithm| {
            key.verify_signature(*algorithm, message, signature.signature())
                .is_ok()
        }) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = public_key(leaf).ok_or(CertificateError::BadEncoding)?;
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The end of a certificate's validity. webpki checks the dates first, and its error for a later time contains the end.
pub(crate) fn not_after(certificate: &CertificateDer<'static>) -> Option<SystemTime> {
    /// A time after the last possible date of a certificate, in the year 9999.
    const NEVER: Duration = Duration::from_secs(1 << 40);
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let (nobody, never) = (RootCertStore::empty(), UnixTime::since_unix_epoch(NEVER));
    let algorithms = provider().signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&parsed, &nobody, &[], never, algorithms) {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(not_after.as_secs())),
        _ => None,
    }
}

/// The `subjectPublicKeyInfo` of a certificate (RFC 5280 section 4.1), also of one that webpki cannot read, e.g. one of
/// version 1.
fn public_key<'a>(certificate: &'a [u8]) -> Option<SubjectPublicKeyInfoDer<'a>> {
    const VERSION: u8 = 0xA0;
    let (_, certificate) = element(&mut &*certificate)?;
    let (_, mut fields) = element(&mut &*certificate)?;
    if fields.first() == Some(&VERSION) {
        element(&mut fields)?;
    }
    // Serial number, signature algorithm, issuer, validity, subject.
    for _ in 0..5 {
        element(&mut fields)?;
    }
    let (whole, _) = element(&mut fields)?;
    Some(whole.into())
}

/// The next DER element: the whole, and its contents. `rest` then begins after it. TLS has 3 bytes for a certificate's
/// length.
fn element<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let all = *rest;
    let (head, length) = match *all.get(1)? {
        short @ ..=0x7F => (2, usize::from(short)),
        long @ 0x81..=0x83 => {
            let bytes = all.get(2..2 + usize::from(long & 0x7F))?;
            let length = bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
            (2 + bytes.len(), length)
        }
        _ => return None,
    };
    let whole = all.get(..head + length)?;
    *rest = &all[whole.len()..];
    Some((whole, &whole[head..]))
}

#[cfg(test)]
mod tests {
    use rustls::NamedGroup;

    use super::*;

    #[test]
    fn first_message_has_the_share_that_api_servers_insist_on() {
        let first = provider().kx_groups[0].name();
        assert_eq!(first, NamedGroup::X25519MLKEM768);
    }
}
