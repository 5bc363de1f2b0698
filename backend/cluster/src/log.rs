//! What is logged in a unit test: one subscriber for the process, a log for each thread, as several subscribers
//! race for what tracing caches about who is interested in what.

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

/// What our own crate has said on this thread since.
pub(crate) fn lines() -> Vec<String> {
    let log = String::from_utf8(LOG.take()).unwrap();
    log.lines().map(|line| line.trim().to_owned()).collect()
}
