//! The client against servers and proxies on loopback, with real TLS: from a kubeconfig to an answer.

mod calls;
mod certificates;
mod failures;
mod plugins;
mod proxied;
mod raw;
mod support;
#[cfg(target_os = "linux")]
mod terminators;
mod upgrades;
