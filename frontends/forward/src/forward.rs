//! Forwards, as users write them.

use std::fmt;
use std::str::FromStr;

use kubevpn_conn::{Addr, AddrError};
use kubevpn_target::{Origin, Target, TargetError};

/// A listen address and its target.
///
/// | written | means |
/// |---|---|
/// | `5432:db:5432` | `127.0.0.1:5432` here for port 5432 of `db` |
/// | `0:web.shop:80` | a free port of `127.0.0.1` |
/// | `127.0.0.2:80:web:80`, `[::1]:80:web:80` | that address |
/// | `8080:[fd00::1]:80` | port 80 of an IPv6 address |
///
/// ```
/// use kubevpn_forward::Forward;
/// let forward: Forward = "[::1]:8080:[fd00::5]:80".parse()?;
/// assert_eq!(forward.listen.to_string(), "[::1]:8080");
/// assert_eq!(forward.to.to_string(), "[fd00::5]:80");
/// # Ok::<(), kubevpn_forward::ParseForwardError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The listen address.
    pub listen: Addr,
    /// The target of each connection; its origin is set for each.
    pub to: Target,
}

impl FromStr for Forward {
    type Err = ParseForwardError;

    fn from_str(text: &str) -> Result<Self, ParseForwardError> {
        // Parsed from the right, because the listen address may contain colons.
        let (rest, _port) = text.rsplit_once(':').ok_or(ParseForwardError::Parts)?;
        let colon = match rest.ends_with(']') {
            true => rest.rfind('[').and_then(|at| at.checked_sub(1)),
            false => rest.rfind(':'),
        };
        let (listen, to) = colon
            .and_then(|at| Some((text.get(..at)?, text.get(at..)?.strip_prefix(':')?)))
            .ok_or(ParseForwardError::Parts)?;
        Ok(Self {
            listen: listen.parse().map_err(ParseForwardError::Listen)?,
            to: Target::parse(to, Origin::default()).map_err(ParseForwardError::Target)?,
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.listen, self.to)
    }
}

const HOW: &str =
    "a forward is written [ADDR:]PORT:HOST:PORT, as 15432:db:5432, with IPv6 addresses in brackets";

/// Why a text is not a forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseForwardError {
    /// There are too few parts.
    #[error("{}", HOW)]
    Parts,
    /// The first part is not a listen address.
    #[error("where to listen: {}; {}", .0, HOW)]
    Listen(AddrError),
    /// The last part is not a host and a port.
    #[error("where to: {}; {}", .0, HOW)]
    Target(TargetError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(String, String), ParseForwardError> {
        let forward: Forward = text.parse()?;
        assert_eq!(forward.to_string().parse(), Ok(forward.clone()), "{text}");
        Ok((forward.listen.to_string(), forward.to.to_string()))
    }

    #[test]
    fn good_ones() {
        for (text, listen, to) in [
            ("5432:db:5432", "127.0.0.1:5432", "db:5432"),
            ("0:db.shop.svc.:80", "127.0.0.1:0", "db.shop.svc.:80"),
            (":80:db:80", "127.0.0.1:80", "db:80"),
            ("localhost:80:db:80", "127.0.0.1:80", "db:80"),
            ("127.0.0.2:80:10.0.0.1:81", "127.0.0.2:80", "10.0.0.1:81"),
            ("[::1]:80:db:81", "[::1]:80", "db:81"),
            ("80:[fd00::1]:81", "127.0.0.1:80", "[fd00::1]:81"),
            ("[::1]:80:[fd00::1]:81", "[::1]:80", "[fd00::1]:81"),
            ("unix:/run/db:db:5432", "unix:/run/db", "db:5432"),
        ] {
            assert_eq!(read(text), Ok((listen.into(), to.into())), "{text}");
        }
    }

    #[test]
    fn bad_ones() {
        for text in ["", "80", "db:80", "[fd00::1]:80", "a[b]:80", "]:1"] {
            assert_eq!(read(text), Err(ParseForwardError::Parts), "{text}");
        }
        for text in [
            "x:db:80",
            "80:fd00::1:80",
            "70000:db:80",
            "example.com:80:db:80",
            "::1:80:db:80",
            ":[]:1",
            "::1",
        ] {
            let error = read(text).unwrap_err();
            assert!(
                matches!(error, ParseForwardError::Listen(_)),
                "{text}: {error}"
            );
        }
        for text in ["80:db:0", "80:db:http", "80:a b:80", "80::80", "80:[x]:80"] {
            let error = read(text).unwrap_err();
            assert!(
                matches!(error, ParseForwardError::Target(_)),
                "{text}: {error}"
            );
        }
        let said = read("80:db:0").unwrap_err().to_string();
        assert!(
            said.contains("port 0") && said.contains("HOST:PORT"),
            "{said}"
        );
    }
}
