//! The line on standard output by which the daemon reports to the command that started it.

use std::io::Write as _;

/// The daemon answers on its socket.
pub(crate) const READY: &str = "ready";
/// Another process is the daemon.
pub(crate) const OTHER: &str = "other";

/// Prints the line. Any other text than the two above is the reason why the daemon ends.
pub(crate) fn tell(what: &str) {
    let mut stdout = std::io::stdout();
    // The command may have ended.
    let _ = writeln!(stdout, "{}", what.replace('\n', " "));
    let _ = stdout.flush();
}
