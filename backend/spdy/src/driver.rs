//! The one task that owns the socket.

use std::{
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Config, Incoming, Session, SessionError};

/// Moves the session's bytes; resolves when the session has ended, to why. Spawn it: nothing moves
/// otherwise. Dropping it ends the session and closes the connection.
#[derive(Debug)]
#[must_use = "a session does nothing until its driver is spawned"]
pub struct Driver<T> {
    _io: PhantomData<T>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = SessionError;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

/// A session in the client's role over `io`, which has been upgraded to SPDY already. Streams that
/// the server opens are refused.
pub fn client<T: AsyncRead + AsyncWrite + Unpin>(_io: T, _config: Config) -> (Session, Driver<T>) {
    unimplemented!()
}

/// A session in the server's role over `io`, which has been upgraded to SPDY already.
pub fn server<T: AsyncRead + AsyncWrite + Unpin>(
    _io: T,
    _config: Config,
) -> (Session, Incoming, Driver<T>) {
    unimplemented!()
}
