//! A connection after HTTP: its last HTTP answer, and the relay.

use http::{HeaderMap, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kubevpn_conn::{ClientIo, Relayed, Tunnel, TunnelError, farewell};
use kubevpn_target::{Connect, Plain, Target};

use crate::answer;
use crate::problem::Problem;

/// Serves the client of a CONNECT to its end.
pub(crate) fn dial<C: ClientIo, S: Connect>(
    target: Target,
    tunnel: Tunnel<C>,
    connect: S,
) -> impl Future<Output = Result<Relayed, TunnelError>> + Send {
    tunnel.serve(target, connect, |dialled| match dialled {
        Ok(()) => answer::head(StatusCode::OK, &HeaderMap::new()),
        Err(error) => answer::last_words(answer::refused(error)),
    })
}

/// Serves a client after the target has switched to another protocol.
pub(crate) async fn switch<C: ClientIo>(
    fields: &HeaderMap,
    upstream: Upgraded,
    tunnel: Tunnel<C>,
) -> Result<Relayed, TunnelError> {
    let head = answer::head(StatusCode::SWITCHING_PROTOCOLS, fields);
    tunnel.relay(Plain(TokioIo::new(upstream)), head).await
}

/// The last answer on a connection.
pub(crate) async fn say_no<C: ClientIo>(client: C, problem: &Problem) {
    farewell(client, &answer::last_words(answer::refusal(problem))).await;
}
