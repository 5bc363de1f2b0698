//! A connection's ID.

use sha2::{Digest as _, Sha256};

use crate::api::hex;

/// Number of hex digits.
const DIGITS: usize = 12;

/// The last twelve hex digits of the namespace's UID, or, if that may not be read, of a hash of server and namespace.
pub fn id(uid: Option<&str>, server: &str, namespace: &str) -> String {
    let digits = uid.map(|uid| uid.replace('-', "").to_ascii_lowercase());
    let is_uid =
        |digits: &String| digits.len() >= DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let digits = digits
        .filter(is_uid)
        .unwrap_or_else(|| hex(&Sha256::digest(format!("{server}\n{namespace}"))));
    digits[digits.len() - DIGITS..].to_owned()
}

/// Whether a text can be an ID: it becomes part of paths.
pub fn is_id(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == DIGITS && text.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_from_the_uid_or_from_server_and_namespace() {
        let uid = "5c6a1f0e-9d3b-4c1e-8f2a-03DC50FEB8C3";
        assert_eq!(id(Some(uid), "s", "n"), "03dc50feb8c3");
        let stand_in = id(None, "https://a:6443", "shop");
        assert!(is_id(&stand_in), "{stand_in}");
        assert_eq!(id(None, "https://a:6443", "shop"), stand_in);
        assert_eq!(id(Some("odd"), "https://a:6443", "shop"), stand_in);
        assert_ne!(id(None, "https://b:6443", "shop"), stand_in);
        assert_ne!(id(None, "https://a:6443", "shop2"), stand_in);
    }

    #[test]
    fn ids_are_twelve_hex_digits() {
        assert!(is_id("03dc50feb8c3"));
        for text in [
            "",
            "03DC50FEB8C3",
            "03dc50feb8c",
            "03dc50feb8c33",
            "../etc/hosts",
        ] {
            assert!(!is_id(text), "{text}");
        }
    }
}
