//! A connection that is no HTTP any more: what is said last in HTTP, and the relay.

use std::io;

use bytes::BytesMut;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kubevpn_conn::{
    ClientIo, Record, RelayOptions, Rewind, relay, reply_and_close, while_connected,
};
use kubevpn_target::{Connect, Plain, Stream, Target};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::problem::Problem;
use crate::serve::ServeError;
use crate::turn::Handover;
use crate::{Settings, answer};

/// A client's stream, and what it sent behind the head that made it a tunnel.
pub(crate) struct Taken<C> {
    pub(crate) client: C,
    pub(crate) early: BytesMut,
    pub(crate) record: Option<Record>,
}

impl<C: ClientIo> Taken<C> {
    pub(crate) async fn serve<S: Connect>(
        self,
        handover: Handover,
        connect: S,
        settings: &Settings,
    ) -> Result<(), ServeError> {
        match handover {
            Handover::Tunnel(target) => self.tunnel(target, connect, settings).await,
            Handover::Upgrade(fields, upstream) => self.upgrade(&fields, upstream, settings).await,
            Handover::Refused(problem) => {
                if let Some(record) = self.record {
                    record.rejected(&problem);
                }
                farewell(self.client, &problem).await;
                Err(ServeError::Refused)
            }
        }
    }

    async fn tunnel<S: Connect>(
        mut self,
        target: Target,
        connect: S,
        settings: &Settings,
    ) -> Result<(), ServeError> {
        tracing::debug!(%target, "dialing for a tunnel");
        // In a box, so that the memory of dialing is not held for the life of the tunnel.
        let dial = Box::pin(connect.connect(target));
        match while_connected(&mut self.client, &mut self.early, dial).await {
            Ok(Ok(upstream)) => {
                if let Some(record) = &mut self.record {
                    record.via(upstream.via());
                }
                let head = answer::head(StatusCode::OK, &HeaderMap::new());
                self.relay(&head, upstream, settings).await
            }
            Ok(Err(error)) => {
                if let Some(record) = self.record {
                    record.refused(&error);
                }
                farewell(self.client, &Problem::Refused(error)).await;
                Err(ServeError::Refused)
            }
            Err(error) => Err(self.gone(error)),
        }
    }

    async fn upgrade(
        self,
        fields: &HeaderMap,
        upstream: Upgraded,
        settings: &Settings,
    ) -> Result<(), ServeError> {
        let head = answer::head(StatusCode::SWITCHING_PROTOCOLS, fields);
        self.relay(&head, Plain(TokioIo::new(upstream)), settings)
            .await
    }

    async fn relay<U>(
        mut self,
        head: &[u8],
        upstream: U,
        settings: &Settings,
    ) -> Result<(), ServeError>
    where
        U: Stream,
    {
        let sent = timeout(settings.head_timeout, send(&mut self.client, head)).await;
        if let Err(error) = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            return Err(self.gone(error));
        }
        let options = RelayOptions {
            idle: settings.idle_timeout,
            traffic: self
                .record
                .as_ref()
                .map(Record::traffic)
                .unwrap_or_default(),
        };
        let relayed = relay(Rewind::new(self.client, self.early), upstream, options).await;
        if let Some(record) = self.record {
            record.relayed(&relayed);
        }
        Ok(())
    }

    fn gone(self, error: io::Error) -> ServeError {
        if let Some(record) = self.record {
            record.gone(&error);
        }
        ServeError::Gone(error)
    }
}

async fn send<C: ClientIo>(client: &mut C, bytes: &[u8]) -> io::Result<()> {
    client.write_all(bytes).await?;
    client.flush().await
}

/// The answer of a connection that ends with it. Whether it arrives changes nothing any more.
pub(crate) async fn farewell<C: ClientIo>(client: C, problem: &Problem) {
    let words = answer::last_words(answer::refusal(problem));
    if let Err(error) = reply_and_close(client, &words).await {
        tracing::debug!(%error, "the client did not wait for its answer");
    }
}
