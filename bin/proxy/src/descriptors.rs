//! The limit on open files, which is the real limit on connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not used for connections.
const OTHERS: u64 = 256;

/// Raises this process's limit, as far as the system permits, to two descriptors for each of `connections`. The usual 1,024
/// would suffice for about 500.
pub fn allow_for(connections: usize) {
    let wanted = (connections as u64)
        .saturating_mul(2)
        .saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    // `None` means no limit.
    let Some(current) = limit.current.filter(|current| *current < wanted) else {
        return;
    };
    let raised = Rlimit {
        current: Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted))),
        maximum: limit.maximum,
    };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current.unwrap_or(wanted),
        Err(error) => {
            tracing::debug!(%error, "the limit on open files stays as it is");
            current
        }
    };
    if now < wanted {
        let fit = now.saturating_sub(OTHERS) / 2;
        tracing::info!(
            "the system lets this program open {now} files, enough for some {fit} connections: for all {connections} \
             that are allowed raise the hard limit to {wanted} (ulimit -Hn)"
        );
    }
}
