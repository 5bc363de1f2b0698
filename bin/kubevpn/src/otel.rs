//! Traces of connections for an OpenTelemetry collector, in builds with the feature `otel`.
//!
//! ```text
//!   Journal ─▶ Events with traces ─▶ spans (SDK: sampler, limits) ─▶ batch ─▶ OTLP, http/protobuf
//! ```
//!
//! A connection becomes a trace when it ends: one span for the whole connection, and one for each step of its dial. If
//! connections end faster than they are exported, the journal drops events and counts them (`kubevpn_events_dropped_total`).
//! Spans that the collector does not accept are dropped too.
//!
//! Source: the OpenTelemetry specification 1.50, "OpenTelemetry Protocol Exporter" and "Environment Variable Specification".

mod exporter;
mod settings;
mod spans;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kubevpn_proxy::ProxyView;
use kubevpn_proxy::journal::Events;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::exporter::{Exporter, connections, exporter, send};
use self::settings::is_wanted;
use self::spans::{TracedConnection, trace};
use crate::exit::Failure;

/// Upper bound on spans in one request; the specification's default.
const BATCH: usize = 512;
/// Time that a span waits for others, unless `OTEL_BSP_SCHEDULE_DELAY` sets another; the specification's default.
const DELAY: Duration = Duration::from_secs(5);
/// Upper bound on the time that the end of the program waits for the last batch.
const LAST: Duration = Duration::from_secs(3);

/// Exporter of traces. Clones share it.
#[derive(Clone)]
pub(crate) struct Export(Option<Arc<ExportTasks>>);

struct ExportTasks {
    delay: Duration,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Number of connections whose traces were waiting when their task was aborted.
    unsent: Arc<AtomicU64>,
}

impl Export {
    /// Configured by the environment; exports nothing without an endpoint.
    pub(crate) fn of_environment() -> Self {
        if !is_wanted(|name| std::env::var(name).ok()) {
            return Self(None);
        }
        let delay = std::env::var("OTEL_BSP_SCHEDULE_DELAY").ok();
        let delay = delay.and_then(|delay| delay.parse().ok());
        Self(Some(Arc::new(ExportTasks {
            delay: delay.map_or(DELAY, |ms: u64| Duration::from_millis(ms.max(1))),
            tasks: Mutex::default(),
            unsent: Arc::default(),
        })))
    }

    /// Exports the connections of this proxy from now on, until its journal is closed. An error is a mistake in the
    /// environment.
    pub(crate) fn follow(&self, view: &ProxyView) -> Result<(), Failure> {
        let Some(exporting) = &self.0 else {
            return Ok(());
        };
        let exporter = exporter(view.about())?;
        let sender = TraceSender {
            events: view.journal().events_with_traces(),
            exporter,
            in_flight: 0,
            unsent: exporting.unsent.clone(),
        };
        let task = tokio::spawn(run(sender, exporting.delay));
        let mut tasks = exporting
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Proxies of a daemon come and go: tasks of those that ended are removed.
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
        Ok(())
    }

    /// Waits for the last batches, but not longer than `at_once` and [`LAST`]. All journals have to be closed before.
    pub(crate) async fn end(self, at_once: impl Future<Output = ()>) {
        let Some(exporting) = self.0 else { return };
        let mut tasks = std::mem::take(
            &mut *exporting
                .tasks
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let ended = async {
            for task in &mut tasks {
                let _ended = task.await;
            }
        };
        tokio::select! {
            biased;
            () = ended => return,
            () = at_once => {}
            () = sleep(LAST) => {}
        }
        for task in tasks {
            task.abort();
            // A task that has been awaited to its end must not be awaited again.
            if !task.is_finished() {
                let _aborted = task.await;
            }
        }
        let connections = exporting.unsent.load(Ordering::Relaxed);
        if connections > 0 {
            tracing::warn!(
                connections,
                "the last traces were not taken by the collector in time"
            );
        }
    }
}

/// Events of a proxy, and the exporter of its traces.
struct TraceSender {
    events: Events,
    exporter: Exporter,
    /// Number of connections in the current request.
    in_flight: u64,
    /// Gets the number of connections that were not sent, when this is dropped.
    unsent: Arc<AtomicU64>,
}

impl Drop for TraceSender {
    fn drop(&mut self) {
        let mut unsent = self.in_flight + connections(&self.exporter.made.take());
        while let Some(event) = self.events.next_now() {
            unsent += u64::from(TracedConnection::of(&event).is_some());
        }
        self.events.lost(unsent);
        self.unsent.fetch_add(unsent, Ordering::Relaxed);
    }
}

/// Sends batches until the events end. Events wait in the journal during a request.
async fn run(mut sender: TraceSender, delay: Duration) {
    let mut ticks = interval(delay);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    let mut failing = false;
    loop {
        let (is_due, is_over) = tokio::select! {
            event = sender.events.next() => match event {
                Some(event) => {
                    trace(&sender.exporter.tracer, &event);
                    (sender.exporter.made.len() >= BATCH, false)
                }
                None => (true, true),
            },
            _ = ticks.tick() => (true, false),
        };
        let batch = match is_due {
            true => sender.exporter.made.take(),
            false => Vec::new(),
        };
        if !batch.is_empty() {
            let connections = connections(&batch);
            sender.in_flight = connections;
            let failed = send(&sender.exporter, batch).await.err();
            sender.in_flight = 0;
            if let Some(error) = &failed {
                sender.events.lost(connections);
                // Logged once until a request succeeds again: otherwise each batch would log a line. The last batch is an
                // exception, because nobody can read its number in the metrics.
                if is_over {
                    tracing::warn!(%error, connections, "the last traces were not taken by the collector");
                } else if !failing {
                    tracing::warn!(%error, connections, "traces were not taken by the collector");
                }
            }
            failing = failed.is_some();
        }
        if is_over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_a_task_unless_it_is_at_once() {
        let ended = async |at_once: bool| {
            let task = tokio::spawn(std::future::pending());
            let export = Export(Some(Arc::new(ExportTasks {
                delay: DELAY,
                tasks: Mutex::new(vec![task]),
                unsent: Arc::default(),
            })));
            let again = async {
                if !at_once {
                    std::future::pending().await
                }
            };
            let begun = tokio::time::Instant::now();
            export.end(again).await;
            begun.elapsed()
        };
        assert!(ended(true).await < LAST);
        assert!(ended(false).await >= LAST);
    }
}
