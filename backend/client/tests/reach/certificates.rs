//! Certificates and keys of every kind that kubectl accepts.

use std::sync::Arc;

use rcgen::{CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P521_SHA512, date_time_ymd};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, ServerConfig, SignatureScheme, SupportedProtocolVersion};

use crate::failures::failure;
use crate::support::{BOTH, Ca, Identity, Server, Setup, Speaks};

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

/// A server that presents this certificate, with this key, which may be another's.
fn showing(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let key = provider().key_provider.load_private_key(key).unwrap();
    let shown = Shown(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = BOTH.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

/// Like OpenSSL with TLS 1.2, presents a key on a curve only to clients that offer the curve (RFC 8422 section 5.1).
#[derive(Debug)]
struct Shown(SingleCertAndKey);

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offered = hello.named_groups().unwrap_or_default();
        let shown = self.0.resolve(hello)?;
        let schemes = [SignatureScheme::ECDSA_NISTP521_SHA512];
        match shown.key.choose_scheme(&schemes) {
            Some(_) if !offered.contains(&NamedGroup::secp521r1) => None,
            _ => Some(shown),
        }
    }
}

fn of(identity: &Identity) -> ServerConfig {
    showing(identity.chain(), identity.private_key(), &[&TLS13, &TLS12])
}

/// Calls the server, with this CA certificate.
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
        let ca = Ca::of("kubernetes", authority, |_| {});
        let identity = ca.issue_to(servers, HERE, 4000);
        let jane = ca.issue_to(clients, &["jane"], 4000);
        // The server checks the client's certificate.
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
            // Another certificate of the same name is not accepted.
            let other = Identity::self_signed(names, until, ca);
            ask(&server, &other.pem).await.unwrap_err();
        }
    }
}

/// As Rancher and RKE2 write it: the issuer's certificate is missing.
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

/// A CA certificate verifies no other certificate if it is CA:FALSE or out of date.
#[tokio::test]
async fn authorities_that_may_not_sign() {
    type Change = fn(&mut CertificateParams);
    let changes: [(Change, bool); 4] = [
        (|_| {}, true),
        (|p| p.is_ca = IsCa::NoCa, false),
        (|p| p.not_after = date_time_ymd(2001, 1, 1), false),
        (|p| p.not_before = date_time_ymd(4000, 1, 1), false),
    ];
    for (n, (change, taken)) in changes.into_iter().enumerate() {
        let ca = Ca::of("kubernetes", KeyPair::generate().unwrap(), change);
        let server = Server::presenting(Ca::new(), of(&ca.issue(HERE, 4000))).await;
        assert_eq!(ask(&server, ca.pem()).await.is_ok(), taken, "{n}");
        // Beside a valid CA it does no harm.
        let good = Ca::new();
        let server = Server::presenting(Ca::new(), of(&good.issue(HERE, 4000))).await;
        let both = format!("{}{}", ca.pem(), good.pem());
        ask(&server, &both).await.unwrap();
    }
}

/// The certificate is presented: this server refuses the certificate, and not its absence.
#[tokio::test]
async fn a_clients_certificate_of_version_1() {
    let server = Server::speaking(Speaks::MutualTls).await;
    let setup = Setup::of(&server)
        .user("client-certificate: jane.crt")
        .user("client-key: jane.key");
    setup.file("jane.crt", V1);
    setup.file("jane.key", V1_KEY);
    let said = failure(&setup).await.to_string();
    assert!(said.contains("does not accept our certificate"), "{said}");
    assert!(!said.contains("CertificateRequired"), "{said}");
}

/// `insecure-skip-tls-verify` skips the certificate's checks. That the server has its key is still checked, whatever its version.
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
