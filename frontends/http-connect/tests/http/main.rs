//! Whole connections: a client on one side, the targets it asks for on the other, bytes in between.

mod conformance;
mod connect;
mod example;
mod forward;
mod harness;
mod limits;
mod own;
mod record;
mod refusals;
mod reuse;
mod watched;
