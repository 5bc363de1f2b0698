//! The data path over a cluster in memory, from a target to the stream.

mod dns;
mod ready;
mod rounds;
mod sharing;
mod support;
