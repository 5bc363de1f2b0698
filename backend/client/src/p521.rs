//! Key exchange on P-521, which rustls lacks. A TLS 1.2 server presents a certificate with a key on that curve only to
//! clients that offer the curve (RFC 8422 section 5.1); kubectl does.

use aws_lc_rs::agreement::{
    ECDH_P521, EphemeralPrivateKey, PublicKey, UnparsedPublicKey, agree_ephemeral,
};
use aws_lc_rs::rand::SystemRandom;
use rustls::crypto::{ActiveKeyExchange, GetRandomFailed, SharedSecret, SupportedKxGroup};
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// The first byte of an uncompressed point, the only form in TLS (RFC 8422 section 5.4.1).
const UNCOMPRESSED: u8 = 0x04;

#[derive(Debug)]
pub(crate) struct Secp521r1;

impl SupportedKxGroup for Secp521r1 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let private = EphemeralPrivateKey::generate(&ECDH_P521, &SystemRandom::new())
            .map_err(|_| GetRandomFailed)?;
        let public = private.compute_public_key().map_err(|_| GetRandomFailed)?;
        Ok(Box::new(P521Exchange { private, public }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

struct P521Exchange {
    private: EphemeralPrivateKey,
    public: PublicKey,
}

impl ActiveKeyExchange for P521Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let invalid = Error::from(PeerMisbehaved::InvalidKeyShare);
        if peer.first() != Some(&UNCOMPRESSED) {
            return Err(invalid);
        }
        let peer = UnparsedPublicKey::new(&ECDH_P521, peer);
        agree_ephemeral(self.private, peer, invalid, |secret| {
            Ok(SharedSecret::from(secret))
        })
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_ref()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_have_the_same_secret() {
        let (one, other) = (Secp521r1.start().unwrap(), Secp521r1.start().unwrap());
        let (ones, others) = (one.pub_key().to_vec(), other.pub_key().to_vec());
        let secrets = [
            one.complete(&others).unwrap(),
            other.complete(&ones).unwrap(),
        ];
        assert_eq!(secrets[0].secret_bytes(), secrets[1].secret_bytes());
        assert_eq!(secrets[0].secret_bytes().len(), 66);
        let compressed = [&[0x02], &ones[1..67]].concat();
        for bad in [&[][..], &[0x04], &ones[..132], &compressed] {
            assert!(Secp521r1.start().unwrap().complete(bad).is_err());
        }
    }
}
