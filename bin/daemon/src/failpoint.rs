//! Where tests kill the daemon: nothing in a release build.

/// The process is gone at this point, as after `kill -9`, if `KUBEVPN_TEST_DIE_AT` names it.
pub(crate) fn point(name: &str) {
    if cfg!(debug_assertions)
        && std::env::var_os("KUBEVPN_TEST_DIE_AT").is_some_and(|at| at == name)
    {
        // Not `exit` or `abort`: nothing may be cleaned up or written.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
