//! Parser of request-targets.
//!
//! Strict on purpose: a text that two parsers could read as two hosts is refused, so that the backend, the server
//! and the log all mean the same host.

use kubevpn_target::{Host, Origin, Target, TargetError};

/// The default port of `http://`.
pub(crate) const HTTP: u16 = 80;

/// The most digits a port has.
const PORT_DIGITS: usize = 5;

/// Reads the `host:port` of a CONNECT (authority-form, RFC 9112 section 3.2.3). The port must be there.
pub(crate) fn tunnel(authority: &str, origin: Origin) -> Result<Target, AuthorityError> {
    no_userinfo(authority)?;
    if authority.ends_with(']') || !authority.contains(':') {
        return Err(TargetError::NoPort.into());
    }
    with_port(authority, origin)
}

/// Reads the scheme and authority of an absolute-form request-target (RFC 9112 section 3.2.2). A port that
/// is missing or empty is 80.
pub(crate) fn forward(
    scheme: &str,
    authority: &str,
    origin: Origin,
) -> Result<Target, AuthorityError> {
    if scheme.eq_ignore_ascii_case("https") {
        return Err(AuthorityError::Https);
    }
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(AuthorityError::Scheme);
    }
    // A user name before an @ is removed: it means nothing to the target and can disguise the host (RFC 9110 section
    // 4.2.4).
    let host_port = authority.rsplit('@').next().unwrap_or_default();
    host(host_port, origin)
}

/// Parses a `Host` field: an authority whose port may be missing.
pub(crate) fn host(authority: &str, origin: Origin) -> Result<Target, AuthorityError> {
    no_userinfo(authority)?;
    let host = match authority.strip_suffix(':') {
        Some(host) => host,
        None if authority.ends_with(']') || !authority.contains(':') => authority,
        None => return with_port(authority, origin),
    };
    if host.contains(':') && !host.starts_with('[') {
        return Err(TargetError::UnbracketedIpv6.into());
    }
    Ok(Target::new(Host::parse(host)?, HTTP, origin)?)
}

/// The value of `Host` for a target: without the port if that is 80.
pub(crate) fn host_value(target: &Target) -> String {
    let mut text = target.to_string();
    if target.port.get() == HTTP {
        text.truncate(text.rfind(':').unwrap_or(text.len()));
    }
    text
}

fn with_port(authority: &str, origin: Origin) -> Result<Target, AuthorityError> {
    let port = authority.rsplit(':').next().unwrap_or_default();
    if port.len() > PORT_DIGITS {
        return Err(TargetError::BadPort.into());
    }
    Ok(Target::parse(authority, origin)?)
}

fn no_userinfo(authority: &str) -> Result<(), AuthorityError> {
    match authority.contains('@') {
        true => Err(AuthorityError::Userinfo),
        false => Ok(()),
    }
}

/// Why a request-target is not a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// A user name where none is allowed.
    #[error("a user name in front of the host is not taken: leave out what is before the @")]
    Userinfo,
    /// `https://…`: the client has to encrypt, through a tunnel.
    #[error(
        "an https:// address cannot be forwarded, only tunnelled: let the client send CONNECT host:443 to this proxy (https_proxy=http://…)"
    )]
    Https,
    /// Neither `http` nor `https`.
    #[error("only http:// addresses are forwarded; for any other protocol send CONNECT host:port")]
    Scheme,
    /// An invalid host or port.
    #[error(transparent)]
    Target(#[from] TargetError),
}

#[cfg(test)]
mod tests;
