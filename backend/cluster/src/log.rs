//! Logs of unit tests: one subscriber for the process, with a log for each thread. Several subscribers would race for
//! tracing's cache of interests.

use std::cell::RefCell;
use std::io;
use std::sync::Once;

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct ThreadLog;

impl io::Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Empties the log of this thread.
pub(crate) fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter("kubevpn_cluster=debug")
            .with_ansi(false)
            .with_level(false)
            .with_target(false)
            .without_time()
            .with_writer(|| ThreadLog)
            .init();
    });
    LOG.take();
}

/// The lines that our own crate has logged on this thread since.
pub(crate) fn lines() -> Vec<String> {
    let log = String::from_utf8(LOG.take()).unwrap();
    log.lines().map(|line| line.trim().to_owned()).collect()
}
