//! A DNS frontend: answers over UDP and TCP by asking any [`Service<Query>`](AnswerQueries).
//!
//! It reads queries, limits their size, number and time, and writes answers that fit. The service decides what a name
//! means; the frontend does not know zones. It has no cache, transfers no zone, follows no alias, and signs nothing.
//!
//! The path of a query: the bytes of a datagram ([`serve_udp`], `udp.rs`) or a stream ([`serve_stream`], `stream.rs`) become
//! a request or are refused at once (`request.rs`). The service is asked (`ask.rs`); if it refuses a name as not its own,
//! the [`upstream`](Settings::upstream) is asked, if there is one (`upstream.rs`). The answer is made to fit (`reply.rs`). A
//! failure is a [`Refusal`](kubevpn_target::Refusal), mapped in `refusal.rs`.
//!
//! ```
//! use hickory_proto::op::{Message, OpCode, Query};
//! use hickory_proto::rr::rdata::A;
//! use hickory_proto::rr::{Name, RData, Record, RecordType};
//! use kubevpn_dns::{Settings, serve_stream};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A backend: every name has the same address.
//! let backend = tower::service_fn(|query: Query| async move {
//!     let mut answer = Message::response(0, OpCode::Query);
//!     let address = RData::A(A([192, 0, 2, 7].into()));
//!     answer.add_answer(Record::from_rdata(query.name().clone(), 5, address));
//!     Ok::<_, std::io::Error>(answer)
//! });
//! let (mut app, client) = tokio::io::duplex(1024);
//! let served = tokio::spawn(async move { serve_stream(client, backend, &Settings::default()).await });
//!
//! let mut question = Message::query();
//! question.add_query(Query::query(Name::from_ascii("web.shop.")?, RecordType::A));
//! let bytes = question.to_vec()?;
//! app.write_u16(bytes.len() as u16).await?;
//! app.write_all(&bytes).await?;
//! let mut answer = vec![0; app.read_u16().await?.into()];
//! app.read_exact(&mut answer).await?;
//! let answer = Message::from_vec(&answer)?;
//! assert_eq!(answer.metadata.id, question.metadata.id);
//! assert_eq!(answer.answers.len(), 1);
//! # drop(app);
//! # served.await??;
//! # Ok(())
//! # }
//! ```
//!
//! Specified in RFC 1035 (messages, both transports), RFC 6891 (EDNS), RFC 7766 (TCP), RFC 8482 (ANY), RFC 9210 (both
//! transports are required), RFC 5452 (matching answers to queries).

#![warn(missing_docs)]

mod ask;
mod refusal;
mod reply;
mod request;
mod settings;
mod stream;
mod udp;
mod upstream;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use hickory_proto::op::{Message, Query};

pub use self::ask::AnswerQueries;
pub use self::refusal::response_code;
pub use self::settings::Settings;
pub use self::stream::serve_stream;
pub use self::udp::{bind_udp, serve_udp};
