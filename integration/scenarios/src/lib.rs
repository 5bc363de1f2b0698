//! Each behaviour of `kubevpn proxy-out` once, run against any [`TestCluster`].
//!
//! A scenario drives the built program with a kubeconfig file and real sockets, so that the simulation and a real
//! cluster are used in the very same way: what the simulation claims, the real one confirms. [`all`] is the list;
//! `integration/tests/{sim,real}.rs` run it. A new behaviour is a function in the file of its subject and a line in
//! that file's `list`.

mod account;
mod client;
mod cluster;
mod load;
pub mod managed;
mod proxy;
mod relay;
mod row;
mod scenarios;
mod space;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;

pub use self::account::{AccountRight, kubeconfig, service_account};
pub use self::client::{Curl, ProxyRoute, Socks, TunnelClient};
pub use self::cluster::{ApiRequest, TestCluster};
pub use self::proxy::{Proxy, run_to_end};

/// What a scenario is given.
#[derive(Clone)]
pub struct Context {
    /// Where it runs.
    pub cluster: Arc<dyn TestCluster>,
    /// The program under test.
    pub kubevpn: PathBuf,
    /// Flags for every `proxy-out`, e.g. to force a transport.
    pub flags: Vec<&'static str>,
    /// Loads of the full size, which takes minutes, and not of the size for every run.
    pub full: bool,
}

impl Context {
    /// The size of a load.
    pub(crate) fn size<T>(&self, of_every_run: T, full: T) -> T {
        if self.full { full } else { of_every_run }
    }

    /// As [`Context::proxy`], with this in `RUST_LOG`.
    pub(crate) async fn logging_proxy(
        &self,
        kubeconfig: &Path,
        log: &str,
    ) -> anyhow::Result<Proxy> {
        let mut command = Proxy::command(&self.kubevpn, kubeconfig, &self.flags);
        command.env("RUST_LOG", log);
        Proxy::spawn(command).await
    }

    /// `kubevpn proxy-out` with this kubeconfig and these flags, when it says that it listens.
    pub async fn proxy(&self, kubeconfig: &Path, flags: &[&str]) -> anyhow::Result<Proxy> {
        Proxy::start(&self.kubevpn, kubeconfig, &[&self.flags, flags].concat()).await
    }

    /// Tells what a scenario measured, which asserts nothing of it.
    #[expect(clippy::print_stderr, reason = "it is there to be read")]
    pub(crate) fn measured(&self, what: fmt::Arguments<'_>) {
        eprintln!("[{}] {what}", self.flags.last().unwrap_or(&"auto"));
    }
}

/// One behaviour.
pub struct Scenario {
    /// As listed by the test runner: `subject::behaviour`.
    pub name: &'static str,
    /// With which ways to carry a port-forward it is run.
    pub transports: Transports,
    /// Words of a command that has to succeed on this machine; without it the scenario has nothing to show.
    pub needs: &'static [&'static str],
    /// Fails with what was expected and what came instead.
    pub run: fn(Context) -> LocalBoxFuture<'static, anyhow::Result<()>>,
}

/// Which ways to carry a port-forward a scenario is run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transports {
    /// Each of them.
    Every,
    /// One: what the scenario is about is decided before there is a stream.
    One,
}

/// Every scenario there is.
pub fn all() -> Vec<Scenario> {
    scenarios::all()
}
