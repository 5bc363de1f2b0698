//! The client's HTTP: one request on each connection to the daemon's socket.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{DaemonClient, MOST_BYTES, PROMPT};
use crate::error::{ApiError, Code, ErrorContext as _};
use crate::{state_dir, sys};

impl DaemonClient {
    /// Sends a document, and reads the answer.
    pub(super) async fn ask_with<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        document: &impl Serialize,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(document).context("cannot write the request")?;
        let asking = async {
            let sent = self.send(method, path, body).await?;
            read(ok(sent).await?).await
        };
        let answered = timeout(PROMPT, asking).await;
        Ok(answered.map_err(|_| self.wedged("does not answer"))??)
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        self.ask(Method::GET, path, false, PROMPT).await
    }

    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        now: bool,
        within: Duration,
    ) -> Result<T, CallError> {
        let path = format!("{path}{}", if now { "?now" } else { "" });
        let asking = async {
            let sent = self.send(method, &path, Vec::new()).await?;
            read(ok(sent).await?).await
        };
        timeout(within, asking)
            .await
            .map_err(|_| CallError::Failed(self.wedged("does not answer")))?
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, CallError> {
        send(self.dial().await?, method, path, body).await
    }

    /// Connects to the daemon, and verifies that it belongs to this user, because requests contain credentials.
    pub(super) async fn dial(&self) -> Result<UnixStream, CallError> {
        dial(&self.dir.socket()).await
    }
}

/// Connects to a socket, and verifies that a process of this user listens.
pub(crate) async fn dial(path: &Path) -> Result<UnixStream, CallError> {
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        // A reset: the socket was closed before the connection was accepted.
        Err(e) if matches!(e.kind(), NotFound | ConnectionRefused | ConnectionReset) => {
            return Err(CallError::gone(e));
        }
        Err(e) => {
            let what = format!("cannot connect to the socket {}", path.display());
            return Err(CallError::Failed(ApiError::caused_by(
                Code::Other,
                what,
                &e,
            )));
        }
    };
    check_peer(&stream, path, sys::own_uid()).map_err(CallError::Failed)?;
    Ok(stream)
}

/// Verifies that the listening process has this user's ID.
fn check_peer(stream: &UnixStream, path: &Path, uid: u32) -> Result<(), ApiError> {
    let peer = stream.peer_cred().context("cannot tell who listens")?.uid();
    if peer == uid {
        return Ok(());
    }
    Err(ApiError::new(
        Code::InvalidValue,
        format!(
            "a process of uid {peer} listens on {}, and you are uid {uid}: nothing was sent to it. Set {} to a directory of your own",
            path.display(),
            state_dir::VARIABLE
        ),
    ))
}

pub(crate) async fn send(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Response<Incoming>, CallError> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(CallError::gone)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the daemon's connection");
        }
    });
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "kubevpn")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| CallError::Failed(ApiError::new(Code::InvalidValue, e.to_string())))?;
    sender.send_request(request).await.map_err(CallError::gone)
}

/// Error of a call.
#[derive(Debug)]
pub(crate) enum CallError {
    /// There is no daemon, or it has ended.
    Gone(String),
    /// The daemon returned an error, or cannot be called.
    Failed(ApiError),
}

impl CallError {
    pub(super) fn gone(error: impl std::error::Error) -> Self {
        Self::Gone(error.to_string())
    }
}

impl From<CallError> for ApiError {
    fn from(trouble: CallError) -> Self {
        match trouble {
            CallError::Gone(why) => {
                tracing::debug!(why, "no daemon");
                Self::new(Code::NotRunning, "the daemon is not running")
            }
            CallError::Failed(error) => error,
        }
    }
}

/// The response, or its error.
pub(crate) async fn ok(response: Response<Incoming>) -> Result<Response<Incoming>, CallError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let error: ApiError = read(response).await?;
    match error.code {
        Code::Ending => Err(CallError::Gone(error.message)),
        _ => Err(CallError::Failed(error)),
    }
}

pub(crate) async fn read<T: DeserializeOwned>(
    response: Response<Incoming>,
) -> Result<T, CallError> {
    let body = http_body_util::Limited::new(response.into_body(), MOST_BYTES);
    let body = body.collect().await;
    let body = body.map_err(|e| match e.is::<http_body_util::LengthLimitError>() {
        true => {
            let words = "the answer is too large: name fewer connections, or close some";
            CallError::Failed(ApiError::new(Code::Internal, words))
        }
        false => CallError::Gone(e.to_string()),
    })?;
    serde_json::from_slice(&body.to_bytes()).map_err(|_| {
        CallError::Failed(ApiError::new(
            Code::OtherVersion,
            "the daemon answers in a way this kubevpn does not know: end it with kubevpn quit",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn socket_of_another_user_is_not_spoken_to() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let path = Path::new("/x/daemon.sock");
        check_peer(&ours, path, sys::own_uid()).unwrap();
        let said = check_peer(&ours, path, sys::own_uid() + 1).unwrap_err();
        assert_eq!(said.code, Code::InvalidValue);
        assert!(said.to_string().contains("/x/daemon.sock"), "{said}");
    }
}
