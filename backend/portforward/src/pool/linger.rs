//! How many connections may wait for the rest of their linger.
//!
//! A client that has closed looks like one that has half-closed. Each waits up to `Config::linger` for the Pod, and
//! holds a connection to it and a thread of its container runtime meanwhile: at 500 short connections a second, 30 s
//! would make 15,000 of them. So those go first that have most likely closed: the Pod had the last word, and the longest
//! time ago.

use std::sync::Arc;

use crate::config::Config;
use crate::stats::Connection;

/// Cuts short who waits beyond the bounds, and takes them off the list.
pub(crate) fn trim(lingering: &mut Vec<Arc<Connection>>, config: &Config) {
    // One that is in the middle of receiving is never cut.
    let quiet = |l: &Arc<Connection>| l.quiet_since().is_some();
    let answered = |l: &Arc<Connection>| l.is_answered() && quiet(l);
    let many = lingering.iter().filter(|l| answered(l)).count();
    if many > config.lingering_answered {
        cut_quietest(lingering, answered);
    }
    if lingering.len() > config.lingering && !cut_quietest(lingering, answered) {
        cut_quietest(lingering, quiet);
    }
}

fn cut_quietest(
    lingering: &mut Vec<Arc<Connection>>,
    fit: impl Fn(&Arc<Connection>) -> bool,
) -> bool {
    let quietest = lingering
        .iter()
        .enumerate()
        .filter(|(_, l)| fit(l))
        .min_by_key(|(_, l)| l.quiet_since());
    match quietest {
        Some((index, _)) => {
            lingering.remove(index).cut();
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::stats::Epoch;

    #[tokio::test(start_paused = true)]
    async fn who_has_the_answer_goes_first() {
        let config = Config {
            lingering_answered: 2,
            lingering: 4,
            ..Config::default()
        };
        let epoch = Epoch::new();
        let mut list = Vec::new();
        let mut connections = Vec::new();
        // By turns one that waits for its answer and one that has it.
        for n in 0..8 {
            let connection = Arc::new(Connection::new(epoch));
            connection.wrote(1);
            if n % 2 == 1 {
                connection.heard(1);
                connection.quiet();
            }
            advance(Duration::from_millis(10)).await;
            connections.push(connection.clone());
            list.push(connection);
            trim(&mut list, &config);
        }
        let cut: Vec<_> = connections.iter().map(|l| l.is_cut()).collect();
        // With the fifth, sixth and seventh there are more than four, with the eighth too; those with an answer go.
        assert_eq!(cut, [false, true, false, true, false, true, false, true]);
        assert_eq!(list.len(), 4);
        // Who waits for an answer goes when nobody else is left.
        list.push(connections[1].clone());
        connections[1].wrote(1);
        trim(&mut list, &config);
        assert!(connections[0].is_cut());
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_is_not_cut() {
        let config = Config {
            lingering_answered: 0,
            lingering: 0,
            ..Config::default()
        };
        let connection = Arc::new(Connection::new(Epoch::new()));
        connection.heard(1);
        let mut list = vec![connection.clone()];
        trim(&mut list, &config);
        assert!(!connection.is_cut());
        connection.quiet();
        trim(&mut list, &config);
        assert!(connection.is_cut());
    }
}
