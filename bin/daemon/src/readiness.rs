//! What a daemon says to the command that has started it: one line on standard output.

use std::io::Write as _;

/// It answers on its socket.
pub(crate) const READY: &str = "ready";
/// Another process is the daemon.
pub(crate) const OTHER: &str = "other";

/// Says it. Anything else than the words above is the reason why it ends.
pub(crate) fn tell(what: &str) {
    let mut stdout = std::io::stdout();
    // Nobody may listen.
    let _ = writeln!(stdout, "{}", what.replace('\n', " "));
    let _ = stdout.flush();
}
