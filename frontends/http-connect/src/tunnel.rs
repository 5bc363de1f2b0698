//! A connection that is no HTTP any more: what is said last in HTTP, and the relay.

use http::{HeaderMap, StatusCode};
use hyper_util::rt::TokioIo;
use kubevpn_conn::{ClientIo, Tunnel, TunnelError, farewell};
use kubevpn_target::{Connect, ConnectError, Plain};

use crate::answer;
use crate::exchange::Handover;
use crate::problem::Problem;
use crate::serve::ServeError;

/// Serves a client to its end whose connection is no HTTP any more.
pub(crate) async fn serve<C: ClientIo, S: Connect>(
    handover: Handover,
    tunnel: Tunnel<C>,
    connect: S,
) -> Result<(), ServeError> {
    let served = match handover {
        Handover::Tunnel(target) => {
            let answer = |dialled: Result<(), &ConnectError>| match dialled {
                Ok(()) => answer::head(StatusCode::OK, &HeaderMap::new()),
                Err(error) => answer::last_words(answer::refused(error)),
            };
            tunnel.serve(target, connect, answer).await
        }
        Handover::Upgrade(fields, upstream) => {
            let head = answer::head(StatusCode::SWITCHING_PROTOCOLS, &fields);
            tunnel.relay(Plain(TokioIo::new(upstream)), head).await
        }
        Handover::Refused(problem) => {
            tunnel.record.rejected(&problem);
            say_no(tunnel.client, &problem).await;
            return Err(ServeError::Refused);
        }
    };
    match served {
        Ok(_) => Ok(()),
        Err(TunnelError::Gone(error)) => Err(ServeError::Gone(error)),
        Err(TunnelError::Refused(_)) => Err(ServeError::Refused),
    }
}

/// The answer of a connection that ends with it.
pub(crate) async fn say_no<C: ClientIo>(client: C, problem: &Problem) {
    farewell(client, &answer::last_words(answer::refusal(problem))).await;
}
