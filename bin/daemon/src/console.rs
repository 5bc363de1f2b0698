//! The console: a view of a proxy in another process, of the daemon or in the foreground.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use kubevpn_proxy::journal::{JournalSnapshot, Stamped};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::client::http::{CallError, dial, ok, read, send};
use crate::error::{ApiError, Code};

/// Time limit of an answer.
const PROMPT: Duration = Duration::from_secs(5);
/// Upper bound on a line. An event with a URL is much shorter.
const LINE: usize = 1 << 20;

/// Console of a proxy, returned by [`DaemonClient::consoles`](crate::DaemonClient::consoles).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    pub(crate) socket: PathBuf,
    /// Prefix of request paths.
    pub(crate) path: String,
}

impl Console {
    /// The current snapshot.
    pub async fn snapshot(&self) -> Result<JournalSnapshot, ApiError> {
        self.ask(Method::GET, "inside").await
    }

    /// URLs of its status pages, each with the token that grants access.
    pub async fn pages(&self) -> Result<Vec<String>, ApiError> {
        self.ask(Method::GET, "pages").await
    }

    /// Cuts the connection with this number; `false` if there is none.
    pub async fn cut(&self, id: u64) -> Result<bool, ApiError> {
        self.ask(Method::POST, &format!("cut/{id}")).await
    }

    /// Events from now on, optionally with the forwarded HTTP requests.
    pub async fn events(&self, exchanges: bool) -> Result<EventLines, ApiError> {
        self.listen(match exchanges {
            true => "events?exchanges",
            false => "events",
        })
        .await
    }

    /// Events with the heads of requests and answers, including secrets.
    pub async fn events_with_heads(&self) -> Result<EventLines, ApiError> {
        self.listen("events?heads").await
    }

    async fn listen(&self, what: &str) -> Result<EventLines, ApiError> {
        let path = format!("{}/{what}", self.path);
        let asked = async {
            let stream = dial(&self.socket).await?;
            ok(send(stream, Method::GET, &path, Vec::new()).await?).await
        };
        let answer = timeout(PROMPT, asked).await.map_err(|_| silent())?;
        Ok(EventLines {
            body: answer?.into_body(),
            unread: Vec::new(),
        })
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, what: &str) -> Result<T, ApiError> {
        let path = format!("{}/{what}", self.path);
        let asked = async {
            let stream = dial(&self.socket).await?;
            read(ok(send(stream, method, &path, Vec::new()).await?).await?).await
        };
        let answered: Result<T, CallError> = timeout(PROMPT, asked).await.map_err(|_| silent())?;
        Ok(answered?)
    }
}

fn silent() -> ApiError {
    ApiError::new(Code::NotRunning, "the proxy does not answer")
}

/// A stream of events of a proxy.
#[derive(Debug)]
pub struct EventLines {
    body: Incoming,
    unread: Vec<u8>,
}

impl EventLines {
    /// Waits for the next event; `None` when the proxy has ended. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Stamped>, ApiError> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.unread.drain(..=end).collect();
                let event = serde_json::from_slice(&line);
                return event.map(Some).map_err(|_| {
                    ApiError::new(
                        Code::OtherVersion,
                        "the proxy tells events that this kubevpn does not know: it is of another version",
                    )
                });
            }
            let Some(Ok(frame)) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(data) = frame.into_data() {
                self.unread.extend_from_slice(&data);
            }
            if self.unread.len() > LINE {
                return Err(ApiError::new(
                    Code::Internal,
                    "the proxy tells an event that is too long",
                ));
            }
        }
    }
}
