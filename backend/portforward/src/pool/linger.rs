//! Limit on half-closed connections that wait for the rest of their linger.
//!
//! If the system does not distinguish a closed from a half-closed client, each waits up to [`Config::linger`] for the Pod,
//! and holds a connection to it and a thread of its container runtime: at 500 short connections a second, 30 s would make
//! 15,000 of them. Beyond [`Config::lingering`] the connection likeliest to be closed is released first.

use std::sync::Arc;

use crate::config::Config;
use crate::stats::ConnectionCounters;

/// Passes on the ends of clients beyond the limit, and removes them from the list.
///
/// Order: clients that had their answer before they ended, the longest silent Pod first; clients that wait for an
/// answer; clients that read what came after their end. A client in the middle of receiving is never released.
pub(crate) fn trim(lingering: &mut Vec<Arc<ConnectionCounters>>, config: &Config) {
    while lingering.len() > config.lingering {
        let rank = |c: &ConnectionCounters| match (c.reads_on(), c.is_answered()) {
            (true, _) => 2,
            (false, false) => 1,
            (false, true) => 0,
        };
        let quiet = lingering
            .iter()
            .enumerate()
            .filter_map(|(index, c)| Some(((rank(c), c.quiet_since()?), index)));
        let Some((_, index)) = quiet.min() else {
            return;
        };
        lingering.remove(index).cut();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::stats::Epoch;

    fn answer(connection: &ConnectionCounters) {
        connection.heard(1);
        connection.quiet();
    }

    #[tokio::test(start_paused = true)]
    async fn clients_likely_to_have_closed_go_first() {
        let config = Config {
            lingering: 3,
            ..Config::default()
        };
        let epoch = Epoch::new();
        let mut list = Vec::new();
        let mut all = Vec::new();
        // In turn: a client that had its answer, one that waits for it, and one that was sent something after its end.
        for n in 0..9 {
            let connection = Arc::new(ConnectionCounters::new(epoch));
            connection.wrote(1);
            if n % 3 == 0 {
                answer(&connection);
            }
            connection.client_ended();
            if n % 3 == 2 {
                answer(&connection);
            }
            advance(Duration::from_millis(10)).await;
            all.push(connection.clone());
            list.push(connection);
            trim(&mut list, &config);
        }
        let kept: Vec<_> = (0..9).filter(|&n| !all[n].is_cut()).collect();
        assert_eq!(kept, [2, 5, 8]);
        // Among equals the longest silent one is released.
        answer(&all[2]);
        advance(Duration::from_millis(10)).await;
        answer(&all[5]);
        let late = Arc::new(ConnectionCounters::new(epoch));
        late.client_ended();
        late.heard(1);
        list.push(late);
        trim(&mut list, &config);
        assert!(all[8].is_cut() && !all[2].is_cut() && !all[5].is_cut());
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_is_not_cut() {
        let config = Config {
            lingering: 0,
            ..Config::default()
        };
        let connection = Arc::new(ConnectionCounters::new(Epoch::new()));
        connection.heard(1);
        let mut list = vec![connection.clone()];
        trim(&mut list, &config);
        assert!(!connection.is_cut());
        connection.quiet();
        trim(&mut list, &config);
        assert!(connection.is_cut());
    }
}
