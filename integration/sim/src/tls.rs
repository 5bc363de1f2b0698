//! A certificate authority of the simulation's own, and the server's certificate.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, crypto};

use crate::Error;

/// What the API server answers to.
const NAMES: [&str; 5] = [
    "localhost",
    "127.0.0.1",
    "10.96.0.1",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

pub(crate) struct SimTls {
    pub(crate) acceptor: TlsAcceptor,
    /// The authority's certificate.
    pub(crate) ca_pem: String,
    pub(crate) ca_der: Vec<u8>,
}

impl SimTls {
    pub(crate) fn new() -> Result<Self, Error> {
        let failed = |e: rcgen::Error| Error::Tls(Box::new(e));
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(DnType::CommonName, "kubevpn-sim");
        let key = KeyPair::generate().map_err(failed)?;
        let ca = CertifiedIssuer::self_signed(params, key).map_err(failed)?;

        let mut params = CertificateParams::new(NAMES.map(String::from)).map_err(failed)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &ca).map_err(failed)?;

        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|c| {
                c.with_no_client_auth()
                    .with_single_cert(vec![certificate.der().clone()], key)
            })
            .map_err(|e| Error::Tls(Box::new(e)))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            ca_pem: ca.pem(),
            ca_der: ca.der().to_vec(),
        })
    }
}
