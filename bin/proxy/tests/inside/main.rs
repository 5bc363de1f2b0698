//! Views of a proxy: its journal in process, its status page over sockets.

mod admin;
mod journal;
