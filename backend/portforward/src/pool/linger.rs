//! How many connections may wait for the rest of their linger.
//!
//! A client that has closed looks like one that has half-closed. Each waits up to `Config::linger` for the Pod, and
//! holds a connection to it and a thread of its container runtime meanwhile: at 500 short connections a second, 30 s
//! would make 15,000 of them. So those go first that have most likely closed: the Pod had the last word, and the longest
//! time ago.

use std::sync::Arc;

use crate::config::Config;
use crate::life::Life;

/// Cuts short who waits beyond the bounds, and takes them off the list.
pub(crate) fn trim(lingering: &mut Vec<Arc<Life>>, config: &Config) {
    // One that is in the middle of receiving is never cut.
    let quiet = |l: &Arc<Life>| l.quiet_since().is_some();
    let answered = |l: &Arc<Life>| l.is_answered() && quiet(l);
    let many = lingering.iter().filter(|l| answered(l)).count();
    if many > config.lingering_answered {
        cut_quietest(lingering, answered);
    }
    if lingering.len() > config.lingering && !cut_quietest(lingering, answered) {
        cut_quietest(lingering, quiet);
    }
}

fn cut_quietest(lingering: &mut Vec<Arc<Life>>, fit: impl Fn(&Arc<Life>) -> bool) -> bool {
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
    use crate::life::Epoch;

    #[tokio::test(start_paused = true)]
    async fn who_has_the_answer_goes_first() {
        let config = Config {
            lingering_answered: 2,
            lingering: 4,
            ..Config::default()
        };
        let epoch = Epoch::new();
        let mut list = Vec::new();
        let mut lives = Vec::new();
        // By turns one that waits for its answer and one that has it.
        for n in 0..8 {
            let life = Arc::new(Life::new(epoch));
            life.wrote(1);
            if n % 2 == 1 {
                life.heard(1);
                life.quiet();
            }
            advance(Duration::from_millis(10)).await;
            lives.push(life.clone());
            list.push(life);
            trim(&mut list, &config);
        }
        let cut: Vec<_> = lives.iter().map(|l| l.is_cut()).collect();
        // With the fifth, sixth and seventh there are more than four, with the eighth too; those with an answer go.
        assert_eq!(cut, [false, true, false, true, false, true, false, true]);
        assert_eq!(list.len(), 4);
        // Who waits for an answer goes when nobody else is left.
        list.push(lives[1].clone());
        lives[1].wrote(1);
        trim(&mut list, &config);
        assert!(lives[0].is_cut());
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_is_not_cut() {
        let config = Config {
            lingering_answered: 0,
            lingering: 0,
            ..Config::default()
        };
        let life = Arc::new(Life::new(Epoch::new()));
        life.heard(1);
        let mut list = vec![life.clone()];
        trim(&mut list, &config);
        assert!(!life.is_cut());
        life.quiet();
        trim(&mut list, &config);
        assert!(life.is_cut());
    }
}
