//! Certificates and keys of every kind that kubectl takes, and whose they are.

use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ECDSA_P521_SHA512};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};

use crate::support::{BOTH, Ca, Identity, Server, Setup};

/// X.509 version 1, which plain `openssl x509 -req` makes, to the year 2126.
const V1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBGzCBwQIUCFWSqKSUffAYHzHPAM79LTyziScwCgYIKoZIzj0EAwIwDzENMAsG
A1UEAwwEamFuZTAgFw0yNjExMjkxNzM1MTNaGA8yMTI2MTEwNTE3MzUxM1owDzEN
MAsGA1UEAwwEamFuZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMOYm6//XJLy
s206EakvI4zdEPiJNHDIY3I0iqUTwVv4SGVQ4kOj4pF0MSLT/BGw8SaD7uB5Iut1
SY4OroWF/64wCgYIKoZIzj0EAwIDSQAwRgIhAIWoU8rPZQ442aShLzMwARNPKSFQ
f4NhAvoyttC+4alEAiEA0Fq9InYQPZVJJSc7pSjPLJpTzxzpUzqnjFZgGQt8npc=
-----END CERTIFICATE-----
";
const V1_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgnE+FPbV/mm0L5/D7
HTJvSaC5v2xkHM0pJTF2BDZyAOehRANCAATDmJuv/1yS8rNtOhGpLyOM3RD4iTRw
yGNyNIqlE8Fb+EhlUOJDo+KRdDEi0/wRsPEmg+7geSLrdUmODq6Fhf+u
-----END PRIVATE KEY-----
";

const HERE: &[&str] = &["127.0.0.1"];

fn provider() -> Arc<CryptoProvider> {
    aws_lc_rs::default_provider().into()
}

/// A server that shows this certificate, whoever's the key is, and asks for one that may be anybody's.
fn showing(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let key = provider().key_provider.load_private_key(key).unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = BOTH.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

fn of(identity: &Identity) -> ServerConfig {
    showing(identity.chain(), identity.private_key(), &[&TLS13, &TLS12])
}

#[derive(Debug)]
struct Anybody;

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Asks the server, with this for its authority.
async fn ask(server: &Server, authority: &str) -> Result<(), kube::Error> {
    let setup = Setup::new(server.url());
    setup.file("ca.crt", authority);
    let client = setup.cluster("certificate-authority: ca.crt").client();
    client.apiserver_version().await.map(drop)
}

fn p521() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap()
}

#[tokio::test]
async fn keys_on_p521() {
    let usual = || KeyPair::generate().unwrap();
    for (authority, servers, clients) in [
        (p521(), usual(), usual()),
        (usual(), p521(), usual()),
        (usual(), usual(), p521()),
    ] {
        let ca = Ca::of("kubernetes", authority);
        let identity = ca.issue_to(servers, HERE, 4000);
        let jane = ca.issue_to(clients, &["jane"], 4000);
        // It checks the client's certificate.
        let tls = ca.server(&identity, BOTH, true);
        let server = Server::presenting(ca, tls).await;
        let setup = Setup::of(&server)
            .user("client-certificate: jane.crt")
            .user("client-key: jane.key");
        setup.file("jane.crt", &jane.pem);
        setup.file("jane.key", &jane.key_pem());
        setup.client().apiserver_version().await.unwrap();
        assert!(server.last().certificate);
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_authority() {
    for ca in [true, false] {
        for (names, until, taken) in [
            (HERE, 4000, true),
            (&["api.kubevpn.test"], 4000, false),
            (HERE, 2001, false),
        ] {
            let identity = Identity::self_signed(names, until, ca);
            let server = Server::presenting(Ca::new(), of(&identity)).await;
            let asked = ask(&server, &identity.pem).await;
            assert_eq!(asked.is_ok(), taken, "{ca} {names:?} {until}: {asked:?}");
            // Another one of the same name is not.
            let other = Identity::self_signed(names, until, ca);
            ask(&server, &other.pem).await.unwrap_err();
        }
    }
}

/// As Rancher and RKE2 write it: who signed it is not there at all.
#[tokio::test]
async fn the_servers_own_certificate_is_the_authority() {
    let ca = Ca::new();
    for (names, until, taken) in [
        (HERE, 4000, true),
        (&["api.kubevpn.test"], 4000, false),
        (HERE, 2001, false),
    ] {
        let identity = ca.issue(names, until);
        let server = Server::presenting(Ca::new(), of(&identity)).await;
        let asked = ask(&server, &identity.pem).await;
        assert_eq!(asked.is_ok(), taken, "{names:?} {until}: {asked:?}");
        let other = ca.issue(names, until);
        ask(&server, &other.pem).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_clients_certificate_of_version_1() {
    let server = Server::presenting(Ca::new(), of(&Ca::new().issue(HERE, 4000))).await;
    let setup = Setup::new(server.url())
        .cluster("insecure-skip-tls-verify: true")
        .user("client-certificate: jane.crt")
        .user("client-key: jane.key");
    setup.file("jane.crt", V1);
    setup.file("jane.key", V1_KEY);
    setup.client().apiserver_version().await.unwrap();
    assert!(server.last().certificate);
}

/// `insecure-skip-tls-verify` is about the certificate. That who shows it has its key is checked, whatever its version.
#[tokio::test]
async fn an_unchecked_certificate_is_the_servers() {
    let v1 = || vec![CertificateDer::from_pem_slice(V1.as_bytes()).unwrap()];
    let v1_key = || PrivateKeyDer::from_pem_slice(V1_KEY.as_bytes()).unwrap();
    let ca = Ca::new();
    let (usual, on_p521) = (ca.issue(HERE, 4000), ca.issue_to(p521(), HERE, 2001));
    for version in [&TLS12, &TLS13] {
        for (chain, key, is_its) in [
            (usual.chain(), usual.private_key(), true),
            (on_p521.chain(), on_p521.private_key(), true),
            (v1(), v1_key(), true),
            (usual.chain(), v1_key(), false),
            (v1(), usual.private_key(), false),
            (usual.chain(), on_p521.private_key(), false),
        ] {
            let server = Server::presenting(Ca::new(), showing(chain, key, &[version])).await;
            let setup = Setup::new(server.url()).cluster("insecure-skip-tls-verify: true");
            let asked = setup.client().apiserver_version().await;
            assert_eq!(asked.is_ok(), is_its, "{version:?}: {asked:?}");
        }
    }
}
