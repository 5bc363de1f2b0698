//! The crate's promises, against the simulation: the same tests as against a real cluster, and those that need injected
//! faults.

mod common;

use std::time::Duration;

use common::{ECHO, Lab};
use kubevpn_portforward::TransportChoice;
use kubevpn_sim::{Reject, Sim, SimTransport};
use kubevpn_target::Stream as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

async fn sim() -> Sim {
    Sim::builder().sample().start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_carries_a_request() {
    let sim = sim().await;
    common::every_transport_carries_a_request(&sim.config()).await;
    sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_nothing_listens_on_is_refused() {
    let sim = sim().await;
    common::a_port_nothing_listens_on_is_refused(&sim.config()).await;
    sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_client_gets_its_slow_answer() {
    let sim = sim().await;
    common::a_half_closed_client_gets_its_slow_answer(&sim.config()).await;
    sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_client_gets_all_of_a_large_answer() {
    let sim = sim().await;
    common::a_half_closed_client_gets_all_of_a_large_answer(&sim.config(), 30_000_000).await;
    sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_by_the_pod_is_an_error_of_its_stream_alone() {
    let sim = sim().await;
    common::a_reset_by_the_pod_is_an_error_of_its_stream_alone(&sim.config()).await;
    sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_cost_few_upgrades() {
    let sim = sim().await;
    common::a_thousand_connections_cost_few_upgrades(&sim.config()).await;
    sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_readers_disturb_nobody() {
    let sim = sim().await;
    common::stalled_readers_disturb_nobody(&sim.config()).await;
    sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_middlebox_that_drops_spdy_is_got_around() {
    let sim = sim().await;
    sim.faults().reject(SimTransport::Spdy, Reject::Drop);
    let mut lab = Lab::new(&sim.config(), TransportChoice::Auto).await;
    lab.get("/").await.unwrap();
    assert_eq!(
        lab.forwarder.stats().sessions,
        [0, 1, 0],
        "SPDY in WebSocket"
    );
    sim.faults()
        .reject(SimTransport::Tunnel, Reject::Status(403));
    // As if the Pod had been replaced under its name: no session to it is left.
    lab.pod.uid = Some("another".into());
    lab.get("/").await.unwrap();
    assert_eq!(lab.dial(ECHO).await.unwrap().via().transport, "ws");
    sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_a_nat_has_forgotten_do_not_stop_new_ones() {
    let sim = sim().await;
    let lab = Lab::new(&sim.config(), TransportChoice::Auto).await;
    let mut old = lab.dial(ECHO).await.unwrap();
    old.write_all(b"x").await.unwrap();
    old.read_exact(&mut [0; 1]).await.unwrap();
    sim.faults().black_hole_open(true);
    lab.forwarder.probe();
    let began = Instant::now();
    lab.get("/").await.unwrap();
    let within = Duration::from_secs(10);
    let lost = timeout(within, old.read(&mut [0; 1])).await;
    assert!(
        lost.is_ok_and(|read| read.is_err()),
        "{:?}",
        began.elapsed()
    );
    sim.shutdown().await;
}
