//! Certificates and keys of every kind: `NAME.crt` and `NAME.key` in one directory, `NAME` being what the tables say.
//!
//! Most are made by rcgen, by the tables below. What it does not make (version 1, PKCS#1, SEC1, SHA-1, …) `openssl` does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::server::Anybody;

/// Kinds of keys, for authorities, servers and clients.
pub(crate) const KEYS: [&str; 5] = ["p256", "p384", "p521", "rsa", "ed25519"];

/// Before the name of a server's certificate.
pub(crate) const TLS12: &str = "tls1.2/";

/// The authority of everything that has no other.
pub(crate) const CA: &str = "ca-p256";

fn algorithm(key: &str) -> &'static SignatureAlgorithm {
    match key {
        "p256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "p384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "p521" => &rcgen::PKCS_ECDSA_P521_SHA512,
        "rsa" => &rcgen::PKCS_RSA_SHA256,
        "ed25519" => &rcgen::PKCS_ED25519,
        other => panic!("no kind of key is called {other}"),
    }
}

type Change = fn(&mut CertificateParams);

/// Servers' certificates that are odd in one way: what is odd, who signed, and what is different from a good one.
#[rustfmt::skip]
const ODD_SERVERS: [(&str, &str, Change); 24] = [
    ("good", CA, |_| {}),
    ("self-signed-ca", "itself", |p| p.is_ca = ca()),
    ("self-signed", "itself", |_| {}),
    ("self-signed-not-ca", "itself", |p| p.is_ca = IsCa::ExplicitNoCa),
    ("self-signed-expired", "itself", |p| p.not_after = date_time_ymd(2020, 1, 1)),
    ("self-signed-other-name", "itself", |p| p.subject_alt_names = names(&["other.test"])),
    ("expired", CA, |p| p.not_after = date_time_ymd(2020, 1, 1)),
    ("not-yet", CA, |p| p.not_before = date_time_ymd(4000, 1, 1)),
    ("other-name", CA, |p| p.subject_alt_names = names(&["other.test"])),
    ("wildcard", CA, |p| p.subject_alt_names = names(&["*.other.test"])),
    ("address-as-name", CA, |p| p.subject_alt_names = names_only(&["127.0.0.1"])),
    ("no-names", CA, |p| p.subject_alt_names = Vec::new()),
    ("for-clients", CA, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
    ("for-anything", CA, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
    ("no-usage", CA, |p| p.extended_key_usages = Vec::new()),
    ("signs-keys-only", CA, |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
    ("is-a-ca", CA, |p| p.is_ca = ca()),
    ("no-subject", CA, |p| p.distinguished_name = DistinguishedName::new()),
    ("serial-of-20-bytes", CA, |p| p.serial_number = Some(SerialNumber::from(vec![0x7F; 20]))),
    ("serial-0", CA, |p| p.serial_number = Some(SerialNumber::from(vec![0]))),
    ("unknown-extension", CA, |p| p.custom_extensions = vec![extension(false)]),
    ("unknown-critical", CA, |p| p.custom_extensions = vec![extension(true)]),
    ("by-intermediate", "intermediate", |_| {}),
    ("by-intermediate-alone", "intermediate", |_| {}),
];

/// Authorities that are odd in one way, each with a server's certificate of the same name and `by-` before it.
#[rustfmt::skip]
const ODD_AUTHORITIES: [(&str, Change); 9] = [
    ("ca-expired", |p| p.not_after = date_time_ymd(2020, 1, 1)),
    ("ca-not-yet", |p| p.not_before = date_time_ymd(4000, 1, 1)),
    ("ca-not-ca", |p| p.is_ca = IsCa::ExplicitNoCa),
    ("ca-says-nothing", |p| p.is_ca = IsCa::NoCa),
    ("ca-without-usage", |p| p.key_usages = Vec::new()),
    ("ca-signs-nothing", |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
    ("ca-path-0", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
    ("ca-names-permitted", |p| p.name_constraints = Some(constraints("test", "invalid"))),
    ("ca-names-excluded", |p| p.name_constraints = Some(constraints("", "localhost"))),
];

/// Certificates of clients that are odd in one way.
#[rustfmt::skip]
const ODD_CLIENTS: [(&str, Change); 4] = [
    ("client-expired", |p| p.not_after = date_time_ymd(2020, 1, 1)),
    ("client-for-servers", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
    ("client-no-usage", |p| p.extended_key_usages = Vec::new()),
    ("client-is-a-ca", |p| p.is_ca = ca()),
];

/// What only openssl makes, in the directory of all others.
const OPENSSL: &str = r#"
set -e
ec() { openssl ecparam -name "$2" -genkey -noout 2>/dev/null | openssl pkcs8 -topk8 -nocrypt -out "$1.key"; }
request() { openssl req -new -key "$1.key" -subj "/CN=$1" 2>/dev/null; }
san() { printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n'; }
# Version 1: a client, a server, and an authority with a server.
for name in client-v1 server-v1 ca-v1 by-ca-v1; do ec $name prime256v1; done
for name in client-v1 server-v1; do
  request $name | openssl x509 -req -CA ca-p256.crt -CAkey ca-p256.key -days 36500 -out $name.crt 2>/dev/null
done
request ca-v1 | openssl x509 -req -signkey ca-v1.key -days 36500 -out ca-v1.crt 2>/dev/null
san >san
request by-ca-v1 | openssl x509 -req -CA ca-v1.crt -CAkey ca-v1.key -days 36500 -extfile san -out by-ca-v1.crt 2>/dev/null
# Signatures that are weak, or of an uncommon kind.
for name in sha1 pss; do openssl genrsa -out $name.key 2048 2>/dev/null; done
openssl genrsa -out rsa-4096.key 4096 2>/dev/null
request sha1 | openssl x509 -req -CA ca-rsa.crt -CAkey ca-rsa.key -days 36500 -sha1 -extfile san -out sha1.crt 2>/dev/null
request rsa-4096 | openssl x509 -req -CA ca-rsa.crt -CAkey ca-rsa.key -days 36500 -extfile san -out rsa-4096.crt 2>/dev/null
request pss | openssl x509 -req -CA ca-rsa.crt -CAkey ca-rsa.key -days 36500 -sha256 -sigopt rsa_padding_mode:pss \
  -sigopt rsa_pss_saltlen:32 -extfile san -out pss.crt 2>/dev/null
# Keys in other wrappings: SEC1 with its parameters before it, PKCS#1, under a password.
openssl ec -in client-p256.key -out sec1-alone.key 2>/dev/null
{ openssl ecparam -name prime256v1; cat sec1-alone.key; } >sec1.key
openssl rsa -in client-rsa.key -traditional -out pkcs1.key 2>/dev/null
openssl pkcs8 -topk8 -in client-p256.key -passout pass:sesame -out encrypted.key
openssl rsa -in client-rsa.key -traditional -aes128 -passout pass:sesame -out encrypted-pkcs1.key 2>/dev/null
# Texts around and behind.
{ openssl x509 -in client-p256.crt -text; } >with-text.crt
{ cat client-p256.crt; printf '%s\n' '-----BEGIN CERTIFICATE-----' 'MIIB'; } >cut-off.crt
{ cat client-p256.crt ca-p256.crt; } >with-chain.crt
{ cat client-p256.key client-p256.crt; } >both.pem
{ printf '%s\n' 'Bag Attributes' '    friendlyName: jane'; cat client-p256.key; } >with-text.key
sed 's/$/\r/' client-p256.crt >crlf.crt; sed 's/$/\r/' client-p256.key >crlf.key
{ cat ca-p256.crt; printf '%s\n' '-----BEGIN CERTIFICATE-----' 'MIIB'; } >ca-cut-off.crt
{ cat ca-p384.crt ca-p256.crt; } >ca-two.crt; { cat ca-expired.crt ca-p256.crt; } >ca-and-expired.crt
{ printf '%s\n' '-----BEGIN CERTIFICATE-----' 'bm8=' '-----END CERTIFICATE-----'; cat ca-p256.crt; } >ca-after-junk.crt
openssl x509 -in ca-p256.crt -outform der -out ca-der.crt
sed 's/CERTIFICATE/TRUSTED CERTIFICATE/' ca-p256.crt >ca-trusted.crt
{ cat intermediate.crt ca-p256.crt; } >ca-and-intermediate.crt
printf 'no certificate at all\n' >ca-none.crt; : >ca-empty.crt
"#;

fn ca() -> IsCa {
    IsCa::Ca(BasicConstraints::Unconstrained)
}

fn names(names: &[&str]) -> Vec<SanType> {
    let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
    CertificateParams::new(names).unwrap().subject_alt_names
}

/// As names, be they addresses.
fn names_only(names: &[&str]) -> Vec<SanType> {
    let name = |name: &&str| SanType::DnsName((*name).try_into().unwrap());
    names.iter().map(name).collect()
}

fn extension(critical: bool) -> CustomExtension {
    let null = vec![0x05, 0x00];
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55555, 1], null);
    extension.set_criticality(critical);
    extension
}

fn constraints(permitted: &str, excluded: &str) -> NameConstraints {
    let of = |name: &str| match name {
        "" => Vec::new(),
        name => vec![GeneralSubtree::DnsName(name.to_owned())],
    };
    NameConstraints {
        permitted_subtrees: of(permitted),
        excluded_subtrees: of(excluded),
    }
}

/// A good one of this subject.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = names(&["localhost", "127.0.0.1"]);
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = ca();
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Who signs, by name.
type Issuers = HashMap<String, Issuer<'static, KeyPair>>;

pub(crate) struct Pki {
    dir: PathBuf,
}

impl Pki {
    pub(crate) fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let pki = Self {
            dir: dir.to_owned(),
        };
        let mut issuers = Issuers::new();
        for key in KEYS {
            pki.authority(&mut issuers, &format!("ca-{key}"), key, |_| {});
        }
        for (name, change) in ODD_AUTHORITIES {
            pki.authority(&mut issuers, name, "p256", change);
        }
        let key = KeyPair::generate().unwrap();
        let of = authority("intermediate");
        let signed = of.signed_by(&key, &issuers[CA]).unwrap().pem();
        pki.write("intermediate", &signed, &key.serialize_pem());
        issuers.insert("intermediate".into(), Issuer::new(of, key));

        for by in KEYS {
            for key in KEYS {
                let name = format!("{key}-by-{by}");
                pki.signed(&issuers, &name, key, &format!("ca-{by}"), |_| {});
            }
            pki.signed(&issuers, &format!("client-{by}"), by, CA, |_| {});
        }
        for (name, by, change) in ODD_SERVERS {
            pki.signed(&issuers, name, "p256", by, change);
        }
        for (name, _) in ODD_AUTHORITIES {
            pki.signed(&issuers, &format!("by-{name}"), "p256", name, |_| {});
        }
        for (name, change) in ODD_CLIENTS {
            pki.signed(&issuers, name, "p256", CA, change);
        }
        let chain = [
            pki.read("by-intermediate.crt"),
            pki.read("intermediate.crt"),
        ]
        .concat();
        std::fs::write(pki.path("by-intermediate.crt"), chain).unwrap();
        pki.openssl();
        pki
    }

    fn openssl(&self) {
        let mut bash = Command::new("bash");
        bash.args(["-c", OPENSSL]).current_dir(&self.dir);
        let output = bash.output().unwrap();
        assert!(output.status.success(), "openssl: {output:?}");
    }

    fn authority(&self, issuers: &mut Issuers, name: &str, key: &str, change: Change) {
        let key = KeyPair::generate_for(algorithm(key)).unwrap();
        let mut params = authority(name);
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap();
        self.write(name, &certificate.pem(), &key.serialize_pem());
        issuers.insert(name.to_owned(), Issuer::new(params, key));
    }

    fn signed(&self, issuers: &Issuers, name: &str, key: &str, by: &str, change: Change) {
        let key = KeyPair::generate_for(algorithm(key)).unwrap();
        let mut params = params(name);
        change(&mut params);
        let certificate = match by {
            "itself" => params.self_signed(&key),
            by => params.signed_by(&key, &issuers[by]),
        };
        self.write(name, &certificate.unwrap().pem(), &key.serialize_pem());
    }

    fn write(&self, name: &str, certificate: &str, key: &str) {
        std::fs::write(self.path(&format!("{name}.crt")), certificate).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key).unwrap();
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        let path = self.path(file);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Shows `NAME.crt`, and asks for any certificate. With [`TLS12`] before the name there is no TLS 1.3.
    pub(crate) fn server(&self, name: &str) -> Arc<ServerConfig> {
        let (versions, name) = match name.strip_prefix(TLS12) {
            Some(name) => (&[&rustls::version::TLS12][..], name),
            None => (rustls::ALL_VERSIONS, name),
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = self.read(&format!("{name}.crt"));
        let chain = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap);
        let key = PrivateKeyDer::from_pem_slice(&self.read(&format!("{name}.key"))).unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let shown: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(
            CertifiedKey::new(chain.collect(), key),
        ));
        let schemes = provider
            .signature_verification_algorithms
            .supported_schemes();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(Arc::new(Anybody(schemes)))
            .with_cert_resolver(shown);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}
