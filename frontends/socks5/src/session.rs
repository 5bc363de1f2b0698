//! The handshake without I/O: bytes in; bytes and a [`Target`] out.
//!
//! ```text
//!                    ┌── method 2 ──▶ Auth ── right ──┐      (asked for, or all the client offers)
//!   Opening ── 05 ───┤                                ├──▶ SocksRequest ──┐
//!      │             └── method 0 ────────────────────┘              ├──▶ Asked ──answer──▶ Over
//!      └────── 04 (SOCKS4, 4A) ──────────────────────────────────────┘
//!
//!   every state ── anything else ──▶ Over, with the reply that says why
//! ```

use std::fmt;

use bytes::{Buf, BytesMut};
use kubevpn_conn::Credentials;
use kubevpn_target::{Origin, Refusal, Target, TargetError};

use crate::refusal;
use crate::wire::auth::{self, Auth};
use crate::wire::greeting::{self, Greeting, method};
use crate::wire::reply::ReplyCode;
use crate::wire::request::{SocksCommand, SocksRequest};
use crate::wire::{MessageError, http, socks4};

/// Limit on input: the longest message is one of SOCKS4 with its two texts.
pub(crate) const MAX_INPUT: usize = 1024;
/// The first byte of a TLS handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

pub(crate) struct Handshake<'a> {
    credentials: Option<&'a Credentials>,
    origin: Origin,
    state: HandshakeState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandshakeState {
    Opening,
    Auth,
    Request,
    Asked(SocksVersion),
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocksVersion {
    Four,
    Five,
}

/// Result of a message: a target, if it was the request, and its length.
type HandshakeStep = Option<(Option<Target>, usize)>;

impl<'a> Handshake<'a> {
    pub(crate) fn new(credentials: Option<&'a Credentials>, origin: Origin) -> Self {
        Self {
            credentials,
            origin,
            state: HandshakeState::Opening,
        }
    }

    /// Takes complete messages from the front of `input` and appends the answers to `out`.
    ///
    /// `None` means that more input is needed. With a target, the rest of `input` is the client's payload. After an error
    /// the handshake is over; `out` may contain a last reply.
    pub(crate) fn receive(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
    ) -> Result<Option<Target>, HandshakeError> {
        loop {
            let step = self
                .step(input, out)
                .inspect_err(|_| self.state = HandshakeState::Over);
            let Some((target, read)) = step? else {
                return Ok(None);
            };
            input.advance(read);
            if target.is_some() {
                return Ok(target);
            }
        }
    }

    /// Appends the reply about the requested target, once, and only if there is a request.
    pub(crate) fn answer(&mut self, dialled: Result<(), Refusal>, out: &mut Vec<u8>) {
        let HandshakeState::Asked(version) = self.state else {
            return;
        };
        self.state = HandshakeState::Over;
        match version {
            SocksVersion::Five => {
                let reply = dialled.map_or_else(refusal::reply, |()| ReplyCode::Succeeded);
                reply.encode(out);
            }
            SocksVersion::Four => socks4::encode_reply(dialled.is_ok(), out),
        }
    }

    fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<HandshakeStep, HandshakeError> {
        match (self.state, input.first()) {
            (_, None) | (HandshakeState::Asked(_) | HandshakeState::Over, _) => Ok(None),
            (HandshakeState::Opening, Some(&greeting::VERSION)) => self.greeting(input, out),
            (HandshakeState::Opening, Some(&socks4::VERSION)) => self.socks4(input, out),
            (HandshakeState::Opening, Some(&first)) => match http::sniff(input) {
                None => Ok(None),
                Some(true) => {
                    out.extend(http::ANSWER.as_bytes());
                    Err(HandshakeError::Http)
                }
                Some(false) => Err(HandshakeError::NotSocks(first)),
            },
            (HandshakeState::Auth, _) => self.auth(input, out),
            (HandshakeState::Request, _) => self.request(input, out),
        }
    }

    fn greeting(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<HandshakeStep, HandshakeError> {
        let decoded = Greeting::decode(input).map_err(HandshakeError::malformed)?;
        let Some((Greeting { methods }, read)) = decoded else {
            return Ok(None);
        };
        let open = self.credentials.is_none();
        let (wanted, next) = if open && methods.contains(&method::NONE) {
            (method::NONE, HandshakeState::Request)
        } else if methods.contains(&method::PASSWORD) {
            // If the proxy requires no credentials, any are accepted: some programs offer no other method.
            (method::PASSWORD, HandshakeState::Auth)
        } else {
            greeting::encode_selection(method::NO_ACCEPTABLE, out);
            return Err(HandshakeError::NoMethod { password: !open });
        };
        greeting::encode_selection(wanted, out);
        self.state = next;
        Ok(Some((None, read)))
    }

    fn auth(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<HandshakeStep, HandshakeError> {
        let decoded = Auth::decode(input).map_err(|e| {
            auth::encode_status(false, out);
            HandshakeError::malformed(e)
        })?;
        let Some((Auth { user, password }, read)) = decoded else {
            return Ok(None);
        };
        let right = self.credentials.is_none_or(|c| c.check(user, password));
        auth::encode_status(right, out);
        if !right {
            return Err(HandshakeError::WrongPassword);
        }
        self.state = HandshakeState::Request;
        Ok(Some((None, read)))
    }

    fn request(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<HandshakeStep, HandshakeError> {
        let decoded = SocksRequest::decode(input).map_err(|e| match e {
            MessageError::AddressType(t) => (
                ReplyCode::AddressTypeNotSupported,
                HandshakeError::AddressType(t),
            ),
            other => (ReplyCode::GeneralFailure, HandshakeError::malformed(other)),
        });
        let target = decoded.and_then(|decoded| {
            let Some((request, read)) = decoded else {
                return Ok(None);
            };
            if request.command != SocksCommand::CONNECT {
                let error = HandshakeError::Command(request.command.0);
                return Err((ReplyCode::CommandNotSupported, error));
            }
            let target = self
                .target(request)
                .map_err(|e| (ReplyCode::GeneralFailure, e))?;
            Ok(Some((Some(target), read)))
        });
        match target {
            Ok(None) => Ok(None),
            Ok(asked) => {
                self.state = HandshakeState::Asked(SocksVersion::Five);
                Ok(asked)
            }
            Err((reply, error)) => {
                reply.encode(out);
                Err(error)
            }
        }
    }

    fn socks4(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<HandshakeStep, HandshakeError> {
        let target = match socks4::decode(input) {
            Ok(None) => return Ok(None),
            Ok(Some((request, read))) => {
                if self.credentials.is_some() {
                    Err(HandshakeError::Socks4HasNoPassword)
                } else if request.command != SocksCommand::CONNECT {
                    Err(HandshakeError::Command(request.command.0))
                } else {
                    self.target(request).map(|target| (target, read))
                }
            }
            Err(error) => Err(HandshakeError::malformed(error)),
        };
        match target {
            Ok((target, read)) => {
                self.state = HandshakeState::Asked(SocksVersion::Four);
                Ok(Some((Some(target), read)))
            }
            Err(error) => {
                socks4::encode_reply(false, out);
                Err(error)
            }
        }
    }

    fn target(&self, request: SocksRequest<'_>) -> Result<Target, HandshakeError> {
        request
            .address
            .host()
            .and_then(|host| Target::new(host, request.port, self.origin))
            .map_err(HandshakeError::Target)
    }
}

/// Why a handshake failed, always because of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The first byte belongs to neither SOCKS nor HTTP.
    #[error(fmt = not_socks)]
    NotSocks(u8),
    /// An HTTP request.
    #[error(
        "the client speaks HTTP to the SOCKS port: set it to a socks5h:// proxy, or use --listen-http"
    )]
    Http,
    /// No offered method is accepted: with `password` only that of RFC 1929, otherwise "no authentication" too.
    #[error(fmt = no_method)]
    NoMethod {
        /// Whether this proxy requires a password.
        password: bool,
    },
    /// User name or password are wrong.
    #[error("the user name or the password is wrong")]
    WrongPassword,
    /// SOCKS4 on a proxy that requires a password.
    #[error(
        "the client speaks SOCKS4, which has no password, and this proxy asks for one: set it to SOCKS5"
    )]
    Socks4HasNoPassword,
    /// A command other than CONNECT.
    #[error("the command {:?} is not served, only CONNECT is: a port-forward carries outgoing TCP alone", SocksCommand(*.0))]
    Command(u8),
    /// An address type that RFC 1928 does not define.
    #[error("the address type {0:#04x} is none of SOCKS5's")]
    AddressType(u8),
    /// A host or port that is not a target.
    #[error("the client asks for what nobody can connect to")]
    Target(#[source] TargetError),
    /// A message has a wrong version byte.
    #[error("a message of the handshake has the version {0:#04x}")]
    Version(u8),
    /// A text of a SOCKS4 request has no end within 255 bytes.
    #[error("a text of the SOCKS4 request has no end within 255 bytes")]
    Unterminated,
}

impl HandshakeError {
    fn malformed(error: MessageError) -> Self {
        match error {
            MessageError::Version(v) => Self::Version(v),
            MessageError::AddressType(t) => Self::AddressType(t),
            MessageError::Unterminated => Self::Unterminated,
        }
    }
}

fn not_socks(first: &u8, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match *first {
        TLS_HANDSHAKE => f.write_str(
            "the client speaks TLS to the SOCKS port: set it to a plain socks5h:// proxy",
        ),
        byte => write!(
            f,
            "the client speaks no SOCKS, its first byte is {byte:#04x}: set it to a socks5h:// proxy"
        ),
    }
}

fn no_method(password: &bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(match password {
        true => "the client offers no user name and password, which this proxy asks for",
        false => {
            "the client insists on a way of authentication that is not served: set it to none, or to user name and password"
        }
    })
}

#[cfg(test)]
mod tests;
