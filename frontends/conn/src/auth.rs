//! The one user a listener may ask for.

use std::fmt;

use subtle::{Choice, ConstantTimeEq};

/// The longest user name or password (RFC 1929: a length of one byte).
const MAX: usize = 255;

/// A user name and a password to be shown by clients.
///
/// `Debug` hides the password. There is no way to read either back.
#[derive(Clone)]
pub struct Credentials {
    user: Field,
    password: Field,
}

impl Credentials {
    /// Both of 1 to 255 bytes; no colon in the user name, since HTTP's Basic scheme cannot carry one.
    ///
    /// ```
    /// use kubevpn_conn::Credentials;
    /// let credentials = Credentials::new("ann", "s3cret")?;
    /// assert_eq!(format!("{credentials:?}"), r#"Credentials { user: "ann", .. }"#);
    /// # Ok::<(), kubevpn_conn::CredentialsError>(())
    /// ```
    pub fn new(user: &str, password: &str) -> Result<Self, CredentialsError> {
        if user.contains(':') {
            return Err(CredentialsError::ColonInUser);
        }
        Ok(Self {
            user: Field::new(user.as_bytes()).ok_or(CredentialsError::UserLength(user.len()))?,
            password: Field::new(password.as_bytes())
                .ok_or(CredentialsError::PasswordLength(password.len()))?,
        })
    }

    /// Reads the one line `user:password`, with or without its end. The password may contain colons.
    ///
    /// ```
    /// use kubevpn_conn::Credentials;
    /// assert!(Credentials::parse("ann:s3:cret")?.check(b"ann", b"s3:cret"));
    /// # Ok::<(), kubevpn_conn::CredentialsError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        let mut lines = text.lines();
        let line = lines.next().unwrap_or_default();
        if line.starts_with('\u{feff}') {
            return Err(CredentialsError::ByteOrderMark);
        }
        if lines.any(|line| !line.trim().is_empty()) {
            return Err(CredentialsError::MoreLines);
        }
        let (user, password) = line.split_once(':').ok_or(CredentialsError::NoColon)?;
        Self::new(user, password)
    }

    /// Whether these are the ones. Takes the same time whatever was sent, wherever it differs.
    ///
    /// ```
    /// use kubevpn_conn::Credentials;
    /// let credentials = Credentials::new("ann", "s3cret")?;
    /// assert!(credentials.check(b"ann", b"s3cret"));
    /// assert!(!credentials.check(b"ann", b"secret"));
    /// # Ok::<(), kubevpn_conn::CredentialsError>(())
    /// ```
    pub fn check(&self, user: &[u8], password: &[u8]) -> bool {
        // `&`, not `&&`: both are compared always.
        (self.user.matches(user) & self.password.matches(password)).into()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &String::from_utf8_lossy(self.user.bytes()))
            .finish_non_exhaustive()
    }
}

/// Up to 255 bytes, padded, so that a comparison touches as many whatever their number.
#[derive(Clone)]
struct Field {
    padded: Box<[u8; MAX]>,
    len: u8,
}

impl Field {
    fn new(bytes: &[u8]) -> Option<Self> {
        let len = u8::try_from(bytes.len()).ok().filter(|len| *len > 0)?;
        let mut padded = Box::new([0; MAX]);
        padded[..bytes.len()].copy_from_slice(bytes);
        Some(Self { padded, len })
    }

    fn bytes(&self) -> &[u8] {
        &self.padded[..usize::from(self.len)]
    }

    fn matches(&self, sent: &[u8]) -> Choice {
        // Only the length of what the client sent, which it knows, decides here.
        match Self::new(sent) {
            Some(sent) => {
                self.padded.as_slice().ct_eq(sent.padded.as_slice()) & self.len.ct_eq(&sent.len)
            }
            None => Choice::from(0),
        }
    }
}

/// Why something is no [`Credentials`]. Tells lengths, never the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// No colon in `user:password`.
    #[error("the credentials have no colon: write user:password")]
    NoColon,
    /// More than one line.
    #[error("there is a second line: write one user:password alone")]
    MoreLines,
    /// U+FEFF, as some editors put in front of a text.
    #[error(
        "the text begins with a byte order mark, which no client would send: save it without one"
    )]
    ByteOrderMark,
    /// A colon in the user name.
    #[error("a user name cannot contain a colon")]
    ColonInUser,
    /// The user name is empty or too long.
    #[error("the user name has {0} bytes, it needs 1 to {MAX}")]
    UserLength(usize),
    /// The password is empty or too long.
    #[error("the password has {0} bytes, it needs 1 to {MAX}")]
    PasswordLength(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_same_pair_passes() {
        let credentials = Credentials::new("ann", "pass\0").unwrap();
        assert!(credentials.check(b"ann", b"pass\0"));
        for (user, password) in [
            (&b"ann"[..], &b"pass"[..]),
            (b"ann", b"pass\0\0"),
            (b"ann", b""),
            (b"", b"pass\0"),
            (b"an", b"pass\0"),
            (b"ann\0", b"pass\0"),
            (b"Ann", b"pass\0"),
            (b"ann", &[b'x'; 300]),
            (&[b'x'; 300], b"pass\0"),
        ] {
            assert!(!credentials.check(user, password), "{user:?} {password:?}");
        }
    }

    #[test]
    fn lengths_have_limits() {
        let long = "x".repeat(255);
        assert!(
            Credentials::new(&long, &long)
                .unwrap()
                .check(long.as_bytes(), long.as_bytes())
        );
        let error = |user: &str, password: &str| Credentials::new(user, password).unwrap_err();
        assert_eq!(error("", "p"), CredentialsError::UserLength(0));
        assert_eq!(error("u", ""), CredentialsError::PasswordLength(0));
        assert_eq!(
            error(&"x".repeat(256), "p"),
            CredentialsError::UserLength(256)
        );
        assert_eq!(
            error("u", &"x".repeat(256)),
            CredentialsError::PasswordLength(256)
        );
        assert_eq!(error("a:b", "p"), CredentialsError::ColonInUser);
        assert_eq!(
            Credentials::parse("ann").unwrap_err(),
            CredentialsError::NoColon
        );
        assert_eq!(
            Credentials::parse(":p").unwrap_err(),
            CredentialsError::UserLength(0)
        );
    }

    #[test]
    fn one_line_and_nothing_before_it() {
        let error = |text: &str| Credentials::parse(text).unwrap_err();
        assert_eq!(error("\u{feff}ann:x"), CredentialsError::ByteOrderMark);
        assert_eq!(error("ann:x\nbob:y\n"), CredentialsError::MoreLines);
        assert_eq!(error("\nann:x\n"), CredentialsError::MoreLines);
        for text in ["ann:x", "ann:x\n", "ann:x\r\n", "ann:x\n\n"] {
            assert!(Credentials::parse(text).unwrap().check(b"ann", b"x"));
        }
    }

    #[test]
    fn nothing_prints_the_password() {
        let credentials = Credentials::parse("ann:s3cret").unwrap();
        assert!(!format!("{credentials:?}{credentials:#?}").contains("s3cret"));
    }
}
