//! What is seen of a proxy: its journal in process, its status page by sockets.

mod admin;
mod journal;
