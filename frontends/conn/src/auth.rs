//! The users that a listener accepts.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use subtle::{Choice, ConstantTimeEq};

/// The longest user name or password (RFC 1929: a length of one byte).
const MAX: usize = 255;
/// Limit on users: a check compares with all of them.
const MAX_USERS: usize = 128;

/// User names and passwords, of which a client has to send one pair.
///
/// Clones share their users, so that [`replace`](Self::replace) reaches all listeners. `Debug` hides the passwords. Neither can
/// be read back.
#[derive(Clone)]
pub struct Credentials(Arc<RwLock<Vec<UserPassword>>>);

struct UserPassword {
    name: Field,
    password: Field,
}

impl Credentials {
    /// One user. Name and password of 1 to 255 bytes; no colon in the name, since HTTP's Basic scheme cannot carry one.
    ///
    /// ```
    /// use kubevpn_conn::Credentials;
    /// let credentials = Credentials::new("ann", "s3cret")?;
    /// assert_eq!(format!("{credentials:?}"), r#"Credentials { users: ["ann"], .. }"#);
    /// # Ok::<(), kubevpn_conn::CredentialsError>(())
    /// ```
    pub fn new(user: &str, password: &str) -> Result<Self, CredentialsError> {
        Ok(Self::of(vec![UserPassword::new(user, password)?]))
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
        if lines.any(|line| !line.trim().is_empty()) {
            return Err(CredentialsError::MoreLines);
        }
        Ok(Self::of(vec![UserPassword::parse(line)?]))
    }

    /// Reads 1 to 128 users, each a line `user:password`; empty lines are skipped. A user may have several lines, each with a
    /// valid password, e.g. while one password replaces another.
    ///
    /// The error names the line.
    ///
    /// ```
    /// use kubevpn_conn::Credentials;
    /// let credentials = Credentials::parse_lines("ann:s3cret\nbob:s3:cret\n").unwrap();
    /// assert!(credentials.check(b"bob", b"s3:cret"));
    /// let error = Credentials::parse_lines("ann:s3cret\n\nbob\n").unwrap_err();
    /// assert!(error.to_string().starts_with("line 3: "));
    /// ```
    pub fn parse_lines(text: &str) -> Result<Self, CredentialsLineError> {
        let mut users = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            if users.len() == MAX_USERS {
                return Err(CredentialsLineError::TooMany);
            }
            let user = UserPassword::parse(line);
            users.push(user.map_err(|reason| CredentialsLineError::Line { number, reason })?);
        }
        match users.is_empty() {
            true => Err(CredentialsLineError::Empty),
            false => Ok(Self::of(users)),
        }
    }

    fn of(users: Vec<UserPassword>) -> Self {
        Self(Arc::new(RwLock::new(users)))
    }

    /// Whether the pair is one of these. The time depends on the number of users only, not on the pair.
    ///
    /// ```
    /// use kubevpn_conn::Credentials;
    /// let credentials = Credentials::new("ann", "s3cret")?;
    /// assert!(credentials.check(b"ann", b"s3cret"));
    /// assert!(!credentials.check(b"ann", b"secret"));
    /// # Ok::<(), kubevpn_conn::CredentialsError>(())
    /// ```
    pub fn check(&self, user: &[u8], password: &[u8]) -> bool {
        // Only the lengths of the client's own fields decide here.
        let (Some(user), Some(password)) = (Field::new(user), Field::new(password)) else {
            return false;
        };
        let users = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // `&` and `|` evaluate both sides: both fields of every user are always compared.
        let found = users.iter().fold(Choice::from(0), |found, known| {
            found | (known.name.matches(&user) & known.password.matches(&password))
        });
        found.into()
    }

    /// Replaces the users by those of `new`, in all clones.
    ///
    /// ```
    /// use kubevpn_conn::Credentials;
    /// let credentials = Credentials::new("ann", "old")?;
    /// let listener = credentials.clone();
    /// credentials.replace(Credentials::new("ann", "new")?);
    /// assert!(listener.check(b"ann", b"new"));
    /// assert!(!listener.check(b"ann", b"old"));
    /// # Ok::<(), kubevpn_conn::CredentialsError>(())
    /// ```
    pub fn replace(&self, new: Self) {
        let users = std::mem::take(&mut *new.0.write().unwrap_or_else(PoisonError::into_inner));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = users;
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let names = users
            .iter()
            .map(|user| String::from_utf8_lossy(user.name.bytes()));
        f.debug_struct("Credentials")
            .field("users", &names.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl UserPassword {
    fn new(name: &str, password: &str) -> Result<Self, CredentialsError> {
        if name.contains(':') {
            return Err(CredentialsError::ColonInUser);
        }
        Ok(Self {
            name: Field::new(name.as_bytes()).ok_or(CredentialsError::UserLength(name.len()))?,
            password: Field::new(password.as_bytes())
                .ok_or(CredentialsError::PasswordLength(password.len()))?,
        })
    }

    fn parse(line: &str) -> Result<Self, CredentialsError> {
        if line.starts_with('\u{feff}') {
            return Err(CredentialsError::ByteOrderMark);
        }
        let (name, password) = line.split_once(':').ok_or(CredentialsError::NoColon)?;
        Self::new(name, password)
    }
}

/// Up to 255 bytes, padded, so that every comparison covers the same number of bytes.
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

    fn matches(&self, sent: &Self) -> Choice {
        self.padded.as_slice().ct_eq(sent.padded.as_slice()) & self.len.ct_eq(&sent.len)
    }
}

/// Why a text is not a valid [`Credentials`]. The error contains lengths, never the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// No colon in `user:password`.
    #[error("the credentials have no colon: write user:password")]
    NoColon,
    /// More than one line.
    #[error("there is a second line: write one user:password alone")]
    MoreLines,
    /// A byte order mark (U+FEFF), which some editors put in front of a text.
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

/// Why lines are not valid [`Credentials`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsLineError {
    /// The error of one line.
    #[error("line {number}: {reason}")]
    Line {
        /// Its number from 1, counting empty lines.
        number: usize,
        /// Its error.
        reason: CredentialsError,
    },
    /// All lines are empty.
    #[error("there is no user: write a line of user:password")]
    Empty,
    /// More users than the limit.
    #[error("there are more than {MAX_USERS} users")]
    TooMany,
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
    fn credentials_are_one_line() {
        let error = |text: &str| Credentials::parse(text).unwrap_err();
        assert_eq!(error("\u{feff}ann:x"), CredentialsError::ByteOrderMark);
        assert_eq!(error("ann:x\nbob:y\n"), CredentialsError::MoreLines);
        assert_eq!(error("\nann:x\n"), CredentialsError::MoreLines);
        for text in ["ann:x", "ann:x\n", "ann:x\r\n", "ann:x\n\n"] {
            assert!(Credentials::parse(text).unwrap().check(b"ann", b"x"));
        }
    }

    #[test]
    fn every_line_is_a_user() {
        let lines = "ann:x\r\n\nbob:y\nbob:z\n";
        let credentials = Credentials::parse_lines(lines).unwrap();
        for (user, password, right) in [
            ("ann", "x", true),
            ("bob", "y", true),
            ("bob", "z", true),
            ("ann", "y", false),
            ("bob", "x", false),
            ("", "", false),
        ] {
            let found = credentials.check(user.as_bytes(), password.as_bytes());
            assert_eq!(found, right, "{user}:{password}");
        }
        let error = |text: &str| Credentials::parse_lines(text).unwrap_err();
        assert_eq!(error("\n \n"), CredentialsLineError::Empty);
        let line = |number, reason| CredentialsLineError::Line { number, reason };
        assert_eq!(error("\n\nann"), line(3, CredentialsError::NoColon));
        assert_eq!(
            error("\u{feff}ann:x"),
            line(1, CredentialsError::ByteOrderMark)
        );
        let many = |count: usize| "ann:x\n".repeat(count);
        assert!(Credentials::parse_lines(&many(MAX_USERS)).is_ok());
        assert_eq!(error(&many(MAX_USERS + 1)), CredentialsLineError::TooMany);
    }

    #[test]
    fn users_are_replaced_in_every_clone() {
        let credentials = Credentials::parse_lines("ann:x\nbob:y").unwrap();
        let clone = credentials.clone();
        credentials.replace(Credentials::parse_lines("bob:z").unwrap());
        assert!(clone.check(b"bob", b"z"));
        assert!(!clone.check(b"ann", b"x") && !clone.check(b"bob", b"y"));
    }

    #[test]
    fn nothing_prints_the_password() {
        let credentials = Credentials::parse("ann:s3cret").unwrap();
        assert!(!format!("{credentials:?}{credentials:#?}").contains("s3cret"));
    }
}
