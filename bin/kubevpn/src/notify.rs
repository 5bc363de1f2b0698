//! Messages to the service manager (`sd_notify(3)`): ready, status, stopping. Without `NOTIFY_SOCKET` in the environment,
//! nothing is sent.

use std::fmt::Display;

use crate::out;

/// Reports that the proxy serves.
pub(crate) fn ready(status: impl Display) {
    tell(Some(ServiceState::Ready), &status);
}

/// Reports what the proxy does, for `systemctl status`.
pub(crate) fn status(status: impl Display) {
    tell(None, &status);
}

/// Reports that the drain has begun.
pub(crate) fn stopping(status: impl Display) {
    tell(Some(ServiceState::Stopping), &status);
}

/// States that the service manager acts on.
#[derive(Clone, Copy)]
enum ServiceState {
    Ready,
    Stopping,
}

/// Errors are ignored: the proxy serves its clients even if its manager cannot be reached.
#[cfg(target_os = "linux")]
fn tell(state: Option<ServiceState>, status: &dyn Display) {
    use sd_notify::NotifyState;

    // The status is escaped, because a newline in it would begin another assignment.
    let status = status.to_string();
    let status = out::escaped(&status);
    let state = state.map(|state| match state {
        ServiceState::Ready => NotifyState::Ready,
        ServiceState::Stopping => NotifyState::Stopping,
    });
    let states: Vec<_> = state
        .into_iter()
        .chain([NotifyState::Status(&status)])
        .collect();
    if let Err(error) = sd_notify::notify(&states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(not(target_os = "linux"))]
fn tell(_: Option<ServiceState>, _: &dyn Display) {}
