//! Points at which tests kill the daemon. Release builds have none.

/// Kills the process, as `kill -9` does, if `KUBEVPN_TEST_DIE_AT` names this point.
pub(crate) fn point(name: &str) {
    if cfg!(debug_assertions)
        && std::env::var_os("KUBEVPN_TEST_DIE_AT").is_some_and(|at| at == name)
    {
        // Not `exit` or `abort`: nothing may be cleaned up or written.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
