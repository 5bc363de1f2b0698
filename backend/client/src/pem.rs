//! Lenient PEM parsing: certificates and keys up to the first fault.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Removes line breaks within base64. Other white space is an error, as in Go.
pub(crate) fn unwrapped(base64: &str) -> String {
    base64.split(['\r', '\n']).collect()
}

pub(crate) fn decode(base64: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(unwrapped(base64)).ok()
}

/// The certificates before the first damaged block; possibly none.
pub(crate) fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem)
        .map_while(Result::ok)
        .collect()
}

/// The first private key, PKCS#8, PKCS#1 or SEC1; blocks of other kinds such as `EC PARAMETERS` are skipped.
pub(crate) fn private_key(pem: &[u8]) -> Option<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).ok()
}
