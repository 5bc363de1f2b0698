//! Limits on connections, in total and per client.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::seldom::Seldom;

/// Minimum number of permits for unauthenticated clients, if the total allows it.
const STRANGERS: usize = 64;

/// The limits of a [`Gate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Simultaneous connections over all listeners that share the gate. A client beyond it waits.
    pub total: usize,
    /// Simultaneous connections from one IP address; `None` for no limit. A connection beyond it is closed. Clients
    /// without an address (Unix sockets) are not counted.
    pub per_client: Option<usize>,
}

impl Default for Limits {
    /// 8192 in total, which fits into a default of 20,000 descriptors at two each; no limit per client, because
    /// all programs of a machine share one address.
    fn default() -> Self {
        Self {
            total: 8192,
            per_client: None,
        }
    }
}

/// Counts connections against [`Limits`]. Clones are the same gate; listeners may share one. A reached limit is logged once
/// in 10 s.
///
/// ```
/// use kubevpn_conn::{Gate, Limits};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let gate = Gate::new(Limits { total: 10, per_client: Some(1) });
/// let client = Some([192, 0, 2, 7].into());
/// let first = gate.enter(client).await;
/// assert!(first.is_some());
/// assert!(gate.enter(client).await.is_none());
/// drop(first);
/// assert!(gate.enter(client).await.is_some());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Gate(Arc<GateState>);

#[derive(Debug)]
struct GateState {
    limits: Limits,
    slots: Arc<Semaphore>,
    /// Permits for unauthenticated clients on other machines.
    strangers: Arc<Semaphore>,
    clients: Mutex<HashMap<IpAddr, usize>>,
    total_reached: Seldom,
    per_client_reached: Seldom,
    strangers_reached: Seldom,
}

impl Gate {
    /// A gate without connections. A total of 0, which would admit no client, counts as 1.
    pub fn new(limits: Limits) -> Self {
        let total = limits.total.clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(GateState {
            limits: Limits { total, ..limits },
            slots: Arc::new(Semaphore::new(total)),
            strangers: Arc::new(Semaphore::new((total / 8).max(STRANGERS).min(total))),
            clients: Mutex::default(),
            total_reached: Seldom::default(),
            per_client_reached: Seldom::default(),
            strangers_reached: Seldom::default(),
        }))
    }

    /// Waits for a permit; `None` at once if this client has reached its own limit.
    ///
    /// Cancellation: dropping the future takes no permit.
    pub async fn enter(&self, client: Option<IpAddr>) -> Option<Permit> {
        let counted = match (client, self.0.limits.per_client) {
            (Some(ip), Some(limit)) => Some(self.count(ip.to_canonical(), limit)?),
            _ => None,
        };
        let slots = &self.0.slots;
        let slot = match Arc::clone(slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                if self.0.total_reached.is_due() {
                    tracing::warn!(
                        limit = self.0.limits.total,
                        "as many connections are open as the limit allows: new clients wait until one ends"
                    );
                }
                Arc::clone(slots).acquire_owned().await.ok()?
            }
        };
        Some(Permit {
            _counted: counted,
            _slot: slot,
        })
    }

    /// A permit for an unauthenticated client; `None` at their limit: an eighth of the total, and at least 64, so that
    /// they cannot take the permits of authenticated clients.
    pub(crate) fn stranger(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.0.strangers).try_acquire_owned().ok();
        if place.is_none() && self.0.strangers_reached.is_due() {
            tracing::warn!(
                "too many clients on other machines have yet to show a password: new ones are closed"
            );
        }
        place
    }

    /// Number of permits in use.
    pub fn open(&self) -> usize {
        self.0.limits.total - self.0.slots.available_permits()
    }

    fn count(&self, ip: IpAddr, limit: usize) -> Option<CountedClient> {
        let mut clients = self
            .0
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let open = clients.entry(ip).or_insert(0);
        if *open >= limit {
            if self.0.per_client_reached.is_due() {
                tracing::warn!(client.ip = %ip, limit, "a client has as many connections open as its limit allows: new ones are closed");
            }
            return None;
        }
        *open += 1;
        Some(CountedClient {
            ip,
            gate: self.clone(),
        })
    }
}

/// The right to be one of the open connections. Hold it for the connection's whole life.
#[derive(Debug)]
pub struct Permit {
    _counted: Option<CountedClient>,
    _slot: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct CountedClient {
    ip: IpAddr,
    gate: Gate,
}

impl Drop for CountedClient {
    fn drop(&mut self) {
        let clients = &self.gate.0.clients;
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut open) = clients.entry(self.ip) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(total: usize, per_client: Option<usize>) -> Gate {
        Gate::new(Limits { total, per_client })
    }

    #[tokio::test]
    async fn the_total_makes_wait() {
        let gate = gate(1, None);
        let first = gate.enter(None).await;
        let second = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(None).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        assert_eq!(gate.open(), 1);
        drop(first);
        assert!(second.await.unwrap());
        assert_eq!(gate.open(), 0);
    }

    #[test]
    fn strangers_take_no_more_than_their_part() {
        for (total, strangers) in [(1, 1), (64, 64), (100, 64), (8192, 1024)] {
            let gate = gate(total, None);
            let held: Vec<_> = std::iter::from_fn(|| gate.stranger()).collect();
            assert_eq!(held.len(), strangers, "of {total}");
            drop(held);
            assert!(gate.stranger().is_some());
            assert_eq!(gate.open(), 0);
        }
    }

    #[tokio::test]
    async fn each_client_has_its_own_count() {
        let gate = gate(10, Some(2));
        let [a, b] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| Some(IpAddr::from(ip)));
        let mapped = Some("::ffff:10.0.0.1".parse().unwrap());
        let held = [
            gate.enter(a).await,
            gate.enter(mapped).await,
            gate.enter(b).await,
        ];
        assert!(held.iter().all(Option::is_some));
        assert!(gate.enter(a).await.is_none());
        assert!(gate.enter(b).await.is_some());
        assert!(gate.enter(None).await.is_some());
        drop(held);
        assert!(gate.0.clients.lock().unwrap().is_empty());
        assert_eq!(gate.open(), 0);
    }

    #[tokio::test]
    async fn giving_up_the_wait_leaves_no_trace() {
        let gate = gate(1, Some(5));
        let held = gate.enter(None).await;
        let mut waiting = Box::pin(gate.enter(Some([10, 0, 0, 1].into())));
        assert!(futures_poll(&mut waiting).await.is_none());
        drop(waiting);
        assert!(gate.0.clients.lock().unwrap().is_empty());
        drop(held);
        assert_eq!(gate.open(), 0);
    }

    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! { biased; out = future => Some(out), () = std::future::ready(()) => None }
    }

    #[tokio::test]
    async fn a_limit_of_zero_is_one() {
        assert!(gate(0, None).enter(None).await.is_some());
    }
}
