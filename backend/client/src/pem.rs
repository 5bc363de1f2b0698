//! Certificates and keys as people paste them: what is good is taken, up to what is not.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Without the line breaks that base64 gets in an editor. Other white space is as wrong as it is for Go.
pub(crate) fn unwrapped(base64: &str) -> String {
    base64.split(['\r', '\n']).collect()
}

pub(crate) fn decode(base64: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(unwrapped(base64)).ok()
}

/// The certificates before the first block that is cut off or garbled; none is possible.
pub(crate) fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem)
        .map_while(Result::ok)
        .collect()
}

/// The first private key: PKCS#8, PKCS#1 or SEC1, behind blocks of other kinds such as `EC PARAMETERS`.
pub(crate) fn private_key(pem: &[u8]) -> Option<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).ok()
}
