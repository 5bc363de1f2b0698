//! A local port whose connections go into the cluster.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use kubevpn_conn::{Addr, BindError, Client, Drain, Gate, Limits, Listener};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A local port whose connections go into the cluster.
///
/// Dropping it closes the port and resets its open connections. The runtime does that soon after the drop;
/// [`close`](Self::close) waits for it.
#[derive(Debug)]
#[must_use = "dropping it closes the port"]
pub struct LocalPort {
    addr: SocketAddr,
    drain: Drain,
    accepting: JoinHandle<()>,
    runtime: Handle,
}

impl LocalPort {
    /// Listens, and runs `serve` on each client.
    pub(crate) async fn open<F, Fut>(
        listen: SocketAddr,
        drain: Drain,
        serve: F,
    ) -> Result<Self, BindError>
    where
        F: Fn(Client) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = Listener::bind(&Addr::Tcp(listen)).await?;
        let addr = match listener.addr() {
            Addr::Tcp(addr) => *addr,
            Addr::Unix(_) => listen,
        };
        let gate = Gate::new(Limits::default());
        let accepting = tokio::spawn(listener.serve(gate, drain.clone(), serve));
        Ok(Self {
            addr,
            drain,
            accepting,
            runtime: Handle::current(),
        })
    }

    /// The address to connect to, with the actual port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes the port, cuts its connections, and returns when both are closed: the port can then be bound again.
    ///
    /// Cancellation: dropping the future closes the port, too.
    pub async fn close(mut self) {
        self.drain.drain(Duration::ZERO).await;
        // An error is a panic of the task, which the runtime has reported.
        let _ended = (&mut self.accepting).await;
    }
}

impl fmt::Display for LocalPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

impl Drop for LocalPort {
    fn drop(&mut self) {
        let drain = self.drain.clone();
        // After the runtime has ended, nothing is left to close.
        self.runtime.spawn(async move {
            drain.drain(Duration::ZERO).await;
        });
    }
}
